"""Measure azimuthal integration on one core: the node, a product of the sparse matrix for each frame, and pyFAI.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.azimuthal [--side 2048] [--bins 1000] [--frames 16] [--repeat 5]

Frames of uint16 with Poisson counts, from memory. The product is scipy's, of the same weights (CSR) with one frame as
float32, which is converted each time, and of the same sums; pyFAI's is the engine of the method that makes the matrix.
Figures are medians of the thread's CPU time for a frame, the cases taken in turn, since machines are noisy.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from pyFAI.integrator.azimuthal import AzimuthalIntegrator
from scipy.sparse import csr_array

from lima2cli.frames import Block, Experiment
from lima2cli.nodes.azimuthal import METHOD, Azimuthal
from lima2cli.nodes.base import Inputs
from lima2cli.testing.inputs import NoFiles, frame_spec

PIXEL, DISTANCE = 75e-6, 0.3


def main() -> None:
    """Print a line for each way."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("side", 2048), ("bins", 1000), ("frames", 16), ("repeat", 5)):
        arguments.add_argument(f"--{name}", type=int, default=default)
    given = arguments.parse_args()
    side, bins, count = given.side, given.bins, given.frames
    known = Experiment(12400.0, DISTANCE, (0.49 * side, 0.52 * side), (PIXEL, PIXEL), (side, side))
    spec = frame_spec("uint16", side, side, experiment=known)
    frames = np.random.default_rng(1).poisson(10, (count, side, side)).astype(np.uint16)
    block = Block(frames, np.arange(count, dtype=np.uint64), np.arange(count, dtype=np.uint64))

    place = (DISTANCE, (0.52 * side + 0.5) * PIXEL, (0.49 * side + 0.5) * PIXEL)
    model = AzimuthalIntegrator(*place, pixel1=PIXEL, pixel2=PIXEL, wavelength=12398.42e-10 / 12400)
    made = model.integrate1d(frames[0], bins, unit="q_nm^-1", method=METHOD)
    engine = model.engines[made.method].engine
    matrix = csr_array((engine.data, engine.indices, engine.indptr), shape=(bins, side * side))
    solid = model.solidAngleArray((side, side))

    ways: dict[str, Callable[[], object]] = {"pyFAI, engine": lambda: engine.integrate_ng(frames[0], solidangle=solid)}
    ways["product per frame"] = lambda: [matrix @ frame.ravel().astype(np.float32) for frame in frames]
    for error_model in ("none", "poisson"):
        bound = Azimuthal(bins=bins, error_model=error_model).bind(Inputs.of(spec, NoFiles()))
        ways[f"node, error_model: {error_model}"] = lambda bound=bound: bound.step(block, 0)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeat + 1):
        for name, way in ways.items():
            start = time.thread_time()
            way()
            seconds[name].append((time.thread_time() - start) / (1 if name.startswith("pyFAI") else count))
    print(f"{side} x {side} uint16, {bins} bins, {len(matrix.data) / side**2:.2f} weights per pixel")
    base = median(seconds["product per frame"][1:])
    for name, each in seconds.items():
        one = median(each[1:])
        print(f"{name:30} {1e3 * one:8.2f} ms per frame {1 / one:8.1f} frames/s {base / one:6.2f}")


if __name__ == "__main__":
    main()
