"""Plans kept in files: what ``lima2 plan --format json`` prints and each run directory holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lima2cli import __version__
from lima2cli.diagnostics import Diagnostic
from lima2cli.errors import UnreadableInput
from lima2cli.plain import read_json_object
from lima2cli.plan.differences import Difference, differences
from lima2cli.plan.figures import plan_figures
from lima2cli.plan.records import Plan
from lima2cli.runtime.origin import Origin
from lima2cli.secret import hidden

NOT_COMPARED = ("warnings", "source")


def plan_contents(plan: Plan, warnings: Sequence[Diagnostic] = ()) -> dict[str, Any]:
    """A plan as plain data: its figures, and all parameters that it was compiled from."""
    return {
        **plan_figures(plan, warnings),
        "lima2": __version__,
        "parameters": dict(plan.record),
        "output": {"directory": plan.output_directory, "if_exists": plan.if_exists},
    }


def looks_saved(file: str) -> bool:
    """Whether a file of the command line is meant as a saved plan: pipelines are not JSON files with such keys."""
    if not file.endswith(".json"):
        return False
    try:
        return "gdts" in read_json_object(Path(file))
    except (OSError, ValueError):
        return False  # what is wrong with it will be told of a pipeline


def read_plan(file: str) -> tuple[Origin, dict[str, Any]]:
    """Where a saved plan comes from (its text not yet read), and its contents. Raises `UnreadableInput`."""
    try:
        contents = read_json_object(Path(file))
        return Origin.known("", contents.pop("source")), contents
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableInput(f"{file} is no saved plan (lima2 plan --format json -o {file}): {error!r}") from error


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[Difference, ...]:
    """How the contents of two plans differ, warnings and where they come from left out."""
    before, after = ({key: value for key, value in it.items() if key not in NOT_COMPARED} for it in (old, hidden(new)))
    return differences(before, after)
