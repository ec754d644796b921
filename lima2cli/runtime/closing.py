"""How a run ends on disk: masters, tables, the linking file, and last of all the summary, in one atomic step."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lima2cli.artefacts.accounting import inspect_run
from lima2cli.artefacts.appending import NOT_STARTED
from lima2cli.artefacts.channel import Channel, TableChannel
from lima2cli.artefacts.common_file import complete_common
from lima2cli.artefacts.counts import saved_frames, table_rows, tells
from lima2cli.artefacts.file_names import master_file
from lima2cli.artefacts.flow_record import COUNTS, FlowRecord, expected_rows, kept_flows
from lima2cli.artefacts.inspection import Inspection
from lima2cli.artefacts.links import write_links
from lima2cli.artefacts.master import frame_files, write_master
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.recover import level, reopenable
from lima2cli.artefacts.status import last_row
from lima2cli.artefacts.tables import merge_tables
from lima2cli.errors import FileProblem, RunFailed
from lima2cli.plan.records import Gdt, Plan
from lima2cli.runtime.accounts import (
    DROPPED,
    INCOMPLETE,
    LOST,
    ChannelAccount,
    FlowAccount,
    RowRanges,
    channel_account,
    count_rows,
    counted,
    flow_accounts,
    given_up,
)
from lima2cli.runtime.acquisition import Outcome
from lima2cli.runtime.directory import SUMMARY
from lima2cli.runtime.measures import first_lost, measured_figures
from lima2cli.runtime.messages import Usage
from lima2cli.runtime.requests import forget
from lima2cli.runtime.usage import usage

VERSION = 1

KEPT_UP = 0.99
"""Share of the asked rate below which a run is warned of."""


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
    _write_ends(plan, held, flows, beside, directory, problems)
    channels = {name: _channel(plan, name, account, outcome, directory, problems) for name, account in held.items()}
    tables = {name: _table(plan, name, outcome, directory, problems) for name in plan.tables}
    if problems and outcome.state == "complete":
        outcome.state, outcome.reason = "failed", problems[0]
    summary = {
        "version": VERSION,
        "state": outcome.state,
        "reason": outcome.reason,
        "acquisition": {"number": outcome.number + 1, "of": plan.repeat, "dead_time_s": outcome.dead_s},
        "overrun": outcome.overrun,
        "file": _link_file(plan, Path(directory)),
        "frames": outcome.frames,
        "flows": {
            name: _flow(plan, account) | {"first_lost": first_lost(plan, name, outcome)}
            for name, account in accounts.items()
        },
        "channels": channels,
        "tables": tables,
        "seconds": outcome.seconds,
        "rates": _rates(plan, outcome, accounts),
        "resources": _resources(plan, outcome, accounts),
        "problems": list(dict.fromkeys(problems + [failure.message for failure in outcome.failures])),
        "warnings": outcome.warnings + _slow(plan, outcome),
        "workers": _workers(plan, outcome),
    }
    write_summary(Path(directory), summary)


def _write_ends(
    plan: Plan,
    accounts: Mapping[str, ChannelAccount] | None,
    flows: Mapping[str, FlowRecord],
    beside: Mapping[str, Mapping[str, int]],
    directory: str,
    problems: list[str],
) -> None:
    """Masters, tables, the linking file; each that fails is told, and does not keep the others from being written.

    Without accounts (nobody is left to give them) masters say what the ``flows`` say, if these are known; else they
    end with the last saved frame, and those that tell more are left as they are. ``beside`` are the counts of unmatched
    frames of each node behind joins.
    """
    folder = Path(directory)
    for name, channel in plan.channels.items():
        write = complete_common if channel.layout == "common" else write_master
        own: dict[str, Any] = {"flows": _known(channel, flows), **beside.get(name, {})}
        try:
            if accounts is None and tells(str(folder / master_file(plan.name, name))):
                continue
            if accounts is None:
                write(channel, directory, **own, **_rebuilt(channel, flows))
            else:
                account = accounts[name]
                totals = _totals(account.flows[0]) | {"expected": account.expected, "vetoed": account.vetoed}
                write(channel, directory, rows=account.rows(), statuses=account, totals=totals, **own)
        except (OSError, ValueError) as error:
            problems.append(f"master of {name}: {error}")
    for name, table in plan.tables.items():
        try:
            merge_tables(table, directory, flows=_known(table, flows), **beside.get(name, {}))
        except (OSError, ValueError) as error:
            problems.append(f"table of {name}: {error}")
    try:
        masters = [str(path) for name in plan.channels if (path := folder / master_file(plan.name, name)).exists()]
        tables = [str(folder / file) for name in plan.tables if (file := _table_file(plan, name, folder))]
        write_links(plan.name, directory, masters, tables, list(flows.values()))
    except (OSError, ValueError) as error:
        problems.append(f"{plan.name}.h5: {error}")


def _known(channel: Channel | TableChannel, flows: Mapping[str, FlowRecord]) -> list[FlowRecord]:
    """Of the flows that feed a node those of which accounts are known."""
    return [flows[name] for name in channel.flows or (channel.flow,) if name in flows]


def _rebuilt(channel: Channel, flows: Mapping[str, FlowRecord]) -> dict[str, Any]:
    """What a master that is made without the ranks' reports says of its rows; see `write_master`."""
    expected = expected_rows(Record.of(channel, "master"), flows)
    if expected is None:
        return {"totals": {} if channel.selected is None else {"expected": channel.selected}}
    if not channel.complete:
        return {"totals": {"expected": expected}}
    flow = flows[channel.flow]
    return {"totals": {"expected": expected}, "rows": last_row(flow, flow.expected), "statuses": flow}


