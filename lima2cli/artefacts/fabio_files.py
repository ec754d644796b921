"""EDF and CBF, read by fabio where it is installed: frames, and what a header says of their pixels."""

import bz2
import gzip
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from lima2cli.artefacts.frame_files import OpenStack, unreadable
from lima2cli.artefacts.lack import lack_of
from lima2cli.errors import FileProblem
from lima2cli.spec import Array, Invalid

PILATUS = (-2.0, -1.0)
"""Pixels that are defective, and gaps between modules."""

PACKED = (".gz", ".bz2")

HEAD = 1 << 20
"""Bytes in which a header ends."""

BINARY = b"\x0c\x1a\x04\xd5"
"""What is between the header and the pixels of a CBF file."""

MADE_UP = 16 << 20
"""Bytes of a frame that may be missing from its file: it is then reported as cut off."""


class FabioStack(OpenStack):
    """An image file that fabio reads, with one or several frames of the same shape."""

    def __init__(self, name: str, path: Path) -> None:
        try:
            import fabio
        except ImportError:
            raise FileProblem(f"{name}: reading {path.suffix} files needs fabio: `pip install fabio`") from None
        try:
            cbf = _check_head(path)
            with _complaints():
                self._image = _open_cbf(path) if cbf else fabio.open(str(path))
                _check_size(self._image, path)
                first: Array = np.asarray(self._image.get_frame(0).data)
                count = int(self._image.nframes)
        except Exception as error:
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
        """Frames that are not whole, (count,) bool, one more where the file ends in a header or in bytes of no frame.

        fabio fills them with zeros.
        """
        from fabio.edfimage import EdfImage

        if not isinstance(self._image, EdfImage):
            return np.zeros(count, bool)
        frames = [self._image.get_frame(number) for number in range(count)]
        for number, frame in enumerate(frames):
            if frame.blobsize > frame.size and not _compressed(frame):
                raise FileProblem(
                    f"{name}: the header of frame {number} is for {frame.size} bytes, and {frame.blobsize} follow it",
                    "file-shape",
                    "several frames behind one header need Dim_3, which says how many",
                )
        length = path.stat().st_size if path.suffix.lower() == ".edf" else None
        rows = np.array([length is not None and frame.start + frame.blobsize > length for frame in frames], bool)
        if self._image.incomplete_file and length is None:  # of what is packed nobody knows the length
            np.asarray(frames[-1].data)
            rows[-1] = bool(frames[-1].incomplete_data)
        more = bool(self._image.incomplete_file) and not rows.any()
        return np.append(rows, True) if more else rows

    def _cut_together(self, path: Path, count: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Frames behind one header that are not whole, (count,) bool; of a packed file all, where one is not."""
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
                found = self._image.get_frame(int(number))
                data = found.data
            if getattr(found, "incomplete_data", False):
                raise FileProblem(f"{self.name} cannot be read: frame {number} is cut off")
            if data.shape != frame.shape or data.dtype != out.dtype:
                raise FileProblem(f"{self.name}: frame {number} differs from frame 0 in shape or dtype", "file-shape")
            frame[:] = data
        return out

    def close(self) -> None:
        """See `OpenStack`."""
        self._image.close()


def _opened(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked."""
    if path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    return bz2.open(path) if path.suffix.lower() == ".bz2" else path.open("rb")


class _Ending:
    """A stream that raises ValueError where it has ended: fabio would read on for ever."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.name = stream, stream.name

    def read(self, size: int) -> bytes:
        """The next bytes, at least one."""
        found: bytes = self._stream.read(size)
        if not found:
            raise ValueError("its header has no end")
        return found


def _open_cbf(path: Path) -> Any:
    from fabio.cbfimage import CbfImage

    image = CbfImage()
    read_header = image._read_binary_section_header
    image._read_binary_section_header = lambda stream: read_header(_Ending(stream))
    return image.read(str(path))


def _check_head(path: Path) -> bool:
    """Return whether a file is CBF, not EDF.

    Raises ValueError where it does not begin as one of these does, where its header has no end, for which fabio would
    look for ever, or is for more pixels than there are bytes.
    """
    with _opened(path) as file:
        head = file.read(HEAD)
        if head.lstrip()[:1] == b"{":
            if re.search(rb"Dim_0*(?:\d{2,}|[4-9])", head.partition(b"}")[0]):  # fabio counts up to it
                raise ValueError("its header is for more than three dimensions")
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
            raise ValueError(f"its header is for more pixels than its {length} bytes can hold")
        if path.suffix.lower() not in PACKED and begin + len(BINARY) + length > path.stat().st_size:
            raise ValueError(f"the file ends before its {length} bytes of pixels do")
    return True


def _check_size(image: Any, path: Path) -> None:
    """Raise ValueError where the header of an EDF file is for far more bytes than there are: they would be made up."""
    frame = image.get_frame(0)
    size = math.prod(map(int, frame.shape)) * np.dtype(frame.dtype).itemsize
    if size > max(MADE_UP, (1000 if path.suffix.lower() in PACKED else 4) * path.stat().st_size):
        raise ValueError(f"its header is for {size} bytes, and the file has {path.stat().st_size}")


@contextmanager
def _complaints() -> Iterator[None]:
    """Raise ValueError for what fabio merely prints as an error, such as a checksum that is wrong."""
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
    """Keeps errors; of data that are cut off `FabioStack` itself looks which frames they are."""

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
    """The first of these that a header has, else nothing."""
    return next((str(header[key]) for key in keys if key in header), "")
