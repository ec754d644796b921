"""Full frames gathered from parts on two receivers, against full frames dealt out in turn to the same two.

    python -m tests.benchmarks.gather

Frames per second of each, over MPI, and their ratio. Two modules, one above the other; nothing is saved.
"""

import json
import statistics
import tempfile
from pathlib import Path

from tests.running import run

CASES = ((512, 1, 2000), (512, 8, 4000), (1024, 1, 600), (1024, 8, 1200), (2048, 1, 200))
"""Pixels of an edge, frames of a group, frames."""

REPEAT = 3


def rate(size: int, group: int, frames: int, dispatch: str) -> float:
    """Frames per second."""
    read = "full" if dispatch == "modules" else "data"
    text = f"""
lima2: 1
detector:
  remu:
    image: {{width: {size}, height: {size}}}
    datasets: {{data: {{dtype: uint16}}}}
    modules: {{columns: 1, rows: 2, width: {size}, height: {size // 2}}}
    scene: {{gradient: {{}}}}
acquisition: {{frames: {frames}}}
receivers: 2
flows: {{data: {{dataset: data, dispatch: {dispatch}, rules: {{blocks_per_group: {group}}}, buffers: {{frames: 64}}}}}}
nodes:
  times: {{input: {read}, checkpoint: {{}}}}
"""
    if dispatch == "modules":
        text += "  full: {input: data, reconstruction: {}}\n"
    with tempfile.TemporaryDirectory() as folder:
        ran = run(text, Path(folder), "mpi")
        assert ran.code == 0, ran.output
        summary = json.loads((ran.directory / "summary.json").read_text())
        return frames / float(summary["seconds"])


def main() -> None:
    """Medians of interleaved runs."""
    for size, group, frames in CASES:
        pairs = [(rate(size, group, frames, "modules"), rate(size, group, frames, "frames")) for _ in range(REPEAT)]
        gathered, dealt = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(
            f"{size} x {size}, groups of {group}: gathered {gathered:.0f} frames/s "
            f"({gathered * size * size * 2 / 1e9:.2f} GB/s), in turn {dealt:.0f}, ratio {gathered / dealt:.2f}"
        )


if __name__ == "__main__":
    main()
