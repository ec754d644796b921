"""What became of every frame of a run, recomputed from its files alone."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.mapping import rows
from lima2cli.artefacts.master import DROPPED, INCOMPLETE, LOST, SAVED, frame_files, master_file
from lima2cli.artefacts.progressions import ranges
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.rows import rows_of
from lima2cli.artefacts.tree import ENTRY

VERSION = 1


@dataclass
class Found:
    """A channel or table as its files show it. Arrays are per selected frame; ``status`` as in the files."""

    record: Record
    expected: int
    status: NDArray[np.uint8]
    dataset: str | None
    files: list[str]
    is_table: bool = False


@dataclass
class Inspection:
    """Findings so far about the files of one directory."""

    directory: str
    verify: bool
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """The open file; a file whose writer was interrupted is told of and read as far as it goes."""
        import h5py

        path = os.path.join(self.directory, name)
        try:
            file = h5py.File(path, locking="best-effort")
        except OSError as error:
            if "already open for write" not in str(error):
                raise
            self.problems.append(
                f"{name} was not closed (or is still being written): `lima2 recover` makes it readable"
            )
            file = h5py.File(path, swmr=True, locking="best-effort")
        with file:
            yield file


def inspect_run(directory: str, *, verify: bool = False) -> dict[str, Any]:
    """The accounting of a run directory, from its files: ``{"version", "flows", "channels", "problems"}``.

    verify     read every frame, so that unreadable chunks are found
    problems   plain sentences: missing, short or unreadable files, frames that are not where the master says

    OSError where the directory can't be listed.
    """
    inspection = Inspection(directory, verify)
    found = [_channel(inspection, record) for record in _records(inspection, ("master", "frames"))]
    found += [_table(inspection, record) for record in _records(inspection, ("table", "rows"))]
    if not found:
        inspection.problems.append(f"{directory} holds no file of a run")
    return {
        "version": VERSION,
        "flows": _flows(found),
        "channels": {item.record.node: _account(item, directory) for item in found if not item.is_table},
        "problems": inspection.problems,
    }


def _records(inspection: Inspection, roles: Sequence[str]) -> list[Record]:
    """One record of each node that has files of these roles, the first role preferred."""
    known: dict[str, Record] = {}
    for name in sorted(os.listdir(inspection.directory)):
        if not name.endswith(".h5"):
            continue
        try:
            with Inspection(inspection.directory, False).open(name) as file:
                record = Record.read(file)
        except (OSError, RuntimeError, KeyError) as error:
            if roles[0] == "master":  # told once
                inspection.problems.append(f"{name} can't be read: {error}")
            continue
        if record is not None and record.role in roles and (record.node not in known or record.role == roles[0]):
            known[record.node] = record
    return list(known.values())


def _channel(inspection: Inspection, record: Record) -> Found:
    """A channel: its frame files, and its master held against them."""
    held = _frame_rows(inspection, record)
    saved = np.concatenate([np.empty(0, np.int64), *held.values()])
    if len(np.unique(saved)) != len(saved):
        inspection.problems.append(f"{record.node}: some frames are in more than one place")
    name = master_file(record.name, record.node)
    master = _master(inspection, record, name, held) if record.role == "master" else None
    if master is None:
        inspection.problems.append(f"{name} is missing or unreadable: `lima2 recover` rebuilds it")
        expected = max(record.selected, 1 + int(saved.max(initial=-1)))
        claimed = np.empty(0, np.uint8)
    else:
        expected, claimed = master
    status = np.full(max(expected, len(claimed)), INCOMPLETE, np.uint8)
    status[: len(claimed)] = np.where(claimed == SAVED, LOST, claimed)
    status[saved[saved < len(status)]] = SAVED
    if (gone := np.flatnonzero((claimed == SAVED) & (status[: len(claimed)] != SAVED))).size:
        inspection.problems.append(f"{record.node}: frames {_words(gone, record)} are marked saved but are in no file")
    return Found(record, len(status), status, None if master is None else name, list(held))


def _master(
    inspection: Inspection, record: Record, name: str, held: Mapping[str, NDArray[np.int64]]
) -> tuple[int, NDArray[np.uint8]] | None:
    """Expected frames and status of each row, as the master says; None where it can't be read."""
    try:
        with inspection.open(name) as file:
            detector = _detector(file)
            claimed = detector["frame_status"][()]
            expected = int(detector["flow/expected"][()]) if "flow/expected" in detector else len(claimed)
            _check_numbers(inspection, name, detector["frame_number"][()], record)
            _check_sources(inspection, name, detector, held, claimed)
            return expected, claimed
    except (OSError, RuntimeError, KeyError) as error:
        inspection.problems.append(f"{name}: {error}")
        return None


def _frame_rows(inspection: Inspection, record: Record) -> dict[str, NDArray[np.int64]]:
    """Row of each frame of each frame file that can be read."""
    held: dict[str, NDArray[np.int64]] = {}
    for name in frame_files(inspection.directory, record.name, record.node):
        try:
            with inspection.open(name) as file:
                detector = _detector(file)
                count = min(len(detector["data"]), len(detector["frame_number"]))
                if count < max(len(detector["data"]), len(detector["frame_number"])):
                    inspection.problems.append(
                        f"{name}: {len(detector['data'])} frames but {len(detector['frame_number'])} frame numbers"
                    )
                held[name] = rows_of(detector["frame_number"][:count], record.start, record.step)
                if inspection.verify:
                    _read_all(inspection, name, detector["data"])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            message = f"{name}: {error}"
            if not any(problem.startswith(name) for problem in inspection.problems):
                inspection.problems.append(message)
    return held


