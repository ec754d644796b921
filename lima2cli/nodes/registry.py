"""The kinds of node that exist, and how one is written: ``input`` or ``inputs``, and exactly one kind."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from lima2cli.dataclass import dataclass
from lima2cli.declare import Anything, MapOf, Schema, Shape, Text, kind_schemas, read_kind
from lima2cli.diagnostics import POISON, KeyPath
from lima2cli.nodes.base import Exchange, Map, Node, Reduce, Select, Sink, Transform
from lima2cli.plugins import Kinds

if TYPE_CHECKING:
    from lima2cli.declare.reading import Reading

BUILT_IN: Mapping[str, str] = {
    "checkpoint": "lima2cli.nodes.checkpoint:Checkpoint",
    "io_hdf5": "lima2cli.nodes.io_hdf5:IoHdf5",
    "roi_flip_rot": "lima2cli.nodes.roi_flip_rot:RoiFlipRot",
    "reconstruction": "lima2cli.nodes.reconstruction:Reconstruction",
    "roi_counters": "lima2cli.nodes.roi_counters:RoiCounters",
    "roi_profiles": "lima2cli.nodes.roi_profiles:RoiProfiles",
    "background_sub": "lima2cli.nodes.background_sub:BackgroundSub",
    "flatfield": "lima2cli.nodes.flatfield:Flatfield",
    "mask": "lima2cli.nodes.mask:Mask",
    "gain": "lima2cli.nodes.gain:Gain",
    "python": "lima2cli.nodes.python:Python",
    "mpi": "lima2cli.nodes.mpi:Mpi",
    "expression": "lima2cli.nodes.expression:Expression",
    "accumulate": "lima2cli.nodes.accumulate:Accumulate",
    "sparsify": "lima2cli.nodes.sparsify:Sparsify",
    "histogram": "lima2cli.nodes.histogram:Histogram",
    "project": "lima2cli.nodes.project:Project",
    "filter": "lima2cli.nodes.filter:Filter",
    "io_stream": "lima2cli.nodes.io_stream:IoStream",
    "azimuthal": "lima2cli.nodes.azimuthal:Azimuthal",
    "peaks": "lima2cli.nodes.peaks:Peaks",
}
"""The places of the tables of the built-in nodes, by kind; one is imported where it is asked for."""

WIRING = ("input", "inputs")
"""Keys of a node that are not kinds: what it reads, one or several."""

GRAPH = "graph"
"""Stands in place of a kind where a node is a use of a named graph; gone once graphs are expanded."""

ROLES: tuple[type[Node], ...] = (Map, Transform, Select, Reduce, Exchange, Sink)

NODES: Kinds[Node] = Kinds("node", "lima2cli.nodes", Node, BUILT_IN, ROLES, (*WIRING, GRAPH))
"""All kinds of node, those of installed packages among them."""


def node_kinds() -> Mapping[str, type[Node]]:
    """Tables of the built-in nodes by kind; all are imported."""
    return NODES.tables()


LANGUAGE = (
    "checkpoint", "io_hdf5", "roi_flip_rot", "reconstruction", "roi_counters", "roi_profiles", "background_sub",
    "flatfield", "mask", "gain", "python", "mpi", "expression", "accumulate", "sparsify", "histogram", "project",
    "filter", "io_stream", "azimuthal", "peaks",
)  # fmt: skip
"""All kinds of the language; those not built in are reported as "not available in this version" rather than unknown."""


INPUT_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
"""Names of inputs are those of variables."""


class _GraphUse(Shape):
    """A graph of `graphs`, by its name, with its parameters."""

    sorts = ("mapping",)

    def schema(self) -> Schema:
        return {
            "type": "object",
            "description": "A graph of `graphs`, by its name, with its parameters.",
            "additionalProperties": {"type": ["object", "null"]},
            "minProperties": 1,
            "maxProperties": 1,
            "x-words": "a graph with its parameters, such as `{corrected: {}}`",
        }

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        if not isinstance(data, dict):
            return reading.refuse("type", data, self, at)
        for name, arguments in data.items():
            below = reading.key(name, at)
            reading.look(arguments, below)
            if not isinstance(arguments, dict | None):
                reading.fault("type", arguments, _ARGUMENTS, below)
        return data if data else reading.fault("minProperties", data, self, at)


_USE, _ARGUMENTS = _GraphUse(), MapOf(Anything())
_SOURCE, _SOURCES = Text(may_hide=True), MapOf(Text(may_hide=True), INPUT_NAME, 1)


@dataclass(frozen=True)
class NodeUse:
    """A node of the graph, and the flows and nodes that it reads.

    Each of these is named by its place below the node, ``("input",)`` or ``("inputs", name)``.
    """

    reads: Mapping[KeyPath, str]
    node: Node


@dataclass(frozen=True)
class NodeEntry(Shape):
    """A node as users write it, read as a `NodeUse`; ``kinds`` as in `OneKind`."""

    kinds: Callable[[], Mapping[str, Any]] = node_kinds

    def schema(self) -> Schema:
        """Return the schema: what it reads, and exactly one kind."""
        tables = self.kinds()
        kinds = kind_schemas(tables)
        one = _SOURCE.schema() | {"description": "The flow or node that it reads."}
        several = _SOURCES.schema() | {"description": "Flows or nodes that it reads, by name."}
        return {
            "type": "object",
            "x-kind": "node",  # before what is said of the values
            "x-beside": list(WIRING),
            "properties": {"input": one, "inputs": several} | kinds | {GRAPH: _USE.schema()},
            "additionalProperties": False,
            "dependentRequired": {
                kind: ["input"] for kind, table in tables.items() if table is not None and table.wiring == "input"
            },
            "minProperties": 2,
            "maxProperties": 2,
            "x-joins": [kind for kind, table in tables.items() if table is not None and table.wiring == "inputs"],
            "x-later": [kind for kind in LANGUAGE if kind not in kinds],
        }

    def known_keys(self) -> Collection[str]:
        """See `Shape.known_keys`."""
        return (*WIRING, *self.kinds(), GRAPH)

    def _read(self, data: Any, at: KeyPath, reading: "Reading") -> Any:
        if not isinstance(data, dict):
            return reading.refuse("type", data, self, at)
        kinds = self.kinds()
        if not _is_plain(data, kinds):
            reading.check_keys(data, self, at)
        reading.look_at_others(data, self.known_keys(), at)
        reads: Any = POISON  # its absence has been reported
        if "input" in data:
            source = _SOURCE.read(data["input"], reading.key("input", at), reading)
            reads = POISON if (*at, "input") in reading.bad else {("input",): source}
        if "inputs" in data:
            sources = _SOURCES.read(data["inputs"], reading.key("inputs", at), reading)
            if sources is not POISON:
                reads = {("inputs", name): source for name, source in sources.items()}
        node = read_kind(kinds, data, at, reading)
        if GRAPH in data:
            _USE.read(data[GRAPH], reading.key(GRAPH, at), reading)
        return NodeUse(reads, node if not any((*at, kind) in reading.bad for kind in data if kind in kinds) else POISON)


def _is_plain(data: Mapping[str, Any], kinds: Mapping[str, Any]) -> bool:
    """Return True if a node has one kind, and names what it reads as that kind does."""
    if len(data) != 2:
        return False
    kind = next((key for key in data if key in kinds), None)
    return kind is not None and kinds[kind] is not None and kinds[kind].wiring in data
