"""Expand graphs: each use of one becomes plain nodes, named ``<use>_<node>``; the output node has the use's name.

A copied value keeps the place where it was written, so that later findings are reported there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lima2cli.diagnostics import Findings, KeyPath, Related
from lima2cli.document import AS_WRITTEN, Document
from lima2cli.language.definitions import (
    DefinedGraph,
    Library,
    ReadText,
    check_file,
    input_places,
    load_library,
    renamed,
    tables_of,
    with_files,
)
from lima2cli.language.template_checks import (
    Use,
    check_graphs,
    check_use,
    check_written,
    is_use,
    named_graphs,
    reads_of,
    use_of,
    warn_of_unused,
)
from lima2cli.language.templates import Copy, UnfitValue, fill, references, size_of
from lima2cli.nodes.registry import GRAPH, WIRING, with_inputs

LARGEST_SIZE = 50_000
"""Most values and characters of all expanded uses of graphs: some thousand times a real pipeline."""

_USE = 10
"""Size that a use itself counts."""

DEEPEST = 32
"""Most levels of graphs within graphs."""


def expand(document: Document, findings: Findings, read: ReadText, environment: Mapping[str, str]) -> Document:
    """Return the document with plain nodes in place of uses of graphs; report mistakes of graphs and uses."""
    data = document.data
    nodes = data.get("nodes") if isinstance(data, dict) else None
    entries: Mapping[str, Any] = nodes if isinstance(nodes, dict) else {}
    if not isinstance(data, dict) or not ("graphs" in data or any(map(is_use, entries.values()))):
        return document
    library = load_library(document, findings, read, environment, _excused)
    bad = library.bad | check_graphs(library, findings)
    uses = {name: use for name, entry in entries.items() if (use := use_of(entry)) is not None}
    for name, entry in entries.items():
        if is_use(entry):
            check_written(entry, _at(name), findings)
        if name in uses:
            check_use(uses[name], _at(name), (), library, findings)
    warn_of_unused(library, named_graphs(entries.values()), findings)
    bad = bad.union((AS_WRITTEN, *path) for path in document.bad)
    expansion = _Expansion(replace(library, bad=bad), findings)
    expansion.add_all(entries)
    expanded = replace(
        document,
        data={**data, "nodes": expansion.nodes} if isinstance(nodes, dict) else data,
        bad=document.bad | _excused(data) | expansion.bad,
        original=document,
        copied=expansion.copied,
        others=library.others,
        marks=_marks(library) | expansion.marks,
    )
    return with_files(expanded) if library.others else expanded


def is_graph_file(document: Document) -> bool:
    """Return True if a document is no pipeline, but has graphs for pipelines to take."""
    data = document.data
    return isinstance(data, dict) and "graphs" in data and not data.keys() & {"detector", "flows", "nodes"}


def check_graph_file(
    document: Document, findings: Findings, read: ReadText, environment: Mapping[str, str]
) -> Document:
    """Report the mistakes of a file of graphs; return the document, with all that their places need."""
    library = load_library(document, findings, read, environment, _excused)
    check_file(document.file, document, findings, _excused)
    check_graphs(library, findings)
    return replace(document, others={**library.others, document.file: document}, marks=_marks(library))


def _marks(library: Library) -> dict[KeyPath, tuple[Related, ...]]:
    """Return, for each file of graphs, the place that names it, to be added to its diagnostics."""
    return {(file,): (Related(at, "named here"),) for file, at in library.named.items()}


def _excused(data: Any) -> frozenset[KeyPath]:
    """Return the places of parameters in nodes of definitions, where the schema asks for a value."""
    graphs = data.get("graphs") if isinstance(data, dict) else None
    return frozenset(("graphs", *at) for at, _ in references(graphs) if at[1:2] == ("nodes",))


def _at(name: str) -> KeyPath:
    """Return the path of a node as the pipeline has it; in the end a graph's output may have the same name."""
    return (AS_WRITTEN, "nodes", name)


class _TooLarge(Exception):
    """Raised where expanding a use would give more than can be intended."""


