"""Read named graphs as they are defined, in a pipeline or in files, with the columns and files that their nodes use."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from posixpath import dirname, join, normpath
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare.reading import Reading
from lima2cli.diagnostics import Diagnostic, Findings, KeyPath, Related, did_you_mean
from lima2cli.document import START, Document, Place, Source, YamlNode, load, plain
from lima2cli.errors import FileProblem
from lima2cli.language.schema import graph_file_shape
from lima2cli.nodes.registry import GRAPH, INPUT_NAME, NODES, WIRING, NodeEntry

ReadText = Callable[[str], str]
"""Function that returns the text of a file named relative to the pipeline's; raises `FileProblem`."""


@dataclass(frozen=True)
class DefinedGraph:
    """A graph as it is defined, without the parts that do not fit the schema.

    at     its place: a path of the pipeline, or of a file of graphs, which begins with its name
    root   the first steps of paths of that document: none, or the name
    tree   the definition, with its places
    """

    name: str
    at: KeyPath
    root: KeyPath
    parameters: Mapping[str, Any]
    inputs: tuple[str, ...]
    output: str | None
    nodes: Mapping[str, Any]
    tree: YamlNode

    def node(self, *path: str) -> YamlNode:
        """Return a value of the definition."""
        return descend(self.tree, path)


@dataclass(frozen=True)
class Library:
    """All graphs that a pipeline can name.

    others  files of graphs, by their names relative to the pipeline's file
    named   for each the place that names it first
    bad     paths of all documents of which a mistake has been reported
    """

    document: Document
    others: Mapping[str, Document]
    named: Mapping[str, KeyPath]
    bad: frozenset[KeyPath]

    def defined(self, root: KeyPath) -> Mapping[str, Any]:
        """Return a document's ``graphs``, by name; empty where there is nothing that can be read."""
        data = self.others[str(root[0])].data if root else self.document.data
        graphs = data.get("graphs") if isinstance(data, dict) else None
        return graphs if isinstance(graphs, dict) else {}

    def all(self) -> list[tuple[str, KeyPath]]:
        """Return the names of all graphs, each with the root of its document."""
        roots: list[KeyPath] = [(), *((name,) for name in self.others)]
        return [(name, root) for root in roots for name in self.defined(root)]

    def find(self, name: str, root: KeyPath) -> DefinedGraph | None:
        """Return the graph that a document calls ``name``; None where it is unknown or broken."""
        visited: set[tuple[str, KeyPath]] = set()
        while (name, root) not in visited:
            visited.add((name, root))
            entry = self.defined(root).get(name)
            if not isinstance(entry, dict):
                return None
            if "file" not in entry:
                tree = self.others[str(root[0])].root if root else self.document.root
                return _graph(name, (*root, "graphs", name), root, entry, descend(tree, ("graphs", name)))
            name, root = source_of(name, entry, root)
            if not root or root[0] not in self.others:
                return None
        return None


def source_of(name: str, entry: Mapping[str, Any], root: KeyPath) -> tuple[str, KeyPath]:
    """Return name and document of the graph behind ``{file: …, name: …}``; no document where it names none."""
    file = entry["file"]
    inner = entry.get("name") or name
    return str(inner), (relative_to(root, file),) if isinstance(file, str) and file else ()


def relative_to(root: KeyPath, file: str) -> str:
    """Return a reference to a file, written in the document of ``root``, relative to the pipeline's file."""
    path, mark, inner = file.partition("::")
    return normpath(join(dirname(str(root[0])), path) if root else path) + mark + inner


def descend(node: YamlNode, path: Iterable[str | int]) -> YamlNode:
    """Return the value at a path below a node, where it exists."""
    for step in path:
        below = node.child(step)
        assert below is not None, path
        node = below
    return node


def _graph(name: str, at: KeyPath, root: KeyPath, entry: Mapping[str, Any], tree: YamlNode) -> DefinedGraph | None:
    parameters, inputs = entry.get("parameters", {}), entry.get("inputs", ["frames"])
    output, nodes = entry.get("output"), entry.get("nodes")
    fit = isinstance(parameters, dict) and isinstance(inputs, list) and all(isinstance(one, str) for one in inputs)
    if not fit or not inputs or not isinstance(nodes, dict) or not isinstance(output, str | None):
        return None
    return DefinedGraph(name, at, root, parameters, tuple(inputs), output, nodes, tree)


