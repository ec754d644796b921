"""Frames that travel as the detector has compressed them: byte for byte into files, or unpacked by receivers."""

import json
import threading
from pathlib import Path
from typing import Any

import cbor2
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import lima2cli as l2
from lima2cli.files.compression import FilterFunction, load_filters, unpack
from lima2cli.packed import COMPRESSIONS, HEAD_BYTES, PackedBlock, head_of, slot_bytes, taken
from lima2cli.stream import stream2
from tests.detectors.test_dectris import COUNT, HEIGHT, WIDTH, coded, image, pipeline, sender, sent, start
from tests.detectors.test_dectris import taken as saved
from tests.nodes.test_io_stream import Consumer, free_port
from tests.running import TRANSPORTS, lima2

NAME = "threshold_1"
SAVE = "save: {input: threshold_1, io_hdf5: {}}"


def chunks(run: l2.Run, node: str = "save") -> dict[int, bytes]:
    """The stored bytes of each frame, by number."""
    found = {}
    for path in sorted(run.directory.glob(f"d_{node}_*_0*.h5")):
        with h5py.File(path) as file:
            detector = file["entry_0000/instrument/dectris"]
            for index, number in enumerate(detector["frame_number"][()].tolist()):
                found[number] = detector["data"].id.read_direct_chunk((index, 0, 0))[1]
    return found


def message(number: int, payload: tuple[str, tuple[int, int], bytes, bool]) -> bytes:
    now = 1_700_000_000 * 10**9
    return stream2.image_message(1, "ULID", number, (now, now + number * 1_000_000), {NAME: payload})


def lz4(pixels: NDArray[Any]) -> bytes:
    """The message of an image compressed by plain LZ4, as detectors may be told to."""
    load_filters()
    return FilterFunction("lz4", (8192,))(pixels)[0]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("counted", [False, True])