def _totals(account: FlowAccount) -> dict[str, int]:
    return {
        "expected": account.expected,
        "received": account.received,
        "lost": account.counts[LOST],
        "dropped": account.counts[DROPPED],
        "missing": account.counts[INCOMPLETE],
    }


def _flow(plan: Plan, account: FlowAccount) -> dict[str, Any]:
    return _totals(account) | {
        "waited_s": account.waited_s,
        "missing_frames": account.absent(),
        "status": account.status,
        "receivers": _named(plan, account.by_receiver),
        "group_events": _named(plan, account.group_events),
        "end_events": _named(plan, account.end_events),
    }


def _named(plan: Plan, counts: Mapping[int, int]) -> dict[str, int]:
    """By the receivers' names, in their order."""
    return {plan.receivers[receiver]: counts[receiver] for receiver in sorted(counts)}


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
    return {"rows": rows, **unmatched, "file": _table_file(plan, name, Path(directory))}


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


def _link_file(plan: Plan, directory: Path) -> str | None:
    name = f"{plan.name}.h5"
    return name if (directory / name).exists() else None


def _table_file(plan: Plan, name: str, directory: Path) -> str | None:
    file = f"{plan.name}_{name}.h5"
    return file if (directory / file).exists() else None


def achieved_hz(plan: Plan, outcome: Outcome) -> float | None:
    """Frames per second as the modules served them; None where there were none."""
    sent_ns = max((source.sent_ns for source in outcome.sources.values()), default=0)
    if not outcome.frames or sent_ns <= outcome.start_ns:
        return None
    return outcome.frames / ((sent_ns - outcome.start_ns) * 1e-9 + (plan.period_s or 0.0))


def _slow(plan: Plan, outcome: Outcome) -> list[str]:
    """A warning where the source had to wait: real hardware would not have."""
    achieved = achieved_hz(plan, outcome)
    waited = any(seconds > 0 for source in outcome.sources.values() for seconds in source.waited_s.values())
    if plan.period_s is None or achieved is None or achieved * plan.period_s >= KEPT_UP or not waited:
        return []
    return [f"{achieved:.4g} Hz of the {1 / plan.period_s:.4g} Hz asked for: the detector had to wait for receivers"]


def _workers(plan: Plan, outcome: Outcome) -> list[dict[str, Any]]:
    """What each worker was given; null where it is not there any more to say it."""
    told = outcome.workers
    return [
        {
            "rank": role.rank,
            "node": role.worker,
            "blocks": told[role.rank].blocks if role.rank in told else None,
            "frames": told[role.rank].frames if role.rank in told else None,
            "failed": told[role.rank].failed if role.rank in told else None,
            "busy_s": told[role.rank].busy_s if role.rank in told else None,
        }
        for role in plan.ranks
        if role.worker is not None
    ]


def _rates(plan: Plan, outcome: Outcome, accounts: Mapping[str, FlowAccount]) -> dict[str, Any]:
    seconds = outcome.seconds or 1e-9
    sizes = dict.fromkeys(accounts, 0)
    for gdt in plan.gdts:
        sizes[gdt.flow] += gdt.source.area * gdt.pixel_bytes
    return {
        "asked_hz": None if plan.period_s is None else 1 / plan.period_s,
        "achieved_hz": achieved_hz(plan, outcome),
        "flows": {
            name: {"frames_per_s": account.received / seconds, "bytes_per_s": account.received * sizes[name] / seconds}
            for name, account in accounts.items()
        },
    }


