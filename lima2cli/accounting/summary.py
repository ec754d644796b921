"""``summary.json``: the account of a run as its directory keeps it, declared, written last in one step, and read."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import from_plain, key, schema_of, to_plain
from lima2cli.errors import RunFailed
from lima2cli.files.disk import advice, allocate
from lima2cli.files.nexus import SUMMARY
from lima2cli.paths import read_json_object
from lima2cli.secret import hidden

VERSION = 1
RESERVE_BYTES = 256 << 10
"""Maximal bytes of a summary: one of many nodes, ranks and losses has some 100 KiB."""

State = Literal["complete", "stopped", "failed"]
Range = tuple[int, int, int]
"""First and last number, and step."""


@dataclass(frozen=True)
class FirstLost:
    """The first frame of a flow that was overwritten before it was used."""

    frame: int = key("Its number.")
    receiver: str = key("The receiver that was too slow.")


@dataclass(frozen=True)
class FlowReport:
    """Facts about a flow that only the ranks know."""

    allowed: int | None = key("Frames that may be lost or missing; null: any.")
    status: str = key("How it ended: ok, full (a oneshot buffer), or incomplete.")
    receivers: Mapping[str, int] = key("Frames received, by receiver.")
    group_events: Mapping[str, int] = key("Events of groups, by receiver.")
    end_events: Mapping[str, int] = key("Events of its end, by receiver.")
    first_lost: FirstLost | None = key("The first frame that was lost; null where none was.")


@dataclass(frozen=True)
class FlowSummary:
    """A flow, in frames: expected = received + lost + dropped + missing. Null: no file tells."""

    expected: int | None = key("Frames that it selects of those that were taken.")
    received: int | None = key("Frames that receivers used.")
    lost: int | None = key("Frames that were overwritten before they were used.")
    dropped: int | None = key("Frames that found a oneshot buffer full.")
    missing: int | None = key("Frames that never came, or not whole (a module failed, packets were lost).")
    missing_frames: tuple[Range, ...] | None = key(
        "Numbers of the frames that were not received, as ranges [first, last, step], last included."
    )
    waited_s: float | None = key("Seconds that the source was held back.", None, none="absent")
    reported: FlowReport | None = key("What only the ranks know.", None, none="spread")


@dataclass(frozen=True)
class ChannelSummary:
    """A node that saves frames: expected = saved + vetoed + dropped + lost. Null: no file tells."""

    expected: int = key("Frames that should be saved.")
    saved: int = key("Frames that the files hold.")
    vetoed: int | None = key("Frames that `filter` nodes left out.")
    dropped: int | None = key("Frames that a full buffer or a transform dropped.")
    lost: int | None = key("Frames that were lost, those that its flow lost among them.")
    unmatched: int | None = key("Frames of these that were not in all inputs of a join.", None, none="absent")
    dataset: str | None = key("The frames: file::/path; null where there is no master.", None)
    files: tuple[str, ...] = key("Files that hold the frames.", ())
    bytes: int = key("Size of these files.", 0)


@dataclass(frozen=True)
class TableSummary:
    """A node that saves rows."""

    rows: int | None = key("Rows; null where no file tells.")
    unmatched: int | None = key("Frames that were not in all inputs of a join.", None, none="absent")
    file: str | None = key("Its file; null where there is none.", None)


@dataclass(frozen=True)
class Acquisition:
    """An acquisition among those of its job."""

    number: int = key("From 1.")
    of: int = key("How many there are; 0: until stopped.")
    dead_time_s: float | None = key(
        "Seconds from the last frame of the one before to when this one could take a frame; null for the first."
    )


@dataclass(frozen=True)
class FlowRate:
    """The rate of one flow, on average."""

    frames_per_s: float = key("Frames received per second.")
    bytes_per_s: float = key("Bytes of these per second.")


@dataclass(frozen=True)
class Rates:
    """Rates of a run."""

    asked_hz: float | None = key("Frames per second that were asked for; null: as fast as possible.")
    achieved_hz: float | None = key("Frames per second that the modules served; null where there were none.")
    flows: Mapping[str, FlowRate] = key("By flow.")


@dataclass(frozen=True)
class RankUsage:
    """Resources that a rank used."""

    rank: int = key("Its number.")
    role: str = key("control, detector, receiver or worker.")
    cpu_s: float = key("CPU seconds, the start of the program among them.")
    rss_bytes: int = key("Peak memory.")


@dataclass(frozen=True)
class KernelCost:
    """Cost of nodes that are computed together, on one receiver."""

    nodes: tuple[str, ...] = key("In the order of the data; the flow where its frames come compressed: of unpacking.")
    frames: int = key("Frames that it was given.")
    stage_s: float = key("Seconds to compute.")
    commit_s: float = key("Seconds to write.")


@dataclass(frozen=True)
class ReceiverFigures:
    """Work of one receiver."""

    rank: int = key("Its rank.")
    busy_s: float = key("Seconds that it was busy.")
    cpu_s: float = key("CPU seconds from the start of the acquisition on.")
    frames: float = key("Frames of the detector for which it did its part.")
    kernels: tuple[KernelCost, ...] = key("Cost of each kernel.")


@dataclass(frozen=True)
class Latency:
    """Latency of results, from a frame's time to when it was released."""

    p50_s: float | None = key("Median, in seconds; null where there was none.")
    p99_s: float | None = key("99th percentile.")
    max_s: float = key("The longest.")


@dataclass(frozen=True)
class PaceFigures:
    """Pace of the results of a flow on one receiver."""

    frames: int = key("Frames whose results left.")
    hz: float | None = key("Frames of the detector per second, without those that were lost; null: too few.")
    seconds: float = key("For how long.")


