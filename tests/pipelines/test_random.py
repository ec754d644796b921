"""Random pipelines: whatever the receivers and the transport, the same frames and rows are saved, and runs end.

Others than those of the suite: ``LIMA2_SEEDS=100-400 pytest tests/pipelines/test_random.py``.
"""

import json
import os
import random
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import lima2cli as l2
from tests.compiling import compiled
from tests.running import mpi, run, truth

FIRST, _, LAST = os.environ.get("LIMA2_SEEDS", "0-8").partition("-")
SEEDS = range(int(FIRST), int(LAST))

TABLES = ("roi_counters", "roi_profiles", "histogram", "checkpoint")


class Drawn:
    """A pipeline that is drawn at random: flows of one detector, chains of nodes behind each, sinks and tables."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.nodes: dict[str, Any] = {}
        chance, choice = self.random.random, self.random.choice
        columns, rows = choice([(1, 1), (2, 1), (2, 2), (4, 1), (1, 3)])
        self.width, self.height = columns * choice([4, 8, 11]), rows * choice([4, 6])
        remu: dict[str, Any] = {
            "image": {"width": self.width, "height": self.height},
            "modules": {
                "columns": columns,
                "rows": rows,
                "width": self.width // columns,
                "height": self.height // rows,
            },
            "datasets": {f"D{i}": {"dtype": choice(["uint8", "uint16", "uint32"])} for i in range(choice([1, 1, 2]))},
            "scene": choice([{"counter": {}}, {"poisson": {"mean": 3, "seed": 1}}]),
        }
        if chance() < 0.3:
            remu["faults"] = {"seed": 3, choice(["dropped", "failed"]): {"rate": 0.1}}
        self.receivers = choice([1, 2, 3])
        self.flows: dict[str, Any] = {f"F{i}": self.flow(remu["datasets"]) for i in range(choice([1, 2, 3]))}
        for name in self.flows:
            for _ in range(choice([1, 1, 2])):
                self.chain(name)
        if len(self.flows) > 1 and chance() < 0.5:
            first, second = list(self.flows)[:2]
            self.add("join", "inputs", {"a": first, "b": second}, expression={"expr": "a + b"})
            self.add("save", "input", "join", io_hdf5={"compression": "none"})
        text = {
            "lima2": 1,
            "name": "drawn",
            "detector": {"remu": remu},
            "acquisition": {"frames": choice([7, 40, 150, 400]), "allow_lost": "100 %"},
            "receivers": self.receivers,
            "flows": self.flows,
            "nodes": self.nodes,
        }
        self.json = json.dumps(text, indent=1)

    def flow(self, datasets: dict[str, Any]) -> dict[str, Any]:
        chance, choice = self.random.random, self.random.choice
        blocks = choice([1, 1, 2, 3, 8])
        drawn: dict[str, Any] = {
            "dataset": choice(list(datasets)),
            "rules": {"blocks_per_group": blocks},
            "buffers": {"frames": blocks * choice([2, 3, 7])},
            "overrun": "wait",
        }
        if chance() < 0.4:
            drawn["slices"] = {"start": choice([0, 1, 5]), "step": choice([1, 2, 3])}
        if chance() < 0.3:
            width, height = self.random.randint(1, self.width), self.random.randint(1, self.height)
            x, y = self.random.randint(0, self.width - width), self.random.randint(0, self.height - height)
            drawn["source"] = {"x": x, "y": y, "width": width, "height": height}
        elif chance() < 0.2:
            drawn["dispatch"] = "modules"
        if chance() < 0.3:
            drawn["alignment"] = {"row": choice([8, 64])}
        return drawn

    def add(self, name: str, wiring: str, given: Any, **kind: Any) -> str:
        name = name if name not in self.nodes else f"{name}{len(self.nodes)}"
        self.nodes[name] = {wiring: given} | kind
        return name

    def chain(self, flow: str) -> None:
        """Add a chain of maps and the like behind a flow, with what reads it at its end."""
        chance, choice, at = self.random.random, self.random.choice, flow
        if self.flows_parts(flow) and chance() < 0.7:
            at = self.add("whole", "input", at, reconstruction={"strategy": choice(["gather"])})
        for _ in range(choice([0, 0, 1, 2])):
            kind: dict[str, Any] = choice(
                [
                    {"background_sub": {"image": 2}},
                    {"expression": {"expr": f"{at} * 2 + 1"}},
                    {"roi_flip_rot": {"flip": "horizontal", "rotation": choice([0, 90])}},
                    {"roi_flip_rot": {"binning": 2}},
                    {"accumulate": {"frames": choice([0, 2, 3]), "operation": choice(["sum", "max"])}},
                ]
            )
            at = self.add(next(iter(kind)), "input", at, **kind)
        table = self.table(at)
        if table and chance() < 0.4:
            at = self.add("keep", "input", at, filter={"keep": f"{table}.a_sum > 2", "every": choice([0, 5])})
        if chance() < 0.15:
            at = self.add("sparse", "input", at, sparsify={"above": 3})
        if chance() < 0.8:
            options = {
                "compression": choice(["none", "bslz4", "gzip"]),
                "frames_per_file": choice([0, 0, 20]),
                "frames_per_chunk": choice(["auto", 1, 3]),
            }
            self.add("save", "input", at, io_hdf5=options)

    def flows_parts(self, name: str) -> bool:
        return self.flows[name].get("dispatch") == "modules"

    def table(self, at: str) -> str | None:
        """Perhaps add a table; return its name if it has the column ``a_sum``."""
        choice = self.random.choice
        rois = {"a": {"rect": {"x": 0, "y": 0, "width": 2, "height": 2}}}
        kind = choice(["roi_counters", "roi_counters", "roi_profiles", "checkpoint", None])
        if kind is None:
            return None
        name = self.add(kind, "input", at, **{kind: {} if kind == "checkpoint" else {"rois": rois}})
        return name if kind == "roi_counters" else None


def pixels_of(data: Any, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Return the frames of some rows; of sparse frames how many pixels they have, their places, and intensities."""
    if isinstance(data, h5py.Dataset):
        return [data[()][rows]]
    ends, index, intensity = data["frame_ptr"][()], data["index"][()], data["intensity"][()]
    parts = [slice(*ends[row : row + 2].tolist()) for row in rows]
    return [np.diff(ends)[rows], *(np.concatenate([all_of[part] for part in parts]) for all_of in (index, intensity))]