def test_frames_are_saved_as_they_come(
    counted: bool, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk by chunk, at two receivers, with and without counters beside; programs read them as any other."""
    monkeypatch.chdir(tmp_path)
    count = 40
    nodes = "{" + ", ".join([SAVE, *([COUNT] if counted else [])]) + "}"
    more = "}\nreceivers: {a: {}, b: {}}\nflows: {threshold_1: {buffers: {at: [a.host, b.host], frames: 64}}}\n#"
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), count, {NAME: "uint16"}, nodes=nodes, more=more)
        text = text.replace("#}\n", "\n")
        run = l2.run(text, transport=transport)
        socket.send(start(1, "uint16", [NAME]))
        for number in range(count):
            socket.send(sent(number, "uint16", [NAME]))
        socket.send(stream2.end_message(1, "ULID", 0))
        summary = run.wait(60)
    assert (summary.state, summary.resources is None) == ("complete", False)
    costs = [its.kernels[0] for its in summary.resources.receivers.values()]
    assert [(cost.nodes, cost.stage_s > 0) for cost in costs] == [((NAME,), True)] * 2
    assert sum(cost.frames for cost in costs) == count
    assert chunks(run) == {number: coded(image(number, "uint16"), "bslz4")[2] for number in range(count)}
    frames, numbers, _ = saved(run)
    assert numbers.tolist() == list(range(count))
    assert np.array_equal(frames, [image(number, "uint16") for number in range(count)])
    assert lima2("inspect", str(run.directory), "--verify", cwd=tmp_path).returncode == 0
    if counted:
        sums = [image(number, "uint16").ravel()[:-1].sum() for number in range(count)]
        assert run.counters["roi"]["all_sum"].tolist() == sums


class Taken:
    """Consumers at some ports, which take a series."""

    def __init__(self, *ports: int) -> None:
        self._consumers = [Consumer(port) for port in ports]

    def __enter__(self) -> "Taken":
        for consumer in self._consumers:
            consumer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for consumer in self._consumers:
            consumer.__exit__()

    def of(self, channel: str) -> dict[int, bytes]:
        """Return the bytes of each image, by number."""
        images = [one for consumer in self._consumers for one in consumer.messages if one["type"] == "image"]
        return {one["image_id"]: one["data"][channel].value[1].value.value[2] for one in images}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("counted", [False, True])
def test_frames_are_sent_as_they_come(
    counted: bool, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, by each of two receivers, with and without counters beside; and saved behind it as they come."""
    monkeypatch.chdir(tmp_path)
    count, port = 40, free_port()
    send = f'send: {{input: {NAME}, io_stream: {{endpoint: "tcp://127.0.0.1:{port}"}}}}'
    nodes = "{" + ", ".join([send, SAVE, "behind: {input: send, io_hdf5: {}}", *([COUNT] if counted else [])]) + "}"
    more = "}\nreceivers: {a: {}, b: {}}\nflows: {threshold_1: {buffers: {at: [a.host, b.host], frames: 64}}}\n#"
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), count, {NAME: "uint16"}, nodes=nodes, more=more)
        text = text.replace("#}\n", "\n")
        (tmp_path / "d.yaml").write_text(text)
        said = lima2("plan", "d.yaml", cwd=tmp_path).stdout
        with Taken(port, port + 1) as found:
            run = l2.run(text, transport=transport)
            socket.send(start(1, "uint16", [NAME]))
            for number in range(count):
                socket.send(sent(number, "uint16", [NAME]))
            socket.send(stream2.end_message(1, "ULID", 0))
            assert run.wait(60).state == "complete"
    as_sent = {number: coded(image(number, "uint16"), "bslz4")[2] for number in range(count)}
    assert found.of(NAME) == chunks(run) == chunks(run, "behind") == as_sent
    unpacked = ", unpacked by receivers" if counted else ""
    assert f"(bslz4){unpacked}, and taken as they are by send, save, behind" in said


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_channels_are_sent_as_they_come(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels are of frames that a filter lets pass; frames that came in another way are compressed."""
    monkeypatch.chdir(tmp_path)
    port, names = free_port(), [NAME, "difference"]
    sums = [int(image(number, "uint16").ravel()[:-1].sum()) for number in range(30)]
    middle = sorted(sums)[15]
    nodes = f"""
  roi: {{input: {NAME}, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 51, height: 35}}}}}}}}}}
  some: {{input: difference, filter: {{keep: "roi.all_sum > {middle}"}}}}
  send: {{inputs: {{difference: some, low: {NAME}}}, io_stream: {{endpoint: "tcp://127.0.0.1:{port}"}}}}
  save: {{input: some, io_hdf5: {{}}}}
"""
    with sender() as socket, Taken(port) as found:
        text = pipeline(socket.last_endpoint.decode(), 30, dict.fromkeys(names, "uint16"), nodes=nodes)
        run = l2.run(text, transport=transport)
        socket.send(start(1, "uint16", names))
        for number in range(30):
            socket.send(sent(number, "uint16", names, "none" if number % 5 == 2 else "bslz4"))
        socket.send(stream2.end_message(1, "ULID", 0))
        assert run.wait(60).state == "complete"
    numbers = [number for number in range(30) if sums[number] > middle]
    for channel, first in (("low", 0), ("difference", 1000)):
        sent_on = found.of(channel)
        assert list(sent_on) == numbers
        for number, data in sent_on.items():
            if number % 5 != 2:
                assert data == coded(image(number + first, "uint16"), "bslz4")[2]
            pixels = np.empty((HEIGHT, WIDTH), np.uint16)
            unpack("bslz4", data, pixels)
            assert np.array_equal(pixels, image(number + first, "uint16"))
    stored, sent_on = chunks(run), found.of("difference")
    assert [n for n in numbers if stored[n] == sent_on[n]] == [n for n in numbers if n % 5 != 2]  # blocks are larger


@pytest.mark.interchange
@pytest.mark.parametrize(("recording", "dtype"), [("r500k_bm_bslz4_16bit", "uint16"), ("r500k_bm_bslz4_8bit", "uint8")])
def test_recorded_messages_are_sent_as_they_come(
    recording: str, dtype: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All channels of a real detector, which another decoder reads as it does what was recorded."""
    decompress = pytest.importorskip("dectris.compression").decompress
    monkeypatch.chdir(tmp_path)
    messages = [path.read_bytes() for path in sorted((data_dir / "stream2" / recording).glob("*.cbor"))]
    recorded = [one for one in map(cbor2.loads, messages) if one["type"] == "image"]
    names, port = list(recorded[0]["data"]), free_port()
    inputs = ", ".join(f"{name}: {name}" for name in names)
    nodes = f'{{send: {{inputs: {{{inputs}}}, io_stream: {{endpoint: "tcp://127.0.0.1:{port}"}}}}}}'
    size = {"width": 1030, "height": 514}
    with sender() as socket, Taken(port) as found:
        text = pipeline(socket.last_endpoint.decode(), 3, dict.fromkeys(names, dtype), nodes=nodes, **size)
        run = l2.run(text, transport="inline")
        for message in (start(1, dtype, names, image_size_x=1030, image_size_y=514), *messages):
            socket.send(message)
        assert run.wait(60).state == "complete"
    for name in names:
        _, elem, data = zip(*(one["data"][name].value[1].value.value for one in recorded), strict=True)
        assert found.of(name) == dict(enumerate(data))
        for ours, theirs in zip(found.of(name).values(), data, strict=True):
            assert decompress(ours, "bslz4", elem_size=elem[0]) == decompress(theirs, "bslz4", elem_size=elem[0])


