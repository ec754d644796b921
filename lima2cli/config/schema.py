"""The JSON Schema of the language, as published in ``schemas/``."""

import json

from lima2cli.config.records import PipelineTable
from lima2cli.declare import Schema, Table

SCHEMA_ID = "urn:lima2:schemas:pipeline-1"


def pipeline_schema() -> Schema:
    """JSON Schema (draft 2020-12) of a pipeline, with all kinds that are installed.

    Annotations of ours: ``x-unit`` of quantities, ``x-kind`` of maps that hold one kind (``x-beside``: keys that
    stand beside it), ``x-later`` keys of the language that this version lacks, ``x-words`` for messages.
    """
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "lima2 pipeline, version 1",
    }
    return head | Table(PipelineTable).schema()


def schema_text() -> str:
    """The published file."""
    return json.dumps(pipeline_schema(), indent=1, ensure_ascii=False) + "\n"
