"""Single frames of a run as files of their own, for programs that open neither files that grow nor compressed ones."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lima2cli.errors import FileProblem
from lima2cli.files.inspection import detector_of
from lima2cli.files.live import reading
from lima2cli.files.live_master import is_final
from lima2cli.files.nexus import master_file

GROUP = "/frame"
"""The group of such a file whose dataset ``data`` (1, height, width) is the frame."""


def write_frame(path: Path, pixels: NDArray[Any]) -> None:
    """Write a frame (height, width) of any dtype as a file of its own, uncompressed."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset(f"{GROUP}/data", data=pixels[None])


def final_frame(directory: Path, name: str, node: str, row: int) -> NDArray[Any] | None:
    """Return a row (height, width) of the final master of a channel; None while there is none. -1: the last saved.

    Raises:
        FileProblem: there is no such row, or its frame was lost.
    """
    path = directory / master_file(name, node)
    if not is_final(path):
        return None
    with reading(path) as file:
        detector = detector_of(file)
        saved = (detector["frame_status"][()] == 0).nonzero()[0]
        if row == -1 and len(saved):
            row = int(saved[-1])
        if row not in saved:
            raise FileProblem(f"{node} has no frame {row}")
        pixels: NDArray[Any] = detector["data"][row]
        return pixels
