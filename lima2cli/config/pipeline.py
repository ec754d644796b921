"""A pipeline with all defaults filled and all names resolved: what the plan is compiled from.

What was reported as wrong is `POISON` here, so that later checks skip it and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lima2cli.config.records import Acquisition, Flow, Metadata, Output, Receiver
from lima2cli.detectors.base import DetectorConfig
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Node
from lima2cli.spec import DetectorInfo


@dataclass(frozen=True)
class ResolvedFlow:
    """A data flow.

    table    slices, rules, events, buffers and alignment as the user wrote them, defaults filled
    dataset  index of its dataset in the detector
    source   the part of the image that it takes; inside the image
    places   (index of the receiver, name of its memspace) of the local buffers, in rotation order; at least one
    """

    name: str
    table: Flow
    dataset: int
    source: Rect
    places: tuple[tuple[int, str], ...]
    overrun: Literal["wait", "stop", "continue"]


@dataclass(frozen=True)
class ResolvedNode:
    """A node of the graph: ``source`` names the flow or node that it reads, ``flow`` the flow that feeds it."""

    name: str
    source: str
    flow: str
    node: Node


@dataclass(frozen=True)
class Pipeline:
    """The whole pipeline. Receivers are numbered in the order of ``receivers``.

    detector  as the user wrote it;  info  as it describes itself
    nodes     in topological order: a node comes after the node that it reads; else as written
    """

    name: str
    description: str | None
    metadata: Metadata
    detector: DetectorConfig
    info: DetectorInfo
    acquisition: Acquisition
    receivers: Mapping[str, Receiver]
    flows: Mapping[str, ResolvedFlow]
    nodes: Mapping[str, ResolvedNode]
    output: Output
