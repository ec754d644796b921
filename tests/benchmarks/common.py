"""Measure the rate of two receivers writing one common file, against uncompressed files of their own, in one run.

    python -m tests.benchmarks.common [--repeat 3]

The same frames from memory; figures are medians, ratios compare neighbours in time, since machines are noisy.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile

from lima2cli.job.launch import find_mpiexec

CASES = ((256, 3000), (1024, 200), (2048, 50))
"""Side of the image and frames."""

WRITE = """
import sys, time
import numpy as np
from mpi4py import MPI
from lima2cli.files.appending import load_libraries
from lima2cli.files.common_file import complete_common
from lima2cli.files.common_writer import CommonWriter
from lima2cli.files.frame_writer import FrameWriter
from lima2cli.files.master import write_master
from lima2cli.frames import Block
from lima2cli.transport.mpi_collective import MpiCollectiveGroup
from tests.artefacts_samples import START_NS, make_channel
world = MPI.COMM_WORLD
layout, folder, side, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
channel = make_channel(
    height=side, width=side, receivers=(0, 1), selected=count, compression="none", layout=layout,
    frames_per_chunk=max(1, 2**20 // (side * side * 2)),
)
load_libraries()
together = max(1, 2**22 // (side * side * 2))
pool = np.random.default_rng(world.rank).integers(0, 999, (together, side, side), np.uint16)
collective = MpiCollectiveGroup(world, (0, 1), 1)
world.Barrier()
begin = time.perf_counter()
if layout == "common":
    writer = CommonWriter(channel, folder, world.rank, START_NS, collective)
else:
    writer = FrameWriter(channel, folder, world.rank, START_NS)
own = np.arange(world.rank, count, 2, dtype=np.uint64)
for first in range(0, len(own), together):
    numbers = own[first : first + together]
    writer.commit(writer.stage(Block(pool[: len(numbers)], numbers, numbers + np.uint64(START_NS))))
    while layout == "common" and not writer.poll() and writer.full:
        time.sleep(1e-4)
if layout == "common":
    writer.finish(count)
    while not writer.done:
        if not writer.poll():
            time.sleep(1e-4)
writer.close()
world.Barrier()
if world.rank == 0:
    path = (complete_common if layout == "common" else write_master)(channel, folder, rows=count)
    print(count / (time.perf_counter() - begin))
collective.close()
"""


def rate(layout: str, side: int, frames: int) -> float:
    """Frames per second of two ranks, with the master."""
    mpiexec = find_mpiexec()
    assert mpiexec is not None, "this benchmark needs MPI"
    with tempfile.TemporaryDirectory() as folder:
        command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py", "-c", WRITE, layout, folder]
        done = subprocess.run(
            [*command, str(side), str(frames)], capture_output=True, text=True, check=True, timeout=300
        )
    return float(done.stdout)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    print(f"{'frame':>12} {'files/s':>10} {'common/s':>10} {'MB/s':>6} {'ratio':>6}")
    for side, frames in CASES:
        pairs = [(rate("files", side, frames), rate("common", side, frames)) for _ in range(repeat)]
        files, common = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
        ratio = statistics.median(p[1] / p[0] for p in pairs)
        print(f"{side:>5} x {side:<4} {files:>10.0f} {common:>10.0f} {common * side * side * 2e-6:>6.0f} {ratio:>6.2f}")


if __name__ == "__main__":
    main()
