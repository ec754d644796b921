"""A pipeline with channels and tables of all kinds, and what each of their rows has to hold: the scene is a counter."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH, LEVEL = 48, 64, 60000

CODE = "def same(frames, numbers): return frames\n"
"""The text of `u.py`, in the folder of the pipeline."""


def pipeline(frames: int = 900, rate: int = 300, *, worker: bool = True) -> str:
    """Its text; ``worker``: with a node of users' code in ranks of its own."""
    user = "mpi" if worker else "python"
    return f"""\
lima2: 1
name: k
detector:
  remu:
    image: {{width: {WIDTH}, height: {HEIGHT}}}
    datasets: {{data: {{dtype: uint16}}}}
    modules: {{columns: 2, rows: 1, width: {WIDTH // 2}, height: {HEIGHT}}}
    scene: {{counter: {{}}}}
acquisition: {{frames: {frames}, rate: {rate} Hz, timeout: 10}}
receivers: 2
flows:
  data: {{dataset: data, rules: {{blocks_per_group: 2}}, buffers: {{frames: 128}}}}
  half: {{dataset: data, slices: {{step: 2}}, buffers: {{frames: 128}}}}
  parts: {{dataset: data, dispatch: modules}}
nodes:
  packed: {{input: data, io_hdf5: {{compression: bslz4, frames_per_file: 50}}}}
  raw: {{input: data, io_hdf5: {{compression: none, frames_per_chunk: 4}}}}
  common: {{input: data, io_hdf5: {{layout: common}}}}
  virtual: {{input: parts, io_hdf5: {{layout: virtual, compression: lz4}}}}
  some: {{input: data, sparsify: {{above: {LEVEL}}}}}
  sparse: {{input: some, io_hdf5: {{compression: lz4, frames_per_file: 70}}}}
  two: {{input: data, accumulate: {{frames: 2}}}}
  sums: {{input: two, io_hdf5: {{compression: gzip}}}}
  both: {{inputs: {{a: data, b: half}}, expression: {{expr: a + b, dtype: int32}}}}
  joined: {{input: both, io_hdf5: {{}}}}
  mine: {{input: data, {user}: {{function: "u.py:same"}}}}
  users: {{input: mine, io_hdf5: {{frames_per_file: 40}}}}
  counters: {{input: data, roi_counters: {{rois: {{a: {{rect: {{x: 3, y: 5, width: 20, height: 30}}}}}}}}}}
  profiles: {{input: data, roi_profiles: {{rois: {{a: {{rect: {{x: 3, y: 5, width: 20, height: 30}}}}}}}}}}
  times: {{input: data, checkpoint: {{}}}}
"""


