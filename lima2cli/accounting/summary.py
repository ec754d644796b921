"""``summary.json``: its contents for a run that ended in order, and its writing: last, in one atomic step."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lima2cli.accounting.account import FlowAccount
from lima2cli.accounting.acquisitions import Outcome
from lima2cli.accounting.finish import link_file
from lima2cli.accounting.shortfalls import achieved_hz, allowed_losses, first_lost, measured_figures, shortfalls
from lima2cli.errors import RunFailed
from lima2cli.files.disk import advice, allocate
from lima2cli.files.nexus import SUMMARY
from lima2cli.files.run_file import COUNTS
from lima2cli.messages import Usage, usage
from lima2cli.paths import read_json_object
from lima2cli.plan.ir import Plan
from lima2cli.secret import hidden

VERSION = 1
RESERVE_BYTES = 256 << 10
"""Maximal bytes of a summary: one of many nodes, ranks and losses has some 100 KiB."""
STATES = ("complete", "stopped", "failed")
CHANNEL_COUNTS = ("expected", "saved", "vetoed", "dropped", "lost", "bytes")


def content(
    plan: Plan,
    outcome: Outcome,
    directory: Path,
    accounts: Mapping[str, FlowAccount],
    channels: Mapping[str, Any],
    tables: Mapping[str, Any],
    problems: Sequence[str],
) -> dict[str, Any]:
    """Return the contents of ``summary.json``, as plain data.

    channels, tables  what the files of each node hold
    """
    return {
        "version": VERSION,
        "state": outcome.verdict[0],
        "reason": outcome.verdict[1],
        "acquisition": {"number": outcome.number + 1, "of": plan.repeat, "dead_time_s": outcome.dead_s},
        "overrun": outcome.overrun,
        "losses": outcome.losses,
        "file": link_file(plan, directory),
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
        "problems": list(dict.fromkeys([*problems, *(failure.message for failure in outcome.failures)])),
        "warnings": [*_doubts(plan), *outcome.warnings, *shortfalls(plan, outcome, accounts)],
        "workers": _workers(plan, outcome),
    }


def _flow(plan: Plan, account: FlowAccount) -> dict[str, Any]:
    return account.totals | {
        "allowed": allowed_losses(plan, account.name, account.expected),
        "waited_s": account.waited_s,
        "missing_frames": account.absent(),
        "status": account.status,
        "receivers": _named(plan, account.by_receiver),
        "group_events": _named(plan, account.group_events),
        "end_events": _named(plan, account.end_events),
    }


def _named(plan: Plan, counts: Mapping[int, int]) -> dict[str, int]:
    """Return values by the receivers' names, in their order."""
    return {plan.receivers[receiver]: counts[receiver] for receiver in sorted(counts)}


def _doubts(plan: Plan) -> Iterator[str]:
    """Yield warnings of recorded frames: what was asked and is not in their files, or is there and was not taken."""
    asked = plan.record.get("acquisition", {}).get("frames") or 0
    if plan.frames is not None and plan.frames < asked:
        yield f"{asked} frames were asked for, and {plan.frames} are recorded"
    yield from plan.info.sensor.doubts


def _workers(plan: Plan, outcome: Outcome) -> list[dict[str, Any]]:
    """Return what each worker was given; null where it is not there any more to report it."""
    reports = outcome.workers
    return [
        {
            "rank": role.rank,
            "node": role.worker,
            "blocks": reports[role.rank].blocks if role.rank in reports else None,
            "frames": reports[role.rank].frames if role.rank in reports else None,
            "failed": reports[role.rank].failed if role.rank in reports else None,
            "busy_s": reports[role.rank].busy_s if role.rank in reports else None,
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


def reserve_summary(directory: Path, ends: int = 0) -> None:
    """Allocate disk space for the summary, and ``ends`` bytes for masters and tables as far as the disk has them.

    A disk that is full at the end has that space then.

    Raises:
        OSError: there is no room for a summary.
    """
    with _part(directory).open("ab") as file:
        allocate(file.fileno(), 0, RESERVE_BYTES)
        with suppress(OSError):  # a run that just fits is none to refuse; `lima2 recover` makes what has no room then
            allocate(file.fileno(), RESERVE_BYTES, RESERVE_BYTES + ends)


def release_ends(directory: Path) -> None:
    """Give back the disk space for masters and tables, which are being written now; that for the summary stays.

    Raises:
        OSError: the file can't be changed.
    """
    with suppress(FileNotFoundError), _part(directory).open("r+b") as file:
        for _ in range(2):  # what lies beyond the end is freed when a file gets the length that it has
            file.truncate(RESERVE_BYTES)


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``, last and in one step: where it is, all the rest is.

    Raises:
        RunFailed: it can't be written.
    """
    part, data = _part(directory), json.dumps(hidden(dict(summary)), indent=1).encode() + b"\n"
    try:
        with part.open("r+b" if part.exists() else "wb") as file:  # where there is room for it
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        part.replace(directory / SUMMARY)
    except OSError as error:
        help = "; ".join(["", *advice([str(error)], directory, whole=False)])
        message = f"the run ended ({summary['state']}), but its summary cannot be written: {error}{help}"
        raise RunFailed(message) from error


def _part(directory: Path) -> Path:
    """Return where the summary is until it is whole."""
    return directory / f".{SUMMARY}.part"


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Return the summary; None where there is none, or it is damaged."""
    try:
        summary = read_json_object(directory / SUMMARY)
    except (OSError, ValueError):
        return None
    return summary if _sound(summary) else None


def _sound(summary: Mapping[str, Any]) -> bool:
    """Return whether it has what readers need: states, counts and names of files, each of its type."""
    counts = {"flows": COUNTS, "channels": CHANNEL_COUNTS, "tables": ("rows",)}
    of_one = {"number": 1, "of": 1}
    try:
        return (
            summary["state"] in STATES
            and all(isinstance(summary[key], str | None) for key in ("reason", "file"))
            and all(isinstance(summary[key], int | float | None) for key in ("frames", "seconds"))
            and all(isinstance(sentence, str) for key in ("problems", "warnings") for sentence in summary[key])
            and all(
                isinstance(item[key], int | None)
                for table in counts
                for item in _items(summary[table])
                for key in counts[table]
            )
            and all(isinstance(item["dataset"], str | None) for item in _items(summary["channels"]))
            and all(isinstance(item["file"], str | None) for item in _items(summary["tables"]))
            and all(_ranges(item["missing_frames"]) for item in _items(summary["flows"]))
            and all(isinstance(summary.get("acquisition", of_one)[key], int) for key in of_one)
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _items(table: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list(table.values())


def _ranges(found: Any) -> bool:
    """Return whether these are lists of first, last, step; or None, where that is not known."""
    return found is None or all(len(numbers) == 3 and all(isinstance(n, int) for n in numbers) for numbers in found)
