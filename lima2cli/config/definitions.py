"""Named graphs: those of the pipeline, and those of files that it takes some from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from posixpath import dirname, join, normpath
from typing import Any

from lima2cli.config.kinds import graph_file_shape
from lima2cli.diagnostics import Diagnostic, Findings, Path, Related
from lima2cli.document import Document, Span, load
from lima2cli.errors import FileProblem
from lima2cli.names import did_you_mean
from lima2cli.schema.check import check

ReadText = Callable[[str], str]
"""The text of a file named relative to the pipeline's; raises `FileProblem`."""

Excused = Callable[[Any], frozenset[Path]]
"""The places in the data of a document where parameters of graphs stand, which no schema fits."""


@dataclass(frozen=True)
class Graph:
    """A graph as it is defined; what does not fit the schema is not there.

    at     where: a path of the pipeline, or of a file of graphs, which begins with its name
    root   what paths of that document begin with: nothing, or the name
    """

    name: str
    at: Path
    root: Path
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
    named: Mapping[str, Path]
    bad: frozenset[Path]

    def defined(self, root: Path) -> Mapping[str, Any]:
        """What a document has below ``graphs``, by name; empty where there is nothing that can be read."""
        data = self.others[str(root[0])].data if root else self.document.data
        graphs = data.get("graphs") if isinstance(data, dict) else None
        return graphs if isinstance(graphs, dict) else {}

    def all(self) -> list[tuple[str, Path]]:
        """Names of all graphs, each with the root of its document."""
        roots: list[Path] = [(), *((name,) for name in self.others)]
        return [(name, root) for root in roots for name in self.defined(root)]

    def find(self, name: str, root: Path) -> Graph | None:
        """The graph that a document calls ``name``; None where it is unknown or broken."""
        seen: set[tuple[str, Path]] = set()
        while (name, root) not in seen:
            seen.add((name, root))
            entry = self.defined(root).get(name)
            if not isinstance(entry, dict):
                return None
            if "file" not in entry:
                return _graph(name, (*root, "graphs", name), root, entry)
            name, root = source_of(name, entry, root)
            if not root or root[0] not in self.others:
                return None
        return None


def source_of(name: str, entry: Mapping[str, Any], root: Path) -> tuple[str, Path]:
    """Name and document of the graph that stands behind ``{file: …, name: …}``; no document where it says none."""
    file = entry["file"]
    inner = entry.get("name") or name
    return str(inner), (relative_to(root, file),) if isinstance(file, str) and file else ()


def relative_to(root: Path, file: str) -> str:
    """A reference to a file, written in the document of ``root``, relative to the pipeline's file."""
    path, mark, inner = file.partition("::")
    return normpath(join(dirname(str(root[0])), path) if root else path) + mark + inner


def _graph(name: str, at: Path, root: Path, entry: Mapping[str, Any]) -> Graph | None:
    parameters, inputs = entry.get("parameters", {}), entry.get("inputs", ["frames"])
    output, nodes = entry.get("output"), entry.get("nodes")
    fit = isinstance(parameters, dict) and isinstance(inputs, list) and all(isinstance(one, str) for one in inputs)
    if not fit or not inputs or not isinstance(nodes, dict) or not isinstance(output, str | None):
        return None
    return Graph(name, at, root, parameters, tuple(inputs), output, nodes)


def load_library(
    document: Document, findings: Findings, read: ReadText, environment: Mapping[str, str], excused: Excused
) -> Library:
    """Read all files of graphs that are named, and those that they name; what is wrong with them is reported."""
    others: dict[str, Document] = {}
    named: dict[str, Path] = {}
    bad = set(document.bad)
    library = Library(document, others, named, frozenset())
    roots: list[Path] = [()]
    for root in roots:  # grows
        for name, entry in library.defined(root).items():
            at: Path = (*root, "graphs", name)
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


def _check_entry(entry: Mapping[str, Any], at: Path, findings: Findings) -> bool:
    """Whether a graph is taken from a file; it is that or defined, not both."""
    if "file" not in entry:
        if "nodes" not in entry:
            message = f"the graph `{at[-1]}` has neither `nodes` nor a `file` to take it from"
            findings.error("file-or-nodes", message, at, on_key=True)
        elif "name" in entry:
            message = "`name` says which graph of a `file` is meant, and there is no `file`"
            findings.error("file-or-nodes", message, (*at, "name"), on_key=True)
        return False
    beside = [key for key in ("parameters", "inputs", "output", "nodes") if key in entry]
    if beside:
        message = f"the graph `{at[-1]}` is taken from a file, and cannot have `{beside[0]}` here"
        findings.error(
            "file-or-nodes", message, (*at, beside[0]), on_key=True, related=[Related((*at, "file"), "the file")]
        )
    return not beside


def _load(
    file: str, at: Path, main: str, findings: Findings, read: ReadText, environment: Mapping[str, str]
) -> Document | None:
    """The document; without data where it is no YAML, None where it cannot be read."""
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


def check_file(file: str, document: Document, findings: Findings, excused: Excused) -> frozenset[Path]:
    """Report what does not fit the schema of files of graphs; the paths of it, which begin with ``file``."""
    if document.data is None:
        return frozenset({(file,)})
    shape = graph_file_shape(document.data, file, findings)
    schema = {"type": "object", "properties": {file: shape.schema()}}
    filled = frozenset((file, *path) for path in excused(document.data))
    reported = filled.union((file, *path) for path in document.bad)
    return check({file: document.data}, schema, findings, reported) - filled


def unknown_graph(name: str, known: Iterable[str], at: Path, findings: Findings) -> None:
    """Report a name that no graph of a document has."""
    help = did_you_mean(name, known) or "name it below `graphs`"
    findings.error("unknown-graph", f"there is no graph `{name}`", at, on_key=True, help=help)
