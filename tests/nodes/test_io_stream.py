"""Node `io_stream`: what programs that we did not write read of it, and that it holds no receiver up."""

import json
import re
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

import lima2cli as l2
from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, counter, lima2, mpi

PIPELINE = """
lima2: 1
name: s
detector:
  remu:
    image: {{width: 51, height: 35}}
    modules: {{columns: 2, rows: 1, width: 20, height: 35, gap: {{x: 11}}}}
    datasets: {{data: {{dtype: {dtype}}}}}
    scene: {{counter: {{}}}}
acquisition: {{frames: {frames}, period: 1 ms, start: request{more}}}
receivers: {receivers}
nodes:
  less: {{input: data, expression: {{expr: "data - 2"}}}}
  send: {{input: {source}, io_stream: {{endpoint: "{endpoint}"{params}}}}}
  save: {{input: send, io_hdf5: {{}}}}
"""


def pipeline(port: int, frames: int = 20, **other: Any) -> str:
    values = {"dtype": "uint16", "more": "", "receivers": 1, "source": "data", "params": ""} | other
    return PIPELINE.format(endpoint=f"tcp://127.0.0.1:{port}", frames=frames, **values)


def free_port() -> int:
    """A port with free ones behind it, as far as can be seen."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return min(int(one.getsockname()[1]), 60_000)


def raw(number: int, dtype: str = "uint16") -> NDArray[Any]:
    """The detector's image, with its gap."""
    bits = 8 * np.dtype(dtype).itemsize
    frame = counter(np.array([number], np.uint64), Rect(0, 0, 51, 35), 51, bits=bits)[0]
    frame[:, 20:31] = 0
    return frame


def floats(number: int) -> NDArray[np.float32]:
    """Frames of the node that computes."""
    frame = raw(number).astype(np.float32) - 2
    frame[:, 20:31] = np.nan
    return frame


class Consumer:
    """A program that takes what is sent, by plain pyzmq, until the end of a series."""

    def __init__(self, port: int, *, kind: int = zmq.PULL) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.linger, self.socket.rcvtimeo = 0, 30_000
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        if kind == zmq.SUB:
            self.socket.subscribe(b"")
        self.messages: list[Any] = []
        self.thread = threading.Thread(target=self._take)

    def _take(self) -> None:
        while not self.messages or self.messages[-1]["type"] != "end":
            self.messages.append(cbor2.loads(self.socket.recv()))

    def __enter__(self) -> "Consumer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join(60)
        self.context.destroy(linger=0)


def decoded(message: Any, channel: str) -> NDArray[Any]:
    """Pixels of an image, by the decoder of DECTRIS and RFC 8746."""
    decompress = pytest.importorskip("dectris.compression").decompress
    assert message["data"][channel].tag == 40
    shape, array = message["data"][channel].value
    dtype = {64: "<u1", 69: "<u2", 70: "<u4", 85: "<f4"}[array.tag]
    data = array.value
    if not isinstance(data, bytes):
        assert data.tag == 56500
        algorithm, size, packed = data.value
        data = decompress(packed, algorithm, elem_size=size)
    return np.frombuffer(data, dtype).reshape(shape)


