"""The table of pipelines, with the kinds of installed packages, and the JSON Schema published in ``schemas/``."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lima2cli.declare import MapOf, OneKind, Schema, Table
from lima2cli.detectors.base import DETECTORS
from lima2cli.diagnostics import Findings, KeyPath
from lima2cli.language.records import PipelineTable
from lima2cli.language.templates import Graph, GraphFile, Template
from lima2cli.nodes.registry import GRAPH, NODES, WIRING, NodeEntry
from lima2cli.plugins import Kind, PluginProblem

PIPELINE = Table(PipelineTable)
"""Table of a pipeline of built-in kinds."""


def pipeline_shape(data: Any, findings: Findings) -> Table:
    """Return the table that fits a pipeline's kinds; report kinds that it asks for and that cannot be used."""
    detectors, nodes = list(_detectors(data)), list(_nodes(data))
    known_detectors = _usable(DETECTORS.named([str(at[-1]) for at in detectors]), detectors, findings)
    known_nodes = _usable(NODES.named([str(at[-1]) for at in nodes]), nodes, findings)
    return _shape(known_detectors, known_nodes)


def graph_file_shape(data: Any, file: str, findings: Findings) -> Table:
    """Return the table that fits the kinds of a file of graphs; places in it begin with ``file``."""
    asked: list[KeyPath] = [(file, *at) for at in _graph_nodes(data)]
    nodes = _usable(NODES.named([str(at[-1]) for at in asked]), asked, findings)
    return Table(GraphFile, {"graphs": MapOf(_graph(nodes), minimum=1)})


def complete_shape() -> tuple[Table, list[PluginProblem]]:
    """Return the table with every kind that is installed, and the problems of those that cannot be used."""
    detectors, nodes = DETECTORS.all(), NODES.all()
    every: list[Kind[Any]] = [*detectors.values(), *nodes.values()]
    problems = [kind.problem for kind in every if kind.problem is not None]
    return _shape(_with_table(detectors), _with_table(nodes)), problems


def _shape(detectors: Mapping[str, Any], nodes: Mapping[str, Any]) -> Table:
    shapes = {
        "detector": OneKind("detector", lambda: detectors),
        "graphs": MapOf(_graph(nodes)),
        "nodes": MapOf(NodeEntry(lambda: nodes)),
    }
    return Table(PipelineTable, shapes)


def _graph(nodes: Mapping[str, Any]) -> Table:
    return Table(Graph, {"nodes": MapOf(Template(NodeEntry(lambda: nodes)), minimum=1)})


def _usable(kinds: Mapping[str, Kind[Any]], asked: Iterable[KeyPath], findings: Findings) -> dict[str, type | None]:
    """Return the tables of usable kinds, None for others; report problems where kinds are asked for."""
    for at in asked:
        kind = kinds.get(str(at[-1]))
        if kind is not None and kind.problem is not None:
            findings.error(kind.problem.rule, str(kind.problem), at, on_key=True, help=kind.problem.help)
    return {name: kind.table if kind.problem is None else None for name, kind in kinds.items()}


def _with_table(kinds: Mapping[str, Kind[Any]]) -> dict[str, type]:
    return {name: kind.table for name, kind in kinds.items() if kind.table is not None}


def _detectors(data: Any) -> Iterator[KeyPath]:
    """Yield the places where kinds of detector are asked for; mistakes of writing are reported elsewhere."""
    if isinstance(data, dict) and isinstance(data.get("detector"), dict):
        yield from (("detector", kind) for kind in data["detector"])


def _nodes(data: Any) -> Iterator[KeyPath]:
    yield from _graph_nodes(data)
    if isinstance(data, dict) and isinstance(data.get("nodes"), dict):
        for name, entry in data["nodes"].items():
            if isinstance(entry, dict):
                yield from (("nodes", name, kind) for kind in entry if kind not in (*WIRING, GRAPH))


def _graph_nodes(data: Any) -> Iterator[KeyPath]:
    graphs = data.get("graphs") if isinstance(data, dict) else None
    for name, graph in graphs.items() if isinstance(graphs, dict) else ():
        yield from (("graphs", name, *at) for at in _nodes(graph))


SCHEMA_ID = "urn:lima2:schemas:pipeline-1"


def pipeline_schema(table: Table = PIPELINE) -> Schema:
    """Return the JSON Schema (draft 2020-12) of a pipeline; of built-in kinds only unless ``table`` has others.

    Annotations of ours: ``x-unit`` of quantities, ``x-kind`` of mappings that hold one kind (``x-beside``: keys that
    stand next to it, ``x-joins``: kinds that read several inputs), ``x-later`` kinds of the language that this version
    lacks, ``x-words`` for messages, ``x-parameter`` of values that may be parameters of a graph.
    """
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "lima2 pipeline, version 1",
    }
    return head | table.schema()


def schema_text(table: Table = PIPELINE) -> str:
    """Return the schema as text; that of the built-in kinds is the published file."""
    return json.dumps(pipeline_schema(table), indent=1, ensure_ascii=False) + "\n"
