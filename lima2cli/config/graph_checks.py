"""What is wrong with graphs as they are defined, whether they are used or not."""

from collections.abc import Collection, Mapping
from itertools import pairwise

from lima2cli.config.definitions import Graph, Library, source_of, unknown_graph
from lima2cli.config.graph import find_cycles
from lima2cli.config.parameters import references
from lima2cli.config.uses import Use, check_use, check_written, is_use, named_graphs, reads_of, use_of
from lima2cli.diagnostics import Findings, Path, Related
from lima2cli.names import did_you_mean
from lima2cli.nodes.kinds import WIRING


def check_graphs(library: Library, findings: Findings) -> frozenset[Path]:
    """Report the mistakes of all graphs, and those of the pipeline that nobody uses; the paths of bad values."""
    graphs = {}
    for name, root in library.all():
        found = library.find(name, root)
        _check_source(name, root, library, findings)
        if found is not None:
            graphs[found.at] = found
    bad = [path for graph in graphs.values() for path in _check_graph(graph, library, findings)]
    _check_cycles(graphs, library, findings)
    return frozenset(bad)


def inner_uses(graph: Graph) -> dict[Path, Use]:
    """The graphs that a graph uses itself, by place."""
    found = {(*graph.at, "nodes", name): use_of(entry) for name, entry in graph.nodes.items()}
    return {at: use for at, use in found.items() if use is not None}


def warn_of_unused(library: Library, names: Collection[str], findings: Findings) -> None:
    """Graphs of the pipeline that no node uses. An unknown name may have meant any of them: nothing is said then."""
    ahead: list[tuple[str, Path]] = [(name, ()) for name in names]
    if any(name not in library.defined(()) for name, _ in ahead):
        return
    used: set[tuple[str, Path]] = set()
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


def _check_source(name: str, root: Path, library: Library, findings: Findings) -> None:
    """Whether the file that a graph is taken from has it."""
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


def _check_graph(graph: Graph, library: Library, findings: Findings) -> list[Path]:
    """One graph; the paths of what it must not be read for any more."""
    inside: Path = (*graph.at, "nodes")
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


def _check_wiring(graph: Graph, findings: Findings) -> list[Path]:
    """The nodes of a graph read its inputs and each other."""
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


def _check_parameters(graph: Graph, findings: Findings) -> list[Path]:
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
            message = f"`$({parameter})` stands nowhere in the graph `{graph.name}`"
            findings.warning("unused-parameter", message, (*graph.at, "parameters", parameter), on_key=True)
    return bad


def _check_cycles(graphs: Mapping[Path, Graph], library: Library, findings: Findings) -> None:
    """Graphs that use themselves, through others or not."""
    edges: dict[Path, dict[Path, Path]] = {}
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
