"""Checksums of stored data, which reveal a flipped bit.

The group ``checksum`` next to the data has, for each dataset that is covered (frames, and the columns about each row),
a dataset (k,) uint64 of the same name. Value k is the XXH3-64 of the bytes that the file holds of rows ``k*rows`` to
``(k+1)*rows - 1``, with ``rows`` an attribute: of a dataset in chunks a chunk as it is stored, compressed and padded;
of one without chunks the values of these rows, little-endian. A chunk that may be written again has none yet, so that
no value is ever wrong: not in a file that is being written, and not after a kill.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from lima2cli.files.compression import Encoder, Stored
from lima2cli.files.tree import fixed, group

GROUP = "checksum"
ALGORITHM = "XXH3-64"

READ_BYTES = 8 << 20
"""Number of rows, of a dataset without chunks, that are read together."""

READ_ROWS = 4096
"""Rows of a column that a value covers."""

RowSpan = tuple[int, int]
"""First row, and the row after the last."""


def summed(encode: Encoder) -> Encoder:
    """Return an encoder that also takes the checksum of what it makes, while that is in the cache."""

    def encoded(chunk: NDArray[Any]) -> Stored:
        stored = encode(chunk)
        return stored._replace(checksum=xxh3_64_intdigest(stored.data))

    return encoded


def row_sums(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the checksums (n,) uint64 of the rows of an array (n, ...), C-contiguous."""
    return np.fromiter((xxh3_64_intdigest(row) for row in rows), np.uint64, len(rows))


def make_sums(
    parent: Any, datasets: Mapping[str, Any], count: int | None = None, rows: int = READ_ROWS
) -> dict[str, Any]:
    """Make a dataset of checksums for each of the named datasets; of those without chunks a value covers ``rows``.

    It grows, or has ``count`` values.
    """
    made = parent[GROUP] if GROUP in parent else group(parent, GROUP, "NXcollection")
    made.attrs["algorithm"] = fixed(ALGORITHM)
    sums = {}
    for name, dataset in datasets.items():
        each = dataset.chunks[0] if dataset.chunks else rows
        shape: dict[str, Any] = {"shape": (0,), "maxshape": (None,), "chunks": (1024 if each < READ_ROWS else 64,)}
        if count is not None:
            shape = {"shape": (count,)}
        sums[name] = values = made.create_dataset(name, dtype="uint64", **shape)
        values.attrs["rows"] = each
        values.attrs["address"] = _address(dataset)
    return sums


def _address(dataset: Any) -> int:
    """Return where the header of a dataset lies in its file: elsewhere in a copy that a program has repacked."""
    import h5py

    return int(h5py.h5o.get_info(dataset.id).addr)


