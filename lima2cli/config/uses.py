"""Nodes that use graphs: how they are written, and what can be wrong with a use."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lima2cli.config.definitions import Graph, Library, unknown_graph
from lima2cli.diagnostics import Findings, Path, Related
from lima2cli.names import did_you_mean, nearest
from lima2cli.nodes.kinds import GRAPH, WIRING


@dataclass(frozen=True)
class Use:
    """A node that stands for a graph.

    graph      its name;  arguments   what is given for its parameters
    reads      names of what it reads, by place: ``("input",)``, or ``("inputs", name)``
    """

    graph: str
    arguments: Mapping[str, Any]
    reads: Mapping[Path, str]

    def connected(self, graph: Graph) -> Mapping[str, Path]:
        """The inputs of the graph that are connected, each with the place that says to what."""
        if ("input",) in self.reads:
            return {graph.inputs[0]: ("input",)} if len(graph.inputs) == 1 else {}
        return {name: ("inputs", name) for name in graph.inputs if ("inputs", name) in self.reads}


def is_use(entry: Any) -> bool:
    """Whether a node is meant to stand for a graph."""
    return isinstance(entry, dict) and GRAPH in entry


def use_of(entry: Any) -> Use | None:
    """The use that an entry of `nodes` is; None where it is none, or wrongly written."""
    if not is_use(entry) or len(entry) != 2:
        return None
    graph, reads = entry[GRAPH], reads_of(entry)
    if not isinstance(graph, dict) or len(graph) != 1 or not reads:
        return None
    ((name, arguments),) = graph.items()
    return Use(name, arguments or {}, reads) if isinstance(arguments, dict | None) else None


def named_graphs(entries: Iterable[Any]) -> set[str]:
    """The names of graphs that stand in nodes, well written or not."""
    graphs = [entry[GRAPH] for entry in entries if is_use(entry)]
    return {name for graph in graphs for name in (graph if isinstance(graph, dict) else [str(graph)])}


def reads_of(entry: Mapping[str, Any]) -> dict[Path, str]:
    """What a node reads, by place, as far as it is text."""
    read: dict[Path, str] = {}
    if isinstance(entry.get("input"), str):
        read[("input",)] = entry["input"]
    if isinstance(entry.get("inputs"), dict):
        read |= {("inputs", name): source for name, source in entry["inputs"].items() if isinstance(source, str)}
    return read


def check_written(entry: Mapping[str, Any], at: Path, findings: Findings) -> None:
    """Report what is wrong with the keys of a use and no schema tells."""
    if all(key in entry for key in WIRING):
        related = [Related((*at, "input"), "the other")]
        message = f"`{at[-1]}` has both `input` and `inputs`"
        findings.error("wrong-input", message, (*at, "inputs"), on_key=True, related=related)
    graph = entry[GRAPH]
    if isinstance(graph, dict) and len(graph) > 1:
        first, second, *_ = graph
        message = f"`{at[-1]}` uses {len(graph)} graphs; exactly one is needed"
        related = [Related((*at, GRAPH, first), "the first")]
        findings.error("one-kind", message, (*at, GRAPH, second), on_key=True, related=related)


def check_use(use: Use, at: Path, root: Path, library: Library, findings: Findings) -> None:
    """Report what is wrong with a use in the document of ``root``."""
    graph = library.find(use.graph, root)
    if graph is not None:
        _check_arguments(use, graph, (*at, GRAPH, use.graph), findings)
        _check_inputs(use, graph, at, findings)
    elif use.graph not in library.defined(root):
        unknown_graph(use.graph, library.defined(root), (*at, GRAPH, use.graph), findings)


def _check_arguments(use: Use, graph: Graph, at: Path, findings: Findings) -> None:
    missing = {name for name, default in graph.parameters.items() if default is None}
    missing -= {name for name, value in use.arguments.items() if value is not None}
    for name in use.arguments:
        if name not in graph.parameters:
            missing.discard(nearest(name, missing) or "")
            help = did_you_mean(name, graph.parameters) or "it has no parameters"
            message = f"the graph `{graph.name}` has no parameter `{name}`"
            findings.error("unknown-parameter", message, (*at, name), on_key=True, help=help)
    for name in sorted(missing):
        message = f"the graph `{graph.name}` needs its parameter `{name}`"
        related = [Related((*graph.at, "parameters", name), "it has no default")]
        help = f"`{use.graph}: {{{name}: …}}`"
        findings.error("missing-parameter", message, at, on_key=True, related=related, help=help)


def _check_inputs(use: Use, graph: Graph, at: Path, findings: Findings) -> None:
    """A graph of one input may take it from ``input``; else all are named."""
    help = f"`inputs: {{{', '.join(f'{name}: …' for name in graph.inputs)}}}`"
    if ("input",) in use.reads:
        if len(graph.inputs) > 1:
            message = f"the graph `{graph.name}` has {len(graph.inputs)} inputs: {', '.join(graph.inputs)}"
            findings.error("wrong-input", message, (*at, "input"), on_key=True, help=help)
        return
    unknown = [place for place in use.reads if place[1] not in graph.inputs]
    for place in unknown:
        message = f"the graph `{graph.name}` has no input `{place[1]}`"
        meant = did_you_mean(str(place[1]), graph.inputs)
        findings.error("wrong-input", message, (*at, *place), on_key=True, help=meant)
    for name in graph.inputs if not unknown else ():
        if ("inputs", name) not in use.reads:
            message = f"nothing is connected to the input `{name}` of the graph `{graph.name}`"
            findings.error("wrong-input", message, (*at, "inputs"), on_key=True, help=help)
