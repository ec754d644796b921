"""Options that several commands share."""

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """How diagnostics are shown."""

    TEXT = "text"
    CONCISE = "concise"
    JSON = "json"
    GITHUB = "github"
    SARIF = "sarif"


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY.PATH=VALUE", help="Replace a value of the file; may be repeated."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")]
NoFuse = Annotated[bool, typer.Option("--no-fuse", help="Every node is a kernel of its own.", hidden=True)]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", hidden=True)]
