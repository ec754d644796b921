"""Runs followed, left and looked at by threads: the parts of `drive` that servers stand on."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import lima2cli as l2
from lima2cli.drive import open_run
from lima2cli.drive.event_log import MOST_PROGRESS, EventLog
from lima2cli.runs.control_socket import HangUp
from tests.web.serving import ENDLESS, STEPS


def test_old_reports_of_progress_are_dropped_and_nothing_else() -> None:
    log = EventLog()
    log.add({"type": "start"})
    for number in range(MOST_PROGRESS + 5):
        log.add({"type": "progress", "n": number})
    log.add({"type": "event"})
    kept = log.all()
    assert [event["type"] for event in (kept[0], kept[-1])] == ["start", "event"]
    assert [event["n"] for event in kept[1:-1]] == list(range(5, MOST_PROGRESS + 5))
    assert log.next(0) == (0, {"type": "start"})
    assert log.next(1) == (6, {"type": "progress", "n": 5})
    log.end()
    assert log.next(log.count - 1) == (MOST_PROGRESS + 6, {"type": "event"})
    assert log.next(log.count) is None


def test_whoever_waits_for_an_event_is_woken() -> None:
    log = EventLog()
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.extend([log.next(0), log.next(1)]))
    waiting.start()
    log.add({"type": "start"})
    log.end()
    waiting.join(60)
    assert found == [(0, {"type": "start"}), None]
    assert log.wait_for_end(0)


def test_a_tap_of_frames_that_do_not_come_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with l2.run(ENDLESS, armed=True, transport="inline") as run:
        hang_up = HangUp()
        threading.Timer(0.3, hang_up).start()
        began = time.monotonic()
        assert list(run.tap("raw", hang_up=hang_up)) == []
        assert 0.2 < time.monotonic() - began < 30
        assert list(run.tap("raw", hang_up=hang_up)) == []  # it has been asked before
        with pytest.raises(l2.StateError, match="no flow or node"):
            next(run.tap("other"))
        watcher = l2.open(run.directory)
        assert watcher.live
        watcher.leave()
        assert list(watcher.follow()) == []
        assert run.live
        run.start()


def test_a_saved_frame_has_its_time_and_rows_begin_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with l2.run(STEPS, transport="inline") as run:
        before = time.time_ns()
        run.trigger(6)
        run.wait(60)
    assert [event["type"] for event in run.follow()][-1] == "done"
    frame = run.saved("save", 7)
    assert frame.time_ns is not None
    assert before - 1e9 < frame.time_ns < time.time_ns()
    later = run.saved("save", 9)
    assert later.time_ns is not None
    assert later.time_ns > frame.time_ns
    assert np.array_equal(frame.pixels, run.frame("save", 7))
    assert frame.mask is None
    whole = run.counters["roi"]["spot_sum"]
    for since in (-1, 0, 6, 11):
        rows = run.rows("roi", since)
        assert rows["frame_number"].tolist() == list(range(since + 1, 12))
        assert np.array_equal(rows["spot_sum"], whole[since + 1 :])
    apart = open_run(run.directory, watched=False)
    assert not apart.live
    assert apart.state == "complete"
