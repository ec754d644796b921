"""When ranks look for work: at the right time, and never so often that they keep a core busy."""

import time
from pathlib import Path
from typing import Any

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.accounting.record import Ledger
from lima2cli.detectors.base import AcqParams
from lima2cli.detectors.lifecycle import Lifecycle
from lima2cli.graph.executor import Executor
from lima2cli.messages import STATS
from lima2cli.ranks.loop import LONGEST_SLEEP_S, SHORTEST_SLEEP_S, Rhythm
from lima2cli.transport.inline import InlinePort
from tests.running import run, truth

LOOK_S = 10e-6
"""Seconds that a look costs here."""


def looks(arrivals: list[float], until: float) -> tuple[list[float], list[float], int]:
    """Return how late each arrival is found, by a rank that does nothing else, its sleeps, and its looks."""
    rhythm, now, sleeps, late, count = Rhythm(), 0.0, list[float](), list[float](), 0
    left = sorted(arrivals)
    while now < until:
        began, count = now, count + 1
        now += LOOK_S
        if left and left[0] <= began:
            late.append(began - left.pop(0))
            rhythm.worked(began)
        else:
            sleeps.append(rhythm.rest_s(now))
            now += sleeps[-1]
    return late, sleeps, count


@pytest.mark.parametrize("period_s", [0.5e-3, 1e-3, 3e-3, 20e-3])
def test_regular_work_is_found_at_once(period_s: float) -> None:
    """Each arrival is found within two looks, for a tenth of the time or less before it."""
    arrivals = [0.01 + period_s * k for k in range(60)]
    late, _, count = looks(arrivals, arrivals[-1])
    known = late[20:]
    assert max(known) <= 2 * SHORTEST_SLEEP_S + LOOK_S
    assert count < len(arrivals) * (8 + 0.15 * period_s / (SHORTEST_SLEEP_S + LOOK_S) + period_s / LONGEST_SLEEP_S)


def test_a_rank_without_work_looks_seldom() -> None:
    late, sleeps, count = looks([0.01 + 1e-3 * k for k in range(30)], 1.04)
    assert len(late) == 30
    assert sleeps[-1] == LONGEST_SLEEP_S
    assert count < 1.1 / LONGEST_SLEEP_S + 30 * 20


@given(apart=st.lists(st.floats(0, 0.05), max_size=50))
def test_sleeps_are_bounded_whatever_comes(apart: list[float]) -> None:
    arrivals = [sum(apart[: k + 1]) for k in range(len(apart))]
    _, sleeps, _ = looks(arrivals, (arrivals[-1] if arrivals else 0) + 0.01)
    assert sleeps
    assert all(SHORTEST_SLEEP_S <= sleep <= LONGEST_SLEEP_S for sleep in sleeps)


def test_when_frames_are_due() -> None:
    """An emulated detector says when a frame will be there: it is there then, and was not before."""
    life = Lifecycle()
    life.prepared(AcqParams(frames=4, period_s=2e-3), None, lag_ns=1_000_000)
    assert life.due_ns(0) is None
    start = time.time_ns() + 1_000_000
    life.start(start)
    assert [life.due_ns(number) for number in range(5)] == [
        start + 1_000_000, start + 3_000_000, start + 5_000_000, start + 7_000_000, None
    ]  # fmt: skip
    for number in range(4):
        due = life.due_ns(number)
        assert due is not None
        time.sleep(max(0, due - time.time_ns()) * 1e-9)
        assert life.acquired() > number


def test_frames_of_a_trigger_are_due_once_it_has_come() -> None:
    life = Lifecycle()
    life.prepared(AcqParams(frames=4, period_s=1e-3, trigger="software", frames_per_trigger=2), None)
    life.start(time.time_ns())
    assert life.due_ns(0) is None
    life.trigger()
    first = life.due_ns(0)
    assert first is not None
    assert life.due_ns(1) == first + 1_000_000
    assert life.due_ns(2) is None


TABLES = """
lima2: 1
name: k
detector: {remu: {image: {width: 16, height: 12}, scene: {counter: {}}}}
acquisition: {frames: 900, rate: 1 kHz}
nodes:
  a: {input: data, roi_counters: {rois: {all: {x: 0, y: 0, width: 8, height: 8}}}}
  b: {input: data, roi_counters: {rois: {all: {x: 8, y: 0, width: 8, height: 8}}}}
  times: {input: data, checkpoint: {}}
"""


def test_files_are_flushed_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Report, and note in the ledger, what is in the files by then, though frames came between their flushes."""
    happened: list[str] = []
    seen: list[dict[str, int]] = []
    flush, send, write = Executor.flush, InlinePort.send, Ledger.write

    def flushed(self: Executor, name: str) -> None:
        happened.append(name)
        flush(self, name)

    def sent(self: InlinePort, rank: int, message: tuple[str, Any]) -> None:
        if message[0] == STATS:
            happened.append("report")
            rows = {name: _rows(tmp_path, name) for name in message[1].saved}
            assert all(rows[name] >= saved for name, saved in message[1].saved.items())
            seen.append(rows)
        send(self, rank, message)

    def written(self: Ledger, line: Any) -> None:
        happened.append("ledger")
        write(self, line)

    monkeypatch.setattr(Executor, "flush", flushed)
    monkeypatch.setattr(InlinePort, "send", sent)
    monkeypatch.setattr(Ledger, "write", written)
    ran = run(TABLES, tmp_path, "inline")
    assert ran.code == 0, ran.output
    truth(ran)
    assert seen
    rounds = " ".join(happened).split("report")
    assert all(
        sorted(one.split()) == ["a", "b", "ledger", "times"] and one.split()[-1] == "ledger" for one in rounds[:-1]
    )
    assert sum(seen[-1].values()) > 0


def _rows(folder: Path, node: str) -> int:
    """Return how many rows a reader sees of the part of a table."""
    (path,) = (folder / "runs" / "latest").resolve().glob(f"*_{node}_0_rows.h5*")
    if path.suffix == ".new":
        return 0
    with h5py.File(path, swmr=True) as file:
        return len(file["entry_0000/measurement/frame_number"])
