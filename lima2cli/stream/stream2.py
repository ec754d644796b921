"""DECTRIS Stream V2: messages of a series of images, one CBOR item each.

A series is a `start`, an `image` for each exposure with the pixels of all channels, and an `end`. Pixels are typed
arrays (RFC 8746), compressed or not (CBOR tag 56500). The format is that of github.com/dectris/documentation,
`stream_v2/README.md` and `cbor/dectris-compression-tag.md`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.errors import StreamProblem
from lima2cli.files.compression import unpack

MAGIC = b"\xd9\xd9\xf7"
"""Tag 55799 of self-described CBOR, with which each message begins."""

MULTI_DIM, COMPRESSED, DATE = 40, 56500, 0
"""Tags of an array of several dimensions, of compressed bytes, and of a time as text (RFC 3339)."""

TYPES: Mapping[int, str] = {
    64: "|u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "|u1", 69: "<u2", 70: "<u4", 71: "<u8",
    72: "|i1", 73: ">i2", 74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8",
    81: ">f4", 82: ">f8", 85: "<f4", 86: "<f8",
}  # fmt: skip
"""Tags of typed arrays, with the numpy dtype of their elements (RFC 8746)."""

TAGS: Mapping[str, int] = {
    "uint8": 64, "uint16": 69, "uint32": 70, "uint64": 71, "int8": 72, "int16": 77, "int32": 78, "int64": 79,
    "float32": 85, "float64": 86,
}  # fmt: skip
"""Tags of little-endian arrays, by numpy name."""

BLOCK_BYTES = 8192
"""Bytes that bitshuffle works on at once: what all detectors send."""


@dataclass(frozen=True)
class Pixels:
    """The pixels of one channel of an image, as they travel.

    shape        (height, width);  dtype  numpy's, with the byte order
    compression  ``none``, ``bslz4`` or ``lz4``
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    compression: str
    data: bytes

    def read(self, out: NDArray[Any]) -> None:
        """Decompress them into an array (height, width), C-contiguous, of the same shape and dtype but for byte order.

        Releases the interpreter's lock while it works.

        Raises:
            StreamProblem: they are damaged, or not of this shape.
        """
        if out.shape != self.shape or out.dtype != self.dtype.newbyteorder("="):
            raise StreamProblem(f"{self} where {out.dtype} {out.shape[1]} x {out.shape[0]} are expected")
        try:
            unpack(self.compression, self.data, out)
        except ValueError as error:
            raise StreamProblem(f"pixels are damaged: {error}") from error
        if not self.dtype.isnative:
            out.byteswap(inplace=True)

    def packed(self, most: int) -> tuple[str, bytes]:
        """Return compression and bytes as `Packed` has them, at most so many: else the pixels, which need fewer.

        Raises:
            StreamProblem: the pixels are damaged, where they have to be unpacked.
        """
        if self.dtype.isnative and len(self.data) <= most:
            return self.compression, self.data
        out = np.empty(self.shape, self.dtype.newbyteorder("="))
        self.read(out)
        return "none", out.tobytes()

    def __str__(self) -> str:
        return f"{self.dtype.name} {self.shape[1]} x {self.shape[0]}"


@dataclass(frozen=True)
class Start:
    """The beginning of a series; ``fields`` are all that it has. None: it does not say.

    dtype   numpy name of the pixels;  images  how many there will be
    """

    series_id: int
    channels: tuple[str, ...]
    width: int
    height: int
    dtype: str | None
    images: int | None
    fields: Mapping[str, Any] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Image:
    """One exposure: number, time of its start (ns since the epoch, None: not known), and pixels by channel."""

    series_id: int
    number: int
    time_ns: int | None
    pixels: Mapping[str, Pixels] = field(repr=False)


@dataclass(frozen=True)
class End:
    """The end of a series."""

    series_id: int


Message = Start | Image | End


def read(message: bytes) -> Message | None:
    """Return what a message says; None for kinds that others have added.

    Raises:
        StreamProblem: it is not a message of Stream V2, or lacks what it needs.
    """
    import cbor2

    if message[:3] != MAGIC:
        raise StreamProblem("a message is not of Stream V2: it does not begin with D9 D9 F7")
    try:
        content = cbor2.loads(message)
    except Exception as error:  # whatever a decoder raises for bytes that are no CBOR
        raise StreamProblem(f"a message can't be read: {error}") from error
    if not isinstance(content, Mapping):
        raise StreamProblem("a message is not a map")
    kind = _get(content, "type", str)
    if kind == "start":
        return _start(content)
    if kind == "image":
        return Image(
            _get(content, "series_id", int), _get(content, "image_id", int), _time_ns(content),
            dict(channels_of(_get(content, "data", Mapping))),
        )  # fmt: skip
    return End(_get(content, "series_id", int)) if kind == "end" else None


def _start(content: Mapping[str, Any]) -> Start:
    channels, images = content.get("channels", ()), content.get("number_of_images")
    if not isinstance(channels, Sequence) or not all(isinstance(one, str) for one in channels):
        raise StreamProblem("`channels` of the start message are not a list of names")
    dtype = content.get("image_dtype")
    return Start(
        _get(content, "series_id", int), tuple(channels),
        _get(content, "image_size_x", int), _get(content, "image_size_y", int),
        dtype if isinstance(dtype, str) else None, images if isinstance(images, int) else None, content,
    )  # fmt: skip


