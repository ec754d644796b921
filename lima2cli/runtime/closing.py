"""How a run ends that all ranks have reported of: its files are completed, and it is counted what they hold."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lima2cli.artefacts.counts import saved_frames, table_rows
from lima2cli.artefacts.file_names import master_file
from lima2cli.artefacts.master import frame_files
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
from lima2cli.runtime.ends import table_file, write_ends
from lima2cli.runtime.shortfalls import losses
from lima2cli.runtime.summary import content, write_summary


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
    write_ends(plan, held, flows, beside, directory, problems)
    channels = {name: _channel(plan, name, account, outcome, directory, problems) for name, account in held.items()}
    tables = {name: _table(plan, name, outcome, directory, problems) for name in plan.tables}
    if problems and outcome.state == "complete":
        outcome.state, outcome.reason = "failed", problems[0]
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
        "dataset": f"{master}::/entry_0000/measurement/data" if (folder / master).exists() else None,
        "files": files,
        "bytes": sum((folder / file).stat().st_size for file in files),
    }


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
