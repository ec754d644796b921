"""The pipelines of `tests.faults.disk`, what they should save, and what files hold of it."""

import contextlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH, FRAMES, WINDOW = 48, 64, 480, 4

CODECS = ("none", "gzip", "lz4", "zstd", "bslz4", "blosc")
LAYOUTS = {
    "files": "io_hdf5: {compression: CODEC, frames_per_file: 35}",
    "one file": "io_hdf5: {compression: CODEC, frames_per_chunk: 7}",
    "parts": "io_hdf5: {layout: virtual, compression: CODEC, frames_per_file: 110}",
    "sparse": "io_hdf5: {compression: CODEC, frames_per_file: 50}",
    "summed": "io_hdf5: {compression: CODEC, frames_per_chunk: 3}",
}
SAVE = {f"{layout} {codec}": text.replace("CODEC", codec) for layout, text in LAYOUTS.items() for codec in CODECS}
SAVE |= {"common": "io_hdf5: {layout: common}", "tables": ""}
"""Kinds of pipelines, by how they save; each has three tables beside that."""

BEFORE = {
    "sparse": "some: {input: data, sparsify: {above: 60000}}",
    "summed": f"some: {{input: data, accumulate: {{frames: {WINDOW}}}}}",
}
RECT = f"{{x: 0, y: 0, width: {WIDTH}, height: {HEIGHT}}}"
TABLES = ("count", "profile", "stamp")


def pipeline(kind: str, frames: int = FRAMES, rate: int = 1600) -> str:
    """A pipeline that saves in this way, by two receivers, and has tables."""
    layout = kind.rpartition(" ")[0] or kind
    modules = f"modules: {{columns: 2, rows: 1, width: {WIDTH // 2}, height: {HEIGHT}}}" if layout == "parts" else ""
    flows = "flows: {data: {dataset: data, dispatch: modules}}\n" if layout == "parts" else ""
    nodes = [BEFORE[layout]] if layout in BEFORE else []
    if SAVE[kind]:
        nodes.append(f"save: {{input: {'some' if layout in BEFORE else 'data'}, {SAVE[kind]}}}")
    nodes.append(f"count: {{input: data, roi_counters: {{rois: {{all: {{rect: {RECT}}}}}}}}}")
    if layout != "parts":
        nodes.append(f"profile: {{input: data, roi_profiles: {{rois: {{all: {{rect: {RECT}}}}}, statistics: [sum]}}}}")
        nodes.append("stamp: {input: data, checkpoint: {every: 2}}")
    return f"""\
lima2: 1
name: k
detector:
  remu:
    image: {{width: {WIDTH}, height: {HEIGHT}}}
    datasets: {{data: {{dtype: uint16}}}}
    scene: {{counter: {{}}}}
    {modules}
acquisition: {{frames: {frames}, rate: {rate} Hz}}
receivers: 2
output: {{directory: ./k}}
{flows}nodes:
""" + "".join(f"  {node}\n" for node in nodes)