def load_library(document: Document, findings: Findings, read: ReadText, environment: Mapping[str, str]) -> Library:
    """Read all files of graphs that are named, and those that they name; report their mistakes."""
    others: dict[str, Document] = {}
    named: dict[str, KeyPath] = {}
    bad = set(document.bad)
    library = Library(document, others, named, frozenset())
    roots: list[KeyPath] = [()]
    for root in roots:  # grows
        for name, entry in library.defined(root).items():
            at: KeyPath = (*root, "graphs", name)
            if not isinstance(entry, dict) or not _check_entry(entry, at, findings):
                continue
            _, (*source,) = source_of(name, entry, root)
            if not source or source[0] in others:
                continue
            file = str(source[0])
            loaded = _load(file, (*at, "file"), document.file, findings, read, environment)
            if loaded is not None:
                others[file], named[file] = loaded, (*at, "file")
                bad |= check_file(file, loaded, findings)
                roots.append((file,))
    return Library(document, others, named, frozenset(bad))


def _check_entry(entry: Mapping[str, Any], at: KeyPath, findings: Findings) -> bool:
    """Return True if a graph is taken from a file; report one that is also defined here."""
    if "file" not in entry:
        if "nodes" not in entry:
            message = f"the graph `{at[-1]}` has neither `nodes` nor a `file` to take it from"
            findings.error("file-or-nodes", message, at, on_key=True)
        elif "name" in entry:
            message = "`name` selects a graph of a `file`, and there is no `file`"
            findings.error("file-or-nodes", message, (*at, "name"), on_key=True)
        return False
    neighbours = [key for key in ("parameters", "inputs", "output", "nodes") if key in entry]
    if neighbours:
        message = f"the graph `{at[-1]}` is taken from a file, and cannot have `{neighbours[0]}` here"
        findings.error(
            "file-or-nodes", message, (*at, neighbours[0]), on_key=True, related=[Related((*at, "file"), "the file")]
        )
    return not neighbours


def _load(
    file: str, at: KeyPath, main: str, findings: Findings, read: ReadText, environment: Mapping[str, str]
) -> Document | None:
    """Return the document; without data where it is not YAML, None where it cannot be read."""
    try:
        text = read(file)
    except FileProblem as problem:
        findings.error(problem.rule, str(problem), at)
        return None
    own = Findings()
    shown = file if main == "-" else normpath(join(dirname(main), file))
    document = load(text, shown, own, environment=environment)
    for item in own:
        related = tuple(Related((file, *other.at), other.label) for other in item.related)
        findings.add(_placed(item, file, related))
    text = text.removeprefix("\ufeff")
    return document or Document(shown, text, YamlNode(None, Place(Source(shown, text), START)))


def _placed(item: Diagnostic, file: str, related: tuple[Related, ...]) -> Diagnostic:
    return replace(item, at=(file, *item.at), related=related)


def check_file(file: str, document: Document, findings: Findings) -> frozenset[KeyPath]:
    """Report values that do not fit the schema of files of graphs; return their paths, which begin with ``file``."""
    if document.data is None:
        return frozenset({(file,)})
    reading = Reading(findings, {(file, *path) for path in document.bad})
    graph_file_shape(document.data, file, findings).read(document.data, (file,), reading)
    return frozenset(reading.bad)


def unknown_graph(name: str, known: Iterable[str], at: KeyPath, findings: Findings) -> None:
    """Report a name that no graph of a document has."""
    help = did_you_mean(name, known) or "name it below `graphs`"
    findings.error("unknown-graph", f"there is no graph `{name}`", at, on_key=True, help=help)


_BEFORE_COLUMN = re.compile(r"(?<![\w.])[A-Za-z][\w-]*(?=\.[A-Za-z$])", re.ASCII)