class ChunkSums:
    """Checksums of the chunks of one dataset, in their order; in memory until they are written."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self._written = 0
        self._pending: list[int] = []

    def put(self, chunk: int, value: int | None) -> None:
        """Note the checksum of the chunk after the last, or of the last, which was written again."""
        if value is not None:
            self._pending[chunk - self._written :] = [value]

    def seal(self, dataset: Any, chunks: int) -> None:
        """Note the checksums of all chunks below ``chunks`` of a dataset that was flushed, as the file holds them."""
        for chunk in range(self._written + len(self._pending), chunks):
            self.put(chunk, xxh3_64_intdigest(_stored_chunk(dataset, chunk)))

    def write(self, chunks: int | None = None) -> None:
        """Write the checksums of the chunks below ``chunks``, which are not written again."""
        count = len(self._pending) if chunks is None else min(len(self._pending), chunks - self._written)
        if count <= 0:
            return
        self._values.resize((self._written + count,))
        self._values[self._written :] = np.array(self._pending[:count], np.uint64)
        self._values.flush()  # values, then the length: the library writes lengths by itself, and a kill leaves zeros
        del self._pending[:count]
        self._written += count


class GrowingSums:
    """Checksums of datasets that grow in chunks, each of a chunk as the file holds it once it is full and flushed.

    ``sums`` as of `make_sums`, ``datasets`` by the same names.
    """

    def __init__(self, sums: Mapping[str, Any], datasets: Mapping[str, Any]) -> None:
        self._sums = [(ChunkSums(values), datasets[name]) for name, values in sums.items()]

    def write(self, *, last: bool = False) -> None:
        """Write the checksums of all full chunks, at the end also of the last; the file has been flushed."""
        for sums, dataset in self._sums:
            sums.seal(dataset, (len(dataset) + (dataset.chunks[0] - 1 if last else 0)) // dataset.chunks[0])
            sums.write()


def cover(parent: Any, datasets: Mapping[str, Any]) -> None:
    """Take the checksums of complete datasets, as the file holds them, into ``parent``."""
    for name, values in make_sums(parent, datasets).items():
        kept = SummedDataset(datasets[name], values)
        values.resize((-(-len(datasets[name]) // kept.rows),))
        for first, sums in kept.computed(0, len(values)):
            values[first : first + len(sums)] = sums


def cut_sums(parent: Any, name: str, rows: int) -> None:
    """Remove the checksums of chunks that are not whole below row ``rows``: a chunk that is cut is written again."""
    values = parent.get(f"{GROUP}/{name}")
    if values is not None:
        values.resize((min(len(values), rows // int(values.attrs["rows"])),))


class SummedDataset:
    """A dataset with its checksums.

    rows     rows that a checksum covers
    covered  rows that have one, from row 0 on
    """

    def __init__(self, dataset: Any, values: Any) -> None:
        self._dataset, self._values = dataset, values
        self.rows = int(values.attrs["rows"])
        count = len(values)
        if values.maxshape[0] is None:  # it grows: a power failure may leave room for values that were never written
            taken = np.flatnonzero(values[()])
            count = int(taken[-1]) + 1 if len(taken) else 0
        self.covered = min(len(dataset), count * self.rows)

    @classmethod
    def of(cls, dataset: Any, parent: Any, name: str = "data") -> "SummedDataset | None":
        """Return the dataset ``name`` by the group ``checksum`` of ``parent``; None where that has none of it."""
        import h5py

        values = parent.get(f"{GROUP}/{name}") if isinstance(parent, h5py.Group) else None
        if not isinstance(values, h5py.Dataset) or values.dtype != np.uint64 or "rows" not in values.attrs:
            return None
        if values.attrs.get("address") != _address(dataset):
            return None
        algorithm = values.parent.attrs.get("algorithm", b"")
        if (algorithm if isinstance(algorithm, bytes) else str(algorithm).encode()) != ALGORITHM.encode():
            return None
        summed = cls(dataset, values)
        return summed if summed.rows == (dataset.chunks[0] if dataset.chunks else summed.rows) else None

    def damaged(self, first: int, last: int) -> Iterator[RowSpan]:
        """Yield spans of rows from ``first`` to ``last - 1``, or slightly more, that differ from what was written."""
        last = min(last, self.covered)
        if first >= last:
            return
        begin, end = first // self.rows, -(-last // self.rows)
        for piece, sums in self.computed(begin, end):
            for bad in np.flatnonzero(sums != self._values[piece : piece + len(sums)]).tolist():
                yield (piece + bad) * self.rows, min(len(self._dataset), (piece + bad + 1) * self.rows)

    def computed(self, first: int, last: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield checksums of the stored bytes: the number of the first of some, and these (n,) uint64."""
        data = self._dataset
        if data.chunks:
            for chunk in range(first, last):
                yield chunk, np.array([xxh3_64_intdigest(_stored_chunk(data, chunk))], np.uint64)
            return
        together = max(1, READ_BYTES // max(1, self.rows * data.dtype.itemsize * prod(data.shape[1:])))
        for piece in range(first, last, together):
            end = min(last, piece + together)
            held = np.ascontiguousarray(data[piece * self.rows : end * self.rows])
            values = [xxh3_64_intdigest(held[at : at + self.rows].data) for at in range(0, len(held), self.rows)]
            yield piece, np.array(values, np.uint64)


def _stored_chunk(dataset: Any, chunk: int) -> bytes:
    """Return the bytes of a chunk, as the file holds them; nothing where that can't be read."""
    try:
        offset = (chunk * dataset.chunks[0], *(0,) * (dataset.ndim - 1))
        return bytes(dataset.id.read_direct_chunk(offset)[1])
    except (OSError, RuntimeError, ValueError):
        return b""
