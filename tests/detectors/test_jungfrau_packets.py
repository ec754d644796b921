"""JUNGFRAU: left-over packets, gaps and places of modules, clocks that stand still, packets that the kernel drops."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.detectors.base import AcqParams, Detector, Warns, XferParams
from lima2cli.detectors.jungfrau_assembler import Assembler, Gate
from lima2cli.detectors.jungfrau_packets import PACKET, PACKETS, Inbox
from lima2cli.geometry import Rect
from lima2cli.testing import NoFiles
from tests import ROOT
from tests.compiling import plan_of
from tests.detectors.test_jungfrau import RUN, Sender, config, packet, port, ports, until, whole
from tests.running import Live, run, truth

__all__ = ["port"]  # a fixture

WINDOW, PATIENCE_S = 4, 0.5


def gate(period_s: float | None = 0.01) -> Gate:
    made = Gate(WINDOW, PATIENCE_S, 1)
    made.start(0.0, 1000, period_s)
    return made


def numbers(taken: list[Any]) -> list[int]:
    """Frames 0, 1… of packets, each once."""
    return sorted({int(frame) - 1 for packets in taken for frame in packets["frame"]})


def feed(made: Gate, frames: Any, at_s: float, step_s: float = 0.01) -> list[int]:
    """Frames whose packets went through while whole frames come one after the other."""
    taken = []
    for place, frame in enumerate(frames):
        taken += made.through(whole(frame), at_s + place * step_s)
    return numbers(taken)


@pytest.mark.parametrize(
    "stale",
    [
        [packet(39, 5)],
        [packet(999, 127)],
        [packet(39, 5), packet(700, 1), packet(12, 0)],
        [whole(30), whole(31)],
        [packet(2, 7)],
        [whole(frame) for frame in range(500, 560)],
    ],
)
@pytest.mark.parametrize("wait_s", [0.3, 2.0])
def test_what_is_left_over_makes_nothing_late(stale: list[Any], wait_s: float) -> None:
    made = gate()
    early = [some for at, one in enumerate(stale) for some in made.through(one, at * 0.01)]
    assert not early
    assert not made.begun
    begin_s = len(stale) * 0.01 + wait_s
    assert feed(made, range(40), begin_s) == list(range(40))
    assert made.through(packet(60, 0), begin_s + 0.4) == []
    made.through(whole(40), begin_s + 1.5)
    made.stale -= 1
    assert wait_s < PATIENCE_S or made.stale == sum(map(len, stale)), "what is overtaken soon is overwritten"


def test_left_over_packets_amid_a_stream() -> None:
    made = gate()
    assert feed(made, range(10), 0.0) == list(range(10))
    assert made.through(packet(900, 3), 0.1) == []
    assert feed(made, range(10, 90), 0.1) == list(range(10, 90))
    assert (made.stale, made.stale_frames) == (1, (900, 900))


@pytest.mark.parametrize("period_s", [0.01, None])
def test_a_stream_that_jumps_goes_on_without_a_loss(period_s: float | None) -> None:
    made = gate(period_s)
    feed(made, range(10), 0.0)
    assert feed(made, range(50, 60), 0.5) == list(range(50, 60))
    assert made.stale == 0


def test_the_last_frames_after_a_jump_are_taken_when_nothing_more_comes() -> None:
    made = gate()
    feed(made, range(10), 0.0)
    assert feed(made, [20, 21], 0.2) == []
    made.through(packet(700, 0), 0.21)
    assert numbers(made.silent()) == [20, 21]
    assert made.stale == 1


def test_first_frames_that_were_lost() -> None:
    made = gate()
    assert feed(made, range(30, 40), 1.0) == list(range(30, 40)), "they may have been taken since the start"
    assert made.begun


def test_packets_of_no_frame_of_the_acquisition_are_left_to_who_counts_them() -> None:
    made = gate()
    strange = np.concatenate([packet(-1, 0), packet(1000, 0)])
    (taken,) = [some for some in made.through(strange, 0.0) if len(some)]
    assert len(taken) == 2
    assert not made.begun


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 127)), max_size=300), st.integers(1, 60))
def test_nothing_is_made_up_and_nothing_goes_through_twice(sent: list[tuple[int, int]], size: int) -> None:
    made = gate(None)
    came, out = [], []
    for first in range(0, len(sent), size):
        batch = sent[first : first + size]
        packets = np.zeros(len(batch), PACKET)
        packets["frame"], packets["packet"] = np.array(batch).T + np.array([[1], [0]])
        came += batch
        out += made.through(packets, 0.0)
        seen = [(int(f) - 1, int(p)) for some in out for f, p in zip(some["frame"], some["packet"], strict=True)]
        assert sorted(seen) == sorted(came[: len(came)]) or set(seen) <= set(came)
        assert len(seen) <= len(came)
    out += made.silent()
    assert sum(map(len, out)) + made.stale <= len(sent)


def opened(number: int, **more: Any) -> Detector:
    table = config({"udp": ports(number), "patience": 0.2, **more})
    detector = table.open(table.describe(NoFiles()), NoFiles())
    detector.prepare(AcqParams(6, 1e-3), XferParams(((0, 0),)))
    detector.start(time.time_ns())
    return detector


def warnings(detector: Detector) -> str:
    assert isinstance(detector, Warns)
    return "\n".join(detector.warnings())


@pytest.mark.parametrize("stamps", [[7] * 6, [0] * 6, [900, 800, 700, 600, 500, 400], [10, 20, 30, 30, 30, 30]])
def test_a_clock_that_stands_still_is_told_and_ours_is_used(port: int, stamps: list[int]) -> None:
    detector, sender = opened(port), Sender(port)
    before = time.time_ns()
    for frame, stamp in enumerate(stamps):
        packets = whole(frame)
        packets["timestamp"] = stamp
        sender.send(packets)
    until(detector, 6)
    times = np.concatenate([detector.times(range(frame, frame + 1)) for frame in range(6)]).astype(np.int64)
    assert "module 0: the clock of its packets stands still" in warnings(detector)
    assert (np.diff(times[-3:]) > 0).all()
    assert before < times[0]
    assert times[-1] <= time.time_ns()
    sender.close()
    detector.reset()


def test_a_clock_that_goes_on_is_the_detectors(port: int) -> None:
    detector, sender = opened(port), Sender(port)
    for frame in range(6):
        sender.send(whole(frame))
    until(detector, 6)
    assert set(np.diff(detector.times(range(6)).astype(np.int64)).tolist()) == {10_000_000}
    assert "clock" not in warnings(detector)
    sender.close()
    detector.reset()


def test_packets_that_the_kernel_drops_are_told_from_those_never_sent() -> None:
    inbox = Inbox("127.0.0.1", 0, np.zeros((256, 8240), np.uint8), 1 << 16)
    assert inbox.dropped == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(inbox.place)
        for one in whole(0):
            sender.send(one.tobytes())
    received = 0
    while count := inbox.receive(0.05):
        received += count
    assert 0 < inbox.dropped == PACKETS - received
    inbox.close()


def test_drops_come_with_the_number_to_set(port: int) -> None:
    detector, sender = opened(port, buffer="64 KiB"), Sender(port)
    receiver = detector._modules[0]  # type: ignore[attr-defined]
    receiver._end.set()  # nobody reads any more
    receiver._thread.join()
    sender.send(whole(0))
    assert "packets were dropped by the kernel" in warnings(detector)
    assert "sysctl -w net.core.rmem_max=67108864" in warnings(detector)
    sender.close()
    detector.reset()


@pytest.mark.parametrize(
    ("modules", "gap"),
    [
        ("rows: 2", 36), ("rows: 2, gap: {}", 36), ("rows: 2, gap: {x: 3}", 36), ("rows: 2, gap: {y: 5}", 5),
        ("rows: 2, gap: {x: 0, y: 0}", 0),
    ],
)  # fmt: skip
def test_the_documented_gap_is_the_real_one(modules: str, gap: int) -> None:
    plan = plan_of(
        f"lima2: 1\ndetector: {{jungfrau: {{modules: {{{modules}}}, emulate: {{}}}}}}\nacquisition: {{frames: 1}}\n"
        "nodes: {save: {input: adc, io_hdf5: {}}}"
    )
    assert plan.info.height == 1024 + gap
    page = (ROOT / "docs" / "reference" / "detectors.md").read_text()
    assert "| `x` | a whole number from 0 to 65536 | `8` | Columns between modules. |" in page
    assert "| `y` | a whole number from 0 to 65536 | `36` | Rows between modules. |" in page


def test_modules_column_by_column() -> None:
    asked = {"columns": 2, "rows": 2, "gap": {"x": 0, "y": 0}}
    rows = config({"udp": ports(5, 6, 7, 8), "modules": asked})
    columns = config({"udp": ports(5, 6, 7, 8), "modules": {**asked, "order": "columns"}})
    assert rows.describe(NoFiles()).modules[1] == Rect(1024, 0, 1024, 512)
    assert columns.describe(NoFiles()).modules[1] == Rect(0, 512, 1024, 512)
    assert rows.places() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert columns.places() == [(0, 0), (1, 0), (0, 1), (1, 1)]
    apart = [{"x": 0, "y": 0}, {"x": 1030, "y": 40}]
    assert config({"udp": ports(5, 6), "modules": apart}).places() is None, "they form no grid"


@pytest.mark.parametrize("place", [(1, 0), (5, 9)])
def test_packets_from_another_place_are_told(port: int, place: tuple[int, int]) -> None:
    table = config({"udp": [{"port": port}, {"port": port + 1}], "modules": {"rows": 2}})
    detector = table.open(table.describe(NoFiles()), NoFiles())
    detector.prepare(AcqParams(2, None), XferParams(((0, 0),)))
    detector.start(time.time_ns())
    sender = Sender(port)
    for frame in range(2):
        packets = whole(frame)
        packets["row"], packets["column"] = place
        sender.send(packets)
    until(detector, 2)
    said = warnings(detector)
    assert f"module 0: its packets report row {place[0]}, column {place[1]}" in said
    assert ("the place of module 1" in said) == (place == (1, 0))
    assert f", not row 0, column 0: see the order of `udp` (port {port})" in said
    sender.close()
    detector.reset()


def test_emulated_modules_say_where_they_are(tmp_path: Path) -> None:
    text = RUN.replace("MORE", "loss: 0").replace("FRAMES", "4").replace("RATE", "20 Hz")
    grid = text.replace("[{x: 0, y: 0}, {x: 16, y: 520, rotation: 180}]", "{rows: 2, columns: 2, order: columns}")
    ran = run(grid, tmp_path, "inline")
    assert not [warning for warning in ran.summary["warnings"] if "its packets report" in warning]


STALE = """
lima2: 1
detector: {{jungfrau: {{udp: [{{port: {port}}}], buffer: 32 MiB}}}}
acquisition: {{frames: 20, rate: 20 Hz, timeout: 20 s}}
nodes: {{save: {{input: adc, io_hdf5: {{}}}}}}
"""


@pytest.mark.parametrize("stale", [[packet(19, 5)], [whole(15), whole(16)]])
def test_a_run_survives_what_is_left_over(stale: list[Any], port: int, tmp_path: Path) -> None:
    live, sender = Live(STALE.format(port=port), tmp_path, "inline"), Sender(port)
    for one in stale:
        sender.send(one)
    time.sleep(0.3)
    for frame in range(20):
        sender.send(whole(frame))
        time.sleep(0.04)
    ran = live.end()
    sender.close()
    assert truth(ran)["flows"]["adc"]["received"] == 20
    assert (ran.code, ran.summary["state"]) == (0, "complete")
    came = "1 packet of frame 19 was" if len(stale) == 1 else "256 packets of frames 15 to 16 were"
    warning = f"module 0: {came} left over from another acquisition (`first_frame`?)"
    assert warning in ran.summary["warnings"]
    frames, _, status = ran.saved("save")
    assert not status.any()
    assert (frames[:, 0, 0] == np.arange(20) * PACKETS).all()


@pytest.mark.parametrize(("loss", "extra"), [("0.1", ""), ("0.02", ""), ("0.02", "flows.adc.overrun=stop")])
def test_packets_that_never_came_are_losses(loss: str, extra: str, tmp_path: Path) -> None:
    text = RUN.replace("MORE", f"loss: {loss}").replace("FRAMES", "10").replace("RATE", "20 Hz")
    ran = run(text, tmp_path, "inline", *(["--set", extra] if extra else []))
    flow = truth(ran)["flows"]["adc"]
    assert flow["missing"] > 0
    assert (ran.code, ran.summary["state"], flow["allowed"]) == (11, "failed", 0)
    assert ran.summary["reason"].startswith(f"adc: {flow['missing']} of 10 frames lost (")
    assert json.loads((ran.directory / "summary.json").read_text())["losses"] == [ran.summary["reason"]]


@pytest.mark.parametrize("ahead", [5, 6, 12, 30])
def test_a_packet_that_is_kept_aside_gives_no_frame_up(ahead: int) -> None:
    """A packet that comes early, be it late for another acquisition, is put in its place when the stream is there."""
    made, assembler = gate(), Assembler(64, WINDOW)
    at_s = 0.0
    for frame in range(40):
        if frame == 3:
            for some in made.through(packet(frame - 1 + ahead, 9), at_s):
                assembler.take(some)
        for first in range(0, PACKETS, 32):
            for some in made.through(whole(frame)[first : first + 32], at_s):
                assembler.take(some)
            at_s += 1e-3
        assert assembler.closed == frame + 1
    assert (assembler.counts.late, assembler.counts.lacking) == (0, 0)