def scene(number: int) -> NDArray[np.uint16]:
    """Pixels of a frame."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((7919 * number + y * WIDTH + x) % 65536, np.uint16)


def _wide(number: int) -> NDArray[np.int64]:
    return scene(number).astype(np.int64)


def _thinned(number: int) -> NDArray[np.uint16]:
    frame = scene(number)
    return np.where(frame > LEVEL, frame, np.uint16(0))


CHANNELS: dict[str, Callable[[int], NDArray[Any]]] = {
    **dict.fromkeys(("packed", "raw", "common", "virtual", "users"), scene),
    "sparse": _thinned,
    "sums": lambda number: _wide(number) + _wide(number + 1),
    "joined": lambda number: 2 * _wide(number),
}
"""Pixels of the row of a frame, by channel."""


def _region(number: int) -> NDArray[np.int64]:
    return _wide(number)[5:35, 3:23]


TABLES: dict[str, dict[str, Callable[[int], Any]]] = {
    "counters": {"a_sum": lambda n: _region(n).sum(), "a_min": lambda n: _region(n).min(),
                 "a_max": lambda n: _region(n).max()},
    "profiles": {"a_sum": lambda n: _region(n).sum(0), "a_max": lambda n: _region(n).max(0)},
    "times": {},
}  # fmt: skip
"""Columns of tables."""


@dataclass
class Shown:
    """Rows with a frame that files show, by channel and table; ``wrong``: sentences."""

    rows: dict[str, set[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def shown(directory: Path, *, frames: int) -> Shown:
    """All rows of the masters and tables of a run, each held against the scene."""
    found = Shown()
    for node, want in CHANNELS.items():
        with _opened(directory / f"k_{node}_master.h5", found) as file:
            if file is not None:
                found.rows[node] = set(_right(node, _detector(file), want, frames, found.wrong))
    for node, columns in TABLES.items():
        with _opened(directory / f"k_{node}.h5", found) as file:
            if file is not None:
                found.rows[node] = _table(node, file["entry_0000/measurement"], columns, frames, found.wrong)
    return found


@contextlib.contextmanager
def _opened(path: Path, found: Shown) -> Iterator[Any]:
    """A file that should open if it is there; else None."""
    import h5py
    import hdf5plugin  # noqa: F401

    if not path.exists():
        yield None
        return
    try:
        file = h5py.File(path)
    except OSError as error:
        found.wrong.append(f"{path.name} does not open: {error}")
        yield None
        return
    with file:
        yield file


def _detector(file: Any) -> Any:
    entry = file["entry_0000"]
    return entry[str(entry.attrs["default"]).rpartition("/")[0]]


def _right(node: str, detector: Any, want: Any, frames: int, wrong: list[str]) -> Iterator[int]:
    """Numbers of the frames of a master; what is wrong is told."""
    data, numbers, status = detector["data"], detector["frame_number"][()], detector["frame_status"][()]
    if (np.diff(numbers.astype(np.int64)) <= 0).any() or (len(numbers) and numbers[-1] >= frames):
        wrong.append(f"{node}: rows are made up: {numbers[-4:].tolist()}")
    for row in np.flatnonzero(status == 0).tolist():
        number = int(numbers[row])
        try:
            frame = _dense(data, row) if "frame_ptr" in getattr(data, "keys", list)() else data[row]
        except (OSError, RuntimeError) as error:
            wrong.append(f"{node}: frame {number} cannot be read: {error}")
            continue
        if not np.array_equal(frame, want(number)):
            wrong.append(f"{node}: frame {number} has wrong pixels")
        yield number


def _dense(data: Any, row: int) -> NDArray[Any]:
    first, last = (int(it) for it in data["frame_ptr"][row : row + 2])
    frame = np.zeros(HEIGHT * WIDTH, np.uint16)
    frame[data["index"][first:last]] = data["intensity"][first:last]
    return frame.reshape(HEIGHT, WIDTH)


def _table(node: str, rows: Any, columns: dict[str, Callable[[int], Any]], frames: int, wrong: list[str]) -> set[int]:
    numbers = rows["frame_number"][()]
    if len(np.unique(numbers)) < len(numbers) or (len(numbers) and numbers.max() >= frames):
        wrong.append(f"{node}: rows are made up")
    for name, want in columns.items():
        values = rows[name][()]
        if len(values) != len(numbers):
            wrong.append(f"{node}: {name} has {len(values)} rows of {len(numbers)}")
        bad = [int(n) for n, value in zip(numbers, values, strict=False) if not np.array_equal(value, want(int(n)))]
        if bad:
            wrong.append(f"{node}: {name} is wrong in frames {bad[:5]}")
    return set(numbers.tolist())


def told(output: Path) -> dict[str, int]:
    """Frames that the progress called saved, by channel: those of the last word on each."""
    saved: dict[str, int] = {}
    for line in output.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("type") == "progress":
                saved |= event["saved"]
    return saved


def parts(directory: Path, node: str) -> int:
    """Rows in the frame files of a channel of parts."""
    import h5py

    count = 0
    for path in directory.glob(f"k_{node}_?_*.h5"):
        with h5py.File(path) as file:
            count += len(_detector(file)["frame_number"])
    return count
