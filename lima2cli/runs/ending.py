"""The end of a run: its files completed and every frame counted, whether its ranks have reported or died; recovery."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from lima2cli.accounting.account import Evidence, RunAccount, recovered_account
from lima2cli.accounting.account import account as account_of
from lima2cli.accounting.acquisitions import Outcome
from lima2cli.accounting.inspect_run import inspect_run
from lima2cli.accounting.record import RunRecord, unseal
from lima2cli.accounting.summary import (
    Accounting,
    Acquisition,
    ChannelSummary,
    FlowReport,
    FlowSummary,
    Range,
    State,
    Summary,
    TableSummary,
    read_summary,
    release_ends,
    write_summary,
)
from lima2cli.dataclass import dataclass
from lima2cli.errors import FileProblem, RunFailed, UnreadableInput
from lima2cli.files.appending import NOT_STARTED, level, reopenable, uneven
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.files.common_file import complete_common
from lima2cli.files.disk import advice
from lima2cli.files.live_master import discard_live, grows
from lima2cli.files.master import frame_files, saved_frames, tells, write_master
from lima2cli.files.nexus import MEASUREMENT, master_file, table_file
from lima2cli.files.run_file import write_links
from lima2cli.files.tables import merge_tables, table_rows
from lima2cli.paths import read_json_object
from lima2cli.plan.ir import Plan
from lima2cli.runs.control_socket import forget
from lima2cli.runs.description import Description
from lima2cli.runs.directory import remove_unused
from lima2cli.runs.ownership import is_live, own_files
from lima2cli.runs.processes import sweep
from lima2cli.runs.saved_plan import PLAN_FILE, RECOVERY

REASON = "the run was aborted; its files were recovered"


def conclude(
    record: RunRecord, directories: Sequence[Path], reason: str, state: str = "failed"
) -> tuple[Path, Summary]:
    """Give every acquisition of a job that has ended, in order or not, a summary.

    Returns the directory and the summary of the first that was not complete, else of the last. The directory of one
    that was ready, and was stopped before it started, is removed: the job has its state, and the directory of the one
    before.

    Raises:
        RunFailed: a summary can't be written.
    """
    ended: list[tuple[Path, Summary]] = []
    for directory in directories:
        forget(directory)
        summary = read_summary(directory)
        try:
            ended.append((directory, close_broken(record, directory, reason, state) if summary is None else summary))
        except OSError as error:
            help = advice([str(error)], directory, whole=False) or [
                f"`lima2 recover {directory}` ends it when that can be"
            ]
            raise RunFailed(f"{reason}; its files cannot be ended: {error}; {help[0]}") from error
    if len(ended) > 1 and _never_started(ended[-1][1]) and remove_unused(ended[-1][0], ended[-2][0]):
        _, unused = ended.pop()
        if ended[-1][1].state == "complete":
            ended[-1] = ended[-1][0], replace(ended[-1][1], state=unused.state, reason=unused.reason)
    return next((one for one in ended if one[1].state != "complete"), ended[-1])


def _never_started(summary: Summary) -> bool:
    """Return whether an acquisition of a job was ready, and was stopped before it started."""
    return summary.state == "stopped" and summary.orderly and not summary.frames and summary.seconds == 0


def close_broken(record: RunRecord, directory: Path, reason: str, state: str = "failed") -> Summary:
    """End a run whose ranks died and return its summary.

    Its files are made readable, masters and tables rebuilt; the account is that of ledgers and files.
    """
    problems = reopen_files(directory)
    account = recovered_account(record, directory)
    problems += complete_files(record, account, directory)
    channels, tables = _Saved(record, account, directory, problems).all()
    inspected = inspect_run(str(directory))
    summary = Summary(
        state=cast(State, state),
        reason=reason,
        file=_there(f"{record.name}.h5", directory),
        frames=account.frames,
        flows={name: _flow(record, account, name) for name in record.flows},
        channels=channels,
        tables=tables,
        seconds=None,
        warnings=(*account.warnings, *inspected.warnings),
    )
    return _written(directory, summary, [*problems, *inspected.problems], [reason])


def close_run(plan: Plan, outcome: Outcome, directory: str) -> Summary:
    """End a run whose ranks have all reported and return its summary.

    Files that cannot be written make it a failed one.
    """
    # here, so that recovery loads nothing of the language
    from lima2cli.accounting.shortfalls import flow_report, losses, rates, resources, shortfalls, waited_s, workers

    record, folder = RunRecord.of(plan), Path(directory)
    account = account_of(record, Evidence(outcome.receivers, outcome.frames))
    # of a file that was given up numbers may be fewer than frames
    problems = reopen_files(folder) if outcome.failures else []
    problems += complete_files(
        record, account, folder, start_ns=outcome.start_ns or None, end_ns=outcome.last_ns or None
    )
    channels, tables = _Saved(record, account, folder, problems, outcome).all()
    if problems and outcome.state != "failed":
        outcome.state, outcome.reason = "failed", problems[0]
    outcome.losses = losses(plan, outcome, account.flows)
    state, reason = outcome.verdict
    summary = Summary(
        state=cast(State, state),
        reason=reason,
        acquisition=Acquisition(outcome.number + 1, plan.repeat, outcome.dead_s),
        overrun=outcome.overrun,
        losses=tuple(outcome.losses),
        file=_there(f"{record.name}.h5", folder),
        frames=outcome.frames,
        flows={
            name: _flow(record, account, name, waited_s(plan, name, outcome), flow_report(plan, flow, outcome))
            for name, flow in account.flows.items()
        },
        channels=channels,
        tables=tables,
        seconds=outcome.seconds,
        rates=rates(plan, outcome, account.flows),
        resources=resources(plan, outcome, account.flows),
        warnings=(*_doubts(plan), *outcome.warnings, *shortfalls(plan, outcome, account.flows)),
        workers=workers(plan, outcome),
    )
    failures = [failure.message for failure in outcome.failures]
    return _written(folder, summary, problems, failures, failures)


def complete_files(
    record: RunRecord,
    account: RunAccount,
    directory: Path,
    *,
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> list[str]:
    """Write masters, tables and the linking file of an acquisition; masters that have all reasons stay.

    Returns problems as sentences: where one fails the others are still written. ``start_ns``, ``end_ns``: the start of
    the run and the time of its last frame, ns since the epoch, where files don't have it.
    """
    release_ends(directory)
    folder, flows, problems = str(directory), account.flows, list[str]()
    description = Description.of(directory)
    problems += description.problems

    def own(node: Channel | TableChannel) -> dict[str, Any]:
        known = [flows[name] for name in node.flows or (node.flow,) if name in flows]
        return {"flows": known, "unmatched": account.unmatched.get(node.node)}

    for name, held in account.channels.items():
        channel = description.channel(held.channel)
        write = complete_common if channel.layout == "common" else write_master
        known: dict[str, Any] = {"renew": channel is not held.channel} if write is complete_common else {}
        known["totals"] = {"expected": held.expected}
        if held.known:
            totals = held.flows[0].totals | {"expected": held.expected, "vetoed": held.vetoed}
            known |= {"totals": totals, "statuses": held}
        try:
            if not tells(str(directory / master_file(record.name, name))):
                write(channel, folder, rows=held.rows(), start_ns=start_ns, **own(channel), **known)
        except (OSError, ValueError) as error:
            problems.append(f"master of {name}: {error}")
        with suppress(OSError):  # where the final one could not be written
            discard_live(directory / master_file(record.name, name))
    for name, table in record.tables.items():
        try:
            merge_tables(description.table(table), folder, **own(table))
        except (OSError, ValueError) as error:
            problems.append(f"table of {name}: {error}")
    try:
        masters = [str(directory / file) for name in record.channels if (file := _master(record, name, directory))]
        tables = [str(directory / file) for name in record.tables if (file := _table(record, name, directory))]
        metadata = description.metadata(record.metadata)
        write_links(record.name, folder, masters, tables, list(flows.values()), metadata, (start_ns, end_ns))
    except (OSError, ValueError) as error:
        problems.append(f"{record.name}.h5: {error}")
    return problems


def _there(file: str, directory: Path) -> str | None:
    """Return a file of a directory; None where it is not there."""
    return file if (directory / file).exists() else None


def _master(record: RunRecord, node: str, directory: Path) -> str | None:
    """Return the name of the master of a channel; None where it is not there, or that of a run that goes on."""
    file = _there(master_file(record.name, node), directory)
    return None if file is None or grows(directory / file) else file


def _table(record: RunRecord, node: str, directory: Path) -> str | None:
    return _there(table_file(record.name, node), directory)


def _written(
    directory: Path, summary: Summary, problems: Sequence[str], reasons: Sequence[str], failures: Sequence[str] = ()
) -> Summary:
    """Return a summary with its problems and what helps, as it is written to the directory.

    reasons  why files may not be as they should be;  failures  of ranks
    """
    help = advice([*reasons, *problems], directory, whole=None not in summary.end_files)
    whole = replace(summary, problems=tuple(dict.fromkeys([*problems, *help, *failures])))
    write_summary(directory, whole)
    return whole


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


def _flow(
    record: RunRecord, account: RunAccount, name: str, waited_s: float = 0.0, report: FlowReport | None = None
) -> FlowSummary:
    """Return the account of a flow as a summary has it; all null where nothing is known of its frames."""
    flow = account.flows.get(name)
    if flow is None:
        selected = record.gdts_of(name)[0].selected
        return FlowSummary(selected, None, None, None, None, None, waited_s)
    absent = tuple(cast(Range, tuple(each)) for each in flow.absent())
    return FlowSummary(**flow.totals, missing_frames=absent, waited_s=waited_s, reported=report)


def _doubts(plan: Plan) -> Iterator[str]:
    """Yield warnings of recorded frames: what was asked and is not in their files, or is there and was not taken."""
    asked = plan.record.get("acquisition", {}).get("frames") or 0
    if plan.frames is not None and plan.frames < asked:
        yield f"{asked} frames were asked for, and {plan.frames} are recorded"
    yield from plan.info.sensor.doubts


@dataclass(frozen=True)
class _Saved:
    """Counts of what nodes have saved: what masters and tables show, or, without these, what receivers' files hold.

    Fewer than the receivers have written, by their reports (``outcome``), are a problem.
    """

    record: RunRecord
    account: RunAccount
    directory: Path
    problems: list[str]
    outcome: Outcome | None = None

    @cached_property
    def _inspected(self) -> Accounting:
        return inspect_run(str(self.directory))

    def all(self) -> tuple[dict[str, ChannelSummary], dict[str, TableSummary]]:
        """Return what is saved of all channels and all tables, by node."""
        channels = {name: self.channel(name) for name in self.record.channels}
        return channels, {name: self.table(name) for name in self.record.tables}

    def channel(self, name: str) -> ChannelSummary:
        """Return what is saved of a channel."""
        own = self.account.channels[name]
        master = _master(self.record, name, self.directory)
        found = self._inspected.channels.get(name) if master is None or not own.known else None
        if found is not None and not own.known:
            return found
        # receivers of parts need not have the same frames: of so many it is not sure that all parts were written
        unsure = (own.channel.parts - 1) * (own.expected - own.vetoed)
        saved = 0 if found is None else found.saved
        if master is not None:
            saved = self._shown(name, master, saved_frames, unsure)
        dropped = own.count_dropped()
        common = master is not None and own.channel.layout == "common"
        files = [str(master)] if common else frame_files(str(self.directory), self.record.name, name)
        return ChannelSummary(
            expected=own.expected,
            saved=saved,
            vetoed=own.vetoed,
            dropped=dropped,
            lost=own.expected - saved - own.vetoed - dropped,
            unmatched=self.account.unmatched.get(name),
            dataset=None if master is None else f"{master}::/{MEASUREMENT}/data",
            files=tuple(files),
            bytes=sum((self.directory / file).stat().st_size for file in files),
        )

    def table(self, name: str) -> TableSummary:
        """Return what is saved of a table."""
        file, unmatched = _table(self.record, name, self.directory), self.account.unmatched.get(name)
        if file is not None:
            return TableSummary(self._shown(name, file, table_rows), unmatched, file)
        found = self._inspected.tables.get(name)
        return TableSummary(None if found is None else found.rows, unmatched)

    def _shown(self, node: str, file: str, count: Callable[[str], int], unsure: int = 0) -> int:
        """Return the frames or rows that a node's file shows; 0 where it can't be read.

        unsure  how many fewer than receivers have written these may be
        """
        try:
            shown = count(str(self.directory / file))
        except OSError as error:
            self.problems.append(f"{file}: {error}")
            return 0
        if self.outcome is not None and all(failure.node != node for failure in self.outcome.failures):
            written = sum(report.saved.get(node, 0) for report in self.outcome.receivers.values()) - unsure
            if shown < written:
                self.problems.append(f"{file} shows {shown} of the {written} that {node} has written")
        return shown


def record_of(directory: Path) -> RunRecord:
    """Return the record that a run directory keeps of its run.

    Raises:
        UnreadableInput: that is no run directory, or its record can't be read.
    """
    path = directory / PLAN_FILE
    try:
        contents = read_json_object(path)
    except (OSError, ValueError) as error:
        raise UnreadableInput(
            f"{directory} is not a run directory: it has no {PLAN_FILE} of a run ({error})"
        ) from error
    if RECOVERY not in contents:
        raise UnreadableInput(
            f"{path} has no `{RECOVERY}`, without which a run can't be recovered: it is not the plan of a run"
        )
    try:
        return unseal(contents[RECOVERY])
    except ValueError as error:
        raise UnreadableInput(f"the run in {directory} can't be recovered: `{RECOVERY}` of {path}: {error}") from error


def whole(directory: Path) -> Summary | None:
    """Return the summary of a run that needs no recovery: it ended, and what its end made is there and can be read.

    It ended in order, or was recovered without a problem left.
    """
    summary = read_summary(directory)
    if summary is None or not all(name is not None and (directory / name).exists() for name in summary.end_files):
        return None
    doubted = summary.state == "failed" or not summary.orderly
    left = summary.problems and not summary.orderly
    return None if left or (doubted and not even(directory)) else summary


def refuse_live(directory: Path) -> None:
    """Raise `RunFailed` where a run is active."""
    if is_live(directory):
        raise RunFailed(f"the run in {directory} is active, and is not touched: `lima2 stop {directory}` ends it")


def recover_run(record: RunRecord, directory: Path) -> Summary:
    """Make the files readable, rebuild masters, tables and the linking file, write the summary, and return it.

    The summary of a run that ended in order stays, but for what its end could not make: it knows more than the files.
    `problems` then are those of now.
    """
    sweep()
    sweep((directory / PLAN_FILE).stat().st_mtime_ns)  # what this run itself has left, be it ever so young
    ended = read_summary(directory)
    if ended is None:
        return close_broken(record, directory, REASON)
    if not ended.orderly:
        return close_broken(record, directory, ended.reason or REASON, ended.state)
    problems = reopen_files(directory)
    account = recovered_account(record, directory)
    unmatched = {name: node.unmatched for name, node in ended.nodes.items() if node.unmatched is not None}
    account = replace(account, unmatched=unmatched)
    problems += complete_files(record, account, directory)
    problems += advice(problems, directory, whole=False)
    if None not in ended.end_files:
        return replace(ended, problems=tuple(problems))
    saved = _Saved(record, account, directory, problems)
    channels, tables = dict(ended.channels), dict(ended.tables)
    for name, item in ended.channels.items():
        if item.dataset is None:
            channels[name] = _with_files(item, saved.channel(name))
    for name, table in ended.tables.items():
        if table.file is None:
            tables[name] = saved.table(name)
    file = _there(f"{record.name}.h5", directory)
    now = replace(ended, channels=channels, tables=tables, file=file, problems=tuple(problems))
    write_summary(directory, now)
    return now


def _with_files(ended: ChannelSummary, found: ChannelSummary) -> ChannelSummary:
    """Return a channel as its run recorded it, with what the files hold now."""
    lost = ended.expected - found.saved - (ended.vetoed or 0) - (ended.dropped or 0)
    return replace(ended, saved=found.saved, dataset=found.dataset, files=found.files, bytes=found.bytes, lost=lost)
