"""Recovery of a run that was aborted: the launcher was killed, the machine went down."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lima2cli.accounting.finish import end_files, ends_made, link_file
from lima2cli.accounting.inspect_run import inspect_run
from lima2cli.accounting.summary import read_summary, write_summary
from lima2cli.errors import RunFailed, UnreadableInput
from lima2cli.plan.figures import plan_figures
from lima2cli.plan.ir import Plan
from lima2cli.runs.ending import close_broken, even, write_missing
from lima2cli.runs.ownership import is_live
from lima2cli.runs.processes import sweep
from lima2cli.runs.saved_plan import PLAN_FILE, Origin

REASON = "the run was broken off; its files were recovered"


def origin_of(directory: Path) -> tuple[Origin, dict[str, Any]]:
    """Return where the plan of a run comes from, and its figures.

    Raises:
        UnreadableInput: that is no run directory.
    """
    try:
        return Origin.read(directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableInput(f"{directory} is no run directory: it has no {PLAN_FILE} of a run ({error})") from error


def whole(directory: Path) -> dict[str, Any] | None:
    """Return the summary of a run that needs no recovery: it ended in order, and what its end made is there."""
    summary = _orderly(directory)
    ends = [None] if summary is None else end_files(summary)
    made = all(name is not None and (directory / name).exists() for name in ends)
    return summary if made and summary is not None and (summary["state"] != "failed" or even(directory)) else None


def refuse_live(directory: Path) -> None:
    """Raise `RunFailed` where a run goes on."""
    if is_live(directory):
        raise RunFailed(f"the run in {directory} goes on, and is not touched: `lima2 stop {directory}` ends it")


def _orderly(directory: Path) -> dict[str, Any] | None:
    """Return the summary of a run that ended in order: only its ranks know how long it took."""
    summary = read_summary(directory)
    return summary if summary is not None and summary.get("seconds") is not None else None


def recover_run(plan: Plan, figures: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Make the files readable, rebuild masters, tables and the linking file, write the summary, and return it.

    The summary of a run that ended in order stays, but for what its end could not make: it knows more than the files.
    `problems` then are those of now.

    figures   of the plan when the run began

    Raises:
        RunFailed: ``plan`` is another; nothing is changed then.
    """
    now = json.loads(json.dumps(plan_figures(plan)))
    changed = [key for key in ("name", "frames", "gdts", "channels") if now.get(key) != figures.get(key)]
    if changed:
        raise RunFailed(
            f"the pipeline of {directory} compiles to something else today ({', '.join(changed)}); "
            "have the files that it reads changed?"
        )
    sweep()
    sweep((directory / PLAN_FILE).stat().st_mtime_ns)  # what this run itself has left, be it ever so young
    ended = _orderly(directory)
    if ended is not None:
        return mended(plan, directory, ended, write_missing(plan, directory, ended))
    before = read_summary(directory) or {}
    return close_broken(plan, directory, before.get("reason") or REASON, before.get("state") or "failed")


def _joined(ended: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a node by its run, with what the files hold now.

    Only the run knows why frames are not saved.
    """
    now = ended | {key: found[key] for key in ("saved", "dataset", "files", "bytes", "rows", "file") if key in found}
    if "lost" in now:
        now["lost"] = now["expected"] - now["saved"] - now["vetoed"] - now["dropped"]
    return now


def mended(plan: Plan, directory: Path, ended: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the summary of a run that ended in order, with what the files of nodes hold whose end could not be made.

    It is written where there are such.
    """
    now = ended | {"problems": problems}
    if ends_made(ended):
        return now
    inspected = inspect_run(str(directory))
    for table, key in (("channels", "dataset"), ("tables", "file")):
        now[table] = {
            name: item if item[key] is not None else _joined(item, inspected[table].get(name, {}))
            for name, item in ended[table].items()
        }
    now["file"] = link_file(plan, directory)
    write_summary(directory, now)
    return now