def renamed(node: YamlNode, names: Mapping[str, str]) -> YamlNode:
    """Return a node with the final names of nodes in the parameter of its kind that names columns, `node.column`."""

    def rename(match: re.Match[str]) -> str:
        return names.get(match[0], match[0])

    for kind, made in NODES.named([key for key in _entries(node) if key not in WIRING]).items():
        key, parameters = getattr(made.table, "names_in", None), node.child(kind)
        named = parameters.child(key) if key is not None and parameters is not None else None
        if key is not None and named is not None and isinstance(named.content, str):
            node = with_content(node, (kind, key), _BEFORE_COLUMN.sub(rename, named.content))
    return node


def with_content(node: YamlNode, path: KeyPath, content: str) -> YamlNode:
    """Return a copy of a value, with another text at a path."""
    if not path:
        return replace(node, content=content)
    step, rest = path[0], path[1:]
    if isinstance(node.content, dict):
        held = {key: with_content(it, rest, content) if key == step else it for key, it in node.content.items()}
        return replace(node, content=held)
    assert isinstance(node.content, list)
    items = [with_content(it, rest, content) if i == step else it for i, it in enumerate(node.content)]
    return replace(node, content=items)


def _entries(node: YamlNode | None) -> Mapping[str, YamlNode]:
    """Return the values of a mapping; none of another value."""
    return node.content if node is not None and isinstance(node.content, dict) else {}


def tables_of(nodes: Iterable[YamlNode]) -> Mapping[str, type | None]:
    """Return the tables of the kinds of some nodes."""
    asked = {kind for node in nodes for kind in _entries(node)} - {*WIRING, GRAPH}
    return {kind: provided.table for kind, provided in NODES.named(sorted(asked)).items()}


def long_form(node: YamlNode, at: KeyPath, kinds: Mapping[str, Any]) -> YamlNode:
    """Return a node, written ``at``, in its long form.

    A join reads ``inputs``, in which one ``input`` has its own name; a name that no variable can have is ``input``.
    """
    entries = _entries(node)
    one = entries.get("input")
    joins = any(getattr(kinds.get(key), "wiring", "") == "inputs" for key in entries)
    if one is None or not isinstance(one.content, str) or "inputs" in entries or not joins:
        return node
    name = one.content if re.fullmatch(INPUT_NAME, one.content) else "input"
    one = replace(one, origin=one.origin or (*at, "input"))
    inputs = replace(one, content={name: one})
    long = {"inputs" if key == "input" else key: inputs if key == "input" else it for key, it in entries.items()}
    return replace(node, content=long)


def with_named_inputs(document: Document) -> Document:
    """Return the document with nodes written long, see `long_form`."""
    nodes = document.root.child("nodes")
    entries = _entries(nodes)
    tables = tables_of(entries.values())
    long = {name: long_form(node, node.origin or ("nodes", name), tables) for name, node in entries.items()}
    if nodes is None or all(long[name] is entries[name] for name in entries):
        return document
    return _with_nodes(document, long)


def _with_nodes(document: Document, nodes: dict[str, YamlNode]) -> Document:
    content, old = document.root.content, document.root.child("nodes")
    assert isinstance(content, dict)
    assert old is not None
    return replace(document, root=replace(document.root, content={**content, "nodes": replace(old, content=nodes)}))


def with_files(document: Document) -> Document:
    """Return the document with file names of other documents made relative to this one."""
    nodes = dict(_entries(document.root.child("nodes")))
    mine = [name for name, node in nodes.items() if node.origin is not None]
    tables = tables_of(nodes[name] for name in mine)
    shape = NodeEntry(lambda: tables)
    texts = {document.others[file].root.at.source: file for file in document.named}
    for name in mine:
        reading = Reading(Findings())
        shape.read(plain(nodes[name]), (), reading)
        for at in reading.files:
            node = descend(nodes[name], at)
            if node.at.source in texts:
                reference = relative_to((texts[node.at.source],), str(node.content))
                nodes[name] = with_content(nodes[name], at, reference)
    return _with_nodes(document, nodes) if mine else document