def _resources(plan: Plan, outcome: Outcome, accounts: Mapping[str, FlowAccount]) -> dict[str, Any]:
    used: dict[int, Usage] = {0: usage()}
    used |= {rank: source.usage for rank, source in outcome.sources.items()}
    used |= {plan.rank_of_receiver(r): report.usage for r, report in outcome.receivers.items()}
    used |= {rank: report.usage for rank, report in outcome.workers.items()}
    return {
        "ranks": [
            {
                "rank": role.rank,
                "role": role.role,
                "cpu_s": used[role.rank].cpu_s,
                "rss_bytes": used[role.rank].rss_bytes,
            }
            for role in plan.ranks
            if role.rank in used
        ],
        "peak_fill": {
            name: {plan.receivers[r]: fill for r, fill in account.peak_fill.items()}
            for name, account in accounts.items()
        },
        "put_s": {str(rank): source.put_s for rank, source in outcome.sources.items()},
        **measured_figures(plan, outcome),
    }


def close_broken(plan: Plan, directory: Path, reason: str, state: str = "failed") -> dict[str, Any]:
    """End a run whose ranks died: make its files readable, rebuild masters and tables, and say what the files hold.

    Frames that are in no file count as missing: nobody is left to tell what became of them.
    """
    problems = reopen_files(directory)
    _write_ends(plan, None, kept_flows(Inspection(str(directory), False)), {}, str(directory), problems)
    found = inspect_run(str(directory))
    flows = {gdt.flow: found["flows"].get(gdt.flow) or _unseen(plan, gdt) for gdt in plan.gdts}
    channels = {name: found["channels"].get(name) or _unsaved(plan, name, flows) for name in plan.channels}
    summary = {
        "version": VERSION,
        "state": state,
        "reason": reason,
        "overrun": False,
        "file": _link_file(plan, directory),
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
    write_summary(directory, summary)
    return summary


def write_missing(plan: Plan, directory: Path, summary: Mapping[str, Any]) -> list[str]:
    """Write again the masters, tables and linking file that are gone of a run that ended in order; problems as
    sentences. Its summary stays as it is."""
    problems = reopen_files(directory)
    flows = kept_flows(Inspection(str(directory), False))
    nodes = summary["channels"] | summary["tables"]
    beside = {name: {"unmatched": it["unmatched"]} for name, it in nodes.items() if "unmatched" in it}
    _write_ends(plan, None, flows, beside, str(directory), problems)
    return problems


def conclude(
    plan: Plan, directories: Sequence[Path], reason: str, state: str = "failed"
) -> tuple[Path, dict[str, Any]]:
    """A job has ended, in order or not: every acquisition has a summary then. Returns the directory and the summary of
    the first that was not complete, else of the last."""
    ended: list[tuple[Path, dict[str, Any]]] = []
    for directory in directories:
        forget(directory)
        summary = read_summary(directory)
        ended.append((directory, close_broken(plan, directory, reason, state) if summary is None else summary))
    return next((one for one in ended if one[1]["state"] != "complete"), ended[-1])


def reopen_files(directory: Path) -> list[str]:
    """Clear what interrupted writers left in the HDF5 files of a directory; problems as sentences."""
    problems = []
    for file in directory.glob(f"*.h5{NOT_STARTED}"):  # no rows have come
        file.unlink(missing_ok=True)
    for path in sorted(directory.glob("*.h5")):
        try:
            reopenable(str(path))
            level(str(path))
        except (OSError, RuntimeError, KeyError, FileProblem) as error:
            problems.append(f"{path.name}: {error}")
    return problems


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
    expected = flows[channel.flow]["expected"] if channel.complete else channel.selected or 0
    counts = {"expected": expected, "saved": 0, "vetoed": 0, "dropped": 0, "lost": expected}
    return counts | {"dataset": None, "files": [], "bytes": 0}


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``, last and in one step: where it is, all the rest is. Raises `RunFailed`."""
    part = directory / f".{SUMMARY}.part"
    try:
        with part.open("w") as file:
            json.dump(summary, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(directory / SUMMARY)
    except OSError as error:
        raise RunFailed(f"the run ended ({summary['state']}), but its summary cannot be written: {error}") from error


def read_summary(directory: Path) -> dict[str, Any] | None:
    """The summary, None where there is none."""
    try:
        summary: dict[str, Any] = json.loads((directory / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    return summary
