"""JUNGFRAU: geometry, charge, packets put together in any order, and frames that come over the loopback."""

import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.declare import Table
from lima2cli.detectors.base import AcqParams, Detector, DetectorConfig, State, Warns, XferParams
from lima2cli.detectors.jungfrau import Emulation, Jungfrau, JungfrauGrid
from lima2cli.detectors.jungfrau_assembler import Assembler
from lima2cli.detectors.jungfrau_packets import ABSENT, PACKET, PACKETS, PIXELS, Datagrams, Inbox, codes, photon_bits
from lima2cli.detectors.scenes import CounterScene
from lima2cli.errors import EnvironmentUnfit, NodeMisuse, StateError
from lima2cli.frames import Array
from lima2cli.geometry import Rect
from lima2cli.testing import DetectorTests, NoFiles
from tests.node_inputs import read
from tests.running import needs_mpi, run, truth


def config(data: dict[str, Any]) -> Jungfrau:
    table: Jungfrau = read(Table(Jungfrau), data)
    return table


def ports(*numbers: int) -> list[dict[str, Any]]:
    return [{"port": number} for number in numbers]


class TestJungfrau(DetectorTests):
    config: ClassVar[DetectorConfig] = Jungfrau(
        modules=JungfrauGrid(rows=2, rotation=180), emulate=Emulation(scene=CounterScene())
    )
    frames = 4
    period_s = 5e-3


def test_it_describes_itself() -> None:
    info = config({"udp": ports(5, 6), "modules": {"rows": 2}}).describe(NoFiles())
    assert info.modules == (Rect(0, 0, 1024, 512), Rect(0, 548, 1024, 512))
    assert (info.width, info.height, info.gap_value, info.can_wait, info.can_fail) == (1024, 1060, ABSENT, False, True)
    assert [(dataset.name, dataset.dtype, dataset.bits) for dataset in info.datasets] == [("adc", "uint16", 16)]
    assert info.pixel_size == (75e-6, 75e-6)
    places = [{"x": 1030, "y": 0, "rotation": 180}, {"x": 0, "y": 40}]
    table = config({"udp": ports(5, 6), "modules": places})
    assert table.describe(NoFiles()).modules == (Rect(1030, 0, 1024, 512), Rect(0, 40, 1024, 512))
    assert [table.rotated(module) for module in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("data", "rule", "key", "words"),
    [
        ({}, "udp-ports", (), "there are 1 modules, but ports for 0"),
        ({"udp": ports(5), "modules": {"rows": 2}}, "udp-ports", ("udp",), "2 modules, but ports for 1"),
        (
            {"udp": ports(5, 5), "modules": {"rows": 2}},
            "udp-ports",
            ("udp", 1),
            "modules 0 and 1 have the same port, 5",
        ),
        (
            {"udp": ports(5, 6), "modules": [{"x": 0, "y": 0}, {"x": 1000, "y": 100}]},
            "module-overlap",
            ("modules", 1),
            "overlap",
        ),
        ({"emulate": {"gain": [1, 2, 3, 4]}}, "calibration-shape", ("emulate", "gain"), "not 4"),
    ],
)
def test_parameters_that_contradict(data: dict[str, Any], rule: str, key: tuple[Any, ...], words: str) -> None:
    with pytest.raises(NodeMisuse) as caught:
        config(data).describe(NoFiles())
    assert (caught.value.rule, caught.value.key) == (rule, key)
    assert words in caught.value.message


PEDESTAL, GAIN = (3000.0, 15000.0, 15000.0), (41.0, -1.44, -0.1)


def photons_of(raw: Array, photon_energy: float) -> Array:
    """Compute the result of node `gain` by its formula."""
    stage = np.array([0, 1, -1, 2])[raw >> 14]
    charge = ((raw & 0x3FFF) - np.array(PEDESTAL)[stage]) / (np.array(GAIN)[stage] * photon_energy * 1e-3)
    return np.where(stage < 0, np.nan, charge)


@pytest.mark.parametrize("photon_energy", [8e3, 12.4e3, 20e3])
def test_photons_come_back_within_rounding(photon_energy: float) -> None:
    coded = codes(PEDESTAL, GAIN, photon_energy, "dynamic")
    told = np.arange(2 ** photon_bits(coded))
    stage = np.array([0, 1, -1, 2])[coded[told] >> 14]
    assert set(stage) == {0, 1, 2}
    assert (np.diff(stage) >= 0).all()
    half_an_adu = 0.5 / np.abs(np.array(GAIN)[stage] * photon_energy * 1e-3)
    assert (np.abs(photons_of(coded[told], photon_energy) - told) <= half_an_adu + 1e-9).all()


