"""How a run ends whose ranks died: its files are made readable, and tell what became of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lima2cli.artefacts.accounting import inspect_run
from lima2cli.artefacts.appending import NOT_STARTED
from lima2cli.artefacts.channel import Channel, TableChannel
from lima2cli.artefacts.flow_record import COUNTS, kept_flows
from lima2cli.artefacts.inspection import Inspection
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.recover import level, reopenable, uneven
from lima2cli.artefacts.room import advice
from lima2cli.errors import FileProblem, RunFailed
from lima2cli.plan.records import Gdt, Plan
from lima2cli.runtime.announcement import forget
from lima2cli.runtime.ends import ends_made, link_file, write_ends
from lima2cli.runtime.ownership import own_files
from lima2cli.runtime.summary import VERSION, read_summary, release_ends, write_summary


def conclude(
    plan: Plan, directories: Sequence[Path], reason: str, state: str = "failed"
) -> tuple[Path, dict[str, Any]]:
    """A job has ended, in order or not: every acquisition has a summary then. Returns the directory and the summary of
    the first that was not complete, else of the last. Raises `RunFailed` where that can't be written."""
    ended: list[tuple[Path, dict[str, Any]]] = []
    for directory in directories:
        forget(directory)
        summary = read_summary(directory)
        try:
            ended.append((directory, close_broken(plan, directory, reason, state) if summary is None else summary))
        except OSError as error:
            help = advice([str(error)], directory, whole=False) or [
                f"`lima2 recover {directory}` ends it when that can be"
            ]
            raise RunFailed(f"{reason}; its files cannot be ended: {error}; {help[0]}") from error
    return next((one for one in ended if one[1]["state"] != "complete"), ended[-1])


def close_broken(plan: Plan, directory: Path, reason: str, state: str = "failed") -> dict[str, Any]:
    """End a run whose ranks died: make its files readable, rebuild masters and tables, and say what the files hold.

    Frames that are in no file count as missing: nobody is left to tell what became of them.
    """
    problems = reopen_files(directory)
    release_ends(directory)
    write_ends(plan, None, kept_flows(Inspection(str(directory), False)), {}, str(directory), problems)
    found = inspect_run(str(directory))
    flows = {gdt.flow: found["flows"].get(gdt.flow) or _unseen(plan, gdt) for gdt in plan.gdts}
    channels = {name: found["channels"].get(name) or _unsaved(plan, name, flows) for name in plan.channels}
    summary: dict[str, Any] = {
        "version": VERSION,
        "state": state,
        "reason": reason,
        "overrun": False,
        "losses": [],
        "file": link_file(plan, directory),
        "frames": plan.frames,
        "flows": {name: flow | {"waited_s": 0.0} for name, flow in flows.items()},
        "channels": channels,
        "tables": {name: found["tables"].get(name, {"rows": None, "file": None}) for name in plan.tables},
        "seconds": None,
        "rates": {},
        "resources": {},
        "problems": problems + found["problems"],
        "warnings": found["warnings"],
    }
    summary["problems"] += advice([reason, *summary["problems"]], directory, whole=ends_made(summary))
    write_summary(directory, summary)
    return summary


def write_missing(plan: Plan, directory: Path, summary: Mapping[str, Any]) -> list[str]:
    """Write again the masters, tables and linking file that are gone of a run that ended in order; problems as
    sentences. Its summary stays as it is."""
    problems = reopen_files(directory)
    flows = kept_flows(Inspection(str(directory), False))
    nodes = summary["channels"] | summary["tables"]
    beside = {name: {"unmatched": it["unmatched"]} for name, it in nodes.items() if "unmatched" in it}
    write_ends(plan, None, flows, beside, str(directory), problems)
    return problems + advice(problems, directory, whole=False)


def reopen_files(directory: Path) -> list[str]:
    """Clear what interrupted writers left in the HDF5 files of a run; problems as sentences. What others have put
    beside them is not touched."""
    problems = []
    for path in (directory / name for name in sorted(own_files(directory))):
        if path.name.endswith((f".h5{NOT_STARTED}", f".h5.part{NOT_STARTED}")):  # no rows have come
            path.unlink(missing_ok=True)
        if path.suffix != ".h5":
            continue
        try:
            reopenable(str(path))
            level(str(path))
        except (OSError, RuntimeError, KeyError, FileProblem) as error:
            problems.append(f"{path.name}: {error}")
    return problems


def even(directory: Path) -> bool:
    """Whether all that receivers have written in a directory can be read, and has as many numbers as frames."""
    try:
        files = [directory / name for name in own_files(directory) if name.endswith(".h5")]
        return all(uneven(str(path)) is None for path in files)
    except (OSError, RuntimeError, KeyError, FileProblem):
        return False


def _unseen(plan: Plan, gdt: Gdt) -> dict[str, Any]:
    """A flow that left nothing in files: nothing came of it where all of its frames should have."""
    nodes: list[Channel | TableChannel] = [*plan.channels.values(), *plan.tables.values()]
    if not any(node.complete and node.flow == gdt.flow for node in nodes):
        return {**dict.fromkeys(COUNTS), "expected": gdt.selected, "missing_frames": None}
    expected = gdt.selected or 0
    first, last = gdt.rule.frame(0), gdt.rule.frame(expected - 1)
    missing = [[first, last, gdt.rule.step if expected > 1 else 1]] if expected else []
    counts = {"expected": expected, "received": 0, "lost": 0, "dropped": 0, "missing": expected}
    return counts | {"missing_frames": missing}


def _unsaved(plan: Plan, name: str, flows: Mapping[str, Any]) -> dict[str, Any]:
    channel = plan.channels[name]
    expected = flows[channel.flow]["expected"] if channel.complete else max(0, Record.of(channel, "master").planned)
    counts = {"expected": expected, "saved": 0, "vetoed": 0, "dropped": 0, "lost": expected}
    return counts | {"dataset": None, "files": [], "bytes": 0}
