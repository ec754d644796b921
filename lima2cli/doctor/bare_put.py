"""Program of two ranks that measures bare loops of `MPI.Win.Put`, to be started as `put_probe` is.

Rank 0 puts squares of uint16 into slots of rank 1, which sleeps, and completes each by a flush: the least that a
transfer of frames can cost. It prints one JSON object: bytes per second by the side of the square, each as a
contiguous piece and as the left half of rows twice as long.
"""

import json
import sys
import time

import numpy as np
from mpi4py import MPI

SLOTS_BYTES = 64 << 20
SECONDS = 0.2


def main() -> None:
    """Let rank 0 write for `SECONDS` for each form of each side, which the command line gives in pixels."""
    world = MPI.COMM_WORLD
    if world.Get_size() != 2:
        sys.exit("two ranks are needed")
    window = MPI.Win.Allocate(2 * SLOTS_BYTES if world.rank == 1 else 0, 1, comm=world)
    if world.rank == 1:
        np.asarray(window.tomemory())[:] = 0  # touches every page
    world.Barrier()
    window.Lock_all()
    if world.rank == 0:
        print(json.dumps({str(side): _rates(window, side) for side in map(int, sys.argv[1:])}), flush=True)
        world.send(None, 1)
    else:
        while not world.Iprobe():
            time.sleep(1e-3)
        world.recv()
    window.Unlock_all()
    window.Free()


def _rates(window: MPI.Win, side: int) -> dict[str, float]:
    row, size = 2 * side, 2 * side * side
    slots = min(SLOTS_BYTES // size, 1024)
    pool = np.random.default_rng(1).integers(0, 255, (min(slots, 16), size), np.uint8)
    half = MPI.BYTE.Create_vector(side, row, 2 * row)
    half.Commit()
    rates = {}
    for form, stride, target in (("contiguous", size, (size, MPI.BYTE)), ("rectangle", 2 * size, (1, half))):
        written, begin = 0, time.perf_counter()
        while (passed := time.perf_counter() - begin) < SECONDS:
            place = written % slots * stride
            window.Put([pool[written % len(pool)], size, MPI.BYTE], 1, [place, *target])
            window.Flush(1)
            written += 1
        rates[form] = written * size / passed
    half.Free()
    return rates


if __name__ == "__main__":
    main()