@pytest.mark.parametrize(("mode", "bits"), [("fixg0", 0), ("forceswitchg1", 1), ("fixg1", 1), ("fixg2", 3)])
def test_gain_modes_fix_the_stage(mode: str, bits: int) -> None:
    assert set(codes(PEDESTAL, GAIN, 12.4e3, mode) >> 14) == {bits}


def packet(frame: int, number: int, first: int = 1) -> Array:
    """A packet of frame 0, 1…, whose pixels tell which."""
    one = np.zeros(1, PACKET)
    one["frame"], one["packet"], one["type"], one["timestamp"] = frame + first, number, 3, 100_000 * abs(frame)
    one["pixels"] = (frame * PACKETS + number) % (1 << 16)
    return one


WINDOW, DEPTH = 3, 8


class Oracle:
    """The rules of `Assembler` for one packet after the other, with no ring."""

    def __init__(self) -> None:
        self.have: dict[int, set[int]] = {}
        self.closed, self.late, self.duplicate = 0, 0, 0

    def take(self, batch: Sequence[tuple[int, int]]) -> None:
        for frame, number in batch:
            if frame < self.closed:
                self.late += 1
            elif number in self.have.setdefault(frame, set()):
                self.duplicate += 1
            else:
                self.have[frame].add(number)
        self.settle(max(self.have, default=-1) + 1 - WINDOW)

    def settle(self, frames: int) -> None:
        while self.closed < frames or len(self.have.get(self.closed, ())) == PACKETS:
            self.closed += 1


@st.composite
def streams(draw: st.DrawFn) -> list[list[tuple[int, int]]]:
    """Packets of some frames, some lost, some twice, displaced by any distance, in batches of any size."""
    random = Random(draw(st.integers(0, 2**32)))
    frames, loss, twice = draw(st.integers(1, 12)), draw(st.sampled_from([0, 0.01, 0.5])), draw(st.booleans())
    absent = draw(st.sets(st.integers(0, 11), max_size=4))
    packets = [
        (frame, number)
        for frame in range(frames)
        if frame not in absent
        for number in range(PACKETS)
        if random.random() >= loss
        for _ in range(1 + (twice and random.random() < 0.1))
    ]
    reach = draw(st.sampled_from([0, 20, 200, 5000]))
    packets = [p for _, _, p in sorted((i + random.uniform(0, reach), i, p) for i, p in enumerate(packets))]
    size = draw(st.sampled_from([7, 50, 256, 1000]))
    return [packets[i : i + size] for i in range(0, len(packets), size)]


@settings(max_examples=40, deadline=None)
@given(stream=streams(), rotated=st.booleans())
def test_any_order_and_any_loss(stream: list[list[tuple[int, int]]], rotated: bool) -> None:
    assembler, oracle = Assembler(DEPTH, WINDOW, 1, rotated), Oracle()
    for batch in stream:
        packets = np.zeros(len(batch), PACKET)
        packets["frame"], packets["packet"] = np.array(batch).T + np.array([[1], [0]])
        packets["pixels"] = (packets["packet"] + np.uint32(PACKETS) * (packets["frame"] - 1).astype(np.uint32))[:, None]
        assembler.take(packets)
        oracle.take(batch)
        assert assembler.closed == oracle.closed
    last = max(oracle.have, default=-1) + 1
    assembler.settle(last)
    oracle.settle(last)
    counts = assembler.counts
    assert assembler.closed == last
    assert (counts.late, counts.duplicate) == (oracle.late, oracle.duplicate)
    assert counts.taken == sum(map(len, oracle.have.values()))
    lacking = [PACKETS - len(oracle.have.get(frame, ())) for frame in range(last)]
    assert assembler.lacking(range(last)).tolist() == lacking
    assert counts.lacking == sum(lacking)
    assert counts.absent == lacking.count(PACKETS)
    assert counts.incomplete == sum(0 < n < PACKETS for n in lacking)
    for frame in range(max(0, last - DEPTH), last):
        expected = np.full(PACKETS, ABSENT)
        here = list(oracle.have.get(frame, ()))
        expected[here] = frame * PACKETS + np.array(here, int)
        (found,) = assembler.frames(range(frame, frame + 1))
        rows = found[:, ::511].reshape(PACKETS, -1)
        np.testing.assert_array_equal(rows, np.repeat(expected[:: -1 if rotated else 1, None], rows.shape[1], axis=1))


