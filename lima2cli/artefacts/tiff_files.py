"""TIFF and BigTIFF: pages, and where their pixels lie, so that a file that was cut is found without reading it.

Pixels that are not compressed are read from their place; compressed ones by Pillow, where it is installed.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lima2cli.artefacts.frame_files import OpenStack
from lima2cli.artefacts.lack import lack_of
from lima2cli.errors import FileProblem
from lima2cli.spec import Array, Invalid

FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 16: "Q"}
"""Types of the values that matter here: bytes, text, unsigned numbers of 2, 4 and 8 bytes."""

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

WIDTH, HEIGHT, BITS, COMPRESSION, TEXT, STRIPS, SAMPLES, COUNTS, KIND = 256, 257, 258, 259, 270, 273, 277, 279, 339

TILES, TILE_COUNTS = 324, 325


@dataclass(frozen=True)
class Page:
    """Shape and dtype of a page, and its strips (offset, bytes), plain or compressed."""

    shape: tuple[int, ...]
    dtype: str
    plain: bool
    strips: tuple[tuple[int, int], ...]
    text: str

    @property
    def end(self) -> int:
        """Bytes that the file must have."""
        return max((offset + size for offset, size in self.strips), default=0)


class _Cut(Exception):
    """The file ends before what it says that it has."""


def pages(file: BinaryIO, size: int) -> Iterator[Page]:
    """Pages one after another. Raises `_Cut` where the file ends before one does, ValueError where it is no TIFF."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise ValueError("it does not begin as a TIFF file")
    (version,) = struct.unpack_from(order + "H", head, 2)
    if version not in (42, 43) or (version == 43 and len(head) < 16):
        raise ValueError(f"TIFF version {version} is not known")
    big = version == 43
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    seen: set[int] = set()
    while at:
        if at in seen:
            raise ValueError("its pages form a circle")
        seen.add(at)
        tags, at = _tags(file, at, order, big, size)
        yield _page(tags, order)


def _take(file: BinaryIO, at: int, count: int, size: int) -> bytes:
    if at + count > size:
        raise _Cut
    file.seek(at)
    return file.read(count)


def _tags(file: BinaryIO, at: int, order: str, big: bool, size: int) -> tuple[dict[int, Any], int]:
    """Values by tag, and where the next page begins."""
    (count,) = struct.unpack(order + ("Q" if big else "H"), _take(file, at, 8 if big else 2, size))
    at += 8 if big else 2
    width = 20 if big else 12
    table = _take(file, at, count * width, size)
    (following,) = struct.unpack(order + ("Q" if big else "I"), _take(file, at + len(table), 8 if big else 4, size))
    found: dict[int, Any] = {}
    for start in range(0, len(table), width):
        tag, kind = struct.unpack_from(order + "HH", table, start)
        (number,) = struct.unpack_from(order + ("Q" if big else "I"), table, start + 4)
        total, room = SIZES.get(kind, 0) * number, 8 if big else 4
        if kind not in FORMATS:
            continue
        place = start + width - room
        raw = table[place : place + total]
        if total > room:
            (where,) = struct.unpack_from(order + ("Q" if big else "I"), table, place)
            raw = _take(file, where, total, size)
        found[tag] = raw if kind == 2 else struct.unpack(f"{order}{number}{FORMATS[kind]}", raw)
    return found, following


