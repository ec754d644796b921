"""Node `io_hdf5`: saves frames in HDF5 files, unchanged.

Each receiver writes a sequence of files of its own (``layout: files``), and a master shows them all as one dataset.
Masked, NaN and saturated pixels are saved as they are; the static mask is saved beside them as NeXus pixel_mask. Any
dtype of frames goes. ``frames_per_chunk: auto`` chooses chunks of about 1 MiB uncompressed, at least one frame, and not
more than a file holds or come in half a second.

Sparse frames (of `sparsify`) are saved as compressed sparse rows, in chunks that ``frames_per_chunk`` does not change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lima2cli.artefacts.channel import Channel
from lima2cli.declare import Choice, Either, Integer, param
from lima2cli.errors import Misfit
from lima2cli.nodes.base import Sink, Writer
from lima2cli.spec import Files, FrameSpec


@dataclass(frozen=True, kw_only=True)
class IoHdf5(Sink):
    """Saves frames in HDF5 files."""

    kind: ClassVar[str] = "io_hdf5"
    sparse: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    compression: str = param(
        "How chunks are compressed; bslz4 = bitshuffle with LZ4.",
        Choice(("bslz4", "none", "gzip", "lz4", "zstd", "blosc")),
        "bslz4",
    )
    frames_per_file: int = param("Frames of each file; 0 = all that a receiver gets.", Integer(0), 0)
    frames_per_chunk: Any = param(
        "Frames of each chunk; auto = about 1 MiB.", Either((Choice(("auto",)), Integer(1))), "auto"
    )
    layout: str = param(
        "files: each receiver its own sequence, and a master; common and virtual are not available yet.",
        Choice(("files", "common", "virtual")),
        "files",
    )

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Sink.infer`."""
        if self.layout != "files":
            help = "`files` writes the same frames, each receiver its own files, shown as one dataset by the master"
            raise Misfit("not-available", f"layout `{self.layout}` is not available yet", ("layout",), help)
        if self.frames_per_file and self.frames_per_chunk != "auto" and self.frames_per_chunk > self.frames_per_file:
            message = f"a chunk of {self.frames_per_chunk} frames in files of {self.frames_per_file}"
            raise Misfit("chunk-too-large", message, ("frames_per_chunk",), f"at most {self.frames_per_file}")
        return spec

    def channel(self, spec: FrameSpec, period_s: float | None) -> Mapping[str, Any]:
        """See `Sink.channel`; ``frames_per_chunk`` is a number here."""
        from lima2cli.artefacts.frames import frames_per_chunk_auto

        chunk = self.frames_per_chunk
        if chunk == "auto":
            chunk = frames_per_chunk_auto(*spec.shape, np.dtype(spec.dtype).itemsize, period_s)
            chunk = min(chunk, self.frames_per_file or chunk)
        return {
            "compression": self.compression,
            "frames_per_file": self.frames_per_file,
            "frames_per_chunk": int(chunk),
        }

    def open(self, channel: Channel, directory: str, receiver: int, start_ns: int) -> Writer:
        """See `Sink.open`."""
        if channel.sparse:
            from lima2cli.artefacts.sparse_files import SparseWriter

            return SparseWriter(channel, directory, receiver, start_ns)
        from lima2cli.artefacts.frames import FrameWriter  # brings in h5py, which no compiler needs

        return FrameWriter(channel, directory, receiver, start_ns)
