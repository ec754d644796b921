"""Detector `dectris`: messages of Stream V2, sent by plain pyzmq, as a detector of DECTRIS sends them."""

import json
import os
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import cbor2
import h5py
import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

import lima2cli as l2
from lima2cli.errors import StreamProblem
from lima2cli.files.compression import bitshuffle_lz4
from lima2cli.stream import stream2
from tests.running import lima2, mpi

HEIGHT, WIDTH = 35, 51

PIPELINE = """
lima2: 1
name: d
detector:
  dectris:
    stream: {address}
    image: {{width: {width}, height: {height}}}
    datasets: {datasets}
    depth: 8
acquisition: {{frames: {frames}, timeout: 20 s{more}}}
nodes: {nodes}
"""
NODES = "{save: {input: threshold_1, io_hdf5: {}}}"
COUNT = "roi: {input: threshold_1, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 51, height: 35}}}}}"


def pipeline(address: str, frames: int, datasets: Mapping[str, str], **other: Any) -> str:
    """The pipeline that takes these channels from there."""
    values = {"width": WIDTH, "height": HEIGHT, "more": "", "nodes": NODES} | other
    channels = json.dumps({name: {"dtype": dtype} for name, dtype in datasets.items()})
    return PIPELINE.format(address=address, frames=frames, datasets=channels, **values)


