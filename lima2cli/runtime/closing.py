"""How a run ends that all ranks have reported of: its files are completed, and it is counted what they hold."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lima2cli.artefacts.accounting import inspect_run
from lima2cli.artefacts.counts import saved_frames, table_rows
from lima2cli.artefacts.file_names import master_file
from lima2cli.artefacts.master import frame_files
from lima2cli.artefacts.room import advice
from lima2cli.artefacts.tree import MEASUREMENT
from lima2cli.plan.records import Plan
from lima2cli.runtime.accounts import (
    ChannelAccount,
    RowRanges,
    channel_account,
    count_rows,
    counted,
    flow_accounts,
    given_up,
)
from lima2cli.runtime.acquisition import Outcome
from lima2cli.runtime.broken import reopen_files
from lima2cli.runtime.ends import ends_made, link_file, table_file, write_ends
from lima2cli.runtime.shortfalls import losses
from lima2cli.runtime.summary import content, release_ends, write_summary


def close_run(plan: Plan, outcome: Outcome, directory: str) -> None:
    """Write what ends a run whose ranks have all reported. What cannot be written makes the run a failed one."""
    accounts = flow_accounts(plan, outcome)
    problems: list[str] = []
    held = {name: channel_account(plan, channel, accounts, outcome) for name, channel in plan.channels.items()}
    flows = {name: account.record() for name, account in accounts.items()}
    beside = {name: _unmatched(plan, it.unmatched, it.channel.unmatched, outcome) for name, it in held.items()}
    beside |= {
        name: _unmatched(plan, given_up(it.rule, it.unmatched, outcome, it.window), it.unmatched, outcome)
        for name, it in plan.tables.items()
    }
    release_ends(Path(directory))
    if outcome.failures:  # of a file that was given up numbers may be fewer than frames
        problems += reopen_files(Path(directory))
    write_ends(plan, held, flows, beside, directory, problems, outcome.start_ns or None)
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
    """What is saved is what the files hold; that they hold less than was written to them is a problem."""
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
    """Of nodes whose master or table could not be made: what the files of receivers hold."""
    found = inspect_run(directory)
    for name, channel in channels.items():
        if channel["dataset"] is None and name in found["channels"]:
            saved = min(found["channels"][name]["saved"], channel["lost"])
            channel["saved"], channel["lost"] = saved, channel["lost"] - saved
    for name, table in tables.items():
        if table["file"] is None and name in found["tables"]:
            table["rows"] = found["tables"][name]["rows"]


def _table(plan: Plan, name: str, outcome: Outcome, directory: str, problems: list[str]) -> dict[str, Any]:
    file = f"{plan.name}_{name}.h5"
    rows = _held(table_rows, Path(directory) / file, name, outcome, problems)
    table = plan.tables[name]
    given = given_up(table.rule, table.unmatched, outcome, table.window)
    unmatched = _unmatched(plan, given, table.unmatched, outcome)
    return {"rows": rows, **unmatched, "file": table_file(plan, name, Path(directory))}


def _unmatched(plan: Plan, rows: RowRanges, nodes: Sequence[str], outcome: Outcome) -> dict[str, int]:
    """Frames that were not in all inputs of the joins on the way."""
    if not nodes:
        return {}
    reports = outcome.receivers.values()
    beside = sum(counted(plan, name, [report.beside.get(name, 0) for report in reports]) for name in nodes)
    return {"unmatched": count_rows(rows) + beside}


def _held(
    count: Callable[[str], int], path: Path, node: str, outcome: Outcome, problems: list[str], unsure: int = 0
) -> int:
    """Frames or rows that a node's file shows; 0 where there is none. ``unsure``: how many fewer than receivers have
    written these may be."""
    written = sum(report.saved.get(node, 0) for report in outcome.receivers.values()) - unsure
    try:
        held = count(str(path)) if path.exists() else 0
    except OSError as error:
        problems.append(f"{path.name}: {error}")
        return 0
    if held < written and all(failure.node != node for failure in outcome.failures):
        problems.append(f"{path.name} shows {held} of the {written} that {node} has written")
    return held