def _page(tags: dict[int, Any], order: str) -> Page:
    def one(tag: int, default: int) -> int:
        return int(tags.get(tag, (default,))[0])

    bits, samples = one(BITS, 1), one(SAMPLES, 1)
    kind = {1: "u", 2: "i", 3: "f"}.get(one(KIND, 1), "V")
    dtype = f"{order}{kind}{bits // 8}" if bits in (8, 16, 32, 64) else f"|V{max(1, bits // 8)}"
    shape = (one(HEIGHT, 0), one(WIDTH, 0))
    tiled = TILES in tags
    offsets, counts = (tags.get(TILES), tags.get(TILE_COUNTS)) if tiled else (tags.get(STRIPS), tags.get(COUNTS))
    if offsets is None:
        raise ValueError("a page has no pixels")
    if counts is None:
        counts = (shape[0] * shape[1] * samples * bits // 8,) if len(offsets) == 1 else (0,) * len(offsets)
    return Page(
        shape if samples == 1 else (*shape, samples),
        dtype,
        one(COMPRESSION, 1) == 1 and not tiled,
        tuple((int(a), int(b)) for a, b in zip(offsets, counts, strict=False)),
        tags.get(TEXT, b"").decode("latin-1"),
    )


class TiffStack(OpenStack):
    """The pages of a TIFF file, all of the same shape; a last one that the file was cut in is lacking."""

    def __init__(self, name: str, path: Path) -> None:
        self._file = path.open("rb")
        try:
            self._pages, cut = self._look(name, path.stat().st_size)
        except BaseException:
            self._file.close()
            raise
        first = self._pages[0]
        count = len(self._pages) + cut
        shape = first.shape if count == 1 and len(first.shape) == 2 else (count, *first.shape)
        super().__init__(name, shape, np.dtype(first.dtype))
        self._path = path
        self._image: Any = None
        size = path.stat().st_size
        ends = np.array([page.end for page in self._pages] + [size + 1] * cut)
        self.lacks(lack_of(ends > size, "the file ends before them"))
        self.files = (str(path.absolute()),)
        if np.dtype(first.dtype).kind == "i" and "PILATUS" in first.text.upper():
            self.declare(Invalid((-2.0, -1.0)))

    def _look(self, name: str, size: int) -> tuple[list[Page], int]:
        """The pages, and 1 where the file ends before another one."""
        found: list[Page] = []
        try:
            for page in pages(self._file, size):
                found.append(page)  # noqa: PERF402  those before a cut are kept
        except _Cut:
            if not found:
                raise FileProblem(f"{name} cannot be read: the file ends before its first page does") from None
            return found, 1
        except (ValueError, struct.error, OSError, OverflowError, MemoryError) as error:
            raise FileProblem(f"{name} cannot be read: {error}") from error
        if not found:
            raise FileProblem(f"{name} cannot be read: it has no pages")
        return found, 0

    def _read(self, numbers: Sequence[int]) -> Array:
        out = np.empty((len(numbers), *self.info.shape[1:]), self.info.dtype)
        for frame, number in zip(out, numbers, strict=True):
            page = self._pages[number]
            if page.shape != frame.shape or page.dtype != self._pages[0].dtype:
                raise FileProblem(f"{self.name}: frame {number} differs from frame 0 in shape or dtype", "file-shape")
            frame[:] = self._plain(page) if page.plain else self._decoded(int(number))
        return out

    def _plain(self, page: Page) -> Array:
        data = bytearray()
        for offset, size in page.strips:
            self._file.seek(offset)
            data += self._file.read(size)
        needed = page.shape[0] * page.shape[1]
        return np.frombuffer(data, page.dtype, needed).reshape(page.shape)

    def _decoded(self, number: int) -> Array:
        try:
            from PIL import Image
        except ImportError:
            raise FileProblem(f"{self.name}: reading compressed TIFF needs Pillow: `pip install pillow`") from None
        if self._image is None:
            self._image = Image.open(self._path)
        self._image.seek(number)
        decoded: Array = np.asarray(self._image)
        wanted = np.dtype(self.info.dtype)
        if decoded.dtype.kind != wanted.kind and decoded.dtype.itemsize == wanted.itemsize:
            decoded = decoded.view(wanted)  # Pillow knows int32 alone of the two of 4 bytes
        if decoded.dtype != wanted:
            raise FileProblem(f"{self.name}: Pillow decodes {wanted} as {decoded.dtype}: store it uncompressed")
        return decoded

    def close(self) -> None:
        """See `OpenStack`."""
        self._file.close()
        if self._image is not None:
            self._image.close()