def whole(frame: int) -> Array:
    return np.concatenate([packet(frame, number) for number in range(PACKETS)])


def test_frames_that_are_held_stay() -> None:
    assembler = Assembler(DEPTH, WINDOW)
    for frame in range(DEPTH):
        assembler.take(whole(frame))
    held = assembler.frames(range(DEPTH))
    assert len(held) == DEPTH
    before = held.copy()
    assembler.take(whole(DEPTH))
    np.testing.assert_array_equal(held, before)
    assert assembler.counts.overrun == PACKETS
    assembler.settle(DEPTH + 1)
    assert assembler.frames(range(DEPTH, DEPTH + 1))[0, 0, 0] == ABSENT
    assert assembler.lacking([DEPTH]).tolist() == [PACKETS]
    for frame in range(DEPTH + 1, 2 * DEPTH):
        assembler.take(whole(frame))
    assert assembler.frames(range(2, 2 * DEPTH))[0, 0, 0] == ABSENT, "its place has gone to a later frame"
    assert assembler.counts.forgotten == 1
    assert assembler.lacking([2, 9]).tolist() == [PACKETS, 0]


def test_packets_of_another_acquisition_are_left_out() -> None:
    assembler = Assembler(DEPTH, WINDOW, first=100)
    assembler.limit(5)
    assembler.take(np.concatenate([packet(-1, 3, 100), packet(5, 0, 100), packet(0, 0, 100)]))
    assert (assembler.counts.outside, assembler.counts.taken) == (2, 1)
    strange = packet(0, 0, 100)
    strange["packet"] = PACKETS
    assembler.take(strange)
    assert assembler.counts.outside == 3


def test_a_jump_of_the_frame_number_is_no_loop() -> None:
    assembler = Assembler(DEPTH, WINDOW)
    assembler.take(packet(0, 1))
    assembler.take(packet(10**12, 1))
    assert assembler.closed == 10**12 + 1 - WINDOW
    assert assembler.counts.absent == assembler.closed - 1


def test_datagrams_of_any_length_are_told_by_it() -> None:
    memory = np.zeros((8, 100), np.uint8)
    inbox = Inbox("127.0.0.1", 0, memory, 1 << 20)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(inbox.place)
        rows = np.arange(300, dtype=np.uint8).reshape(3, 100)
        assert inbox.receive(0) == 0
        assert Datagrams(rows).send(sender.fileno(), 1, 2) == 2
        sender.send(b"x" * 150)
        assert inbox.receive(1) == 3
        assert inbox.lengths[:3].tolist() == [100, 100, 150]
        np.testing.assert_array_equal(memory[:2], rows[1:])
    with pytest.raises(EnvironmentUnfit, match=f"UDP port {inbox.place[1]}"):
        Inbox(*inbox.place, memory, 1 << 20)
    inbox.close()