def saved(directory: Path, nodes: dict[str, Any]) -> dict[str, list[NDArray[Any]]]:
    """Return all that a run has saved, in the order of frames."""
    done, found = l2.open(directory), dict[str, list[NDArray[Any]]]()
    for name, node in nodes.items():
        if "io_hdf5" in node and done.summary.channels[name].saved:
            numbers = done.open(name)
            with numbers.file:
                frames = numbers.parent["frame_number"][()]
                good = np.flatnonzero(numbers.parent["frame_status"][()] == 0)
                good = good[np.argsort(frames[good], kind="stable")]
                found[name] = [frames[good], *pixels_of(numbers, good)]
        elif any(kind in node for kind in TABLES):
            rows = done.rows(name)
            order = np.argsort(rows["frame_number"], kind="stable")
            times = ("detector_time", "receive_time", "latency", "time")
            found[name] = [values[order] for column, values in rows.items() if not column.endswith(times)]
    return found


def ended(text: str, folder: Path, transport: str, nodes: dict[str, Any]) -> dict[str, list[NDArray[Any]]]:
    """Run it; return what it has saved."""
    folder.mkdir()
    ran = run(text, folder, transport)
    assert ran.code in (0, 4), ran.output
    truth(ran)
    return saved(ran.directory, nodes)


@pytest.mark.parametrize(("seed", "transport"), [mpi(seed) for seed in SEEDS])
def test_one_process_and_many_save_the_same(seed: int, transport: str, tmp_path: Path) -> None:
    drawn = next(one for n in count() if compiled((one := Drawn(f"{seed}.{n}")).json, tmp_path)[0] is not None)
    one = ended(drawn.json, tmp_path / "one", "inline", drawn.nodes)
    many = ended(drawn.json, tmp_path / "many", transport, drawn.nodes)
    assert one.keys() == many.keys()
    for name in one:
        for mine, other in zip(one[name], many[name], strict=True):
            np.testing.assert_array_equal(mine, other, name)
