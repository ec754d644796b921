"""One flipped bit in stored data, at random places: how often `inspect --verify` names its frames.

    python -m tests.faults.bits [--repeat 100] [--seed 1]

A run with a channel for each compression, dense and sparse, for each layout, and a table. Of each a bit is flipped in
the stored bytes of a random chunk, the run is verified, and the bit is flipped back.
"""

import argparse
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from lima2cli.artefacts.accounting import inspect_run
from lima2cli.artefacts.hdf5_filters import load_filters

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
    """Bytes of a file that hold ``frames``."""

    path: Path
    offset: int
    size: int
    frames: frozenset[int]

    def flip(self, byte: int, bit: int) -> None:
        """Change one bit of them."""
        with self.path.open("r+b") as file:
            file.seek(self.offset + byte)
            value = file.read(1)[0]
            file.seek(self.offset + byte)
            file.write(bytes([value ^ 1 << bit]))


def pieces(directory: Path, node: str) -> list[Piece]:
    """All stored data of a channel or a table."""
    found = []
    for path in sorted(directory.glob(f"bits_{node}*.h5")):
        with h5py.File(path) as file:
            entry = file["entry_0000"]
            if "instrument" not in entry:
                columns = entry["measurement"]
                numbers = columns["frame_number"][:].tolist()
                for name, data in columns.items():
                    if name != "frame_number":  # which is named by its rows
                        found += _rows(path, data, numbers)
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


def _chunks(path: Path, data: Any, owners: list[int]) -> Iterator[Piece]:
    for index in range(data.id.get_num_chunks()):
        chunk = data.id.get_chunk_info(index)
        first = chunk.chunk_offset[0]
        frames = frozenset(owners[first : first + data.chunks[0]])
        if frames:
            yield Piece(path, chunk.byte_offset, chunk.size, frames)


def _rows(path: Path, data: Any, owners: list[int]) -> Iterator[Piece]:
    size = data.id.get_storage_size() // len(data)
    for row, owner in enumerate(owners):
        yield Piece(path, data.id.get_offset() + row * size, size, frozenset([owner]))


def named(problems: list[str], path: Path) -> set[int]:
    """The frames of a file that problems call damaged."""
    found: set[int] = set()
    for problem in problems:
        if problem.startswith(f"{path.name}: frame") and " damaged" in problem:
            words = problem.removeprefix(f"{path.name}: ").split(" is damaged")[0].split(" are damaged")[0]
            for span in words.removeprefix("frames ").removeprefix("frame ").split(", "):
                if match := re.fullmatch(r"(\d+)(?:-(\d+)(?: step (\d+))?)?", span):
                    first, last, step = match.groups()
                    found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def found_of(directory: Path, node: str, repeat: int, rng: random.Random) -> tuple[int, int]:
    """How many of ``repeat`` flipped bits were found, and of how many exactly the frames of their piece were named."""
    found = exact = 0
    with tempfile.TemporaryDirectory() as alone:
        for path in directory.glob(f"bits_{node}*.h5"):
            shutil.copy(path, alone)
        there = pieces(Path(alone), node)
        for _ in range(repeat):
            piece = rng.choice(there)
            byte, bit = rng.randrange(piece.size), rng.randrange(8)
            piece.flip(byte, bit)
            frames = named(inspect_run(alone, verify=True)["problems"], piece.path)
            piece.flip(byte, bit)
            found += frames >= piece.frames
            exact += frames == piece.frames
    return found, exact


def main() -> None:
    """Print a line for each channel."""
    from tests.running import run

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repeat", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    rng = random.Random(given.seed)
    load_filters()
    with tempfile.TemporaryDirectory() as folder:
        for compression in COMPRESSIONS:
            base = Path(folder) / compression
            base.mkdir()
            ran = run(pipeline((compression,)), base, "inline")
            assert ran.code == 0, ran.output
            nodes = [f"{kind}_{compression}" for kind in ("dense", "sparse", "virtual")]
            for node in nodes if compression != "none" else [*nodes, "common", "table"]:
                found, exact = found_of(ran.directory, node, given.repeat, rng)
                print(f"{node:16} found {found} of {given.repeat}, exactly the frames of the chunk {exact}", flush=True)


if __name__ == "__main__":
    main()