class Sender:
    """Sends packets to a module that is listened to."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", port))

    def send(self, packets: Array) -> None:
        for one in packets:
            self._socket.send(one.tobytes())
            time.sleep(20e-6)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture
def listening(port: int) -> Iterator[tuple[Detector, Sender]]:
    table = config({"udp": ports(port), "patience": 0.05, "tolerate": 2})
    detector = table.open(table.describe(NoFiles()), NoFiles())
    detector.prepare(AcqParams(6, 1e-3), XferParams(((0, 0),)))
    detector.start(time.time_ns())
    sender = Sender(port)
    yield detector, sender
    sender.close()
    detector.reset()


def until(detector: Detector, frames: int) -> None:
    end = time.monotonic() + 30
    while detector.nb_acq_frames() < frames:
        assert time.monotonic() < end, detector.nb_acq_frames()
        time.sleep(1e-3)


def test_packets_removed_on_purpose_are_exactly_those_reported(listening: tuple[Detector, Sender]) -> None:
    detector, sender = listening
    removed = {1: [5, 6], 3: [0, 1, 127], 4: range(PACKETS)}
    for frame in (0, 2, 1, 3):
        sender.send(np.delete(whole(frame), list(removed.get(frame, ()))))
    sender.send(whole(5))
    until(detector, 6)
    frames = np.concatenate([detector.get_frames(0, 0, range(f, f + 1)).copy() for f in range(6)])
    payloads = frames.reshape(6, PACKETS, PIXELS)
    for frame in range(6):
        expected = frame * PACKETS + np.arange(PACKETS)
        expected[list(removed.get(frame, ()))] = ABSENT
        np.testing.assert_array_equal(payloads[frame], np.repeat(expected[:, None], PIXELS, axis=1))
    missing = detector.missing(0, 0, range(6))
    assert missing is not None
    assert missing.tolist() == [False, False, False, True, True, False]
    assert detector.missing(0, 0, range(3)) is None
    assert (np.diff(detector.times(range(6)).astype(np.int64)) > 0).all()


def test_the_last_frames_are_given_up_when_nothing_comes(listening: tuple[Detector, Sender]) -> None:
    detector, sender = listening
    sender.send(whole(0)[:100])
    assert detector.nb_acq_frames() == 0
    with pytest.raises(StateError, match="frame 2 was asked for"):
        detector.get_frames(0, 0, range(2, 3))
    until(detector, 6)
    assert detector.missing(0, 0, range(6)) is not None


def test_after_stop_frames_that_others_have_seen_are_given(listening: tuple[Detector, Sender]) -> None:
    detector, sender = listening
    sender.send(whole(0))
    until(detector, 1)
    detector.stop()
    sender.send(whole(1))
    assert detector.nb_acq_frames() == 1
    assert detector.get_frames(0, 0, range(1, 2))[0, 0, 0] == PACKETS
    assert detector.get_frames(0, 0, range(2, 3))[0, 0, 0] == ABSENT
    assert detector.status() is State.STOPPED


def test_a_module_that_never_sends(listening: tuple[Detector, Sender]) -> None:
    detector, _ = listening
    detector.stop()
    begin = time.monotonic()
    assert all(detector.get_frames(0, 0, range(frame, frame + 1))[0, 0, 0] == ABSENT for frame in range(6))
    assert time.monotonic() - begin < 5 * 0.05, "the patience counts once"
    assert isinstance(detector, Warns)
    assert "module 0: no packet has arrived" in detector.warnings()


def test_groups_of_more_frames_than_are_kept(port: int) -> None:
    table = config({"udp": ports(port), "depth": 16})
    detector = table.open(table.describe(NoFiles()), NoFiles())
    detector.prepare(AcqParams(40, None), XferParams(((0, 0),), span=40))
    detector.start(time.time_ns())
    sender = Sender(port)
    for frame in range(40):
        sender.send(whole(frame))
    until(detector, 40)
    assert len(detector.get_frames(0, 0, range(40))) == 40
    assert detector.missing(0, 0, range(40)) is None
    sender.close()
    detector.reset()


def test_a_port_that_is_taken(port: int, listening: tuple[Detector, Sender]) -> None:
    table = config({"udp": ports(port)})
    detector = table.open(table.describe(NoFiles()), NoFiles())
    with pytest.raises(EnvironmentUnfit, match=f"cannot listen at 0.0.0.0, UDP port {port}: Address already in use"):
        detector.prepare(AcqParams(6, 1e-3), XferParams(((0, 0),)))
    assert detector.status() is State.FAULT


def test_less_memory_than_asked_for_is_told() -> None:
    table = config({"emulate": {}, "buffer": "1 TiB"})
    detector = table.open(table.describe(NoFiles()), NoFiles())
    detector.prepare(AcqParams(6, 1e-3), XferParams(((0, 0),)))
    assert isinstance(detector, Warns)
    (warning,) = detector.warnings()
    assert warning.startswith("module 0: ")
    assert warning.endswith("of 1099511627776 bytes are given to its packets: raise net.core.rmem_max")
    detector.reset()


MODULES = [Rect(0, 0, 1024, 512), Rect(16, 520, 1024, 512)]

RUN = """
lima2: 1
detector:
  jungfrau:
    modules: [{x: 0, y: 0}, {x: 16, y: 520, rotation: 180}]
    buffer: 64 MiB
    emulate: {scene: {gradient: {}}, MORE}
