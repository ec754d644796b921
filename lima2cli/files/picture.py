"""Single frames for users: pictures, and files that other programs read.

Pictures are grey between two limits, pixels without a measurement are red.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import FileProblem
from lima2cli.files.inspection import detector_of
from lima2cli.files.live import reading
from lima2cli.files.live_master import is_final
from lima2cli.files.nexus import master_file

LIMITS = (1.0, 99.9)
"""Percentiles of the pixels that become black and white."""

NOT_MEASURED = (160, 40, 40)
"""Colour (red, green, blue) of pixels that are masked, or are no number."""


def levels(pixels: NDArray[Any], measured: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the values that become black and white: percentiles of the pixels (height, width) that are measured."""
    values = pixels[measured]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values.astype(np.float64), LIMITS)
    return float(low), float(high if high > low else low + 1)


def measured_pixels(pixels: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Return which pixels (height, width) hold a measurement: finite, and not masked."""
    measured = np.isfinite(pixels) if pixels.dtype.kind == "f" else np.ones(pixels.shape, bool)
    return measured if mask is None else measured & ~mask


def picture(pixels: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Return a frame (height, width) as a picture (height, width, 3), red, green, blue from 0 to 255."""
    measured = measured_pixels(pixels, mask)
    low, high = levels(pixels, measured)
    grey = np.clip((np.where(measured, pixels, 0).astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    colours = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    colours[~measured] = NOT_MEASURED
    return colours


def png(colours: NDArray[np.uint8]) -> bytes:
    """Return a picture (height, width, 3) as a PNG file, 8 bits a sample, unfiltered (W3C PNG specification)."""
    height, width, _ = colours.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with the number of its filter, 0 = none
    rows[:, 1:] = colours.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 4)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def nexus(number: int, time_ns: int | None, pixels: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> bytes:
    """Return an HDF5 file of a frame (height, width), as NXdata that readers find by themselves."""
    import h5py

    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs.update({"NX_class": "NXentry", "default": "data"})
        data = entry.create_group("data")
        data.attrs.update({"NX_class": "NXdata", "signal": "data"})
        data["data"], data["frame_number"] = pixels, number
        if time_ns is not None:
            data["time"] = time_ns
            data["time"].attrs["units"] = "ns"
        if mask is not None:
            data["pixel_mask"] = mask.astype(np.uint32)
    return memory.getvalue()


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


def shrunk(
    pixels: NDArray[Any], measured: NDArray[np.bool_], height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return a frame (height, width) in fewer pixels: means of those that are measured, and where there are any.

    ``height`` and ``width`` are at most those of the frame.
    """
    rows, columns = (np.linspace(0, size, count, endpoint=False).astype(int) for size, count in
                     ((pixels.shape[0], height), (pixels.shape[1], width)))  # fmt: skip

    def summed(values: NDArray[Any]) -> NDArray[np.float64]:
        made: NDArray[np.float64] = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
        return made

    counts = summed(measured.astype(np.float64))
    sums = summed(np.where(measured, pixels, 0).astype(np.float64))
    return sums / np.maximum(counts, 1), counts > 0
