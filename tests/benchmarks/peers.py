"""Measure the rate of frames from a detector's stream to three regions' sums, against LiberTEM-live, in the same run.

    python -m venv peer && peer/bin/pip install libertem-live
    python -m tests.benchmarks.peers peer/bin/python [--side 1024] [--frames 4000] [--repeat 5]

uint16 counts, compressed by bslz4, the same bytes for both, sent by ZeroMQ as fast as they are taken: to LiberTEM-live
as the DECTRIS stream that it reads (htype `dimage-1.0`), to lima2 as Stream V2. Three regions, each a fifth of the
frame wide and high, are summed for each frame. LiberTEM-live runs with each of its executors that suit two cores, of
which the faster counts. Both start their clock with the first frame and stop it with the last sum; sums are checked.
Decoding is the larger part of the work, and is the same C code in both but for how it was built.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

import lima2cli as l2
from lima2cli.files.compression import bitshuffle_lz4
from lima2cli.stream import stream2

OTHERS = 64
"""Frames that differ; they are sent again and again."""

OURS = """
lima2: 1
name: ours
detector: {{dectris: {{stream: "{stream}", image: {{width: {side}, height: {side}}}}}}}
acquisition: {{frames: {frames}, timeout: 60 s}}
nodes: {{sums: {{input: threshold_1, roi_counters: {{statistics: [sum], rois: {rois}}}}}}}
"""

THEIRS = """
import json, sys, time
import numpy as np
from libertem.udf import UDF
from libertem_live.api import LiveContext

executor, api, stream, regions, frames, size = json.loads(sys.argv[1])

class Sums(UDF):
    def get_preferred_input_dtype(self):
        return self.USE_NATIVE_DTYPE
    def get_result_buffers(self):
        return {"sums": self.buffer(kind="nav", dtype=np.int64, extra_shape=(len(regions),))}
    def process_partition(self, partition):
        for k, (x, y, w, h) in enumerate(regions):
            self.results.sums[:, k] = partition[:, y:y + h, x:x + w].sum(axis=(1, 2))

options = {"cpus": 2} if executor == "pipelined" else {}
if __name__ == "__main__":
    with LiveContext.make_with(executor, **options) as context:
        with context.make_connection("dectris").open(
            api_host="127.0.0.1", api_port=api, data_host="127.0.0.1", data_port=stream, buffer_size=512,
            bytes_per_frame=size,
        ) as connection:
            def run(count):
                pending = None
                print("ready", flush=True)
                while pending is None:
                    pending = connection.wait_for_acquisition(10)
                acquisition = context.make_acquisition(conn=connection, nav_shape=(count,), pending_aq=pending)
                began = time.monotonic()
                sums = context.run_udf(acquisition, Sums())["sums"].data
                return time.monotonic() - began, sums
            run(48)  # workers start, functions are compiled
            seconds, sums = run(frames)
            print(json.dumps([seconds, sums[-1].tolist()]), flush=True)