acquisition: {frames: FRAMES, rate: RATE}
flows: {adc: {dataset: adc, buffers: {frames: FRAMES}}}
nodes: {save: {input: adc, io_hdf5: {compression: none}}}
"""


def gradient(frames: Sequence[int]) -> Array:
    """Raw frames of the scene by its formula, and 0x8000 where no module is."""
    photons = np.add.outer(16 * (np.asarray(frames) % 16), np.add.outer(np.arange(1032), np.arange(1040)))
    expected = np.full(photons.shape, ABSENT, np.uint16)
    for module in MODULES:
        part = (slice(None), *module.within(Rect(0, 0, 1040, 1032)))
        expected[part] = codes(PEDESTAL, GAIN, 12.4e3, "dynamic")[photons[part] % (1 << 13)]
    return expected


@pytest.mark.mpi
@needs_mpi
def test_two_modules_at_100_hz_lose_nothing(tmp_path: Path) -> None:
    text = RUN.replace("MORE", "loss: 0").replace("FRAMES", "40").replace("RATE", "100 Hz")
    ran = run(text, tmp_path, "mpi")
    summary = truth(ran)
    assert (ran.code, summary["state"], summary["warnings"]) == (0, "complete", [])
    assert summary["flows"]["adc"]["received"] == 40
    frames, numbers, status = ran.saved("save")
    assert numbers.tolist() == list(range(40))
    assert not status.any()
    for first in range(0, 40, 20):
        np.testing.assert_array_equal(frames[first : first + 20], gradient(range(first, first + 20)))


def test_frames_with_missing_packets_are_incomplete(tmp_path: Path) -> None:
    text = RUN.replace("MORE", "loss: 0.001, seed: 3").replace("FRAMES", "30").replace("RATE", "25 Hz")
    ran = run(text.replace("rate: 25 Hz", "rate: 25 Hz, allow_lost: 50 %"), tmp_path, "inline")
    summary = truth(ran)
    assert ran.code == 0
    emulation = Emulation(loss=0.001, seed=3)
    lost = [sum(int(emulation.lost(module, frame).sum()) for module in range(2)) for frame in range(30)]
    incomplete = np.flatnonzero(lost).tolist()
    assert 0 < len(incomplete) < 30
    assert (summary["state"], summary["flows"]["adc"]["missing"]) == ("complete", len(incomplete))
    told = [n for first, last, step in summary["flows"]["adc"]["missing_frames"] for n in range(first, last + 1, step)]
    assert told == incomplete
    counted = [int(warning.split()[2]) for warning in summary["warnings"] if "never arrived" in warning]
    assert sum(counted) == sum(lost)
    frames, _, status = ran.saved("save")
    assert np.flatnonzero(status).tolist() == incomplete
    assert set(status.tolist()) == {0, 3}
    kept = np.flatnonzero(status == 0)
    np.testing.assert_array_equal(frames[kept], gradient(kept.tolist()))


def test_missing_packets_that_are_tolerated_are_nan(tmp_path: Path) -> None:
    text = RUN.replace("MORE", "loss: 0.01").replace("FRAMES", "6").replace("RATE", "25 Hz")
    text = text.replace("buffer:", "tolerate: 127\n    buffer:")
    node = "{input: adc, gain: {pedestal: [3000, 15000, 15000], gain: [41, -1.44, -0.1], photon_energy: 12.4 keV}}"
    text = text.replace("nodes: {save: {input: adc", f"nodes: {{photons: {node}, save: {{input: photons")
    ran = run(text, tmp_path, "inline")
    assert truth(ran)["flows"]["adc"]["received"] == 6
    frames, _, _ = ran.saved("save")
    for index, module in enumerate(MODULES):
        lost = np.stack([Emulation(loss=0.01).lost(index, frame) for frame in range(6)])
        part = frames[(slice(None), *module.within(Rect(0, 0, 1040, 1032)))].reshape(6, PACKETS, PIXELS)
        assert lost.any()
        np.testing.assert_array_equal(np.isnan(part).all(axis=2), lost[:, :: -1 if index else 1])
        np.testing.assert_array_equal(np.isnan(part).any(axis=2), lost[:, :: -1 if index else 1])
    photons = frames[0, :4, :1024]
    np.testing.assert_allclose(photons, np.add.outer(np.arange(4), np.arange(1024)), atol=0.5)
