"""Fused kernels on a device of OpenCL against the same on the CPU, in one process, in turns: ``python -m
tests.benchmarks.device [DEVICE]``; DEVICE is a number or a name, `pocl` unless it is given.

Frames come from host memory, as they come from a detector; what is saved goes back there.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from lima2cli.frames import Invalid
from lima2cli.gpu.devices import open_device
from lima2cli.gpu.pipe import Pipe, Upload
from lima2cli.kernels.chain import Chain
from lima2cli.kernels.opencl import chain_source, sums_source
from lima2cli.nodes.base import Inputs, Reduce
from tests.compiler.test_fuse import joined
from tests.node_inputs import MemoryFiles, block, node, spec_of

REPEATS = 7
BLOCKS = 12

CORRECT: list[tuple[str, dict[str, Any]]] = [
    ("background_sub", {"image": "dark"}),
    ("flatfield", {"image": "flat"}),
    ("mask", {"image": "bad"}),
]
GAIN: list[tuple[str, dict[str, Any]]] = [("gain", {"pedestal": "pedestals", "gain": "gains"})]

CASES = (
    ("correct, saved", CORRECT, (1024, 1024), 8, True, False),
    ("correct, counted", CORRECT, (1024, 1024), 8, False, True),
    ("correct, saved and counted", CORRECT, (1024, 1024), 8, True, True),
    ("gain, saved", GAIN, (512, 1024), 16, True, False),
    ("counted", [], (1024, 1024), 8, False, True),
)


def main(wanted: str = "pocl") -> None:
    """Print frames per second of each case on the device and on the CPU, one core, and the ratio."""
    device = open_device(int(wanted) if wanted.isdigit() else wanted)
    print(f"{device.name}; medians of {REPEATS}")
    print(f"{'':28} {'device':>9} {'CPU':>9}  ratio   frames/s")
    for name, chain, shape, frames, makes, counts in CASES:
        there, here = case(device, chain, shape, frames, makes, counts)
        times = [(taken(there), taken(here)) for _ in range(REPEATS)]
        device_s, cpu_s = (median(each) for each in zip(*times, strict=True))
        count = BLOCKS * frames
        print(f"{name:28} {count / device_s:9.0f} {count / cpu_s:9.0f}  {cpu_s / device_s:5.2f}")


def case(
    device: Any,
    chain: Sequence[tuple[str, dict[str, Any]]],
    shape: tuple[int, int],
    frames: int,
    makes: bool,
    counts: bool,
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what does the blocks on the device, and on the CPU."""
    random = np.random.default_rng(1)
    files = MemoryFiles(
        dark=random.uniform(90, 110, shape),
        flat=random.uniform(0.9, 1.1, shape),
        bad=(random.uniform(size=shape) < 0.01).astype(np.uint8),
        pedestals=random.uniform(500, 1500, (3, *shape)),
        gains=random.uniform(30, 50, (3, *shape)),
    )
    spec = spec_of("uint16", *shape, invalid=Invalid())
    data = random.poisson(1000, (frames, *shape)).astype(np.uint16)
    recipe, after, _ = joined(chain, spec, files, data[:1])
    rois = {"all": {"x": 0, "y": 0, "width": shape[1], "height": shape[0]}}
    counters: Reduce = node("roi_counters", rois=rois)
    reducer: Any = counters.bind(Inputs.of(after, files))
    source = chain_source(recipe, "uint16", shape[1])
    sums = (sums_source("sums0", reducer.regions, source),) if counts else ()
    upload = Upload(device, shape, "uint16")
    pipe, reader = Pipe(device, source, sums, makes=makes, shape=shape, most=upload.most), upload.reader()
    whole, some = Chain(recipe, keeps=makes), block(data)

    def there() -> None:
        pieces = deque[Any]()
        for _ in range(BLOCKS):
            for load in reader.take(data, None):
                while not pipe.free:
                    finish(pieces.popleft())
                pieces.append(pipe.submit(load))
                reader.enqueued(load, pieces[-1].work)
        while pieces:
            finish(pieces.popleft())

    def finish(piece: Any) -> None:
        while not piece.done:
            time.sleep(0.0002)
        if counts:
            pipe.sums(piece, 0)
        pipe.give_back(piece.slot)

    def here() -> None:
        for _ in range(BLOCKS):
            if counts:
                reducer.begin(frames)
            readers = [lambda *strip: reducer.strip(*strip, slice(0, shape[1]))] if counts else []
            whole(data, readers)
            if counts:
                reducer.end(some, 0)

    return there, here


def taken(work: Callable[[], None]) -> float:
    """Return the seconds that some work takes."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


if __name__ == "__main__":
    main(*sys.argv[1:])
