"""The end of a run: its files completed and every frame counted, whether its ranks have reported or died."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lima2cli.accounting.account import (
    ChannelAccount,
    RowRanges,
    channel_account,
    count_rows,
    counted,
    flow_accounts,
    given_up,
)
from lima2cli.accounting.acquisitions import Outcome
from lima2cli.accounting.finish import ends_made, link_file, saved_frames, table_file, table_rows, write_ends
from lima2cli.accounting.inspect_run import inspect_run
from lima2cli.accounting.shortfalls import losses
from lima2cli.accounting.summary import VERSION, content, read_summary, release_ends, write_summary
from lima2cli.errors import FileProblem, RunFailed
from lima2cli.files.appending import NOT_STARTED, level, reopenable, uneven
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.files.disk import advice
from lima2cli.files.inspection import Inspection
from lima2cli.files.master import frame_files
from lima2cli.files.nexus import MEASUREMENT, ChannelRecord, master_file
from lima2cli.files.run_file import COUNTS, kept_flows
from lima2cli.plan.ir import Gdt, Plan
from lima2cli.runs.control_socket import forget
from lima2cli.runs.ownership import own_files


def conclude(
    plan: Plan, directories: Sequence[Path], reason: str, state: str = "failed"
) -> tuple[Path, dict[str, Any]]:
    """Give every acquisition of a job that has ended, in order or not, a summary.

    Returns the directory and the summary of the first that was not complete, else of the last.

    Raises:
        RunFailed: a summary can't be written.
    """
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
    """End a run whose ranks died and return its summary.

    Its files are made readable, masters and tables rebuilt, and what the files hold is reported.

    Frames that are in no file count as missing: the reasons are lost with the ranks.

    Frames that are in no file count as missing: the reasons are lost with the ranks.
    """
    problems = reopen_files(directory)
    release_ends(directory)
    write_ends(plan, None, kept_flows(Inspection(str(directory), False)), {}, str(directory), problems)
    inspected = inspect_run(str(directory))
    flows = {gdt.flow: inspected["flows"].get(gdt.flow) or _unseen(plan, gdt) for gdt in plan.gdts}
    channels = {name: inspected["channels"].get(name) or _unsaved(plan, name, flows) for name in plan.channels}
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
        "tables": {name: inspected["tables"].get(name, {"rows": None, "file": None}) for name in plan.tables},
        "seconds": None,
        "rates": {},
        "resources": {},
        "problems": problems + inspected["problems"],
        "warnings": inspected["warnings"],
    }
    summary["problems"] += advice([reason, *summary["problems"]], directory, whole=ends_made(summary))
    write_summary(directory, summary)
    return summary


def write_missing(plan: Plan, directory: Path, summary: Mapping[str, Any]) -> list[str]:
    """Write again the masters, tables and linking file that are gone of a run that ended in order.

    Returns problems as sentences. Its summary stays as it is.
    """
    problems = reopen_files(directory)
    flows = kept_flows(Inspection(str(directory), False))
    nodes = summary["channels"] | summary["tables"]
    unmatched = {name: {"unmatched": node["unmatched"]} for name, node in nodes.items() if "unmatched" in node}
    write_ends(plan, None, flows, unmatched, str(directory), problems)
    return problems + advice(problems, directory, whole=False)


def reopen_files(directory: Path) -> list[str]:
    """Clear what interrupted writers left in the HDF5 files of a run; return problems as sentences.

    Files that others have put next to them are not changed.
    """
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
    """Return whether all that receivers have written in a directory can be read, and has as many numbers as frames."""
    try:
        files = [directory / name for name in own_files(directory) if name.endswith(".h5")]
        return all(uneven(str(path)) is None for path in files)
    except (OSError, RuntimeError, KeyError, FileProblem):
        return False


def _unseen(plan: Plan, gdt: Gdt) -> dict[str, Any]:
    """Return a flow that left nothing in files: nothing came of it where all of its frames should have."""
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
    expected = (
        flows[channel.flow]["expected"] if channel.complete else max(0, ChannelRecord.of(channel, "master").planned)
    )
    counts = {"expected": expected, "saved": 0, "vetoed": 0, "dropped": 0, "lost": expected}
    return counts | {"dataset": None, "files": [], "bytes": 0}


def close_run(plan: Plan, outcome: Outcome, directory: str) -> None:
    """Write what ends a run whose ranks have all reported. Files that cannot be written make the run a failed one."""
    accounts = flow_accounts(plan, outcome)
    problems: list[str] = []
    held = {name: channel_account(plan, channel, accounts, outcome) for name, channel in plan.channels.items()}
    flows = {name: account.record() for name, account in accounts.items()}
    unmatched = {
        name: _unmatched(plan, held_node.unmatched, held_node.channel.unmatched, outcome)
        for name, held_node in held.items()
    }
    unmatched |= {
        name: _unmatched(
            plan, given_up(held_node.rule, held_node.unmatched, outcome, held_node.window), held_node.unmatched, outcome
        )
        for name, held_node in plan.tables.items()
    }
    release_ends(Path(directory))
    if outcome.failures:  # of a file that was given up numbers may be fewer than frames
        problems += reopen_files(Path(directory))
    write_ends(plan, held, flows, unmatched, directory, problems, outcome.start_ns or None)
    channels = {name: _channel(plan, name, account, outcome, directory, problems) for name, account in held.items()}
    tables = {name: _table(plan, name, outcome, directory, problems) for name in plan.tables}
    if problems and outcome.state != "failed":
        outcome.state, outcome.reason = "failed", problems[0]
    failures = [failure.message for failure in outcome.failures]
    whole = ends_made({"channels": channels, "tables": tables, "file": link_file(plan, Path(directory))})
    if not whole:  # what is saved is saved without them, too
        _count_saved(channels, tables, directory)
    problems += advice([*failures, *problems], directory, whole=whole)
    outcome.losses = losses(plan, outcome, accounts)
    write_summary(Path(directory), content(plan, outcome, Path(directory), accounts, channels, tables, problems))


def _channel(
    plan: Plan, name: str, account: ChannelAccount, outcome: Outcome, directory: str, problems: list[str]
) -> dict[str, Any]:
    """Return what is saved of a channel: what the files hold.

    That they hold less than was written to them is a problem.
    """
    folder, master = Path(directory), master_file(plan.name, name)
    # receivers of parts need not have the same frames: of so many it is not sure that all parts were written
    unsure = (account.channel.parts - 1) * (account.expected - account.vetoed)
    saved = _held(saved_frames, folder / master, name, outcome, problems, unsure)
    dropped = account.count_dropped()
    files = frame_files(directory, plan.name, name)
    if account.channel.layout == "common" and (folder / master).exists():
        files = [master]
    return {
        "expected": account.expected,
        "saved": saved,
        "vetoed": account.vetoed,
        "dropped": dropped,
        "lost": account.expected - saved - account.vetoed - dropped,
        **_unmatched(plan, account.unmatched, account.channel.unmatched, outcome),
        "dataset": f"{master}::/{MEASUREMENT}/data" if (folder / master).exists() else None,
        "files": files,
        "bytes": sum((folder / file).stat().st_size for file in files),
    }


def _count_saved(channels: Mapping[str, Any], tables: Mapping[str, Any], directory: str) -> None:
    """Count what the files of receivers hold, for nodes whose master or table could not be made."""
    inspected = inspect_run(directory)
    for name, channel in channels.items():
        if channel["dataset"] is None and name in inspected["channels"]:
            saved = min(inspected["channels"][name]["saved"], channel["lost"])
            channel["saved"], channel["lost"] = saved, channel["lost"] - saved
    for name, table in tables.items():
        if table["file"] is None and name in inspected["tables"]:
            table["rows"] = inspected["tables"][name]["rows"]


def _table(plan: Plan, name: str, outcome: Outcome, directory: str, problems: list[str]) -> dict[str, Any]:
    file = f"{plan.name}_{name}.h5"
    rows = _held(table_rows, Path(directory) / file, name, outcome, problems)
    table = plan.tables[name]
    losses = given_up(table.rule, table.unmatched, outcome, table.window)
    unmatched = _unmatched(plan, losses, table.unmatched, outcome)
    return {"rows": rows, **unmatched, "file": table_file(plan, name, Path(directory))}


def _unmatched(plan: Plan, rows: RowRanges, nodes: Sequence[str], outcome: Outcome) -> dict[str, int]:
    """Return the number of frames that were not in all inputs of the joins on the way."""
    if not nodes:
        return {}
    reports = outcome.receivers.values()
    single = sum(counted(plan, name, [report.beside.get(name, 0) for report in reports]) for name in nodes)
    return {"unmatched": count_rows(rows) + single}


def _held(
    count: Callable[[str], int], path: Path, node: str, outcome: Outcome, problems: list[str], unsure: int = 0
) -> int:
    """Return the frames or rows that a node's file shows; 0 where there is none.

    unsure  how many fewer than receivers have written these may be
    """
    written = sum(report.saved.get(node, 0) for report in outcome.receivers.values()) - unsure
    try:
        held = count(str(path)) if path.exists() else 0
    except OSError as error:
        problems.append(f"{path.name}: {error}")
        return 0
    if held < written and all(failure.node != node for failure in outcome.failures):
        problems.append(f"{path.name} shows {held} of the {written} that {node} has written")
    return held
