"""Program of two ranks that measures one-sided writes: ``mpiexec -n 2 python -m mpi4py -m lima2cli.doctor.put_probe``.

Rank 0 writes as modules do, through the transport, and prints one JSON object: bytes per second, and the MPI library.
"""

import json
import re
import sys
import time

import numpy as np
from mpi4py import MPI

from lima2cli.transport.base import MemorySpec, RegionSpec
from lima2cli.transport.mpi_window import MpiPort

FRAME = (1024, 1024)
FRAMES = 8
SECONDS = 0.3


def main() -> None:
    """Let rank 0 write for `SECONDS` to the memory of rank 1, which sleeps."""
    if MPI.COMM_WORLD.Get_size() != 2:
        sys.exit("the processes do not see each other: mpiexec belongs to another MPI than the one mpi4py uses")
    frame_bytes = 2 * FRAME[0] * FRAME[1]
    port = MpiPort(MemorySpec((RegionSpec(1, FRAMES * frame_bytes),), (1, 1)))
    if port.rank == 0:
        rate = _write(port, frame_bytes)
        port.send(1, ("done", None))
        print(json.dumps({"bytes_per_s": rate, "library": library()}), flush=True)
    else:
        while port.receive() is None:
            time.sleep(1e-3)
    port.close()


def library() -> str:
    """Return the MPI library and its version, by its own name: ``MPICH 4.3.0``."""
    first = MPI.Get_library_version().strip("\0").splitlines()[0]
    return re.sub(r"\s+", " ", first).replace(" Version:", "").strip()


def _write(port: MpiPort, frame_bytes: int) -> float:
    """Return the bytes per second, once every page has been touched."""
    height, width = FRAME
    channel = port.put_channel(0, height, 2 * width, 2 * width, frame_bytes)
    frames = np.ones((1, height, width), np.uint16)
    for slot in range(FRAMES):
        channel.put(frames, slot * frame_bytes)
    channel.flush()
    begin, written = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < SECONDS:
        channel.put(frames, written % FRAMES * frame_bytes)
        channel.flush()
        written += 1
    return written * frame_bytes / passed


if __name__ == "__main__":
    main()
