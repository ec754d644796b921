"""Read named graphs as they are defined, in a pipeline or in files, with the columns and files that their nodes use."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from posixpath import dirname, join, normpath
from typing import Any

from lima2cli.declare import files
from lima2cli.declare.checking import check
from lima2cli.diagnostics import Diagnostic, Findings, KeyPath, Related, did_you_mean
from lima2cli.document import AS_WRITTEN, Document, Span, load
from lima2cli.errors import FileProblem
from lima2cli.language.schema import graph_file_shape
from lima2cli.nodes.registry import GRAPH, NODES, WIRING, NodeEntry, with_inputs

ReadText = Callable[[str], str]
"""Function that returns the text of a file named relative to the pipeline's; raises `FileProblem`."""

Excused = Callable[[Any], frozenset[KeyPath]]
"""Function that returns the places in a document's data where parameters of graphs stand, which no schema fits."""


@dataclass(frozen=True)
class DefinedGraph:
    """A graph as it is defined, without the parts that do not fit the schema.

    at     its place: a path of the pipeline, or of a file of graphs, which begins with its name
    root   the first steps of paths of that document: none, or the name
    """

    name: str
    at: KeyPath
    root: KeyPath
    parameters: Mapping[str, Any]
    inputs: tuple[str, ...]
    output: str | None
    nodes: Mapping[str, Any]


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
                return _graph(name, (*root, "graphs", name), root, entry)
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


def _graph(name: str, at: KeyPath, root: KeyPath, entry: Mapping[str, Any]) -> DefinedGraph | None:
    parameters, inputs = entry.get("parameters", {}), entry.get("inputs", ["frames"])
    output, nodes = entry.get("output"), entry.get("nodes")
    fit = isinstance(parameters, dict) and isinstance(inputs, list) and all(isinstance(one, str) for one in inputs)
    if not fit or not inputs or not isinstance(nodes, dict) or not isinstance(output, str | None):
        return None
    return DefinedGraph(name, at, root, parameters, tuple(inputs), output, nodes)


def load_library(
    document: Document, findings: Findings, read: ReadText, environment: Mapping[str, str], excused: Excused
) -> Library:
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
                bad |= {(file, *path) for path in loaded.bad} | check_file(file, loaded, findings, excused)
                roots.append((file,))
    return Library(document, others, named, frozenset(bad))


def _check_entry(entry: Mapping[str, Any], at: KeyPath, findings: Findings) -> bool:
    """Return True if a graph is taken from a file; report one that is also defined here."""
    if "file" not in entry:
        if "nodes" not in entry:
            message = f"the graph `{at[-1]}` has neither `nodes` nor a `file` to take it from"
            findings.error("file-or-nodes", message, at, on_key=True)
        elif "name" in entry:
            message = "`name` says which graph of a `file` is meant, and there is no `file`"
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
    """Return the document; without data where it is no YAML, None where it cannot be read."""
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
    return document or Document(shown, text.removeprefix("\ufeff"), None, {}, {(): Span(1, 1, 1, 1)})


def _placed(item: Diagnostic, file: str, related: tuple[Related, ...]) -> Diagnostic:
    return replace(item, at=(file, *item.at), related=related)


def check_file(file: str, document: Document, findings: Findings, excused: Excused) -> frozenset[KeyPath]:
    """Report values that do not fit the schema of files of graphs; return their paths, which begin with ``file``."""
    if document.data is None:
        return frozenset({(file,)})
    shape = graph_file_shape(document.data, file, findings)
    schema = {"type": "object", "properties": {file: shape.schema()}}
    filled = frozenset((file, *path) for path in excused(document.data))
    reported = filled.union((file, *path) for path in document.bad)
    return check({file: document.data}, schema, findings, reported) - filled


def unknown_graph(name: str, known: Iterable[str], at: KeyPath, findings: Findings) -> None:
    """Report a name that no graph of a document has."""
    help = did_you_mean(name, known) or "name it below `graphs`"
    findings.error("unknown-graph", f"there is no graph `{name}`", at, on_key=True, help=help)


_BEFORE_COLUMN = re.compile(r"(?<![\w.])[A-Za-z][\w-]*(?=\.[A-Za-z$])", re.ASCII)


def renamed(entry: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a node with the final names of nodes in the parameter of its kind that names columns, `node.column`."""

    def rename(match: re.Match[str]) -> str:
        return names.get(match[0], match[0])

    changed = dict(entry)
    for kind, made in NODES.named([key for key in entry if key not in WIRING]).items():
        key, parameters = getattr(made.table, "names_in", None), entry.get(kind)
        if key is not None and isinstance(parameters, dict) and isinstance(parameters.get(key), str):
            changed[kind] = {**parameters, key: _BEFORE_COLUMN.sub(rename, parameters[key])}
    return changed


def tables_of(entries: Iterable[Any]) -> Mapping[str, type | None]:
    """Return the tables of the kinds of some nodes."""
    asked = {kind for entry in entries if isinstance(entry, dict) for kind in entry} - {*WIRING, GRAPH}
    return {kind: provided.table for kind, provided in NODES.named(sorted(asked)).items()}


def with_named_inputs(document: Document) -> Document:
    """Return the document with nodes written long, see `with_inputs`."""
    nodes = document.data.get("nodes") if isinstance(document.data, dict) else None
    if not isinstance(nodes, dict):
        return document
    tables = tables_of(nodes.values())
    long = {name: with_inputs(entry, tables) for name, entry in nodes.items()}
    changed = {name for name in nodes if long[name] is not nodes[name]}
    if not changed:
        return document
    copied = dict(document.copied)
    for name in changed:
        at: KeyPath = ("nodes", name)
        copied |= dict.fromkeys(input_places(at, long[name]), _written(document, (*at, "input")))
    original = document.original or document
    return replace(document, data={**document.data, "nodes": long}, copied=copied, original=original)


def input_places(at: KeyPath, entry: Mapping[str, Any]) -> list[KeyPath]:
    """Return the places below a node of its ``inputs``, and of each of them."""
    return [(*at, "inputs"), *((*at, "inputs", name) for name in entry["inputs"])]


def _written(document: Document, at: KeyPath) -> KeyPath:
    """Return a path in the document as it was written, which others are taken from."""
    return at if document.original is None else (AS_WRITTEN, *at)


def with_files(document: Document) -> Document:
    """Return the document with file names of other documents made relative to this one."""
    nodes = dict(document.data["nodes"]) if isinstance(document.data.get("nodes"), dict) else {}
    mine = {str(path[1]) for path in document.copied if len(path) > 1}
    tables = tables_of(nodes[name] for name in mine)
    entry = NodeEntry(lambda: tables)
    for name in mine:
        for at in files(entry, nodes[name]):
            where, _ = document.written(("nodes", name, *at))
            for file, other in document.others.items():
                if other is where:
                    nodes[name] = _changed(nodes[name], at, (file,))
    return replace(document, data={**document.data, "nodes": nodes})


def _changed(value: Any, at: KeyPath, root: KeyPath) -> Any:
    """Return a copy of a value, with the reference at a path relative to the pipeline's file."""
    if not at:
        return relative_to(root, value)
    step, rest = at[0], at[1:]
    if isinstance(value, dict):
        return {**value, step: _changed(value[step], rest, root)}
    return [_changed(item, rest, root) if i == step else item for i, item in enumerate(value)]