def damaged(number: int) -> bytes:
    """The message of an image whose blocks are all there, and hold something else."""
    dtype, shape, data, packed = coded(image(number, "uint16"), "bslz4")
    return message(number, (dtype, shape, data[:16] + b"\xff" * (len(data) - 16 - 2) + data[-2:], packed))


def test_damage_is_found_where_pixels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is only saved is not looked into; beside a counter it is missing. One without its end always is."""
    monkeypatch.chdir(tmp_path)
    for nodes, gone in ((f"{{{SAVE}}}", [7]), (f"{{{SAVE}, {COUNT}}}", [4, 7])):
        with sender() as socket:
            text = pipeline(socket.last_endpoint.decode(), 10, {NAME: "uint16"}, nodes=nodes, more=", allow_lost: 5")
            run = l2.run(text, transport="inline")
            socket.send(start(1, "uint16", [NAME]))
            for number in range(10):
                dtype, shape, data, packed = coded(image(number, "uint16"), "bslz4")
                cut = message(number, (dtype, shape, data[:-9], packed))
                socket.send({4: damaged(number), 7: cut}.get(number, message(number, (dtype, shape, data, packed))))
            socket.send(stream2.end_message(1, "ULID", 0))
            summary = run.wait(60)
        assert summary.state == "complete"
        assert sorted(set(range(10)) - set(chunks(run))) == gone
        flow = summary.flows[NAME]
        assert [n for first, last, step in flow.missing_frames for n in range(first, last + 1, step)] == gone
        words = f"{len(gone)} frame{'s' * (len(gone) > 1)} of {NAME} could not be decompressed"
        assert words in " ".join(summary.warnings)


def test_frames_of_another_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compressed as the file says."""
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        run = l2.run(pipeline(socket.last_endpoint.decode(), 12, {NAME: "uint16"}), transport="inline")
        socket.send(start(1, "uint16", [NAME]))
        for number in range(12):
            socket.send(sent(number, "uint16", [NAME], "none" if number % 3 == 1 else "bslz4"))
        socket.send(stream2.end_message(1, "ULID", 0))
        assert run.wait(60).state == "complete"
    assert np.array_equal(saved(run)[0], [image(number, "uint16") for number in range(12)])
    stored = chunks(run)
    assert all((stored[n] == coded(image(n, "uint16"), "bslz4")[2]) == (n % 3 != 1) for n in range(12))