@cache
def scene(number: int) -> NDArray[np.uint16]:
    """Pixels of a frame of the scene ``counter``."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((7919 * number + y * WIDTH + x) % 65536, np.uint16)


def pixels(kind: str, number: int) -> NDArray[Any]:
    """Return the pixels of a saved frame."""
    if kind.startswith("summed"):
        return np.asarray(np.stack([scene(number + k) for k in range(WINDOW)]).sum(axis=0, dtype=np.int64))
    return scene(number)


def seen(kind: str, directory: Path) -> set[int]:
    """Numbers of the frames that any HDF5 reader finds, right and with their numbers, in the frame files; of parts
    those of which all parts are there.
    """
    import h5py
    import hdf5plugin  # noqa: F401

    found: dict[str, set[int]] = {"0": set(), "1": set()}
    for path in sorted(directory.glob("k_save_?_0*.h5")):
        receiver = path.name[7]
        own = found[receiver]
        with contextlib.suppress(OSError, KeyError, RuntimeError), h5py.File(path, swmr=True) as file:
            detector = _detector(file)
            data, numbers = detector["data"], detector["frame_number"][()].tolist()
            if isinstance(data, h5py.Group):
                numbers = numbers[: len(data["frame_ptr"]) - 1]
                own |= {n for k, n in enumerate(numbers) if _sparse(data, k, n)}
                continue
            left = int(receiver) * data.shape[2] if kind.startswith("parts") else 0
            for number, frame in zip(numbers, data, strict=False):
                if np.array_equal(frame, pixels(kind, number)[:, left : left + data.shape[2]]):
                    own.add(number)
    return found["0"] & found["1"] if kind.startswith("parts") else found["0"] | found["1"]


def _detector(file: Any) -> Any:
    entry = file["entry_0000"]
    return entry[str(entry.attrs["default"]).rpartition("/")[0]]


def _sparse(data: Any, row: int, number: int) -> bool:
    """True where a row of sparse data has the pixels of a frame."""
    first, last = (int(it) for it in data["frame_ptr"][row : row + 2])
    if last > min(len(data["index"]), len(data["intensity"])):
        return False
    want = scene(number).ravel()
    at = np.flatnonzero(want > 60000)
    return np.array_equal(data["index"][first:last], at) and np.array_equal(data["intensity"][first:last], want[at])


def shown(kind: str, directory: Path, wrong: list[str], frames: int = FRAMES) -> set[int]:
    """Numbers of the frames that the master shows; wrong pixels and rows are told."""
    import h5py
    import hdf5plugin  # noqa: F401

    found: set[int] = set()
    with h5py.File(directory / "k_save_master.h5") as file:
        detector = _detector(file)
        data, numbers, status = detector["data"], detector["frame_number"][()], detector["frame_status"][()]
        if (np.diff(numbers.astype(np.int64)) <= 0).any() or (len(numbers) and numbers[-1] >= frames):
            wrong.append("rows of the master are made up")
        for row in np.flatnonzero(status == 0).tolist():
            number, sparse = int(numbers[row]), isinstance(data, h5py.Group)
            if not (_sparse(data, row, number) if sparse else np.array_equal(data[row], pixels(kind, number))):
                wrong.append(f"frame {number} has wrong pixels")
            found.add(number)
    return found


def parts_of(directory: Path, table: str) -> set[int]:
    """Frames whose rows any HDF5 reader finds in the parts of a table."""
    import h5py

    found: set[int] = set()
    for path in directory.glob(f"k_{table}_?_rows.h5"):
        with contextlib.suppress(OSError, KeyError, RuntimeError), h5py.File(path, swmr=True) as file:
            rows = file["entry_0000/measurement"]
            found |= set(rows["frame_number"][: min(map(len, rows.values()))].tolist())
    return found


def rows_of(directory: Path, table: str, wrong: list[str]) -> set[int]:
    """Frames of a table, whose values are held against the scene."""
    import h5py

    with h5py.File(directory / f"k_{table}.h5") as file:
        rows = {name: column[()] for name, column in file["entry_0000/measurement"].items()}
    numbers = rows["frame_number"].tolist()
    if len(set(numbers)) < len(numbers):
        wrong.append(f"{table} has rows twice")
    if any(len(column) != len(numbers) for column in rows.values()):
        wrong.append(f"{table} has columns of different lengths")
    if table == "stamp":
        bad = [n for n, at in zip(numbers, rows["detector_time"], strict=False) if n % 2 or at < 1e9]
    else:
        totals = (scene(n).sum(axis=0 if table == "profile" else None, dtype=np.int64) for n in numbers)
        both = zip(numbers, rows["all_sum"], totals, strict=False)
        bad = [n for n, got, want in both if not np.array_equal(got, want)]
    if bad or max(numbers, default=0) >= FRAMES:
        wrong.append(f"rows of {table} are made up: frames {bad[:5]}")
    return set(numbers)