@pytest.mark.interchange
@pytest.mark.parametrize(
    ("dtype", "source", "params"),
    [
        ("uint16", "data", ""),
        ("uint8", "data", ", compression: none"),
        ("uint32", "data", ", channel: difference"),
        ("uint16", "less", ", when_slow: drop"),
    ],
)
def test_others_read_it(dtype: str, source: str, params: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    port, channel = free_port(), "difference" if "difference" in params else "threshold_1"
    drops = "drop" in params
    text = pipeline(port, 1000 if drops else 20, dtype=dtype, source=source, params=params)
    run = l2.run(text, transport="inline")
    with Consumer(port) as consumer:
        run.start()
    assert run.wait(60).state == "complete"
    first, *images, last = consumer.messages
    assert next(iter(first)) == "type"
    kind = "float32" if source == "less" else dtype
    assert (first["image_dtype"], first["image_size_x"], first["image_size_y"]) == (kind, 51, 35)
    assert list(first["channels"]) == [channel]
    shape, mask = first["pixel_mask"][channel].value
    mask = np.frombuffer(mask.value, "<u4").reshape(shape)
    assert np.array_equal(np.flatnonzero(mask.any(axis=0)), np.arange(20, 31))
    numbers = [one["image_id"] for one in images]
    assert numbers == sorted(set(numbers)) if drops else numbers == list(range(20))
    sent = len(numbers) + last["lost"]
    assert (last["type"], sent, last["series_id"]) == ("end", 1000 if drops else 20, first["series_id"])
    for one in images:
        expected = floats(one["image_id"]) if source == "less" else raw(one["image_id"], dtype)
        np.testing.assert_array_equal(decoded(one, channel), expected)
        above, below = one["start_time"]
        assert above / below == pytest.approx(one["image_id"] * 1e-3, abs=1e-6)
    data = run.open("save")  # frames go on behind it
    with data.file:
        assert data.shape == (1000 if drops else 20, 35, 51)


def test_a_series_of_each_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They listen at neighbouring ports; numbers of the others are left out."""
    monkeypatch.chdir(tmp_path)
    port = free_port()
    with l2.run(pipeline(port, receivers=2), transport="mpi") as run, Consumer(port) as one, Consumer(port + 1) as two:
        run.start()
    numbers = [[message["image_id"] for message in consumer.messages[1:-1]] for consumer in (one, two)]
    assert sorted(numbers[0] + numbers[1]) == list(range(20))
    assert all(len(some) > 5 for some in numbers)


def test_array_1_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header that viewers of PSI read, and the pixels."""
    monkeypatch.chdir(tmp_path)
    port = free_port()
    run = l2.run(pipeline(port, params=", protocol: array-1.0", frames=400), transport="inline")
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger, socket.rcvtimeo = 0, 30_000
        socket.subscribe(b"")
        socket.connect(f"tcp://127.0.0.1:{port}")
        run.start()
        seen = [socket.recv_multipart() for _ in range(20)]
    assert run.wait(60).state == "complete"
    for text, pixels in seen:
        header = json.loads(text)
        assert (header["htype"], header["shape"], header["type"]) == ("array-1.0", [35, 51], "uint16")
        assert np.array_equal(np.frombuffer(pixels, header["type"]).reshape(header["shape"]), raw(header["frame"]))


CHANNELS = """
lima2: 1
name: c
detector: {{remu: {{image: {{width: 51, height: 35}}, datasets: {{a: {{dtype: uint16}}, b: {{dtype: uint16}}}},
                   scenes: {{a: {{counter: {{}}}}, b: {{noise: {{seed: 3}}}}}}}}}}
acquisition: {{frames: 24}}
receivers: {receivers}
flows: {{a: {{dataset: a}}, b: {{dataset: b, slices: {{step: {step}}}}}}}
nodes:
  turned: {{input: b, roi_flip_rot: {{flip: both}}}}
  send: {{inputs: {inputs}, io_stream: {{endpoint: "tcp://127.0.0.1:{port}"}}}}
  keep_a: {{input: a, io_hdf5: {{}}}}
  keep_b: {{input: turned, io_hdf5: {{}}}}
  keep: {{input: send, io_hdf5: {{}}}}
"""


@pytest.mark.interchange
@pytest.mark.parametrize(
    ("receivers", "step", "inputs", "transport"),
    [
        (1, 1, "{first: b, second: turned}", "inline"),  # of one pass
        (1, 1, "{first: a, second: turned}", "inline"),
        (1, 3, "{first: a, second: turned}", "inline"),
        mpi(2, 1, "{first: a, second: turned}"),
    ],
)
def test_several_channels(
    receivers: int, step: int, inputs: str, transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message has the same frame of all inputs; what leaves the node is the first."""
    decompress = pytest.importorskip("dectris.compression").decompress
    monkeypatch.chdir(tmp_path)
    port = free_port()
    text = CHANNELS.format(port=port, receivers=receivers, step=step, inputs=inputs)
    with ExitStack() as stack:
        consumers = [stack.enter_context(Consumer(port + k)) for k in range(receivers)]
        run = l2.run(text, transport=transport)
        assert run.wait(60).state == "complete"
    seen = []
    for consumer in consumers:
        start, *images, end = consumer.messages
        assert (start["type"], tuple(start["channels"]), end["type"]) == ("start", ("first", "second"), "end")
        seen += images
    assert sorted(image["image_id"] for image in seen) == list(range(24 // step))
    kept = {"first": "keep", "second": "keep_b"}
    numbers = run.open("keep_b").parent["frame_number"][()].tolist()
    for image in seen:
        for channel, node in kept.items():
            shape, array = image["data"][channel].value
            algorithm, size, data = array.value.value
            pixels = np.frombuffer(decompress(data, algorithm, elem_size=size), "uint16").reshape(shape)
            number = numbers[image["image_id"]]
            assert np.array_equal(pixels, run.frame(node, number))
    source = "keep_a" if "first: a" in inputs else "keep_b"
    turn = (slice(None), slice(None)) if source == "keep_a" else (slice(None, None, -1), slice(None, None, -1))
    assert np.array_equal(run.frame("keep", 6), run.frame(source, 6)[turn])


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("{inputs: {x: data, y: less}, io_stream: {}}", "channels have one size and one dtype|is float32"),
        ("{inputs: {x: data, y: part}, io_stream: {}}", "`y` is"),
        ("{inputs: {x: data, y: data}, io_stream: {channel: z}}", "each is a channel of its name"),
        ("{inputs: {x: data, y: data}, io_stream: {protocol: array-1.0}}", "array-1.0 has no channels"),
    ],
)
def test_channels_that_do_not_go_together(nodes: str, why: str) -> None:
    text = pipeline(31001) + f"  other: {nodes}\n  part: {{input: data, roi_flip_rot: {{rotation: 90}}}}\n"
    assert any(re.search(why, str(one)) for one in l2.validate(text))


@pytest.mark.parametrize("policy", ["drop", "wait"])
def test_nobody_takes_them(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on, all is saved, and what was not sent is counted."""
    monkeypatch.chdir(tmp_path)
    params = f", when_slow: {policy}, patience: 100 ms, queue: 4"
    run = l2.run(pipeline(free_port(), frames=200, params=params), transport="inline")
    run.start()
    summary = run.wait(60)
    assert (summary.state, summary.channels["save"].saved) == ("complete", 200)
    assert "send: 200 of 200 frames were not sent: they were not taken in time" in summary.warnings


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_from_one_run_to_another(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes, as a detector, what another sends: several acquisitions, equal frame by frame."""
    monkeypatch.chdir(tmp_path)
    port = free_port()
    sink = f"""
lima2: 1
name: t
detector: {{dectris: {{stream: "tcp://127.0.0.1:{port}", image: {{width: 51, height: 35}}}}}}
acquisition: {{frames: 150, repeat: 2}}
nodes: {{save: {{input: threshold_1, io_hdf5: {{}}}}}}
"""
    with l2.run(pipeline(port, frames=150, more=", repeat: 2"), transport="inline") as source:
        run = l2.run(sink, transport=transport)
        for number in (1, 2):
            source.acquire()
            source.completed(number)
            run.completed(number)
        assert run.wait(60).state == "complete"
    for number in (1, 2):
        data = l2.open(f"runs/t_{number:04d}" if Path(f"runs/t_{number:04d}").exists() else run.directory).open("save")
        with data.file:
            assert np.array_equal(data[()], [raw(frame) for frame in range(150)])


@pytest.mark.parametrize(
    ("params", "why"),
    [
        (", protocol: array-1.0, compression: bslz4", "array-1.0 has no compression"),
        (', channel: "a b"', "a name"),
        (", queue: 0", "from 1 to 100000"),
        (", protocol: stream1", "stream2"),
    ],
)
def test_mistakes(params: str, why: str) -> None:
    errors = [str(one) for one in l2.validate(pipeline(31001, params=params))]
    assert any(why in error for error in errors), errors


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:31001", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://127.0.0.1:65535"]
)
def test_wrong_endpoints(endpoint: str) -> None:
    assert l2.validate(pipeline(31001).replace("tcp://127.0.0.1:31001", endpoint))


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """The run does not start."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger = 0
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        (tmp_path / "s.yaml").write_text(pipeline(port).replace(", start: request", ""))
        done = lima2("run", "s.yaml", "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 10
    assert f"cannot listen at 127.0.0.1:{port}" in done.stdout + done.stderr
