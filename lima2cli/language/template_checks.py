"""Check named graphs and nodes that use them, whether the graphs are used or not."""

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Findings, KeyPath, Related, did_you_mean, nearest
from lima2cli.language.definitions import DefinedGraph, Library, source_of, unknown_graph
from lima2cli.language.templates import references
from lima2cli.language.wiring import find_cycles
from lima2cli.nodes.registry import GRAPH, WIRING


@dataclass(frozen=True)
class Use:
    """A node that stands for a graph.

    graph      its name;  arguments   values given for its parameters
    reads      names of the sources it reads, by place: ``("input",)``, or ``("inputs", name)``
    """

    graph: str
    arguments: Mapping[str, Any]
    reads: Mapping[KeyPath, str]

    def connected(self, graph: DefinedGraph) -> Mapping[str, KeyPath]:
        """Return the connected inputs of the graph, each with the place that names its source."""
        if ("input",) in self.reads:
            return {graph.inputs[0]: ("input",)} if len(graph.inputs) == 1 else {}
        return {name: ("inputs", name) for name in graph.inputs if ("inputs", name) in self.reads}


def is_use(entry: Any) -> bool:
    """Return True if a node is meant to stand for a graph."""
    return isinstance(entry, dict) and GRAPH in entry


def use_of(entry: Any) -> Use | None:
    """Return the use in an entry of `nodes`; None where it is none, or wrongly written."""
    if not is_use(entry) or len(entry) != 2:
        return None
    graph, reads = entry[GRAPH], reads_of(entry)
    if not isinstance(graph, dict) or len(graph) != 1 or not reads:
        return None
    ((name, arguments),) = graph.items()
    return Use(name, arguments or {}, reads) if isinstance(arguments, dict | None) else None


def named_graphs(entries: Iterable[Any]) -> set[str]:
    """Return the names of graphs that stand in nodes, well written or not."""
    graphs = [entry[GRAPH] for entry in entries if is_use(entry)]
    return {name for graph in graphs for name in (graph if isinstance(graph, dict) else [str(graph)])}


def reads_of(entry: Mapping[str, Any]) -> dict[KeyPath, str]:
    """Return the names of sources that a node reads, by place, as far as they are strings."""
    read: dict[KeyPath, str] = {}
    if isinstance(entry.get("input"), str):
        read[("input",)] = entry["input"]
    if isinstance(entry.get("inputs"), dict):
        read |= {("inputs", name): source for name, source in entry["inputs"].items() if isinstance(source, str)}
    return read


def check_written(entry: Mapping[str, Any], at: KeyPath, findings: Findings) -> None:
    """Report mistakes in the keys of a use that no schema finds."""
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


def check_use(use: Use, at: KeyPath, root: KeyPath, library: Library, findings: Findings) -> None:
    """Report mistakes of a use in the document of ``root``."""
    graph = library.find(use.graph, root)
    if graph is not None:
        _check_arguments(use, graph, (*at, GRAPH, use.graph), findings)
        _check_inputs(use, graph, at, findings)
    elif use.graph not in library.defined(root):
        unknown_graph(use.graph, library.defined(root), (*at, GRAPH, use.graph), findings)


def _check_arguments(use: Use, graph: DefinedGraph, at: KeyPath, findings: Findings) -> None:
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


def _check_inputs(use: Use, graph: DefinedGraph, at: KeyPath, findings: Findings) -> None:
    """Check the inputs of a use: a graph of one input may take it from ``input``; else all are named."""
    help = f"`inputs: {{{', '.join(f'{name}: …' for name in graph.inputs)}}}`"
    if ("input",) in use.reads:
        if len(graph.inputs) > 1:
            message = f"the graph `{graph.name}` has {len(graph.inputs)} inputs: {', '.join(graph.inputs)}"
            findings.error("wrong-input", message, (*at, "input"), on_key=True, help=help)
        return
    unknown = [place for place in use.reads if place[1] not in graph.inputs]
    for place in unknown:
        message = f"the graph `{graph.name}` has no input `{place[1]}`"
        proposal = did_you_mean(str(place[1]), graph.inputs)
        findings.error("wrong-input", message, (*at, *place), on_key=True, help=proposal)
    for name in graph.inputs if not unknown else ():
        if ("inputs", name) not in use.reads:
            message = f"nothing is connected to the input `{name}` of the graph `{graph.name}`"
            findings.error("wrong-input", message, (*at, "inputs"), on_key=True, help=help)


def check_graphs(library: Library, findings: Findings) -> frozenset[KeyPath]:
    """Report the mistakes of all graphs, and the pipeline's graphs that are unused; return the paths of bad values."""
    graphs = {}
    for name, root in library.all():
        defined = library.find(name, root)
        _check_source(name, root, library, findings)
        if defined is not None:
            graphs[defined.at] = defined
    bad = [path for graph in graphs.values() for path in _check_graph(graph, library, findings)]
    _check_cycles(graphs, library, findings)
    return frozenset(bad)


def inner_uses(graph: DefinedGraph) -> dict[KeyPath, Use]:
    """Return the graphs that a graph uses itself, by place."""
    uses = {(*graph.at, "nodes", name): use_of(entry) for name, entry in graph.nodes.items()}
    return {at: use for at, use in uses.items() if use is not None}


