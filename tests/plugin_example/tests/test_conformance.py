"""The nodes and the detector keep what lima2 asks of all."""

from lima2_example.bars import Bars
from lima2_example.power import Power
from lima2_example.threshold import Threshold

from lima2cli.testing import DetectorTests, NodeTests, frame_spec


class TestThreshold(NodeTests):
    node = Threshold(below=100)
    specs = (frame_spec("uint16", 12, 10), frame_spec("int8", 5, 7), frame_spec("float32", 12, 10))


class TestPower(NodeTests):
    node = Power(exponent=0.5)
    specs = (frame_spec("uint16", 12, 10), frame_spec("float32", 12, 10))


class TestBars(DetectorTests):
    config = Bars(size=30, bar=4)
