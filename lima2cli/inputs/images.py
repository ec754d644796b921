"""Read images of other formats: TIFF and BigTIFF, and EDF and CBF by fabio where it is installed."""

import bz2
import gzip
import logging
import math
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.errors import FileProblem
from lima2cli.frames import Array, Invalid
from lima2cli.inputs.missing import lack_of
from lima2cli.inputs.open_stack import OpenStack, unreadable

PILATUS = (-2.0, -1.0)
"""Values of defective pixels, and of gaps between modules."""

PACKED = (".gz", ".bz2")

HEAD = 1 << 20
"""Most bytes of a header."""

BINARY = b"\x0c\x1a\x04\xd5"
"""Bytes between the header and the pixels of a CBF file."""

MADE_UP = 16 << 20
"""Most bytes of a frame that may be missing from its file: it is then reported as cut off."""


class FabioStack(OpenStack):
    """An image file that fabio reads, with one or several frames of the same shape."""

    def __init__(self, name: str, path: Path) -> None:
        try:
            import fabio
        except ImportError:
            raise FileProblem(f"{name}: reading {path.suffix} files needs fabio: `pip install fabio`") from None
        self._image: Any = None
        try:
            cbf = _check_head(path)
            with _complaints():
                self._image = _open_cbf(path) if cbf else fabio.open(str(path))
                _check_size(self._image, path)
                first: Array = np.asarray(self._image.get_frame(0).data)
                count = int(self._image.nframes)
        except Exception as error:
            if self._image is not None:
                self._image.close()
            raise unreadable(name, error) from error
        try:
            self._together = count == 1 and first.ndim == 3 and _text(self._image.header, "Dim_3") != ""
            if self._together:  # one header for all
                super().__init__(name, first.shape, first.dtype)
                self.lacks(lack_of(self._cut_together(path, len(first)), CUT))
            else:
                rows = self._cut(name, path, count)
                single = len(rows) == 1 and first.ndim == 2  # colours would make a third axis
                super().__init__(name, first.shape if single else (len(rows), *first.shape), first.dtype)
                self.lacks(lack_of(rows, CUT))
        except BaseException:
            self._image.close()
            raise
        self.files = (str(path.absolute()),)
        header = " ".join(f"{key} {value}" for key, value in self._image.header.items())
        if first.dtype.kind == "i" and "PILATUS" in header.upper():
            self.declare(Invalid(PILATUS))

    def _cut(self, name: str, path: Path, count: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Return the frames that are not whole, (count,) bool, and one more where the file ends between frames.

        Such an end is in a header or in bytes of no frame. fabio fills these frames with zeros.
        """
        from fabio.edfimage import EdfImage

        if not isinstance(self._image, EdfImage):
            return np.zeros(count, bool)
        frames = [self._image.get_frame(number) for number in range(count)]
        for number, frame in enumerate(frames):
            if frame.blobsize > frame.size and not _compressed(frame):
                raise FileProblem(
                    f"{name}: the header of frame {number} declares {frame.size} bytes, and {frame.blobsize} follow it",
                    "file-shape",
                    "several frames behind one header need Dim_3, which says how many",
                )
        length = path.stat().st_size if path.suffix.lower() == ".edf" else None
        rows = np.array([length is not None and frame.start + frame.blobsize > length for frame in frames], bool)
        if self._image.incomplete_file and length is None:  # the length of packed data is unknown
            np.asarray(frames[-1].data)
            rows[-1] = bool(frames[-1].incomplete_data)
        more = bool(self._image.incomplete_file) and not rows.any()
        return np.append(rows, True) if more else rows

    def _cut_together(self, path: Path, count: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Return the frames behind one header that are not whole, (count,) bool; all of a cut packed file."""
        frame, incomplete = self._image.get_frame(0), bool(getattr(self._image, "incomplete_file", False))
        if not incomplete or path.suffix.lower() != ".edf" or _compressed(frame):
            return np.full(count, incomplete)
        there = int(path.stat().st_size - frame.start)
        return np.arange(1, count + 1) * (int(frame.size) // count) > there

    def _read(self, numbers: Sequence[int]) -> Array:
        if self._together:
            return np.asarray(self._image.data)[np.asarray(numbers, np.intp)]
        out = np.empty((len(numbers), *self.info.shape[1:]), self.info.dtype)
        for frame, number in zip(out, numbers, strict=True):
            with _complaints():
                image = self._image.get_frame(int(number))
                data = image.data
            if getattr(image, "incomplete_data", False):
                raise FileProblem(f"{self.name} cannot be read: frame {number} is cut off")
            if data.shape != frame.shape or data.dtype != out.dtype:
                raise FileProblem(f"{self.name}: frame {number} differs from frame 0 in shape or dtype", "file-shape")
            frame[:] = data
        return out

    def close(self) -> None:
        """See `OpenStack`."""
        self._image.close()


def _opened(path: Path) -> IO[bytes]:
    """Open a file for its bytes, unpacked."""
    if path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    return bz2.open(path) if path.suffix.lower() == ".bz2" else path.open("rb")


class _Ending:
    """A stream that raises ValueError where it has ended: fabio would read on forever."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.name = stream, stream.name

    def read(self, size: int) -> bytes:
        """Return the next bytes, at least one.

        Raises: ValueError at the end of the stream.
        """
        piece: bytes = self._stream.read(size)
        if not piece:
            raise ValueError("its header has no end")
        return piece


def _open_cbf(path: Path) -> Any:
    from fabio.cbfimage import CbfImage

    image = CbfImage()
    read_header = image._read_binary_section_header
    image._read_binary_section_header = lambda stream: read_header(_Ending(stream))
    return image.read(str(path))


def _check_head(path: Path) -> bool:
    """Return True if a file is CBF, False if EDF.

    Raises: ValueError where it does not begin as one of these does, where its header has no end, for which fabio would
    search forever, or is for more pixels than there are bytes.
    """
    with _opened(path) as file:
        head = file.read(HEAD)
        if head.lstrip()[:1] == b"{":
            if re.search(rb"Dim_0*(?:\d{2,}|[4-9])", head.partition(b"}")[0]):  # fabio counts up to it
                raise ValueError("its header declares more than three dimensions")
            return False
        if not head.startswith(b"###CBF"):
            raise ValueError("it is neither EDF nor CBF")
        begin = head.find(BINARY)
        if begin < 0:
            raise ValueError("its header has no end")
        sizes = re.findall(rb"X-Binary-(?:Size-[A-Z][a-z]+-Dimension|Number-of-Elements): *(\d{1,18})", head[:begin])
        pixels = [int(size) for size in sizes]
        length = int(next(iter(re.findall(rb"X-Binary-Size: *(\d{1,18})", head[:begin])), 0))
        if max([math.prod(pixels[-2:]), *pixels]) > length:  # a pixel takes a byte or more
            raise ValueError(f"its header declares more pixels than its {length} bytes can hold")
        if path.suffix.lower() not in PACKED and begin + len(BINARY) + length > path.stat().st_size:
            raise ValueError(f"the file ends before its {length} bytes of pixels do")
    return True


def _check_size(image: Any, path: Path) -> None:
    """Check that an EDF file is as large as its header says: missing bytes would be made up.

    Raises: ValueError where far fewer bytes exist.
    """
    frame = image.get_frame(0)
    size = math.prod(map(int, frame.shape)) * np.dtype(frame.dtype).itemsize
    if size > max(MADE_UP, (1000 if path.suffix.lower() in PACKED else 4) * path.stat().st_size):
        raise ValueError(f"its header declares {size} bytes, and the file has {path.stat().st_size}")


@contextmanager
def _complaints() -> Iterator[None]:
    """Turn errors that fabio merely prints, such as a wrong checksum, into exceptions.

    Raises: ValueError.
    """
    logger, handler = logging.getLogger("fabio"), _Kept()
    propagates = logger.propagate
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
    if handler.texts:
        raise ValueError(handler.texts[0])


class _Kept(logging.Handler):
    """Handler that keeps errors; frames whose data are cut off are found by `FabioStack` itself."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        text = record.getMessage()
        if not text.startswith("Data stream is incomplete"):
            self.texts.append(text)


CUT = "the file ends before they do"


def _compressed(frame: Any) -> bool:
    return _text(frame.header, "COMPRESSION", "Compression") != ""


def _text(header: Any, *keys: str) -> str:
    """Return the first of these keys that a header has, else nothing."""
    return next((str(header[key]) for key in keys if key in header), "")


FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 16: "Q"}
"""Types of the relevant values: bytes, text, unsigned numbers of 2, 4 and 8 bytes."""

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
        """Return the bytes that the file must have."""
        return max((offset + size for offset, size in self.strips), default=0)


class _Cut(Exception):
    """Raised where a file ends before the contents that it declares."""


def pages(file: BinaryIO, size: int) -> Iterator[Page]:
    """Yield pages one after another.

    Raises: `_Cut` where the file ends before one does, ValueError where it is not a TIFF.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise ValueError("it does not begin as a TIFF file")
    (version,) = struct.unpack_from(order + "H", head, 2)
    if version not in (42, 43) or (version == 43 and len(head) < 16):
        raise ValueError(f"TIFF version {version} is not known")
    big = version == 43
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    visited: set[int] = set()
    while at:
        if at in visited:
            raise ValueError("its pages form a cycle")
        visited.add(at)
        tags, at = _tags(file, at, order, big, size)
        yield _page(tags, order)


def _take(file: BinaryIO, at: int, count: int, size: int) -> bytes:
    if at + count > size:
        raise _Cut
    file.seek(at)
    return file.read(count)


def _tags(file: BinaryIO, at: int, order: str, big: bool, size: int) -> tuple[dict[int, Any], int]:
    """Return values by tag, and the offset of the next page."""
    (count,) = struct.unpack(order + ("Q" if big else "H"), _take(file, at, 8 if big else 2, size))
    at += 8 if big else 2
    width = 20 if big else 12
    table = _take(file, at, count * width, size)
    (following,) = struct.unpack(order + ("Q" if big else "I"), _take(file, at + len(table), 8 if big else 4, size))
    values: dict[int, Any] = {}
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
        values[tag] = raw if kind == 2 else struct.unpack(f"{order}{number}{FORMATS[kind]}", raw)
    return values, following


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
    """The pages of a TIFF file, all of the same shape; a last one in which the file was cut is lacking."""

    def __init__(self, name: str, path: Path) -> None:
        self._file = path.open("rb")
        try:
            self._take(name, path)
        except BaseException:
            self._file.close()
            raise

    def _take(self, name: str, path: Path) -> None:
        """Take what the file holds.

        Raises: FileProblem where that is not a stack of frames.
        """
        self._pages, cut = self._look(name, path.stat().st_size)
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
        """Return the pages, and 1 where the file ends before another one.

        Raises: FileProblem where the file cannot be read, or has no whole page.
        """
        whole: list[Page] = []
        try:
            for page in pages(self._file, size):
                whole.append(page)  # noqa: PERF402  those before a cut are kept
        except _Cut:
            if not whole:
                raise FileProblem(f"{name} cannot be read: the file ends before its first page does") from None
            return whole, 1
        except (ValueError, struct.error, OSError, OverflowError, MemoryError) as error:
            raise FileProblem(f"{name} cannot be read: {error}") from error
        if not whole:
            raise FileProblem(f"{name} cannot be read: it has no pages")
        return whole, 0

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
