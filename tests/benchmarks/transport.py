"""Measure the rate of frames moved, against a bare loop of `MPI.Win.Put` of the same bytes, in one run.

    python -m tests.benchmarks.transport [--repeat 3]

One module, one receiver, a checkpoint. Figures are medians; ratios compare neighbours in time, since machines are
noisy.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from lima2cli.job.launch import find_mpiexec
from tests.running import run

CASES = ((2048, 1500, 16, 0.75), (1024, 6000, 32, None), (256, 60_000, 64, None))
"""Side of the image, frames, slots, and the ratio to the bare loop that we want."""

BARE = """
import sys, time
import numpy as np
from mpi4py import MPI
world = MPI.COMM_WORLD
side, frames, slots = map(int, sys.argv[1:4])
size = side * side * 2
window = MPI.Win.Allocate(size * slots if world.rank == 1 else 0, 1, comm=world)
if world.rank == 1:
    np.frombuffer(window.tomemory(), np.uint8)[:] = 0
world.Barrier()
window.Lock_all()
if world.rank == 0:
    pool = np.random.default_rng(1).integers(0, 255, (min(16, 2**26 // size), size), np.uint8)  # as large as REMU's
    begin = time.perf_counter()
    for i in range(frames):
        window.Put([pool[i % len(pool)], size, MPI.BYTE], 1, [i % slots * size, size, MPI.BYTE])
        window.Flush(1)
    print(frames / (time.perf_counter() - begin))
    world.send(None, 1)
else:
    while not world.Iprobe():
        time.sleep(1e-3)
    world.recv()
window.Unlock_all()
window.Free()
"""

PIPELINE = """
lima2: 1
detector:
  remu: {{image: {{width: {side}, height: {side}}}, datasets: {{D: {{dtype: uint16}}}}, scene: {{gradient: {{}}}}}}
acquisition: {{frames: {frames}}}
flows: {{F: {{dataset: D, buffers: {{frames: {slots}}}}}}}
nodes: {{log: {{input: F, checkpoint: {{}}}}}}
"""


def bare(side: int, frames: int, slots: int) -> float:
    """Frames per second of a loop that does nothing but put and flush."""
    mpiexec = find_mpiexec()
    assert mpiexec is not None, "this benchmark needs MPI"
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py", "-c", BARE]
    done = subprocess.run(
        [*command, str(side), str(frames), str(slots)], capture_output=True, text=True, check=True, timeout=300
    )
    return float(done.stdout)


def lima2(side: int, frames: int, slots: int) -> float:
    """Frames per second of a run, from its summary."""
    with tempfile.TemporaryDirectory() as folder:
        text = textwrap.dedent(PIPELINE).format(side=side, frames=frames, slots=slots)
        ran = run(text, Path(folder), "mpi")
        assert ran.code == 0, ran.output
        return float(ran.summary["rates"]["achieved_hz"])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    print(f"{'frame':>12} {'bare Put/s':>12} {'lima2/s':>10} {'GB/s':>6} {'ratio':>6}  wanted")
    for side, frames, slots, wanted in CASES:
        pairs = [(bare(side, frames, slots), lima2(side, frames, slots)) for _ in range(repeat)]
        loop, ours = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
        ratio = statistics.median(p[1] / p[0] for p in pairs)
        rate = ours * side * side * 2 / 1e9
        print(f"{side:>5} x {side:<4} {loop:>12.0f} {ours:>10.0f} {rate:>6.2f} {ratio:>6.2f}  {wanted or '-'}")


if __name__ == "__main__":
    main()