def _read_all(inspection: Inspection, name: str, data: Any) -> None:
    """Read every chunk once."""
    import hdf5plugin  # noqa: F401 - registers the filters

    step = data.chunks[0]
    bad = []
    for row in range(0, len(data), step):
        try:
            data[row : row + step]
        except OSError:
            bad.append(row)
    if bad:
        inspection.problems.append(
            f"{name}: chunks at rows {', '.join(map(str, bad[:5]))}{'...' * (len(bad) > 5)} can't be read"
        )


def _check_numbers(inspection: Inspection, master: str, numbers: NDArray[np.uint64], record: Record) -> None:
    want = np.arange(len(numbers), dtype=np.int64) * record.step + record.start
    if (numbers.astype(np.int64) != want).any():
        inspection.problems.append(f"{master}: frame_number is not {record.start}, {record.start + record.step}, ...")


def _check_sources(
    inspection: Inspection,
    master: str,
    detector: Any,
    held: Mapping[str, NDArray[np.int64]],
    claimed: NDArray[np.uint8],
) -> None:
    """Every source of the virtual dataset exists, is long enough and holds the frames that the master shows there."""
    data = detector["data"]
    shown = np.zeros(len(claimed), bool)
    told = set()
    for source in data.virtual_sources() if data.is_virtual else ():
        name = source.file_name.replace("%%", "%")
        target, origin = _selected(source.vspace), _selected(source.src_space)
        shown[target] = True
        if name not in held:
            problem = f"{name} is missing" if not os.path.exists(os.path.join(inspection.directory, name)) else ""
        elif origin.max(initial=-1) >= len(held[name]):
            problem = f"{name} is short: it has {len(held[name])} frames, {master} needs more"
        elif (held[name][origin] != target).any():
            problem = f"{name}: its frame numbers are not those that {master} shows"
        else:
            problem = ""
        if problem and problem not in told:
            told.add(problem)
            inspection.problems.append(problem)
    if (shown != (claimed == SAVED)).any():
        inspection.problems.append(f"{master}: the frames it shows are not those it marks as saved")


def _selected(space: Any) -> NDArray[np.int64]:
    """Rows that a mapping of a virtual dataset selects."""
    if space.get_select_type() == 3 or not space.is_regular_hyperslab():  # H5S_SEL_ALL
        return np.arange(space.shape[0], dtype=np.int64)
    start, stride, count, block = (int(axis[0]) for axis in space.get_regular_hyperslab())
    return rows(start, stride, count, block)


def _table(inspection: Inspection, record: Record) -> Found:
    """A table: the merged file, or what there is of its parts."""
    if record.role == "table":
        names = [f"{record.name}_{record.node}.h5"]
    else:
        inspection.problems.append(f"{record.name}_{record.node}.h5 is missing: `lima2 recover` joins its parts")
        prefix = f"{record.name}_{record.node}_"
        names = [n for n in sorted(os.listdir(inspection.directory)) if n.startswith(prefix) and n.endswith("_rows.h5")]
    held = []
    for name in names:
        with inspection.open(name) as file:
            columns = file[f"{ENTRY}/measurement"]
            count = min(len(item) for item in columns.values())
            held.append(rows_of(columns["frame_number"][:count], record.start, record.step))
    saved = np.concatenate([np.empty(0, np.int64), *held])
    expected = max(record.selected, 1 + int(saved.max(initial=-1)))
    status = np.full(expected, INCOMPLETE, np.uint8)
    status[saved] = SAVED
    return Found(record, expected, status, None, names, is_table=True)


def _flows(found: Iterable[Found]) -> dict[str, dict[str, Any]]:
    """Per flow: a frame was received where any of its nodes has it; a master knows why one was not."""
    flows: dict[str, list[Found]] = {}
    for item in found:
        flows.setdefault(item.record.flow, []).append(item)
    accounts = {}
    for name, items in flows.items():
        frames = [item for item in items if not item.is_table] or items
        status = np.full(max(item.expected for item in frames), INCOMPLETE, np.uint8)
        for value in (DROPPED, LOST, SAVED):
            for item in items:
                status[np.flatnonzero(item.status[: len(status)] == value)] = value
        record = items[0].record
        accounts[name] = {
            "expected": len(status),
            "received": int((status == SAVED).sum()),
            "lost": int((status == LOST).sum()),
            "dropped": int((status == DROPPED).sum()),
            "missing": int((status == INCOMPLETE).sum()),
            "missing_frames": ranges(np.flatnonzero(status != SAVED) * record.step + record.start),
        }
    return accounts


def _account(item: Found, directory: str) -> dict[str, Any]:
    """A channel: what is not saved and was not dropped counts as lost."""
    saved, dropped = int((item.status == SAVED).sum()), int((item.status == DROPPED).sum())
    return {
        "expected": item.expected,
        "saved": saved,
        "vetoed": 0,
        "dropped": dropped,
        "lost": item.expected - saved - dropped,
        "dataset": None if item.dataset is None else f"{item.dataset}::/{ENTRY}/measurement/data",
        "files": item.files,
        "bytes": sum(os.path.getsize(os.path.join(directory, name)) for name in item.files),
    }


def _detector(file: Any) -> Any:
    """The NXdetector group, by the default plot of the entry; KeyError where there is none."""
    entry = file[ENTRY]
    return entry[str(entry.attrs["default"]).rpartition("/")[0]]


def _words(gone: NDArray[np.int64], record: Record) -> str:
    """Frame numbers of rows, the first few ranges."""
    found = ranges(gone * record.step + record.start)
    words = [f"{a}" if a == b else f"{a}-{b}" + (f" step {s}" if s > 1 else "") for a, b, s in found[:3]]
    return ", ".join(words) + (", ..." if len(found) > 3 else "")
