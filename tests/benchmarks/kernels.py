"""Measure how fast frames are corrected and counted, against the same steps one by one in plain numpy, in one run.

    python -m tests.benchmarks.kernels [--repeat 9]

Background, flat field, mask, and counters (avg, std, min, max, sum) of the whole frame; then gain, mask and counters,
as of a detector that switches its gain, with 1 % of the pixels not in the first stage. Corrected frames are made by
both. One core. Figures are medians; each repeat does all of them, since machines are noisy. Plain numpy selects good
pixels in the faster of two ways, `where=` or an index; nodes are the same nodes without fusion.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402  after the threads

from lima2cli.frames import Array  # noqa: E402
from lima2cli.kernels.chain import Chain, settle  # noqa: E402
from lima2cli.nodes.base import Inputs  # noqa: E402
from tests.node_inputs import MemoryFiles, block, node, spec_of  # noqa: E402

CASES = (("uint16", 1, 2048), ("uint16", 16, 256), ("uint32", 1, 2048), ("float32", 1, 1024))
"""dtype, frames of a block, side of a frame."""

MASKED = 0.002


def plain(correct: Callable[[], Array], bad: Array) -> Callable[[bool], Any]:
    """Corrected frames, masked, and their statistics as numpy's one-liners, with or without ``where=``."""
    good = ~bad
    index = np.flatnonzero(good)

    def steps(where: bool) -> Any:
        corrected = correct()
        corrected[:, bad] = 0
        if where:
            use: dict[str, Any] = {"axis": (1, 2), "where": good}
            pixels: Any = corrected
            low, high = {"initial": np.inf}, {"initial": -np.inf}
        else:
            use, low, high = {"axis": 1}, {}, {}
            pixels = corrected.reshape(len(corrected), -1)[:, index]
        wide: dict[str, Any] = {"dtype": np.float64}
        return corrected, (
            pixels.mean(**use, **wide),
            pixels.std(**use, **wide),
            pixels.min(**use, **low),
            pixels.max(**use, **high),
            pixels.sum(**use, **wide),
        )

    return steps


def charge(frames: Array, pedestals: Array, gains: Array) -> Array:
    """Gain-switched pixels in numpy: each pixel's stage, then its images."""
    stage = np.array([0, 1, 0, 2])[frames >> 14]
    pedestal, gain = (np.take_along_axis(images, stage, axis=0) for images in (pedestals, gains))
    charge: Array = ((frames & 0x3FFF) - pedestal) / gain
    charge[frames >> 14 == 2] = np.nan
    return charge


def ours(frames: Array, maps: Sequence[Any], files: MemoryFiles, *, fused: bool) -> Callable[[], Any]:
    """Maps and counters of the whole frame, as a receiver binds them."""
    side = frames.shape[1]
    spec = spec_of(str(frames.dtype), *frames.shape[1:])
    stages = []
    for use in maps:
        stages.append(use.stage_of(Inputs.of(spec, files)))
        spec = use.infer(Inputs.of(spec, files))
    counters = node("roi_counters", rois={"all": {"rect": {"x": 0, "y": 0, "width": side, "height": side}}})
    reducer = counters.bind(Inputs.of(spec, files))
    whole = block(frames)
    kernels = [stages] if fused else [[stage] for stage in stages]
    chains = [Chain(settle(kernel, kernel[0].source, side, side)) for kernel in kernels]

    def together() -> Any:
        reducer.begin(len(frames))
        return chains[0](frames, [lambda *strip: reducer.strip(*strip, slice(0, side))]), counters.finish(
            reducer.end(whole, 0)
        )

    def one_by_one() -> Any:
        out = frames
        for chain in chains:
            out = chain(out)
        return out, counters.finish(reducer.step(block(out), 0))

    return together if fused else one_by_one


def medians(functions: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Seconds of each, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeat + 1):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if turn:  # the first warms up
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def compare(frames: Array, bad: Array, maps: Sequence[Any], files: MemoryFiles, correct: Any, repeat: int) -> str:
    """The figures of one case."""
    steps = plain(correct, bad)
    times = medians(
        {
            "where": lambda: steps(True),
            "index": lambda: steps(False),
            "nodes": ours(frames, maps, files, fused=False),
            "fused": ours(frames, maps, files, fused=True),
        },
        repeat,
    )
    best = min(times["where"], times["index"])
    count, side = frames.shape[:2]
    return (
        f"{count:3d} x {side} x {side} {frames.dtype!s:8s}"
        f" plain {best * 1e3:7.2f} ms  nodes {times['nodes'] * 1e3:7.2f} ms  fused {times['fused'] * 1e3:7.2f} ms"
        f"  {frames.nbytes / times['fused'] / 1e9:5.2f} GB/s"
        f"  plain / fused {best / times['fused']:.2f}  nodes / fused {times['nodes'] / times['fused']:.2f}"
    )


def corrected(dtype: str, count: int, side: int, repeat: int) -> str:
    """Background, flat field, mask, counters."""
    random = np.random.default_rng(1)
    frames = random.poisson(1000, (count, side, side)).astype(dtype)
    dark = random.uniform(90, 110, (side, side)).astype(np.float32)
    flat = random.uniform(0.9, 1.1, (side, side)).astype(np.float32)
    bad = random.uniform(size=(side, side)) < MASKED
    files = MemoryFiles(dark=dark, flat=flat, bad=bad.astype(np.uint8))
    maps = [node("background_sub", image="dark"), node("flatfield", image="flat"), node("mask", image="bad", fill=0)]
    return compare(frames, bad, maps, files, lambda: (frames - dark) / flat, repeat)


def switched(count: int, side: int, repeat: int) -> str:
    """Gain, mask, counters."""
    random = np.random.default_rng(1)
    bits = random.choice(np.array([0, 1, 3], np.uint16), (count, side, side), p=[0.99, 0.008, 0.002])
    frames = bits << 14 | random.poisson(3000, bits.shape).astype(np.uint16)
    pedestals = random.uniform(2500, 3000, (3, side, side)).astype(np.float32)
    gains = random.uniform(30, 50, (3, side, side)).astype(np.float32)
    bad = random.uniform(size=(side, side)) < MASKED
    files = MemoryFiles(pedestals=pedestals, gains=gains, bad=bad.astype(np.uint8))
    maps = [node("gain", pedestal="pedestals", gain="gains"), node("mask", image="bad", fill=0)]
    return compare(frames, bad, maps, files, lambda: charge(frames, pedestals, gains), repeat)


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9)
    repeat = parser.parse_args().repeat
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for dtype, count, side in CASES:
        print("background, flat", corrected(dtype, count, side, repeat), flush=True)
    for count, side in ((1, 2048), (8, 512)):
        print("gain            ", switched(count, side, repeat), flush=True)


if __name__ == "__main__":
    main()
