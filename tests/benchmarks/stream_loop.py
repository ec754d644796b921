"""Measure the rate of frames from one run to another by Stream V2, against saving them by one run, in the same minutes.

    python -m tests.benchmarks.stream_loop [--frames 1500] [--repeat 3]

1024 x 1024 uint16, compressed by bslz4: `remu` to `io_hdf5`; and `remu` to `io_stream`, `dectris`, `io_hdf5`, where the
second run saves what it gets byte for byte. Figures are medians, ratios compare neighbours in time, since machines are
noisy. Six ranks share the cores.
"""

import argparse
import os
import socket
import statistics
import tempfile

import lima2cli as l2
from lima2cli.accounting.summary import Summary

SIDE = 1024

HEAD = f"detector: {{remu: {{image: {{width: {SIDE}, height: {SIDE}}}, datasets: {{data: {{dtype: uint16}}}}}}}}"

SAVES = f"""
lima2: 1
name: alone
{HEAD}
acquisition: {{frames: FRAMES}}
nodes: {{save: {{input: data, io_hdf5: {{frames_per_chunk: 1}}}}}}
"""

SENDS = f"""
lima2: 1
name: sends
{HEAD}
acquisition: {{frames: FRAMES}}
nodes: {{send: {{input: data, io_stream: {{endpoint: "tcp://127.0.0.1:PORT", patience: 60 s}}}}}}
"""

TAKES = f"""
lima2: 1
name: takes
detector: {{dectris: {{stream: "tcp://127.0.0.1:PORT", image: {{width: {SIDE}, height: {SIDE}}}}}}}
acquisition: {{frames: FRAMES, timeout: 60 s}}
nodes: {{save: {{input: threshold_1, io_hdf5: {{}}}}}}
"""


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def alone(frames: int) -> float:
    """Return the frames per second that one run saves."""
    summary = l2.run(SAVES.replace("FRAMES", str(frames)), transport="mpi").wait(600)
    assert summary.channels["save"].saved == frames, summary
    return rate(summary, frames)


def loop(frames: int) -> float:
    """Return the frames per second that a run saves of those that another sends it."""
    port = str(free_port())
    taker = l2.run(TAKES.replace("FRAMES", str(frames)).replace("PORT", port), transport="mpi")
    sender = l2.run(SENDS.replace("FRAMES", str(frames)).replace("PORT", port), transport="mpi")
    sent, taken = sender.wait(600), taker.wait(600)
    assert taken.channels["save"].saved == frames, (sent.warnings, taken.warnings)
    return rate(sent, frames)


def rate(summary: Summary, frames: int) -> float:
    """Return the frames per second of a run."""
    assert summary.seconds is not None
    return frames / summary.seconds


def main() -> None:
    """Print a line for each repeat, and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for _ in range(options.repeat):
            one, both = alone(options.frames), loop(options.frames)
            ratios.append(both / one)
            print(f"alone {one:6.0f}/s  loop {both:6.0f}/s  ratio {both / one:.2f}", flush=True)
    print(f"ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
