"""A pipeline with defaults filled in and names resolved: what `parse` gives and `compile_plan` takes.

Anything in it may be `POISON` where a mistake has been reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lima2cli.config.records import Acquisition, Flow, Metadata, Output, Receiver
from lima2cli.detectors.base import DetectorConfig
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Node
from lima2cli.spec import DetectorInfo


@dataclass(frozen=True)
class ResolvedFlow:
    """A flow: ``table`` as written; dataset index, source rectangle, (receiver index, memspace name) of each local
    buffer in rotation order, and the overrun policy, resolved."""

    name: str
    table: Flow
    dataset: int
    source: Rect
    places: tuple[tuple[int, str], ...]
    overrun: str


@dataclass(frozen=True)
class ResolvedNode:
    """A node and the name of the flow or node that it reads."""

    name: str
    source: str
    node: Node


@dataclass(frozen=True)
class Pipeline:
    """Receivers and flows in the order written, nodes in an order in which sources come first."""

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
