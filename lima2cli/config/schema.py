"""The JSON Schema of the language, as published in ``schemas/``."""

import json

from lima2cli.config.kinds import PIPELINE
from lima2cli.declare import Schema, Table

SCHEMA_ID = "urn:lima2:schemas:pipeline-1"


def pipeline_schema(table: Table = PIPELINE) -> Schema:
    """JSON Schema (draft 2020-12) of a pipeline; of built-in kinds only unless ``table`` has others.

    Annotations of ours: ``x-unit`` of quantities, ``x-kind`` of maps that hold one kind (``x-beside``: keys that
    stand beside it, ``x-joins``: kinds that read several inputs), ``x-later`` kinds of the language that this version
    lacks, ``x-words`` for messages,
    ``x-parameter`` of values that may be parameters of a graph.
    """
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "lima2 pipeline, version 1",
    }
    return head | table.schema()


def schema_text(table: Table = PIPELINE) -> str:
    """The schema as text; that of the built-in kinds is the published file."""
    return json.dumps(pipeline_schema(table), indent=1, ensure_ascii=False) + "\n"