def test_a_flow_that_is_only_saved_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        run = l2.run(pipeline(socket.last_endpoint.decode(), 0, {NAME: "uint16"}), transport="inline")
        socket.send(start(1, "uint16", [NAME]))
        end = threading.Event()

        def feed() -> None:
            for number in range(10_000):
                if end.wait(0.005):
                    return
                socket.send(sent(number, "uint16", [NAME]))

        feeding = threading.Thread(target=feed)
        feeding.start()
        seen = list(run.tap(NAME, count=3))
        end.set()
        feeding.join()
        run.stop()
        run.wait(60)
    assert all(np.array_equal(frame.pixels, image(frame.number, "uint16")) for frame in seen)


@pytest.mark.parametrize(
    ("flow", "packed"),
    [
        ("{}", "bslz4"),
        ("{source: {x: 0, y: 0, width: 51, height: 35}}", "bslz4"),
        ("{alignment: {row: 64}}", None),
        ("{alignment: {header: 16}}", None),
        ("{slices: {step: 2}}", "bslz4"),
    ],
)
def test_plans_say_what_travels(flow: str, packed: str | None, tmp_path: Path) -> None:
    file = tmp_path / "d.yaml"
    text = pipeline("tcp://127.0.0.1:31001", 10, {NAME: "uint16"}, nodes=f"{{{SAVE}}}")
    file.write_text(f"{text}\nflows: {{{NAME}: {flow}}}\n")
    found = json.loads(lima2("plan", str(file), "--format", "json", cwd=tmp_path).stdout)["gdts"][NAME]
    assert found["packed"] == packed
    assert found["stride"] >= (slot_bytes(HEIGHT * WIDTH, 2) if packed else 2 * 51 * 34)
    says = f"{NAME}: frames travel as the detector compresses them (bslz4), and taken as they are by save"
    assert (says in lima2("plan", str(file), cwd=tmp_path).stdout) == (packed is not None)


@given(st.lists(st.binary(max_size=100), max_size=5), st.randoms(use_true_random=False))
def test_slots(frames: list[bytes], random: Any) -> None:
    """Slots give back what was put; of torn ones there is nothing beyond the slot."""
    size = slot_bytes(100, 1)
    slots = np.frombuffer(random.randbytes(size * len(frames)), np.uint8).reshape(len(frames), size).copy()
    torn = taken(slots)
    assert all(len(data) <= size - HEAD_BYTES for data in torn.data)
    kinds = [random.choice(COMPRESSIONS) for _ in frames]
    for slot, kind, data in zip(slots, kinds, frames, strict=True):
        slot[:HEAD_BYTES] = head_of(kind, data)
        slot[HEAD_BYTES : HEAD_BYTES + len(data)] = np.frombuffer(data, np.uint8)
    found = taken(slots)
    assert (list(found.compressions), list(found.data)) == (kinds, frames)


@pytest.mark.parametrize(("block", "itemsize"), [(2048, 1), (8192, 2), (8192, 4), (49152, 2)])
def test_slots_take_what_cannot_be_compressed(block: int, itemsize: int) -> None:
    from lima2cli.files.compression import bitshuffle_lz4

    for pixels in (1, 7, 1000, 65537):
        noise = np.frombuffer(np.random.default_rng(pixels).bytes(pixels * itemsize), f"u{itemsize}").copy()
        encode = bitshuffle_lz4(itemsize, block // itemsize, pixels)
        assert encode is not None
        assert len(encode(noise)) + HEAD_BYTES <= slot_bytes(pixels, itemsize)


def test_blocks_unpack_once_and_keep_what_they_have() -> None:
    calls = []

    def unpack(packed: Any) -> NDArray[Any]:
        calls.append(packed)
        return np.array([np.frombuffer(data, np.uint8) for data in packed.data])

    from lima2cli.packed import Packed

    numbers = np.arange(3, dtype=np.uint64)
    block = PackedBlock(Packed(("none",) * 3, (b"ab", b"cd", b"ef")), unpack, numbers, numbers)
    part = block.part(np.array([True, False, True]))
    assert part.frames.tobytes() == b"abef"
    assert block.frames.tobytes() == b"abcdef"
    assert block.frames is block.frames
    assert len(calls) == 2
    assert block.part(slice(1, 3)).copy().frames.tobytes() == b"cdef"
    assert block.part(numbers > 1).frames.tobytes() == b"ef"
    assert len(calls) == 2