@dataclass(frozen=True)
class DetectorFigures:
    """Work of one detector rank."""

    put_s: float = key("Seconds spent sending.")
    flush_s: float = key("Seconds of these blocked in Flush.")
    cpu_s: float = key("CPU seconds from the start of the acquisition on.")
    behind_s: float | None = key("Seconds that it was behind its clock at most; null where frames have no period.")


@dataclass(frozen=True)
class Resources:
    """Figures that the ranks have measured."""

    ranks: tuple[RankUsage, ...] = key("Of each rank that reported.")
    peak_fill: Mapping[str, Mapping[str, float]] = key(
        "The highest fill of local buffers, as a share of their depth, by flow and receiver."
    )
    put_s: Mapping[str, float] = key("Seconds spent sending, by rank.")
    receivers: Mapping[str, ReceiverFigures] = key("By receiver.")
    latency: Mapping[str, Latency] = key("By flow, and by node that waits for others.")
    paces: Mapping[str, Mapping[str, PaceFigures]] = key("Results, by flow and receiver.")
    hold_s: Mapping[str, float | None] = key("Seconds that local buffers hold frames; null where these have no period.")
    detectors: Mapping[str, DetectorFigures] = key("By rank.")


@dataclass(frozen=True)
class WorkerSummary:
    """A rank of a node `mpi`; null where it was not there any more to report."""

    rank: int = key("Its number.")
    node: str = key("The node that delegates to it.")
    blocks: int | None = key("Blocks that it was given.")
    frames: int | None = key("Frames that it was given.")
    failed: int | None = key("Blocks of these that it failed.")
    busy_s: float | None = key("Seconds from when it was given a block to when it had a result.")


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """The account of a run: of its flows, and of the nodes that save."""

    version: Literal[1] = key("Of this format.", VERSION)
    flows: Mapping[str, FlowSummary] = key("By flow.")
    channels: Mapping[str, ChannelSummary] = key("By node that saves frames.")
    tables: Mapping[str, TableSummary] = key("By node that saves rows.")
    problems: tuple[str, ...] = key("Masters or tables that could not be written, failures of ranks: sentences.", ())
    warnings: tuple[str, ...] = key("What else is to be known: sentences.", ())

    @property
    def nodes(self) -> Mapping[str, ChannelSummary | TableSummary]:
        """Nodes that save, by name."""
        return {**self.channels, **self.tables}


@dataclass(frozen=True, kw_only=True)
class Summary(Accounting):
    """The account of an acquisition, written last and in one step. Paths in it are relative to its directory."""

    state: State = key("complete, stopped (by the user) or failed.")
    reason: str | None = key("Why it is not complete.")
    acquisition: Acquisition | None = key("Which of the job; absent where ranks died.", None, none="absent")
    overrun: bool = key("Whether data were destroyed in a flow of `overrun: stop`.", False)
    losses: tuple[str, ...] = key(
        "A sentence for each flow that lost more frames than it may; with one of them no run is complete.", ()
    )
    file: str | None = key("The file that links all others; null where there is none.")
    frames: int | None = key("Frames that were asked for, or those until it was stopped; null: unknown.")
    seconds: float | None = key(
        "From frame 0 to the last file closed, without masters and tables; null where ranks died."
    )
    rates: Rates | None = key("Rates; empty where ranks died.", None, none="empty")
    resources: Resources | None = key("What was measured; empty where ranks died.", None, none="empty")
    workers: tuple[WorkerSummary, ...] | None = key("Workers; absent where ranks died.", None, none="absent")

    @property
    def orderly(self) -> bool:
        """Return whether the run ended in order: only its ranks know how long it took."""
        return self.seconds is not None

    @property
    def end_files(self) -> list[str | None]:
        """Return the names of the files that the end of the run made; None for each that could not be made."""
        channels = [item.dataset and item.dataset.partition("::")[0] for item in self.channels.values()]
        return [*channels, *(item.file for item in self.tables.values()), self.file]


def schema_text() -> str:
    """Return the JSON Schema of ``summary.json``, as it is published."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:lima2:schemas:summary-1",
        "title": "lima2 summary of a run, version 1",
    }
    return json.dumps(head | schema_of(Summary), indent=1, ensure_ascii=False) + "\n"


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


FIRST = ("version", "state", "reason", "acquisition", "overrun", "losses", "file", "frames")
"""Keys that people look for first."""


def write_summary(directory: Path, summary: Summary) -> None:
    """Write ``summary.json``, last and in one step: where it is, all the rest is.

    Raises:
        RunFailed: it can't be written.
    """
    plain = hidden(to_plain(summary))
    plain = {name: plain[name] for name in (*FIRST, *plain) if name in plain}
    part, data = _part(directory), json.dumps(plain, indent=1).encode() + b"\n"
    try:
        with part.open("r+b" if part.exists() else "wb") as file:  # where there is room for it
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        part.replace(directory / SUMMARY)
    except OSError as error:
        help = "; ".join(["", *advice([str(error)], directory, whole=False)])
        message = f"the run ended ({summary.state}), but its summary cannot be written: {error}{help}"
        raise RunFailed(message) from error


def _part(directory: Path) -> Path:
    """Return where the summary is until it is whole."""
    return directory / f".{SUMMARY}.part"


def read_summary(directory: Path) -> Summary | None:
    """Return the summary; None where there is none, or it is damaged."""
    try:
        return from_plain(Summary, read_json_object(directory / SUMMARY))
    except (OSError, ValueError):
        return None
