"""A pipeline with all defaults filled and all names resolved: the input of the plan.

Values reported as wrong are `POISON` here, so that later checks skip them and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lima2cli.detectors.base import DetectorConfig
from lima2cli.diagnostics import KeyPath
from lima2cli.frames import DetectorInfo
from lima2cli.geometry import Rect
from lima2cli.language.records import Acquisition, Flow, Metadata, Output, ReceiverTable
from lima2cli.nodes.base import Node


@dataclass(frozen=True)
class BufferPlace:
    """The place of a local buffer: index of the receiver, name of one of its memspaces."""

    receiver: int
    memspace: str


@dataclass(frozen=True)
class DataFlow:
    """A data flow, resolved.

    config   slices, rules, events, buffers and alignment as the user wrote them, defaults filled
    dataset  index of its dataset in the detector
    source   the part of the image it takes; inside the image
    places   of its local buffers, in rotation order; at least one
    shares   module numbers of each place, where it gets some modules of every frame; None for whole frames
    overrun  wait, stop or continue
    """

    name: str
    config: Flow
    dataset: int
    source: Rect
    places: tuple[BufferPlace, ...]
    shares: tuple[tuple[int, ...], ...] | None
    overrun: str


@dataclass(frozen=True)
class GraphNode:
    """A node of the graph.

    reads   the flows or nodes that it reads, each by its place below the node: ``("input",)``, ``("inputs", name)``
    flow    the flow that feeds it
    tables  nodes of which it reads rows, too
    """

    name: str
    reads: Mapping[KeyPath, str]
    flow: str
    node: Node
    tables: tuple[str, ...] = ()

    @property
    def inputs(self) -> Mapping[str, str]:
        """Return the sources of a join, by the names of its inputs; empty for other nodes."""
        return {str(place[1]): source for place, source in self.reads.items() if len(place) > 1}


@dataclass(frozen=True)
class Pipeline:
    """The whole pipeline. Receivers are numbered in the order of ``receivers``.

    config    the detector as the user wrote it;  detector  as it describes itself
    nodes     in topological order: a node comes after the nodes that it reads; else as written
    """

    name: str
    description: str | None
    metadata: Metadata
    config: DetectorConfig
    detector: DetectorInfo
    acquisition: Acquisition
    receivers: Mapping[str, ReceiverTable]
    flows: Mapping[str, DataFlow]
    nodes: Mapping[str, GraphNode]
    output: Output