def warn_of_unused(library: Library, names: Collection[str], findings: Findings) -> None:
    """Warn of graphs of the pipeline that no node uses; not where an unknown name may have meant any of them."""
    ahead: list[tuple[str, KeyPath]] = [(name, ()) for name in names]
    if any(name not in library.defined(()) for name, _ in ahead):
        return
    used: set[tuple[str, KeyPath]] = set()
    while ahead:
        name, root = ahead.pop()
        if (name, root) not in used:
            used.add((name, root))
            graph = library.find(name, root)
            if graph is not None:
                ahead += [(other, graph.root) for other in named_graphs(graph.nodes.values())]
                used.add((graph.name, graph.root))
    for name in library.defined(()):
        if (name, ()) not in used:
            findings.warning("unused-graph", f"no node uses the graph `{name}`", ("graphs", name), on_key=True)


def _check_source(name: str, root: KeyPath, library: Library, findings: Findings) -> None:
    """Report a graph that is absent from the file it is taken from."""
    entry = library.defined(root)[name]
    if not isinstance(entry, dict) or "file" not in entry or entry.keys() - {"file", "name"}:
        return
    at = (*root, "graphs", name, "name" if "name" in entry else "file")
    inner, source = source_of(name, entry, root)
    if not source or source[0] not in library.others or not library.defined(source):
        return
    if inner not in library.defined(source):
        unknown_graph(inner, library.defined(source), at, findings)
        return
    trail = [(name, root)]
    while isinstance(entry, dict) and "file" in entry:
        name, root = source_of(name, entry, root)
        if (name, root) == trail[0]:
            message = f"the graph `{name}` is taken from a file that takes it from here"
            findings.error("graph-cycle", message, at)
        if (name, root) in trail:
            return
        trail.append((name, root))
        entry = library.defined(root).get(name) if not root or root[0] in library.others else None


def _check_graph(graph: DefinedGraph, library: Library, findings: Findings) -> list[KeyPath]:
    """Check one graph; return the paths that must not be read any more."""
    inside: KeyPath = (*graph.at, "nodes")
    for name in graph.nodes:
        if name in graph.inputs:
            message = f"`{name}` is the name of an input and of a node"
            related = [Related((*graph.at, "inputs"), "the inputs")]
            findings.error("name-taken", message, (*inside, name), on_key=True, related=related)
    if graph.output is not None and graph.output not in graph.nodes:
        message = f"the graph `{graph.name}` has no node `{graph.output}`"
        findings.error("unknown-output", message, (*graph.at, "output"), help=did_you_mean(graph.output, graph.nodes))
    for at, use in inner_uses(graph).items():
        check_use(use, at, graph.root, library, findings)
    for name, entry in graph.nodes.items():
        if is_use(entry):
            check_written(entry, (*inside, name), findings)
    return _check_wiring(graph, findings) + _check_parameters(graph, findings)


def _check_wiring(graph: DefinedGraph, findings: Findings) -> list[KeyPath]:
    """Report nodes of a graph that read anything but its inputs and each other."""
    known, bad, read = [*graph.inputs, *graph.nodes], [], set()
    for name, entry in graph.nodes.items():
        for place, source in reads_of(entry).items() if isinstance(entry, dict) else ():
            read.add(source)
            if source not in known:
                at = (*graph.at, "nodes", name, *place)
                message = f"`{name}` reads `{source}`, which is neither an input nor a node of the graph `{graph.name}`"
                help = did_you_mean(source, [other for other in known if other != name])
                findings.error("unknown-input", message, at, help=help)
                bad.append(at)
    for i, name in enumerate(graph.inputs):
        if name not in read and not bad:
            at = (*graph.at, "inputs", i)
            findings.warning("unused-input", f"no node of the graph `{graph.name}` reads its input `{name}`", at)
    return bad


def _check_parameters(graph: DefinedGraph, findings: Findings) -> list[KeyPath]:
    bad, used = [], set()
    for name, entry in graph.nodes.items():
        for below, parameter in references(entry):
            if below[:1] and below[0] in WIRING:
                continue
            used.add(parameter)
            if parameter not in graph.parameters:
                at = (*graph.at, "nodes", name, *below)
                message = f"the graph `{graph.name}` has no parameter `{parameter}`"
                help = did_you_mean(parameter, graph.parameters) or f"`parameters: {{{parameter}: …}}` makes it one"
                findings.error("unknown-parameter", message, at, help=help)
                bad.append(at)
    for parameter in graph.parameters:
        if parameter not in used and not bad:
            message = f"`$({parameter})` is not used in the graph `{graph.name}`"
            findings.warning("unused-parameter", message, (*graph.at, "parameters", parameter), on_key=True)
    return bad


def _check_cycles(graphs: Mapping[KeyPath, DefinedGraph], library: Library, findings: Findings) -> None:
    """Report graphs that use themselves, through others or not."""
    edges: dict[KeyPath, dict[KeyPath, KeyPath]] = {}
    for at, graph in graphs.items():
        targets = {place: library.find(use.graph, graph.root) for place, use in inner_uses(graph).items()}
        edges[at] = {target.at: place for place, target in targets.items() if target is not None}
    for cycle in find_cycles({at: tuple(reached) for at, reached in edges.items()}):
        first, *rest = cycle
        around = [first, *reversed(rest), first]
        places = [edges[user][used] for user, used in pairwise(around)]
        words = " → ".join(graphs[at].name for at in around)
        related = [Related(place, "and here") for place in places[1:]]
        message = f"the graph `{graphs[first].name}` uses itself: {words}"
        findings.error("graph-cycle", message, places[0], on_key=True, related=related)
