"""Measure the cost of the checksum of a stored chunk, as a share of making that chunk, in one run.

    python -m tests.benchmarks.checksum [--repeat 25]

Chunks of one frame of 1024 x 1024 uint16 with Poisson counts; figures are medians of the thread's CPU time,
since machines are noisy. ``none`` is held against a copy.
"""

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from lima2cli.files.compression import Encoder, Stored, encoder

SIDE = 1024


def medians(encode: Encoder, chunk: Any, repeat: int) -> tuple[float, float]:
    """CPU seconds of making what is stored of a chunk, and of its checksum right after, in the cache as then."""
    seconds = []
    for _ in range(repeat + 1):
        start = time.thread_time()
        stored = encode(chunk)
        made = time.thread_time()
        xxh3_64_intdigest(stored.data)
        seconds.append((made - start, time.thread_time() - made))
    return median(one for one, _ in seconds[1:]), median(two for _, two in seconds[1:])


def main() -> None:
    """Print a line for each compression and mean."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeat", type=int, default=25)
    repeat = arguments.parse_args().repeat
    random = np.random.default_rng(1)
    for mean in (0.1, 1, 10, 100, 1000):
        chunk = random.poisson(mean, (1, SIDE, SIDE)).astype(np.uint16)
        for name in ("bslz4", "lz4", "none"):
            plain = encoder(name, "uint16", chunk.shape)
            encode = (lambda it: Stored(it.copy())) if name == "none" else plain
            stored = len(memoryview(encode(chunk).data).cast("B"))
            without, total = medians(encode, chunk, repeat)
            rate, ratio = chunk.nbytes / without / 1e9, chunk.nbytes / stored
            line = f"mean {mean:6g}  {name:6} {rate:6.2f} GB/s, ratio {ratio:5.2f}"
            print(f"{line}, checksum {100 * total / without:5.1f} %")


if __name__ == "__main__":
    main()