def _get(content: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise StreamProblem(f"a message lacks `{key}`, or it is not of its type")
    return value


def _time_ns(content: Mapping[str, Any]) -> int | None:
    """Return the start of an exposure: that of the series, and the time since then, which is a rational number."""
    date, since = content.get("series_date"), content.get("start_time")
    if not isinstance(date, datetime) or date.tzinfo is None or not isinstance(since, Sequence) or len(since) != 2:
        return None
    above, below = since
    if not isinstance(above, int) or not isinstance(below, int) or below <= 0:
        return None
    return round(date.timestamp() * 1e6) * 1000 + above * 10**9 // below


def channels_of(data: Mapping[str, Any]) -> Iterator[tuple[str, Pixels]]:
    """Yield the arrays of a mapping by channel, as they travel.

    Raises:
        StreamProblem: one is not of the format.
    """
    for name, value in data.items():
        tag, content = _tagged(value)
        if not isinstance(name, str) or tag != MULTI_DIM or not isinstance(content, Sequence) or len(content) != 2:
            raise StreamProblem("pixels are not an array of two dimensions")
        shape, array = content
        if not isinstance(shape, Sequence) or len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise StreamProblem("pixels are not an array of two dimensions")
        kind, data = _tagged(array)
        if kind not in TYPES:
            raise StreamProblem(f"pixels of an unknown type, CBOR tag {kind}")
        compression = "none"
        if not isinstance(data, bytes):
            packed, parts = _tagged(data)
            if packed != COMPRESSED or not isinstance(parts, Sequence) or len(parts) != 3:
                raise StreamProblem("pixels are neither bytes nor compressed bytes")
            compression, _, data = parts
        if compression not in ("none", "bslz4", "lz4") or not isinstance(data, bytes):
            raise StreamProblem(f"pixels are compressed by {compression!r}, which is not supported: bslz4, lz4, none")
        yield name, Pixels((shape[0], shape[1]), np.dtype(TYPES[kind]), compression, data)


def _tagged(value: Any) -> tuple[int, Any]:
    import cbor2

    return (value.tag, value.value) if isinstance(value, cbor2.CBORTag) else (-1, value)


def start_message(series_id: int, unique_id: str, fields: Mapping[str, Any]) -> bytes:
    """Return the message that begins a series. ``fields``: what else is known, by the names of the format."""
    return _written({"type": "start", "series_id": series_id, "series_unique_id": unique_id} | dict(fields))


def end_message(series_id: int, unique_id: str, lost: int) -> bytes:
    """Return the message that ends a series; how many images were ``lost`` is a field of ours, which others skip."""
    return _written({"type": "end", "series_id": series_id, "series_unique_id": unique_id, "lost": lost})


def image_message(
    series_id: int,
    unique_id: str,
    number: int,
    times_ns: tuple[int, int],
    channels: Mapping[str, tuple[str, tuple[int, int], bytes | memoryview, bool]],
) -> bytes:
    """Return the message of an image; the pixels are copied once.

    times_ns  start of the series, and of the exposure, ns since the epoch
    channels  by name: numpy name of the dtype, shape, the pixels as they travel, and whether they are compressed
    """
    import cbor2

    data, last = {}, len(channels) - 1
    pixels: bytes | memoryview = b""
    for place, (name, (dtype, (height, width), pixels, compressed)) in enumerate(channels.items()):
        size, sent = np.dtype(dtype).itemsize, b"" if place == last else bytes(pixels)
        packed = cbor2.CBORTag(COMPRESSED, ["bslz4", size, sent]) if compressed else sent
        data[name] = cbor2.CBORTag(MULTI_DIM, [[height, width], cbor2.CBORTag(TAGS[dtype], packed)])
    series_ns, begun_ns = times_ns
    head = _written(
        {
            "type": "image", "series_id": series_id, "series_unique_id": unique_id, "image_id": number,
            "series_date": date_of(series_ns), "start_time": [max(0, begun_ns - series_ns), 10**9], "data": data,
        }
    )  # fmt: skip
    # the head ends with an empty byte string (0x40), in whose place the pixels are put: a byte string of 4-byte length
    return b"".join((head[:-1], b"\x5a", len(pixels).to_bytes(4, "big"), pixels))


def array_of(pixels: NDArray[Any]) -> Any:
    """Return an array (height, width) as messages have it, not compressed."""
    import cbor2

    return cbor2.CBORTag(MULTI_DIM, [list(pixels.shape), cbor2.CBORTag(TAGS[pixels.dtype.name], pixels.tobytes())])


def date_of(time_ns: int) -> Any:
    """Return a time, ns since the epoch, as messages have it: text of RFC 3339 in microseconds."""
    import cbor2

    seconds, rest = divmod(time_ns, 10**9)
    text = datetime.fromtimestamp(seconds).astimezone().replace(microsecond=rest // 1000).isoformat()
    return cbor2.CBORTag(DATE, text)


def _written(content: Mapping[str, Any]) -> bytes:
    import cbor2

    return MAGIC + cbor2.dumps(content)
