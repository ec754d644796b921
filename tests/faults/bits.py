"""One flipped bit in files, at random places: how often `inspect --verify` names the frames, and what it does.

    python -m tests.faults.bits [--repeat 100] [--seed 1] [--minutes n]

A run with a channel for each compression, dense and sparse, for each layout, and a table. Of each a bit is flipped in
the stored bytes of a random chunk, of frames or of what is told of rows, the run is verified, and the bit is flipped
back. Then bits anywhere else in the files: a process of its own verifies the run, and reads what its master shows. It
does not die, and where it finds nothing, all is as it was.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from lima2cli.files.compression import load_filters
from lima2cli.files.master_rows import TOLD
from tests.faults import Outcome
from tests.running import inspect_run

COMPRESSIONS = ("bslz4", "none", "gzip", "lz4", "zstd", "blosc")

PIPELINE = """
lima2: 1
name: bits
detector:
  remu:
    image: {width: 32, height: 24}
    datasets: {D: {dtype: uint16}}
    modules: {columns: 2, rows: 1, width: 16, height: 24}
    scene: {noise: {}}
acquisition: {frames: 50}
receivers: 2
flows:
  F: {dataset: D}
  P: {dataset: D, dispatch: modules}
nodes:
"""


def pipeline(compressions: tuple[str, ...] = COMPRESSIONS, checksum: str = "xxh3") -> str:
    """The text of a pipeline with all channels."""
    nodes = [
        "common: {input: F, io_hdf5: {layout: common}}",
        "table: {input: F, roi_counters: {rois: {a: {rect: ROI}}}}",
    ]
    nodes.append("some: {input: F, sparsify: {above: 1}}")
    for name in compressions:
        options = f"compression: {name}, checksum: {checksum}"
        nodes.append(f"dense_{name}: {{input: F, io_hdf5: {{{options}, frames_per_file: 10, frames_per_chunk: 4}}}}")
        nodes.append(f"sparse_{name}: {{input: some, io_hdf5: {{{options}}}}}")
        nodes.append(f"virtual_{name}: {{input: P, io_hdf5: {{{options}, layout: virtual, frames_per_chunk: 1}}}}")
    return PIPELINE + "".join(f"  {node}\n" for node in nodes).replace("ROI", "{x: 0, y: 0, width: 8, height: 8}")


@dataclass(frozen=True)
class Piece:
    """Bytes of a file that hold ``frames``; with ``rows`` these are rows of the file, whose numbers are not known."""

    path: Path
    offset: int
    size: int
    frames: frozenset[int]
    rows: bool = False

    def flip(self, byte: int, bit: int) -> None:
        """Change one bit of them."""
        flip(self.path, self.offset + byte, bit)


def flip(path: Path, byte: int, bit: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))


def pieces(directory: Path, node: str) -> list[Piece]:
    """All stored frames of a channel, or values of a table."""
    found = []
    for path in sorted(directory.glob(f"bits_{node}*.h5")):
        with h5py.File(path) as file:
            entry = file["entry_0000"]
            if "instrument" not in entry:
                found += _columns(path, entry["measurement"])
                continue
            detector = entry[entry.attrs["default"]].parent
            numbers = detector["frame_number"][:].tolist()
            data = detector["data"]
            if isinstance(data, h5py.Group):
                ends = data["frame_ptr"][1:].tolist()
                owners = [number for number, a, b in zip(numbers, [0, *ends], ends, strict=False) for _ in range(b - a)]
                found += [*_chunks(path, data["index"], owners), *_chunks(path, data["intensity"], owners)]
            elif data.chunks:
                found += _chunks(path, data, numbers)
            elif not data.is_virtual:
                found += _rows(path, data, numbers)
    return found


def told(directory: Path, node: str) -> list[Piece]:
    """All that is stored of what files of a channel tell of their rows."""
    found = []
    for path in sorted(directory.glob(f"bits_{node}*.h5")):
        with h5py.File(path) as file:
            entry = file["entry_0000"]
            if "instrument" in entry:
                detector = entry[entry.attrs["default"]].parent
                columns = {name: detector[name] for name in TOLD if name in detector}
                if isinstance(detector["data"], h5py.Group):
                    columns["frame_ptr"] = detector["data/frame_ptr"]
                found += _columns(path, columns)
    return found


def _columns(path: Path, columns: Any) -> list[Piece]:
    numbers = columns["frame_number"][:].tolist()
    found: list[Piece] = []
    for name, data in columns.items():
        owners, rows = (list(range(len(data))), True) if name == "frame_number" else (numbers, False)
        found += _chunks(path, data, owners, rows) if data.chunks else _rows(path, data, owners, rows)
    return found


def _chunks(path: Path, data: Any, owners: list[int], rows: bool = False) -> Iterator[Piece]:
    for index in range(data.id.get_num_chunks()):
        chunk = data.id.get_chunk_info(index)
        first = chunk.chunk_offset[0]
        frames = frozenset(owners[first : first + data.chunks[0]])
        if frames:
            yield Piece(path, chunk.byte_offset, chunk.size, frames, rows)


def _rows(path: Path, data: Any, owners: list[int], rows: bool = False) -> Iterator[Piece]:
    size = data.id.get_storage_size() // len(data)
    for row, owner in enumerate(owners):
        yield Piece(path, data.id.get_offset() + row * size, size, frozenset([owner]), rows)


def named(problems: list[str], path: Path, word: str = "frame") -> set[int]:
    """The frames (or rows) of a file that problems call damaged."""
    found: set[int] = set()
    for problem in problems:
        match = re.match(rf"{re.escape(path.name)}: {word}s? (.+?) (?:is|are|has|have) damaged", problem)
        for span in match[1].split(", ") if match else ():
            if numbers := re.fullmatch(r"(\d+)(?:-(\d+)(?: step (\d+))?)?", span):
                first, last, step = numbers.groups()
                found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def alone(directory: Path, node: str, folder: Path) -> Path:
    """A copy of the files of a node in a folder of their own."""
    for path in directory.glob(f"bits_{node}*.h5"):
        shutil.copy(path, folder)
    return folder


def found_of(
    directory: Path, node: str, repeat: int, rng: random.Random, kinds: Callable[[Path, str], list[Piece]] = pieces
) -> tuple[int, int]:
    """Count the ``repeat`` flipped bits that were found, and those with exactly the frames of the piece named."""
    found = exact = 0
    with tempfile.TemporaryDirectory() as folder:
        there = kinds(alone(directory, node, Path(folder)), node)
        while repeat:
            chosen = [
                (it, rng.randrange(it.size), rng.randrange(8)) for it in _apart_from_each_other(there, rng)[:repeat]
            ]
            for piece, byte, bit in chosen:
                piece.flip(byte, bit)
            problems = inspect_run(folder, verify=True)["problems"]
            for piece, byte, bit in chosen:
                piece.flip(byte, bit)
            repeat -= len(chosen)
            for path in {piece.path for piece, _, _ in chosen}:
                for word in ("row", "frame"):
                    own = [it.frames for it, _, _ in chosen if it.path == path and it.rows == (word == "row")]
                    frames = named(problems, path, word)
                    found += sum(frames >= one for one in own)
                    exact += len(own) * (frames == frozenset().union(*own))
    return found, exact


def _apart_from_each_other(there: list[Piece], rng: random.Random) -> list[Piece]:
    """Pieces at random that have no frame in common with another of their file; of rows one of each file, of others so
    few that a message lists them all.
    """
    chosen: list[Piece] = []
    for piece in rng.sample(there, min(len(there), 40)):
        own = [it for it in chosen if it.path == piece.path]
        if len(own) < 4 and not any(it.rows or piece.rows or it.frames & piece.frames for it in own):
            chosen.append(piece)
    return chosen


Content = dict[str, tuple[str, list[int], bytes]]
"""Dtype, shape and bytes of datasets."""


def content(directory: Path, node: str) -> Content:
    """Return the data that a user reads of a channel by its master, or of a table. Whatever the HDF5 library raises."""
    master = directory / f"bits_{node}_master.h5"
    with h5py.File(master if master.exists() else directory / f"bits_{node}.h5") as file:
        entry = file["entry_0000"]
        where = entry["measurement"]
        if "instrument" in entry:
            where = entry[entry.attrs["default"]].parent
        held = {name: where[name] for name in where}
        if isinstance(held.get("data"), h5py.Group):
            held |= {f"data/{name}": held["data"][name] for name in held["data"]}
        wanted = [*TOLD, "data", *(f"data/{name}" for name in ("index", "intensity", "frame_ptr"))]
        names = wanted if "instrument" in entry else list(held)
        sets = {name: held[name] for name in names if isinstance(held.get(name), h5py.Dataset)}
        return {name: (str(it.dtype), list(it.shape), it[()].tobytes()) for name, it in sets.items()}


def anywhere(directory: Path, node: str, repeat: int, rng: random.Random) -> tuple[int, list[str]]:
    """Flip bits that are no stored data: how many were found, and promises that broke."""
    found, broken = 0, []
    with tempfile.TemporaryDirectory() as name:
        folder = alone(directory, node, Path(name))
        held = [(it.path, it.offset, it.offset + it.size) for it in (*pieces(folder, node), *told(folder, node))]
        sound, paths = content(folder, node), sorted(folder.glob("*.h5"))
        while repeat:
            path = rng.choice(paths)
            at, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
            if any(path == other and first <= at < last for other, first, last in held):
                continue
            repeat -= 1
            flip(path, at, bit)
            said = _apart(folder, node, sound)
            flip(path, at, bit)
            found += said == "found"
            if said not in ("found", "same"):
                broken.append(f"bit {bit} of byte {at} of {path.name}: {said}")
    return found, broken


def _apart(folder: Path, node: str, sound: Content) -> str:
    """Verify in a process of its own: ``found``, ``same``, or what is wrong."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(60)
        try:
            said = "found" if inspect_run(str(folder), verify=True)["problems"] else _compared(folder, node, sound)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            said = f"inspect raised {type(error).__name__}: {error}"
        os.write(write, said[:4000].encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"inspect died of signal {-status}" if status else said


def _compared(folder: Path, node: str, sound: Content) -> str:
    try:
        now = content(folder, node)
    except Exception as error:  # noqa: BLE001 - the library raises all sorts
        return f"nothing is reported, and it cannot be read: {error}"
    wrong = [name for name in sound.keys() | now.keys() if now.get(name) != sound.get(name)]
    return f"nothing is reported, and others are {', '.join(sorted(wrong))}" if wrong else "same"


def nodes_of(compression: str) -> list[str]:
    """Channels and tables of the run with a compression."""
    nodes = [f"{kind}_{compression}" for kind in ("dense", "sparse", "virtual")]
    return nodes if compression != "none" else [*nodes, "common", "table"]


def search(seconds: float, seed: int, *, repeat: int = 0, show: Callable[[str], None] = lambda line: None) -> Outcome:
    """Flip ``repeat`` bits of each sort in each channel, or (0) some again and again until time is up."""
    from tests.running import run

    rng, end = random.Random(seed), time.monotonic() + seconds
    load_filters()
    tried = found = other = seen = 0
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for compression in COMPRESSIONS:
            base = Path(folder) / compression
            base.mkdir()
            ran = run(pipeline((compression,)), base, "inline")
            assert ran.code == 0, ran.output
            runs |= dict.fromkeys(nodes_of(compression), ran.directory)
        once = False
        while time.monotonic() < end and not once:
            once = bool(repeat)
            for node, directory in runs.items():
                if time.monotonic() > end:
                    break
                many = repeat or 4
                for kinds in (pieces, told) if node != "table" else (pieces,):
                    right, exact = found_of(directory, node, many, rng, kinds)
                    what = "rows" if kinds is told else "data"
                    show(f"{node:16} {what} found {right} of {many}, exactly those of the chunk {exact}")
                    tried, found = tried + many, found + right
                    if right < many:
                        failures.append(f"{node}: {many - right} of {many} flipped bits in {what} were not found")
            for node, directory in runs.items():
                if time.monotonic() > end:
                    break
                many = repeat // 4 or 2
                right, broken = anywhere(directory, node, many, rng)
                show(f"{node:16} else found {right} of {many}, {many - right - len(broken)} change nothing")
                other, seen = other + many, seen + right
                failures += [f"{node}: {one}" for one in broken]
    figures = f"{found} of {tried} flipped bits in data and rows were found and named; {seen} of {other} elsewhere"
    return Outcome("bits", tried + other, failures, f"{figures}; {len(failures)} broken promises")


def main() -> int:
    """Print a line for each channel."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeat", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--minutes", type=float, default=1e6)
    given = arguments.parse_args()

    def show(line: str) -> None:
        print(line, flush=True)

    outcome = search(60 * given.minutes, given.seed, repeat=given.repeat, show=show)
    for failure in outcome.failures:
        print(f"--- {failure}")
    print(outcome.figures)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