def image(number: int, dtype: str, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[Any]:
    """An image of a channel; its last pixel is masked."""
    pixels = (np.random.default_rng(number).poisson(3, shape)).astype(dtype)
    pixels[-1, -1] = np.iinfo(dtype).max
    return pixels


def coded(pixels: NDArray[Any], compression: str) -> tuple[str, tuple[int, int], bytes, bool]:
    """Pixels as they travel."""
    data = pixels.tobytes()
    if compression == "bslz4":
        made = bitshuffle_lz4(pixels.itemsize, stream2.BLOCK_BYTES // pixels.itemsize, pixels.size)
        assert made is not None
        data = made(pixels)
    return pixels.dtype.name, (pixels.shape[0], pixels.shape[1]), data, compression != "none"


def start(series: int, dtype: str, channels: list[str], **other: Any) -> bytes:
    fields = {"channels": channels, "image_dtype": dtype, "image_size_x": WIDTH, "image_size_y": HEIGHT} | other
    return stream2.start_message(series, "ULID", {key: value for key, value in fields.items() if value is not None})


def sent(number: int, dtype: str, channels: list[str], compression: str = "bslz4", series: int = 1) -> bytes:
    now = 1_700_000_000 * 10**9
    pixels = {name: coded(image(number + 1000 * k, dtype), compression) for k, name in enumerate(channels)}
    return stream2.image_message(series, "ULID", number, (now, now + number * 1_000_000), pixels)


@contextmanager
def sender() -> Iterator[Any]:
    """A socket that sends as detectors do: PUSH, bound."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.set_hwm(20)
        socket.linger, socket.sndtimeo = 0, 30_000
        socket.bind_to_random_port("tcp://127.0.0.1")
        yield socket


def taken(run: l2.Run, node: str = "save") -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Frames, numbers and times of what a run has saved."""
    data = run.open(node)
    with data.file:
        return data[()], data.parent["frame_number"][()], data.parent["frame_time"][()]


@pytest.mark.parametrize(
    ("dtype", "compression", "transport"),
    [("uint16", "bslz4", "inline"), ("uint8", "none", "inline"), ("uint32", "bslz4", "inline"), mpi("uint16", "bslz4")],
)
def test_a_series(
    dtype: str, compression: str, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two channels, more images than are held, an odd size; masked pixels are no measurements."""
    monkeypatch.chdir(tmp_path)
    channels = ["threshold_1", "difference"]
    rect = "{x: 0, y: 0, width: 51, height: 35}"
    nodes = f"""
  save: {{input: threshold_1, io_hdf5: {{}}}}
  other: {{input: difference, io_hdf5: {{}}}}
  roi: {{input: difference, roi_counters: {{rois: {{all: {{rect: {rect}}}}}}}}}
"""
    with sender() as socket:
        run = l2.run(
            pipeline(socket.last_endpoint.decode(), 60, dict.fromkeys(channels, dtype), nodes=nodes),
            transport=transport,
        )
        socket.send(start(1, dtype, [*channels, "threshold_2"], number_of_images=60))
        for number in range(60):
            socket.send(sent(number, dtype, [*channels, "threshold_2"], compression))
        socket.send(stream2.end_message(1, "ULID", 0))
        summary = run.wait(60)
    assert (summary.state, summary.warnings) == ("complete", ())
    for k, node in enumerate(("save", "other")):
        frames, numbers, times = taken(run, node)
        assert numbers.tolist() == list(range(60))
        assert np.array_equal(frames, [image(number + 1000 * k, dtype) for number in range(60)])
        assert np.diff(times) == pytest.approx(1e-3, abs=1e-7)
    sums = [image(number + 1000, dtype).ravel()[:-1].sum() for number in range(60)]
    assert run.counters["roi"]["all_sum"].tolist() == sums


def test_what_is_lost_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that never comes, one that comes twice, a channel that lacks, pixels that are damaged, an early end."""
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        nodes = NODES.replace("}}}", "}}, " + COUNT + "}")
        text = pipeline(
            socket.last_endpoint.decode(), 40, {"threshold_1": "uint16"}, more=", allow_lost: 20", nodes=nodes
        )
        run = l2.run(text, transport="inline")
        socket.send(sent(0, "uint16", ["threshold_1"], series=7))  # of a series that was before
        socket.send(start(1, "uint16", ["threshold_1"]))
        for number in range(30):
            message = sent(number, "uint16", ["other" if number == 5 else "threshold_1"])
            if number in (3, 20, 21, 22):
                continue
            if number == 8:
                message = message[:-300] + bytes(300)
            socket.send(message)
            if number == 10:
                socket.send(message)
        socket.send(stream2.end_message(1, "ULID", 4))
        summary = run.wait(60)
    gone = {3, 5, 8, 20, 21, 22, *range(30, 40)}
    assert summary.flows["threshold_1"].missing == len(gone)
    assert summary.state == "complete"
    frames, _, _ = taken(run)
    here = [number for number in range(40) if number not in gone]
    status = h5py.File(run.directory / "d_save_master.h5")["entry_0000/instrument/dectris/frame_status"][()]
    assert np.flatnonzero(status == status[0]).tolist() == here
    assert all(np.array_equal(frames[number], image(number, "uint16")) for number in here)
    words = " ".join(summary.warnings)
    for warning in ("1 frame of threshold_1 could not be decompressed", "images lacked 1 channel",
                    "1 image came twice, or too late", "1 image of another series left out"):  # fmt: skip
        assert warning in words


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (start(1, "uint32", ["threshold_1"]), "the detector sends uint32, not uint16"),
        (start(1, "uint16", ["threshold_1"], image_size_x=52), "sends images of 52 x 35, not 51 x 35"),
        (start(1, "uint16", ["threshold_2"]), "the detector has channels threshold_2, not threshold_1"),
        (b"{}", "does not begin with D9 D9 F7"),
        (stream2.MAGIC + b"\xff", "a message can't be read"),
        (stream2.MAGIC + cbor2.dumps([1]), "a message is not a map"),
        (stream2.MAGIC + cbor2.dumps({"type": "start", "series_id": "1"}), "lacks `series_id`"),
    ],
)
def test_another_series_than_expected(first: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame is taken."""
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        run = l2.run(pipeline(socket.last_endpoint.decode(), 10, {"threshold_1": "uint16"}), transport="inline")
        socket.send(first)
        with pytest.raises(l2.RunFailed, match=why):
            run.wait(60)
    summary = run.summary
    assert summary is not None
    assert summary.channels["save"].saved == 0


def test_older_firmware_does_not_say_its_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        run = l2.run(pipeline(socket.last_endpoint.decode(), 3, {"threshold_1": "uint16"}), transport="inline")
        socket.send(start(1, "uint16", ["threshold_1"], image_dtype=None))
        socket.send(sent(0, "uint32", ["threshold_1"]))
        with pytest.raises(l2.RunFailed, match="the detector sends uint32 51 x 35, not uint16 51 x 35"):
            run.wait(60)


def test_several_acquisitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its series, the connection stays."""
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 5, {"threshold_1": "uint16"}, more=", repeat: 3")
        run = l2.run(text, transport="inline")
        for series in range(1, 4):
            socket.send(start(series, "uint16", ["threshold_1"]))
            for number in range(5):
                socket.send(sent(number, "uint16", ["threshold_1"], series=series))
            socket.send(stream2.end_message(series, "ULID", 0))
            if series < 3:
                run.completed(series)
        run.wait(60)
    for directory in sorted((tmp_path / "runs").glob("d_*")):
        frames, numbers, _ = taken(l2.open(directory))
        assert numbers.tolist() == list(range(5))
        assert np.array_equal(frames[4], image(4, "uint16"))


def test_a_series_that_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        run = l2.run(pipeline(socket.last_endpoint.decode(), 0, {"threshold_1": "uint16"}), transport="inline")
        socket.send(start(1, "uint16", ["threshold_1"]))
        for number in range(12):
            socket.send(sent(number, "uint16", ["threshold_1"]))
        progress = run.progress
        assert next(event for event in progress if event["saved"].get("save", 0) == 12)
        run.stop()
        assert run.wait(60).channels["save"].saved == 12


@pytest.mark.interchange
@pytest.mark.parametrize(("recording", "dtype"), [("r500k_bm_bslz4_16bit", "uint16"), ("r500k_bm_bslz4_8bit", "uint8")])
def test_recorded_messages(
    recording: str, dtype: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of a real detector, with three channels: pixels as another decoder gives them."""
    decompress = pytest.importorskip("dectris.compression").decompress
    monkeypatch.chdir(tmp_path)
    messages = [path.read_bytes() for path in sorted((data_dir / "stream2" / recording).glob("*.cbor"))]
    *images, _ = [cbor2.loads(message) for message in messages]
    channels = list(images[0]["data"])
    nodes = "{" + ", ".join(f"s{k}: {{input: {name}, io_hdf5: {{}}}}" for k, name in enumerate(channels)) + "}"
    with sender() as socket:
        text = pipeline(
            socket.last_endpoint.decode(), 3, dict.fromkeys(channels, dtype), width=1030, height=514, nodes=nodes
        )
        run = l2.run(text, transport="inline")
        for message in (start(1, dtype, channels, image_size_x=1030, image_size_y=514), *messages):
            socket.send(message)
        assert run.wait(60).state == "complete"
    for k, name in enumerate(channels):
        frames, numbers, times = taken(run, f"s{k}")
        assert numbers.tolist() == [0, 1, 2]
        assert np.diff(times) == pytest.approx(0.02 if dtype == "uint16" else 0.01, abs=1e-7)
        for frame, one in zip(frames, images, strict=True):
            shape, array = one["data"][name].value
            algorithm, size, data = array.value.value
            expected = np.frombuffer(decompress(data, algorithm, elem_size=size), dtype).reshape(shape)
            assert np.array_equal(frame, expected)


class Api(BaseHTTPRequestHandler):
    """A detector's REST interface, as far as it goes: notes what it is asked, and sends a series when triggered."""

    asked: list[tuple[str, Any]]
    socket: Any
    frames = 0

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, module, _, version, kind, name = self.path.split("/")
        type(self).asked.append((f"{module}/{kind}/{name}", json.loads(body)["value"] if body else None))
        refused = version != "1.8.0"
        self.send_response(404 if refused else 200)
        self.end_headers()
        if name == "arm" and not refused:
            self.socket.send(start(1, "uint16", ["threshold_1"]))
        elif name == "trigger":
            first, each = self.frames, dict(self.asked)["detector/config/nimages"]
            type(self).frames += each
            for number in range(first, first + each):
                self.socket.send(sent(number, "uint16", ["threshold_1"]))
        elif name == "disarm":
            self.socket.send(stream2.end_message(1, "ULID", 0))

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def api() -> Iterator[Any]:
    """The address of a detector that can be controlled, and its stream."""
    with sender() as socket:
        kind = type("OwnApi", (Api,), {"asked": [], "socket": socket, "frames": 0})
        server = HTTPServer(("127.0.0.1", 0), kind)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        kind.stream, kind.address = socket.last_endpoint.decode(), f"http://127.0.0.1:{server.server_port}"
        yield kind
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("trigger", ["internal", "software"])
def test_a_detector_that_is_controlled(trigger: str, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is configured and armed before the start, triggered, and disarmed."""
    monkeypatch.chdir(tmp_path)
    more = ", period: 2 ms, exposure: 1 ms" + (
        ", trigger: software, frames_per_trigger: 4" if trigger == "software" else ""
    )
    text = pipeline(api.stream, 12, {"threshold_1": "uint16"}, more=more)
    run = l2.run(text.replace("depth: 8", f"depth: 8\n    api: {api.address}"), transport="inline")
    if trigger == "software":
        for point in range(3):
            run.trigger()
            progress = run.progress
            assert next(event for event in progress if event["rows"]["save"] == 4 * point + 4)
    assert run.wait(60).state == "complete"
    frames, _, _ = taken(run)
    assert np.array_equal(frames, [image(number, "uint16") for number in range(12)])
    asked, each = dict(api.asked), 4 if trigger == "software" else 12
    assert (asked["detector/config/trigger_mode"], asked["detector/config/nimages"]) == ("ints", each)
    assert (asked["detector/config/ntrigger"], asked["detector/config/frame_time"]) == (12 // each, 0.002)
    assert (asked["detector/config/count_time"], asked["stream/config/format"]) == (0.001, "cbor")
    commands = [name.rpartition("/")[2] for name, _ in api.asked if "/command/" in name]
    assert commands == ["arm", *["trigger"] * (12 // each), "disarm"]


def test_a_detector_that_refuses(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = pipeline(api.stream, 12, {"threshold_1": "uint16"})
    for more, why in (("api_version: 1.6.0", "404"), ("api: http://127.0.0.1:9", "refused")):
        keys = f"depth: 8\n    api: {api.address}\n    {more}" if "version" in more else f"depth: 8\n    {more}"
        with pytest.raises(l2.Lima2Error, match=why):
            l2.run(text.replace("depth: 8", keys), transport="inline")


@pytest.mark.parametrize("stream", ["10.0.0.5:31001", "tcp://10.0.0.5", "tcp://a b:1", "http://10.0.0.5:31001"])
def test_addresses(stream: str) -> None:
    (error,) = l2.validate(pipeline(json.dumps(stream), 5, {"threshold_1": "uint16"}))
    assert "an address such as" in str(error)


def test_damaged_pixels_are_found() -> None:
    """Whatever the bytes are, nothing beyond them is read, and what is wrong with the structure is said."""
    pixels = image(1, "uint16")
    dtype, shape, data, _ = coded(pixels, "bslz4")
    out = np.empty_like(pixels)
    random = np.random.default_rng(3)
    found = 0
    for _ in range(500):
        damaged = bytearray(data)
        for place in random.integers(0, len(damaged), 3):
            damaged[place] = random.integers(256)
        cut = bytes(damaged[: random.integers(1, len(damaged))] if random.random() < 0.3 else damaged)
        try:
            stream2.Pixels(shape, np.dtype(dtype), "bslz4", cut).read(out)
        except StreamProblem:
            found += 1
    assert found > 100
    stream2.Pixels(shape, np.dtype(dtype), "bslz4", data).read(out)
    assert np.array_equal(out, pixels)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages of the extra a run is not started."""
    (tmp_path / "p.yaml").write_text(pipeline("tcp://127.0.0.1:9", 5, {"threshold_1": "uint16"}))
    monkeypatch.setitem(sys.modules, "zmq", None)
    done = lima2("run", "p.yaml", cwd=tmp_path)
    assert (done.returncode, "pip install 'lima2cli[stream]'" in done.stderr) == (12, True), done.stderr


def test_a_start_message_that_came_before_other_frames_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector that somebody else has armed sends it once; the run is armed, and prepares for fewer frames."""
    monkeypatch.chdir(tmp_path)
    with sender() as socket:
        text = pipeline(socket.last_endpoint.decode(), 20, {"threshold_1": "uint16"}, more=", start: request")
        run = l2.run(text, transport="inline", armed=True)
        socket.send(start(1, "uint16", ["threshold_1"], count_time=0.5))
        end = time.monotonic() + 20
        while not (run.directory / "detector.hdf5").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        run.start(frames=7)
        next(event for event in run.follow() if event["type"] == "start")  # then whoever has armed it may trigger
        for number in range(7):
            socket.send(sent(number, "uint16", ["threshold_1"]))
        socket.send(stream2.end_message(1, "ULID", 0))
        summary = run.wait(60)
    assert (summary.state, summary.warnings) == ("complete", ())
    assert taken(run)[1].tolist() == list(range(7))


SIMULATOR = os.environ.get("LIMA2_SIMULATOR", "")
"""A Python that has tickit-devices 0.4 (and cbor2 < 6), whose simulator of an EIGER2 is asked as a detector is.

Its socket connects to itself, too, and then loses some messages: the test tries again, and is not part of every run.
"""

TRIES = 5


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Addresses of the REST interface and the stream of tickit-devices' EIGER2 16M."""
    if not SIMULATOR:
        pytest.skip("LIMA2_SIMULATOR names no Python with tickit-devices")
    rest, stream, old = (free_port() for _ in range(3))
    config = tmp_path / "eiger.yaml"
    config.write_text(
        "- type: tickit_devices.eiger.Eiger\n  name: eiger\n  inputs: {}\n  host: 127.0.0.1\n  stream_host: 127.0.0.1\n"
        f"  port: {rest}\n  stream_cbor_port: {stream}\n  stream_legacy_port: {old}\n"
    )
    log = (tmp_path / "simulator.log").open("w")
    with log, subprocess.Popen([SIMULATOR, "-m", "tickit", "all", str(config)], stdout=log, stderr=log) as process:
        try:
            address = f"http://127.0.0.1:{rest}"
            until_it_answers(f"{address}/detector/api/1.8.0/config/x_pixels_in_detector")
            yield address, f"tcp://127.0.0.1:{stream}"
        finally:
            process.kill()


def free_port() -> int:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        return int(server.server_address[1])


def until_it_answers(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.interchange
@pytest.mark.parametrize("trigger", ["internal", "software"])
def test_the_simulator_of_others(
    trigger: str, simulator: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is configured, armed, triggered, and disarmed, and sends images of a real detector of 18 megapixels."""
    monkeypatch.chdir(tmp_path)
    api, stream = simulator
    more = ", period: 50 ms, exposure: 40 ms"
    more += ", trigger: software, frames_per_trigger: 2" if trigger == "software" else ""
    text = pipeline(stream, 4, {"threshold_1": "uint16"}, width=4148, height=4362, more=more)
    for tried in range(TRIES):
        run = l2.run(text.replace("depth: 8", f"depth: 8\n    api: {api}"), transport="inline")
        if trigger == "software":
            run.trigger(2)
        try:
            summary = run.wait(15)
        except (TimeoutError, l2.RunFailed):
            assert tried < TRIES - 1
            with suppress(l2.StateError, l2.RunFailed):
                run.abort()
            continue
        if summary.channels["save"].saved == 4:
            break
    assert (summary.state, summary.channels["save"].saved) == ("complete", 4)
    frames, numbers, _ = taken(run)
    assert numbers.tolist() == [0, 1, 2, 3]
    assert frames.shape == (4, 4362, 4148)
    assert (frames[0] == frames[3]).all()  # it has one image
    assert 0 < np.count_nonzero(frames[0] < np.iinfo("uint16").max) < frames[0].size
