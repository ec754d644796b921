"""Measure the gain by threads of a receiver: a fused kernel and compression, by one thread and by several, in one run.

    python -m tests.benchmarks.threads [--threads 2] [--repeat 9]

The kernels: background, flat field, mask, formula, and counters (avg, std, min, max, sum) of the whole frame, frames
made; then bitshuffle-LZ4 of the raw frames, in chunks of one frame. Blocks of 8 frames of 1024 x 1024 uint16. Figures
are medians; both take turns, since machines are noisy. One core for each thread is needed.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from lima2cli.files.frame_writer import FrameWriter
from lima2cli.graph.fused import BoundChain
from lima2cli.graph.protocol import Arrival
from lima2cli.inputs.stacks import FileStore
from lima2cli.nodes.base import Inputs, Reduce
from lima2cli.plan.ir import Plan
from tests.benchmarks.kernels import medians
from tests.compiling import plan_of
from tests.node_inputs import block

FRAMES, SIDE = 8, 1024

KERNELS = {
    "background, flat, mask, counters": """
  dark: {input: D, background_sub: {image: dark.npy}}
  flat: {input: dark, flatfield: {image: flat.npy}}
  good: {input: flat, mask: {image: bad.npy}}
""",
    "gain, mask, counters": """
  charge: {input: D, gain: {pedestal: pedestals.npy, gain: gains.npy}}
  good: {input: charge, mask: {image: bad.npy}}
""",
    "formula, mask, counters": """
  root: {inputs: {a: D}, expression: {expr: "sqrt(maximum(a - 10, 0))"}}
  good: {input: root, mask: {image: bad.npy}}
""",
}


def plan(nodes: str, base: Path) -> Plan:
    """The kernel with its counters, and its frames saved; and the raw frames saved."""
    size = f"width: {SIDE}, height: {SIDE}"
    return plan_of(
        f"lima2: 1\ndetector: {{remu: {{image: {{{size}}}, datasets: {{D: {{dtype: uint16}}}}}}}}\nnodes:{nodes}"
        f"  counters: {{input: good, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, {size}}}}}}}}}}}\n"
        "  saved: {input: good, io_hdf5: {}}\n  raw: {input: D, io_hdf5: {frames_per_chunk: 1}}\n",
        base,
    )


def kernel(compiled: Plan, base: Path, frames: Any, threads: int) -> Callable[[], Any]:
    """The fused kernel, as a receiver binds it."""
    steps = {step.name: step for step in compiled.steps}
    counters = steps["counters"]
    with FileStore(base) as files:
        bound = BoundChain(compiled.kernels[0], steps, files, threads)
        assert isinstance(counters.node, Reduce)
        reducers: Any = [counters.node.bind(Inputs.of(counters.before, files)) for _ in range(threads)]
    bound.add("counters", reducers)
    return lambda: bound.push(Arrival("", 0, frames))


def compression(compiled: Plan, base: Path, frames: Any, threads: int) -> Callable[[], Any]:
    """Chunks compressed, not written."""
    writer = FrameWriter(compiled.channels["raw"], str(base), 0, 0)
    writer.threads = threads
    return lambda: writer.stage(frames)


def images(base: Path) -> None:
    """The files that `KERNELS` name."""
    random = np.random.default_rng(1)
    for name, low, high, more in (
        ("dark", 5, 15, ()), ("flat", 0.9, 1.1, ()), ("pedestals", 50, 60, (3,)), ("gains", 30, 50, (3,)),
    ):  # fmt: skip
        np.save(base / f"{name}.npy", random.uniform(low, high, (*more, SIDE, SIDE)).astype(np.float32))
    np.save(base / "bad.npy", (random.uniform(size=(SIDE, SIDE)) < 0.002).astype(np.uint8))


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    frames = block(np.random.default_rng(2).poisson(100, (FRAMES, SIDE, SIDE)).astype(np.uint16))
    with tempfile.TemporaryDirectory() as made:
        base = Path(made)
        images(base)
        cases = {name: (kernel, plan(nodes, base)) for name, nodes in KERNELS.items()}
        cases["bitshuffle-LZ4"] = (compression, next(iter(cases.values()))[1])
        for name, (make, compiled) in cases.items():
            both = {str(count): make(compiled, base, frames, count) for count in (1, options.threads)}
            times = medians(both, options.repeat)
            one, several = times["1"], times[str(options.threads)]
            print(
                f"{name:34s} 1 thread {one * 1e3:7.2f} ms  {options.threads} threads {several * 1e3:7.2f} ms"
                f"  {frames.frames.nbytes / several / 1e9:5.2f} GB/s  ratio {one / several:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
