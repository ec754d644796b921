"""Conformance tests of nodes and detectors: the promises of each role, as tests that a package inherits.

    class TestThreshold(NodeTests):
        node = Threshold(below=100)
        specs = (frame_spec("uint16", 12, 10),)

    class TestBars(DetectorTests):
        config = Bars(size=30)

Needs pytest. Tests of another role of node (those of a table, where the node is a map) are left out.
"""

from lima2cli.testing.detectors import DetectorTests
from lima2cli.testing.inputs import NoFiles, frame_block, frame_spec, random_frames
from lima2cli.testing.nodes import NodeTests

__all__ = ["DetectorTests", "NoFiles", "NodeTests", "frame_block", "frame_spec", "random_frames"]
