"""Expand graphs: each use of one becomes plain nodes, named ``<use>_<node>``; the output node has the use's name.

All of it is done on the tree of the document: a copied value keeps its place, and later findings are reported there.
"""

from collections.abc import Collection, Mapping
from dataclasses import field, replace
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Findings, KeyPath, Related
from lima2cli.document import AS_WRITTEN, Document, YamlNode, plain
from lima2cli.language.definitions import (
    DefinedGraph,
    Library,
    ReadText,
    check_file,
    descend,
    load_library,
    long_form,
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
from lima2cli.language.templates import PARAMETER
from lima2cli.nodes.registry import GRAPH, WIRING

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
    library = load_library(document, findings, read, environment)
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
    root = document.root
    if isinstance(nodes, dict):
        written = descend(root, ("nodes",))
        assert isinstance(written.content, dict)
        assert isinstance(root.content, dict)
        expansion.add_all(written.content, entries)
        root = replace(root, content={**root.content, "nodes": replace(written, content=expansion.nodes)})
    expanded = replace(
        document,
        root=root,
        original=document.root,
        others={**document.others, **library.others},
        named=library.named,
        spoiled=frozenset(expansion.bad),
    )
    return with_files(expanded) if library.others else expanded


def is_graph_file(document: Document) -> bool:
    """Return True if a document is not a pipeline, but has graphs for pipelines to take."""
    data = document.data
    return isinstance(data, dict) and "graphs" in data and not data.keys() & {"detector", "flows", "nodes"}


def check_graph_file(
    document: Document, findings: Findings, read: ReadText, environment: Mapping[str, str]
) -> Document:
    """Report the mistakes of a file of graphs; return the document, with all that their places need."""
    library = load_library(document, findings, read, environment)
    check_file(document.file, document, findings)
    check_graphs(library, findings)
    return replace(document, others={**document.others, **library.others, document.file: document}, named=library.named)


def _at(name: str) -> KeyPath:
    """Return the path of a node as the pipeline has it; in the end a graph's output may have the same name."""
    return (AS_WRITTEN, "nodes", name)


class _TooLarge(Exception):
    """Raised where expanding a use would give more than can be intended."""


@dataclass(frozen=True)
class Copy:
    """A value that is put at another place; ``bad``: paths below it at which a mistake has been reported."""

    node: YamlNode
    bad: frozenset[KeyPath] = frozenset()


@dataclass
class UnfitValue:
    """Values that cannot stand within a string: the place of that string, and the name of the parameter."""

    found: list[tuple[KeyPath, str]] = field(default_factory=list)


Sources = Mapping[str, tuple[str, YamlNode | None]]
"""Readable flows and nodes by their names in a graph: the final name, and where it was written if not there."""


@dataclass(frozen=True)
class _Scope:
    """The meaning of names and parameters where a use stands.

    sources  see `Sources`; None outside of graphs, where names stay
    names    final names of the nodes of the graph
    root     of the document;  within   places of the graphs around, outermost first
    """

    root: KeyPath
    sources: Sources | None
    given: Mapping[str, Copy] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    within: tuple[KeyPath, ...] = ()
    marks: tuple[Related, ...] = ()

    def source(self, name: str) -> tuple[str, YamlNode | None] | None:
        """Return the final name of a source and where it was written; None for an unknown name."""
        return (name, None) if self.sources is None else self.sources.get(name)


class _Expansion:
    """Collector of the plain nodes; ``bad``: paths of them of which a mistake has been reported."""

    def __init__(self, library: Library, findings: Findings) -> None:
        self.nodes: dict[str, YamlNode] = {}
        self.bad: set[KeyPath] = set()
        self._library = library
        self._findings = findings
        self._taken: dict[str, KeyPath] = {}
        self._failed: list[str] = []
        self._silent: dict[str, DefinedGraph] = {}
        self._size = 0

    def add_all(self, nodes: Mapping[str, YamlNode], entries: Mapping[str, Any]) -> None:
        """Add the nodes of the pipeline; ``entries`` are their values."""
        self._taken = {name: _at(name) for name in nodes}
        for name, node in nodes.items():
            entry = entries[name]
            use = use_of(entry)
            if use is not None:
                self._add_use(name, node, use)
            elif is_use(entry):
                self._fail(name, node, _at(name))
            else:
                self.nodes[name] = node
        self._check_reads()

    def _add_use(self, name: str, node: YamlNode, use: Use) -> None:
        at, before, size = _at(name), list(self.nodes), self._size
        try:
            self._expand(name, node, use, at, _Scope((), None))
        except _TooLarge:
            message = f"with its graphs expanded, `{name}` is too large"
            self._findings.error("graph-too-large", message, at, on_key=True)
            self.nodes, self._size = {node: self.nodes[node] for node in before}, size
            self._fail(name, node, at)

    def _expand(self, name: str, node: YamlNode, use: Use, at: KeyPath, scope: _Scope) -> None:
        """Add the nodes of one use, which is written at ``at``.

        Raises: _TooLarge.
        """
        graph = self._library.find(use.graph, scope.root)
        self._grow(_USE)
        if len(scope.within) >= DEEPEST:
            raise _TooLarge
        if graph is None or graph.at in scope.within:
            self._fail(name, node, at)
            return
        if graph.output not in graph.nodes:
            self._silent[name] = graph
        names = {inner: name if inner == graph.output else f"{name}_{inner}" for inner in graph.nodes}
        inner_scope = _Scope(
            root=graph.root,
            sources={one: (new, None) for one, new in names.items()} | self._connected(use, graph, node, at, scope),
            given={parameter: self._given(parameter, graph, use, node, at, scope) for parameter in graph.parameters},
            names=names,
            within=(*scope.within, graph.at),
            marks=(Related(at, "used here"), *scope.marks),
        )
        for inner, new in names.items():
            if new == name or self._claim(new, inner, graph, at):
                here: KeyPath = (*graph.at, "nodes", inner)
                self._add(new, graph.node("nodes", inner), graph.nodes[inner], here, inner_scope)

    def _connected(
        self, use: Use, graph: DefinedGraph, node: YamlNode, at: KeyPath, scope: _Scope
    ) -> dict[str, tuple[str, YamlNode | None]]:
        """Return the sources that the inputs of the graph stand for."""
        connected: dict[str, tuple[str, YamlNode | None]] = {}
        for name, place in use.connected(graph).items():
            source = scope.source(use.reads[place])
            if source is not None:
                connected[name] = (source[0], source[1] or replace(descend(node, place), origin=(*at, *place)))
        return connected

    def _given(self, name: str, graph: DefinedGraph, use: Use, node: YamlNode, at: KeyPath, scope: _Scope) -> Copy:
        """Return the value of a parameter: that of the use, else the default."""
        where: KeyPath = (*at, GRAPH, use.graph)
        if use.arguments.get(name) is not None:
            return self._fill(descend(node, (GRAPH, use.graph, name)), (*where, name), scope.given)
        if graph.parameters[name] is None:
            return Copy(YamlNode(None, node.at, node.key, origin=where), frozenset({()}))
        return self._fill(graph.node("parameters", name), (*graph.at, "parameters", name), None)

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

    def _add(self, new: str, node: YamlNode, entry: Any, here: KeyPath, scope: _Scope) -> None:
        """Add a node of a graph, written ``here``; ``entry`` is its value."""
        inner = use_of(entry)
        if inner is not None:
            self._expand(new, node, inner, here, scope)
            return
        if is_use(entry):
            self._fail(new, node, here)
            return
        at: KeyPath = ("nodes", new)
        if here in self._library.bad:
            self.bad.add(at)
        copy = replace(node, origin=here, marks=scope.marks)
        long = renamed(long_form(copy, here, tables_of([copy])), scope.names)
        if isinstance(long.content, dict):
            made = {}
            for key, value in long.content.items():
                below = (*at, key)
                made[key] = (
                    self._wired(value, below, scope) if key in WIRING else self._filled(value, below, here, scope)
                )
            long = replace(long, content=made)
        self.nodes[new] = long

    def _wired(self, value: YamlNode, at: KeyPath, scope: _Scope) -> YamlNode:
        """Return a value with names of a graph's sources replaced by their final names."""
        if isinstance(value.content, dict):
            wired = {name: self._wired(source, (*at, name), scope) for name, source in value.content.items()}
            return replace(value, content=wired)
        source = scope.source(value.content) if isinstance(value.content, str) else None
        if source is None:
            self.bad.add(at)
            return value
        name, written = source
        return replace(value, content=name) if written is None else replace(written, content=name, instead=value)

    def _filled(self, value: YamlNode, at: KeyPath, here: KeyPath, scope: _Scope) -> YamlNode:
        copy = self._fill(value, (*here, at[-1]), scope.given)
        self.bad |= {(*at, *below) for below in copy.bad}
        return copy.node

    def _fill(self, value: YamlNode, at: KeyPath, given: Mapping[str, Copy] | None) -> Copy:
        """Return a value with its parameters replaced; None for ``given``: it has none."""
        unfit = UnfitValue()
        copy = fill(value, at, given, self._library.bad, unfit)
        for where, name in unfit.found:
            assert given is not None
            message = f"`$({name})` is part of a string, where its value does not fit: only a string or a number does"
            related = [Related(given[name].node.origin or at, "the value")]
            self._findings.error("parameter-in-text", message, where, related=related)
        self._grow(size_of(copy.node, LARGEST_SIZE))
        return copy

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > LARGEST_SIZE:
            raise _TooLarge

    def _fail(self, name: str, node: YamlNode, at: KeyPath) -> None:
        """Add a node that exists but is not read any further."""
        self.nodes[name] = replace(node, origin=at)
        self.bad.add(("nodes", name))
        self._failed.append(name)

    def _check_reads(self) -> None:
        """Report readers of graphs without an output, and of nodes that are absent because their use is wrong."""
        for name, node in self.nodes.items():
            for place, source in _reads(node).items():
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


def _reads(node: YamlNode) -> Mapping[KeyPath, str]:
    return reads_of({key: plain(value) for key in WIRING if (value := node.child(key)) is not None})


def fill(
    node: YamlNode, at: KeyPath, given: Mapping[str, Copy] | None, bad: Collection[KeyPath], unfit: UnfitValue
) -> Copy:
    """Return a copy of the value written at ``at``, with parameters replaced by the values given for them.

    Parameters absent from ``given`` have been reported; where it is None there are none. ``bad`` are full paths of
    which a mistake is known.
    """
    reported = {path[len(at) :] for path in bad if path[: len(at)] == at}

    def filled(part: YamlNode, path: KeyPath) -> YamlNode:
        content = part.content
        if isinstance(content, dict):
            return replace(part, content={key: filled(item, (*path, key)) for key, item in content.items()})
        if isinstance(content, list):
            return replace(part, content=[filled(item, (*path, i)) for i, item in enumerate(content)])
        if not isinstance(content, str) or "$(" not in content or given is None:
            return part
        whole = PARAMETER.fullmatch(content)
        if whole is not None and whole[1] in given:
            copy = given[whole[1]]
            reported.update((*path, *below) for below in copy.bad)
            return replace(copy.node, instead=part)
        return replace(part, content=within(content, path))

    def within(text: str, path: KeyPath) -> str:
        assert given is not None
        pieces, end = [], 0
        for match in PARAMETER.finditer(text):
            copy = given.get(match[1])
            pieces.append(text[end : match.start()])
            end = match.end()
            if copy is None or copy.bad:
                reported.add(path)
            elif copy.node.content is None or copy.node.is_collection:
                unfit.found.append(((*at, *path), match[1]))
                reported.add(path)
            else:
                pieces.append(_text(copy.node.content))
        return "".join([*pieces, text[end:]])

    made = filled(node, ())
    return Copy(made if made.instead is not None else replace(made, origin=at), frozenset(reported))


def _text(value: Any) -> str:
    """Return a scalar as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def size_of(node: YamlNode, limit: int) -> int:
    """Return the number of values and characters in a value, counted up to ``limit``."""
    size, todo = 0, [node]
    while todo and size <= limit:
        content = todo.pop().content
        size += 1 + (len(content) if isinstance(content, str) else 0)
        todo += content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return size