@dataclass(frozen=True)
class _Scope:
    """The meaning of names and parameters where a use stands.

    sources  readable flows and nodes by their names there: the final name, and where it was written if not there
    names    final names of the nodes of the graph
    root     of the document;  within   places of the graphs around, outermost first
    """

    root: KeyPath
    sources: Mapping[str, tuple[str, KeyPath | None]] | None
    given: Mapping[str, Copy] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    within: tuple[KeyPath, ...] = ()
    marks: tuple[Related, ...] = ()

    def source(self, name: str) -> tuple[str, KeyPath | None] | None:
        """Return the final name of a source and where it was written; None, after reporting it, for an unknown name."""
        return (name, None) if self.sources is None else self.sources.get(name)


class _Expansion:
    """Collector of the plain nodes, and of the places where they were written."""

    def __init__(self, library: Library, findings: Findings) -> None:
        self.nodes: dict[str, Any] = {}
        self.copied: dict[KeyPath, KeyPath] = {}
        self.marks: dict[KeyPath, tuple[Related, ...]] = {}
        self.bad: set[KeyPath] = set()
        self._library = library
        self._findings = findings
        self._taken: dict[str, KeyPath] = {}
        self._failed: list[str] = []
        self._silent: dict[str, DefinedGraph] = {}
        self._size = 0

    def add_all(self, entries: Mapping[str, Any]) -> None:
        """Add the nodes of the pipeline."""
        self._taken = {name: _at(name) for name in entries}
        for name, entry in entries.items():
            use = use_of(entry)
            if use is not None:
                self._add_use(name, entry, use)
            elif is_use(entry):
                self._fail(name, entry, _at(name))
            else:
                self.nodes[name] = entry
        self._check_reads()

    def _add_use(self, name: str, entry: Any, use: Use) -> None:
        at, before, size = _at(name), list(self.nodes), self._size
        try:
            self._expand(name, entry, use, at, _Scope((), None))
        except _TooLarge:
            message = f"with its graphs written out, `{name}` is too large"
            self._findings.error("graph-too-large", message, at, on_key=True)
            self.nodes, self._size = {node: self.nodes[node] for node in before}, size
            self._fail(name, entry, at)

    def _expand(self, name: str, entry: Any, use: Use, at: KeyPath, scope: _Scope) -> None:
        """Add the nodes of one use, which is written at ``at``.

        Raises: _TooLarge.
        """
        graph = self._library.find(use.graph, scope.root)
        self._grow(_USE)
        if len(scope.within) >= DEEPEST:
            raise _TooLarge
        if graph is None or graph.at in scope.within:
            self._fail(name, entry, at)
            return
        if graph.output not in graph.nodes:
            self._silent[name] = graph
        names = {node: name if node == graph.output else f"{name}_{node}" for node in graph.nodes}
        inner = _Scope(
            root=graph.root,
            sources={node: (new, None) for node, new in names.items()} | self._connected(use, graph, at, scope),
            given={parameter: self._given(parameter, graph, use, at, scope) for parameter in graph.parameters},
            names=names,
            within=(*scope.within, graph.at),
            marks=(Related(at, "used here"), *scope.marks),
        )
        for node, new in names.items():
            if new == name or self._claim(new, node, graph, at):
                self._add(new, graph.nodes[node], (*graph.at, "nodes", node), inner)

    def _connected(
        self, use: Use, graph: DefinedGraph, at: KeyPath, scope: _Scope
    ) -> dict[str, tuple[str, KeyPath | None]]:
        """Return the sources that the inputs of the graph stand for."""
        connected: dict[str, tuple[str, KeyPath | None]] = {}
        for name, place in use.connected(graph).items():
            source = scope.source(use.reads[place])
            if source is not None:
                connected[name] = (source[0], source[1] or (*at, *place))
        return connected

    def _given(self, name: str, graph: DefinedGraph, use: Use, at: KeyPath, scope: _Scope) -> Copy:
        """Return the value of a parameter: that of the use, else the default."""
        where: KeyPath = (*at, GRAPH, use.graph)
        if use.arguments.get(name) is not None:
            return self._fill(use.arguments[name], (*where, name), scope.given)
        default: KeyPath = (*graph.at, "parameters", name)
        if graph.parameters[name] is None:
            return Copy(None, {(): where}, frozenset({()}))
        return self._fill(graph.parameters[name], default, None)

    def _claim(self, new: str, node: str, graph: DefinedGraph, at: KeyPath) -> bool:
        if new not in self._taken:
            self._taken[new] = (*graph.at, "nodes", node)
            return True
        message = (
            f"the node `{node}` of the graph `{graph.name}` becomes `{new}` here, which is the name of another node"
        )
        related = [Related(self._taken[new], "the other")]
        self._findings.error("name-taken", message, at, on_key=True, related=related)
        return False

    def _add(self, new: str, entry: Any, here: KeyPath, scope: _Scope) -> None:
        """Add a node of a graph, written ``here``."""
        inner = use_of(entry)
        if inner is not None:
            self._expand(new, entry, inner, here, scope)
            return
        if is_use(entry):
            self._fail(new, entry, here)
            return
        at: KeyPath = ("nodes", new)
        self.copied[at], self.marks[at] = here, scope.marks
        if here in self._library.bad:
            self.bad.add(at)
        if not isinstance(entry, dict):
            self.nodes[new] = entry
            return
        self.nodes[new] = made = {}
        long = with_inputs(entry, tables_of([entry]))
        if long is not entry:
            self.copied |= dict.fromkeys(input_places(at, long), (*here, "input"))
        for key, value in renamed(long, scope.names).items():
            made[key] = (
                self._wired(value, (*at, key), scope)
                if key in WIRING
                else self._placed(self._fill(value, (*here, key), scope.given), (*at, key), (*here, key))
            )

    def _wired(self, value: Any, at: KeyPath, scope: _Scope) -> Any:
        """Return a value with names of a graph's sources replaced by their final names."""
        if isinstance(value, dict):
            return {name: self._wired(source, (*at, name), scope) for name, source in value.items()}
        source = scope.source(value) if isinstance(value, str) else None
        if source is None:
            self.bad.add(at)
            return value
        if source[1] is not None:
            self.copied[at] = source[1]
        return source[0]

    def _fill(self, value: Any, at: KeyPath, given: Mapping[str, Copy] | None) -> Copy:
        """Return a value with its parameters replaced; None for ``given``: it has none."""
        unfit = UnfitValue()
        copy = fill(value, at, given, self._library.bad, unfit)
        for where, name in unfit.found:
            assert given is not None
            message = f"`$({name})` stands within a text, where its value does not fit: a text or a number does"
            related = [Related(given[name].written[()], "the value")]
            self._findings.error("parameter-in-text", message, where, related=related)
        self._grow(size_of(copy.value, LARGEST_SIZE))
        return copy

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > LARGEST_SIZE:
            raise _TooLarge

    def _placed(self, copy: Copy, at: KeyPath, here: KeyPath) -> Any:
        """Return the value of a copy, and record where its parts were written."""
        for below, source in copy.written.items():
            if source != (*here, *below):
                self.copied[(*at, *below)] = source
        self.bad |= {(*at, *below) for below in copy.bad}
        return copy.value

    def _fail(self, name: str, entry: Any, at: KeyPath) -> None:
        """Add a node that exists but is not read any further."""
        self.nodes[name] = entry
        self.bad.add(("nodes", name))
        self._failed.append(name)
        self.copied[("nodes", name)] = at

    def _check_reads(self) -> None:
        """Report readers of graphs without an output, and of nodes that are absent because their use is wrong."""
        for name, entry in self.nodes.items():
            for place, source in reads_of(entry).items() if isinstance(entry, dict) else ():
                at: KeyPath = ("nodes", name, *place)
                if source in self.nodes or at in self.bad or ("nodes", name) in self.bad:
                    continue
                if source in self._silent:
                    self._report_silent(name, source, at)
                    self.bad.add(at)
                elif any(source.startswith(f"{failed}_") for failed in self._failed):
                    self.bad.add(at)

    def _report_silent(self, name: str, source: str, at: KeyPath) -> None:
        graph = self._silent[source]
        message = f"`{name}` reads `{source}`, and the graph `{graph.name}` has no output"
        nodes = ", ".join(f"`{source}_{node}`" for node in graph.nodes)
        related = [Related(graph.at, "the graph")]
        help = f"give it an `output`, or read one of its nodes: {nodes}"
        self._findings.error("no-output", message, at, related=related, help=help)
