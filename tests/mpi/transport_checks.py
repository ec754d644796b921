"""Promises of every transport, as one writer (rank 0) and one owner of memory (rank 1) see it.

Run under ``mpiexec -n 2 python -m mpi4py -m tests.mpi.transport_checks FOLDER``, or by `check_inline` in one process.
"""

import sys
import time
from pathlib import Path

import numpy as np

from lima2cli.transport.base import MemorySpec, Port, RegionSpec
from lima2cli.transport.inline import InlineMemory, InlinePort

DTYPES = ("uint8", "int16", "uint32", "float32", "float64")
SLOTS, ROWS, COLUMNS, PITCH, STRIDE, OFFSET = 4, 3, 5, 64, 256, 40


def memory(folder: Path) -> MemorySpec:
    """Host memory and a mapped file, both of rank 1; a few control words each."""
    size = SLOTS * STRIDE + OFFSET
    return MemorySpec((RegionSpec(1, size), RegionSpec(1, size, str(folder / "mapped.bin"))), (4, 64))


def sources(dtype: str) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Frames (2, ROWS, COLUMNS) in all the ways that sources hand them out."""
    whole = (np.arange(8 * 9 * 11) % 251).astype(dtype).reshape(8, 9, 11)
    readonly = np.ascontiguousarray(whole[:2, :ROWS, :COLUMNS])
    readonly.flags.writeable = False
    return {
        "contiguous": np.ascontiguousarray(whole[2:4, 1 : 1 + ROWS, 2 : 2 + COLUMNS]),
        "a part of a frame": whole[3:5, 4 : 4 + ROWS, 5 : 5 + COLUMNS],
        "every third frame": whole[1:7:3, 4 : 4 + ROWS, 5 : 5 + COLUMNS],
        "read-only": readonly,
        "full rows": whole[:2, :ROWS, :COLUMNS],
    }


def write(port: Port) -> None:
    """The writer: frames, words, and a message that all is there."""
    for region in (0, 1):
        for dtype in DTYPES:
            size = np.dtype(dtype).itemsize
            channel = port.put_channel(region, ROWS, COLUMNS * size, PITCH, STRIDE)
            for number, frames in enumerate(sources(dtype).values()):
                channel.put(frames, OFFSET + (number % 2) * 2 * STRIDE)
                channel.flush()
                port.store(1, 1, number + 1)
                port.send(1, ("written", (region, dtype, number)))
                yield_until(port, "seen")
    port.put_words(1, 8, np.arange(100, 110, dtype=np.uint64))
    port.store_words(1, 21, np.array([3, 2**64 - 1, 5], np.uint64))
    port.store_words(1, 24, np.array([6, 8], np.uint64), 2)
    for value in (7, 2**63 + 5):
        port.store(1, 20, value)
    port.send(1, ("done", None))


def own(port: Port) -> list[str]:
    """The owner: looks at its memory after every message; returns what was wrong."""
    wrong = []
    while (message := receive(port))[0] != "done":
        region, dtype, number = message[1]
        name, frames = list(sources(dtype).items())[number]
        port.sync()
        if port.read(1, 1)[0] != number + 1:
            wrong.append(f"{name}: the word is not there")
        got = np.ndarray(
            frames.shape,
            dtype,
            port.memory(region),
            OFFSET + (number % 2) * 2 * STRIDE,
            (STRIDE, PITCH, frames.itemsize),
        )
        if not np.array_equal(got, frames):
            wrong.append(f"region {region} {dtype} {name}: the pixels differ")
        port.send(0, ("seen", None))
    port.sync()
    if port.read(8, 10).tolist() != list(range(100, 110)) or port.words(8, 10).tolist() != list(range(100, 110)):
        wrong.append("put_words")
    if int(port.read(20, 1)[0]) != 2**63 + 5:
        wrong.append("store")
    if port.read(21, 6).tolist() != [3, 2**64 - 1, 5, 6, 0, 8]:
        wrong.append("store_words")
    return wrong


def receive(port: Port) -> tuple[str, object]:
    """The next message, waited for."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (mail := port.receive()) is not None:
            return mail[1]
        time.sleep(1e-4)
    raise TimeoutError


def yield_until(port: Port, kind: str) -> None:
    """Wait for the other side."""
    assert receive(port)[0] == kind


def check_inline(folder: Path) -> list[str]:
    """Both sides in this process, in two threads."""
    import threading

    memory_of = InlineMemory(memory(folder))
    writer = threading.Thread(target=write, args=(InlinePort(0, memory_of),))
    writer.start()
    wrong = own(InlinePort(1, memory_of))
    writer.join()
    return wrong


def main() -> None:
    """One rank; rank 1 prints what was wrong, or that all is well."""
    from lima2cli.transport.mpi_window import MpiPort

    port = MpiPort(memory(Path(sys.argv[1])))
    if port.rank == 0:
        write(port)
    else:
        print(own(port) or "all is well", flush=True)
    port.send(1 - port.rank, ("unread", bytes(1 << 22)))  # more than MPI sends ahead: it must not hold the end up
    port.close()


if __name__ == "__main__":
    main()