"""


class Api(BaseHTTPRequestHandler):
    """A detector's REST interface that agrees to all; what LiberTEM-live asks before it listens."""

    side = 0

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def do_GET(self) -> None:
        known = {
            "version": "1.8.0", "bit_depth_image": 16, "x_pixels_in_detector": self.side,
            "y_pixels_in_detector": self.side,
        }  # fmt: skip
        body = json.dumps({"value": known.get(self.path.rstrip("/").rpartition("/")[2], 0)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@contextmanager
def served(side: int) -> Iterator[int]:
    """Yield the port of such an interface, of a detector of so many pixels a side."""
    with HTTPServer(("127.0.0.1", 0), type("OwnApi", (Api,), {"side": side})) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextmanager
def sending(count: int) -> Iterator[Any]:
    """Yield a socket as detectors have it, which holds so many messages at most."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.set_hwm(count)
        socket.linger, socket.sndtimeo = 0, 60_000
        socket.bind_to_random_port("tcp://127.0.0.1")
        yield socket


class Frames:
    """Frames of counts, as they travel, and the regions that are summed."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.pixels = np.random.default_rng(1).poisson(3, (OTHERS, side, side)).astype(np.uint16)
        made = bitshuffle_lz4(2, stream2.BLOCK_BYTES // 2, side * side)
        assert made is not None
        self.packed = [made(one) for one in self.pixels]
        fifth = side // 5
        self.regions = [(x, y, fifth, fifth) for x, y in ((0, 0), (2 * fifth, 2 * fifth), (side - fifth, fifth))]

    def sums(self, number: int) -> list[int]:
        """Return the sums of a frame."""
        one: NDArray[Any] = self.pixels[number % OTHERS]
        return [int(one[y : y + h, x : x + w].sum(dtype=np.int64)) for x, y, w, h in self.regions]

    def send_new(self, socket: Any, count: int) -> None:
        """Send a series by Stream V2."""
        fields = {"channels": ["threshold_1"], "image_dtype": "uint16", "number_of_images": count}
        size = {"image_size_x": self.side, "image_size_y": self.side}
        socket.send(stream2.start_message(1, "series", fields | size))
        for number in range(count):
            pixels = {"threshold_1": ("uint16", (self.side, self.side), self.packed[number % OTHERS], True)}
            socket.send(stream2.image_message(1, "series", number, (0, number), pixels), copy=False)
        socket.send(stream2.end_message(1, "series", 0))

    def send_old(self, socket: Any, series: int, count: int) -> None:
        """Send a series by the older stream, of which each image is four messages."""
        header = {"htype": "dheader-1.0", "header_detail": "basic", "series": series}
        config = {
            "nimages": count, "ntrigger": 1, "trigger_mode": "exts", "bit_depth_image": 16,
            "x_pixels_in_detector": self.side, "y_pixels_in_detector": self.side,
        }  # fmt: skip
        socket.send_multipart([json.dumps(part).encode() for part in (header, config)])
        times = json.dumps({"htype": "dconfig-1.0", "start_time": 0, "stop_time": 1, "real_time": 1}).encode()
        for number in range(count):
            data = self.packed[number % OTHERS]
            image = {"htype": "dimage-1.0", "series": series, "frame": number, "hash": "x"}
            shape = {
                "htype": "dimage_d-1.0", "shape": [self.side, self.side], "type": "uint16", "encoding": "bs16-lz4<",
                "size": len(data),
            }  # fmt: skip
            parts = [json.dumps(part).encode() for part in (image, shape)]
            socket.send_multipart([*parts, data, times], copy=False)
        socket.send_multipart([json.dumps({"htype": "dseries_end-1.0", "series": series}).encode()])


def ours(frames: Frames, count: int) -> float:
    """Return the frames per second that lima2 sums."""
    names = {
        f"r{k}": {"rect": dict(zip(("x", "y", "width", "height"), at, strict=True))}
        for k, at in enumerate(frames.regions)
    }
    with sending(100) as socket:
        text = OURS.format(stream=socket.last_endpoint.decode(), side=frames.side, frames=count, rois=json.dumps(names))
        run = l2.run(text, transport="mpi")
        frames.send_new(socket, count)
        summary = run.wait(120)
    assert summary.flows["threshold_1"].received == count, summary
    assert [int(run.counters["sums"][f"r{k}_sum"][-1]) for k in range(3)] == frames.sums(count - 1)
    assert summary.seconds is not None
    return count / summary.seconds


def theirs(python: str, executor: str, frames: Frames, count: int) -> float:
    """Return the frames per second that LiberTEM-live sums."""
    with served(frames.side) as api, sending(100) as socket, tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "theirs.py"
        program.write_text(THEIRS)
        size = max(map(len, frames.packed))
        options = [executor, api, int(socket.last_endpoint.rpartition(b":")[2]), frames.regions, count, size]
        command = [python, str(program), json.dumps(options)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            for series, number in ((1, 48), (2, count)):
                assert next(lines).strip() == "ready"
                time.sleep(0.5)
                frames.send_old(socket, series, number)
            seconds, sums = json.loads(next(lines))
    assert sums == frames.sums(count - 1)
    return count / float(seconds)


def main() -> None:
    """Print a line for each repeat, and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="Python of an environment with libertem-live", type=os.path.abspath)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    frames, ratios = Frames(options.side), []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for _ in range(options.repeat):
            mine = ours(frames, options.frames)
            other = {name: theirs(options.python, name, frames, options.frames) for name in ("inline", "pipelined")}
            ratios.append(mine / max(other.values()))
            rates = "  ".join(f"{name} {rate:6.0f}/s" for name, rate in other.items())
            print(f"lima2 {mine:6.0f}/s  LiberTEM-live {rates}  ratio {ratios[-1]:.2f}", flush=True)
    print(f"{options.side} x {options.side}: ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    sys.exit(main())
