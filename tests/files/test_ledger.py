"""Ledgers: what receivers have counted is read back as it was written, and makes the account together with files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lima2cli.accounting import record
from lima2cli.accounting.account import Evidence, account
from lima2cli.accounting.record import GdtRecord, Ledger, RunRecord, read_ledger
from lima2cli.files.rows import DROPPED, INCOMPLETE, LOST, SAVED, runs, union
from lima2cli.messages import Counts, FlowCount
from tests.artefacts_samples import make_rule

NUMBERS = st.sets(st.integers(0, 60), max_size=40)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12))
def test_a_union_has_what_its_ranges_have_and_no_two_that_touch(given_: list[tuple[int, int]]) -> None:
    ranges = [(first, first + more) for first, more in given_]
    numbers = {number for first, last in ranges for number in range(first, last + 1)}
    made = union(ranges)
    assert [number for first, last in made.tolist() for number in range(first, last + 1)] == sorted(numbers)
    assert (made[1:, 0] > made[:-1, 1] + 1).all()
    np.testing.assert_array_equal(runs(np.array(sorted(numbers), np.int64)), made)


def grow(counts: Counts, steps: Sequence[tuple[int, int, int]]) -> None:
    """Let counts grow as those of a receiver do: at the end, or by more in the last range."""
    for kind, first, more in steps:
        flow, dropped = counts.flows["F"], counts.dropped["n"]
        flow.done[0] = flow.done.get(0, 0) + more
        counts.vetoed["f"] += more
        if kind == 0:
            flow.lost.append((first, flow.done[0], more))
        elif kind == 1 and flow.lost:
            flow.lost[-1] = (*flow.lost[-1][:2], flow.lost[-1][2] + more)
        elif kind == 2:
            flow.missing.append((first, flow.done[0], more))
            flow.incomplete.append((first, first + more))
        elif kind == 3:
            dropped.append((first, first + more))
        elif dropped:
            dropped[-1] = (dropped[-1][0], dropped[-1][1] + more)


STEPS = st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 5)), max_size=4), max_size=6)


def written(folder: Path, steps: Sequence[Sequence[tuple[int, int, int]]]) -> tuple[Path, list[str]]:
    """Return a ledger with a line after each of some steps, and what it should say up to each of its lines."""
    counts = Counts(flows={"F": FlowCount()}, dropped={"n": []}, vetoed={"f": 0}, beside={"j": 3})
    made, states, length = Ledger(str(folder), "maze", 1), [repr(Counts())], -1
    path = folder / "maze_1.ledger"
    for some in steps:
        grow(counts, some)
        made.write(made.line(counts, None))
        if path.stat().st_size > length:
            length = path.stat().st_size
            states.append(repr(counts))
    made.close()
    return path, states


@settings(max_examples=40)
@given(steps=STEPS, data=st.data())
def test_a_ledger_is_read_up_to_what_is_torn_or_damaged(
    tmp_path_factory: pytest.TempPathFactory, steps: Any, data: st.DataObject
) -> None:
    path, states = written(tmp_path_factory.mktemp("run"), steps)
    whole = path.read_bytes()
    assert len(states) == 1 + whole.count(b"\n")
    kept = read_ledger(path)
    assert (repr(kept.counts), kept.damaged) == (states[-1], None)
    if not whole:
        return
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at])
    kept = read_ledger(path)
    assert (repr(kept.counts), kept.damaged) == (states[whole[:at].count(b"\n")], None)
    bad = bytearray(whole)
    bad[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bad)
    kept, line = read_ledger(path), whole[:at].count(b"\n")
    if whole[at : at + 1] == b"\n" and line == whole.count(b"\n") - 1:
        assert (repr(kept.counts), kept.damaged) == (states[line], None)  # a last line without its end
    else:
        assert (repr(kept.counts), kept.damaged) == (states[line], line + 1)


def test_a_line_that_the_disk_refuses_is_made_good_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, made = Counts(flows={"F": FlowCount(lost=[(0, 1, 2)])}), Ledger(str(tmp_path), "maze", 0)
    made.write(made.line(counts, None))
    write = record.os.pwrite

    def refuse(file: int, data: bytes, at: int) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(file, data[:19], at) if len(data) > 40 else write(file, data[:5], at)

    counts.flows["F"].lost += [(0, 5, 1), (0, 8, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(record.os, "pwrite", refuse)
        with pytest.raises(OSError, match="No space"):
            made.write(made.line(counts, None))
    assert read_ledger(tmp_path / "maze_0.ledger").counts.flows["F"].lost == [(0, 1, 2)]
    counts.flows["F"].lost.append((0, 11, 1))
    made.write(made.line(counts, 40))
    kept = read_ledger(tmp_path / "maze_0.ledger")
    assert (kept.counts, kept.frames, kept.damaged) == (counts, 40, None)
    length = (tmp_path / "maze_0.ledger").stat().st_size
    made.write(made.line(counts, 40))
    made.write(made.line(counts, 40))
    assert (tmp_path / "maze_0.ledger").stat().st_size < 2 * length  # what says nothing new is not written again


def oracle(gdt: GdtRecord, counts: FlowCount, found: set[int], expected: int) -> NDArray[np.uint8]:
    """Frame by frame: what was counted counts; else what is in files was received, and all else is missing."""
    status = np.zeros(expected, np.uint8)
    for index in range(expected):
        buffer, visit = gdt.rule.turn(gdt.rule.group(index))
        if gdt.rule.dropped(visit):
            status[index] = DROPPED
        elif visit >= counts.done.get(buffer, 0) and index not in found:
            status[index] = INCOMPLETE
        for value, ranges in ((LOST, counts.lost), (INCOMPLETE, counts.missing)):
            if any(own == buffer and first <= visit < first + visits for own, first, visits in ranges):
                status[index] = value
        if any(first <= index <= last for first, last in counts.incomplete):
            status[index] = INCOMPLETE
    return status


@settings(max_examples=150)
@given(data=st.data(), blocks=st.integers(1, 4), buffers=st.integers(1, 3), parts=st.integers(1, 2), end=st.booleans())
def test_the_account_is_the_union_of_what_was_counted_and_what_is_in_files(
    data: st.DataObject, blocks: int, buffers: int, parts: int, end: bool
) -> None:
    """The part of a frame that is most behind decides. A run without an end ends with the last frame known."""
    rule = make_rule(blocks=blocks, buffers=1 if parts > 1 else buffers)
    places = [GdtRecord(f"F[{place}]", "F", rule, None, (place,) * rule.buffers) for place in range(parts)]
    counts, own = {}, []
    for place, gdt in enumerate(places):
        flow = FlowCount()
        for buffer in range(rule.buffers):
            flow.done[buffer] = data.draw(st.integers(0, 8))
            for visit in sorted(data.draw(st.sets(st.integers(0, 9), max_size=4))):
                (flow.lost if data.draw(st.booleans()) else flow.missing).append((buffer, visit, 1))
        own.append(flow)
        counts[place] = Counts(flows={gdt.name: flow})
    found = data.draw(NUMBERS)
    record = RunRecord("maze", None, tuple(places), {}, {}, {}, ())
    held = {"F": runs(np.array(sorted(found), np.int64))}
    flow_record = account(record, Evidence(counts, 50 if end else None, found=held)).flows["F"]
    known = [
        rule.group_of(buffer, visit) * blocks + blocks
        for flow in own
        for buffer, visit in (
            *((buffer, done - 1) for buffer, done in flow.done.items() if done),
            *((buffer, visit) for buffer, visit, _ in (*flow.lost, *flow.missing)),
        )
    ]
    expected = 50 if end else max([0, *known, *(index + 1 for index in found)])
    assert flow_record.expected == expected
    want = np.max([oracle(gdt, flow, found, expected) for gdt, flow in zip(places, own, strict=True)], axis=0)
    np.testing.assert_array_equal(flow_record[0:expected], want)
    received, lost, dropped, missing = np.bincount(want, minlength=4)[[SAVED, LOST, DROPPED, INCOMPLETE]]
    assert (flow_record.received, flow_record.lost) == (received, lost)
    assert (flow_record.dropped, flow_record.missing) == (dropped, missing)
