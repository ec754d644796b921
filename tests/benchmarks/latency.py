"""Measure how long results take: from the time of a frame to the moment when its counters are done, at the receiver.

    python -m tests.benchmarks.latency [--side 1024] [--rate 1000] [--frames 4000] [--repeat 5] [--against DIRECTORY]

uint16, groups of one, two counters of a region each, a fifth of a side, and a `checkpoint`, by MPI. ``due``:
from when the frame is due to when its counters are done, the transfer included; ``taken``: to when the receiver takes
the frame; in ms. ``busy`` is the share of its time that the receiver works. ``--against`` runs the package of another
checkout, in turn with this one; then the last lines are the ratios of medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[2]

PIPELINE = """
lima2: 1
name: latency
detector: {remu: {image: {width: SIDE, height: SIDE}, datasets: {D: {dtype: uint16}}}}
acquisition: {frames: FRAMES, rate: RATE Hz}
flows: {F: {dataset: D, rules: {blocks_per_group: 1}, events: {group: 1}, buffers: {frames: 64}}}
nodes:
  times: {input: F, checkpoint: {}}
  upper: {input: F, roi_counters: {rois: {all: {x: 0, y: 0, width: PART, height: PART}}}}
  lower: {input: F, roi_counters: {rois: {all: {x: PART, y: PART, width: PART, height: PART}}}}
"""

RUN = """
import json, sys
import h5py, numpy as np
import lima2cli as l2

run = l2.run(open("latency.yaml").read(), transport="mpi")
summary = run.wait(600)
(due,), (its,) = summary.resources.latency.values(), summary.resources.receivers.values()
with h5py.File(run.directory / summary.tables["times"].file) as file:
    taken = np.quantile(file["entry_0000/measurement/latency"][()], (0.5, 0.99))
figures = {"due p50": due.p50_s, "due p99": due.p99_s, "taken p50": taken[0], "taken p99": taken[1]}
print(json.dumps({name: 1e3 * value for name, value in figures.items()} | {"busy": its.busy_s / summary.seconds}))
"""


def one(root: Path, text: str) -> dict[str, float]:
    """Return the figures of one run of the package at ``root``."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "latency.yaml").write_text(text)
        ran = subprocess.run(
            [sys.executable, "-c", RUN], cwd=folder, env={**os.environ, "PYTHONPATH": str(root)}, text=True,
            capture_output=True, check=True,
        )  # fmt: skip
        return dict(json.loads(ran.stdout.splitlines()[-1]))


def main() -> None:
    """Print a line for each run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--frames", type=int, default=4000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    text = PIPELINE.replace("SIDE", str(options.side)).replace("PART", str(options.side // 5))
    text = text.replace("FRAMES", str(options.frames)).replace("RATE", str(options.rate))
    roots = {"this": HERE} | ({"other": options.against.resolve()} if options.against else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in roots}
    for _ in range(options.repeat):
        for name, root in roots.items():
            found[name].append(one(root, text))
            print(f"{name:6}", *(f"{key} {value:.3g}" for key, value in found[name][-1].items()), sep="  ", flush=True)
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    for name, figures in medians.items():
        print(f"median of {name:6}", *(f"{key} {value:.3g}" for key, value in figures.items()), sep="  ")
    if "other" in medians:
        ratios = {key: value / medians["other"][key] for key, value in medians["this"].items()}
        print("ratios", *(f"{key} {value:.2f}" for key, value in ratios.items()), sep="  ")


if __name__ == "__main__":
    main()
