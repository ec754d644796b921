"""Node `io_hdf5`: saves frames in HDF5 files, unchanged.

Each receiver writes a sequence of files of its own (``layout: files``), and a master shows them all as one dataset;
of partial frames it puts the parts together (``layout: virtual`` states this; the result is the same). With
``layout: common`` all receivers write one plain file, in large blocks by collective MPI-IO: uncompressed, and a known
number of dense, whole frames from which no `filter` has taken any. A row that was lost holds the fill value.

Masked, NaN and saturated pixels are saved as they are; the static mask is saved with them as NeXus pixel_mask, and
invalid values of single frames are noted as attributes of the NXdetector (``invalid_values``, ``invalid_below``,
``invalid_above``; a lower limit also as underload_value, an upper one as saturation_value where no other is known). Any
dtype of frames can be saved. ``frames_per_chunk: auto`` chooses chunks of about 1 MiB uncompressed, at least one frame,
and not more than a file holds or arrive in half a second.

Where the detector has compressed frames by bitshuffle-LZ4 (``dectris``), and no node has changed them, a chunk is one
frame as the detector has sent it: nothing is decompressed, and nothing compressed. `lima2 plan` says so. A frame that
lacks a part is missing; other damage is found when it is read, unless other nodes read the flow, too.

Files hold a checksum of what they store of each chunk, which `lima2 inspect --verify` and `replay` check;
``checksum: off`` saves the one or two percent that it costs.

Sparse frames (of `sparsify`) are saved as compressed sparse rows, in chunks that ``frames_per_chunk`` does not change.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lima2cli.declare import Choice, Either, Integer, param
from lima2cli.errors import NodeMisuse
from lima2cli.files.channel import Channel
from lima2cli.frames import FrameSpec, SparseSpec
from lima2cli.nodes.base import Inputs, Sink, Writer, node

if TYPE_CHECKING:
    from lima2cli.files.common_writer import CommonWriter
    from lima2cli.transport.base import CollectiveGroup


@node("io_hdf5")
class IoHdf5(Sink):
    """Saves frames in HDF5 files."""

    early: ClassVar[bool] = True
    sparse: ClassVar[bool] = True
    parts: ClassVar[bool] = True

    compression: str | None = param(
        "How chunks are compressed; bslz4 = bitshuffle with LZ4. Default: bslz4, none for `layout: common`.",
        Choice(("bslz4", "none", "gzip", "lz4", "zstd", "blosc")),
        None,
    )
    frames_per_file: int = param("Frames of each file; 0 = all that a receiver gets.", Integer(0), 0)
    frames_per_chunk: Any = param(
        "Frames of each chunk; auto = about 1 MiB.", Either((Choice(("auto",)), Integer(1))), "auto"
    )
    layout: str = param(
        "files: each receiver its own sequence, and a master that shows all; common: all receivers write one file; "
        "virtual: parts of frames, put together by the master.",
        Choice(("files", "common", "virtual")),
        "files",
    )
    checksum: str = param(
        "xxh3: checksums of the stored bytes of each chunk (`layout: common`: of each frame), so that "
        "damage is detected.",
        Choice(("xxh3", "off")),
        "xxh3",
    )

    @property
    def together(self) -> bool:
        """See `Sink.together`."""
        return self.layout == "common"

    @property
    def assembles(self) -> bool:
        """See `Sink.assembles`."""
        return self.layout == "virtual"

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Sink.infer`."""
        spec = inputs.spec
        if self.together:
            self._check_common(spec)
        if self.frames_per_file and self.frames_per_chunk != "auto" and self.frames_per_chunk > self.frames_per_file:
            message = f"a chunk of {self.frames_per_chunk} frames in files of {self.frames_per_file}"
            raise NodeMisuse("chunk-too-large", message, ("frames_per_chunk",), f"at most {self.frames_per_file}")
        return spec

    def _check_common(self, spec: FrameSpec) -> None:
        """Refuse compression and chunks in a plain dataset."""
        if self.compression not in (None, "none"):
            help = "compression: none, or leave it out"
            raise NodeMisuse("layout-common", "a common file is not compressed", ("compression",), help)
        for key, given in (("frames_per_file", self.frames_per_file), ("frames_per_chunk", self.frames_per_chunk)):
            if given not in (0, "auto"):
                message = f"a common file is one plain dataset: {key} has no effect"
                raise NodeMisuse("layout-common", message, (key,), "leave it out")
        if isinstance(spec, SparseSpec):
            message = "a common file holds dense frames, these are sparse"
            raise NodeMisuse("layout-common", message, ("layout",), "layout: files")

    @property
    def _compression(self) -> str:
        return self.compression or ("none" if self.together else "bslz4")

    def as_sent(self, inputs: Inputs) -> bool:
        """See `Node.as_sent`: each frame is a chunk."""
        return self._keeps(inputs.spec)

    def _keeps(self, spec: FrameSpec) -> bool:
        one = self.frames_per_chunk in ("auto", 1)
        return spec.packed == self._compression and one and self.layout == "files"

    def channel(self, spec: FrameSpec, period_s: float | None) -> Mapping[str, Any]:
        """See `Sink.channel`; ``frames_per_chunk`` is a number here."""
        from lima2cli.files.frame_writer import frames_per_chunk_auto

        chunk, compression, packed = self.frames_per_chunk, self._compression, self._keeps(spec)
        if packed:
            chunk = 1
        elif chunk == "auto":
            chunk = frames_per_chunk_auto(*spec.shape, np.dtype(spec.dtype).itemsize, period_s)
            chunk = min(chunk, self.frames_per_file or chunk)
        return {
            "layout": self.layout,
            "compression": compression,
            "frames_per_file": self.frames_per_file,
            "frames_per_chunk": int(chunk),
            "checksum": self.checksum != "off",
            "packed": packed,
        }

    def check(self, channel: Channel) -> NodeMisuse | None:
        """See `Sink.check`."""
        return check_chunk(channel) or check_common(channel)

    def open(self, channel: Channel, directory: str, receiver: int, start_ns: int | None) -> Writer:
        """See `Sink.open`; channels of ``layout: common`` are opened by `open_together`."""
        if channel.layout == "common":
            raise ValueError(f"{channel.node} writes one file with other receivers")
        if channel.sparse:
            from lima2cli.files.sparse_writer import SparseWriter

            return SparseWriter(channel, directory, receiver, start_ns)
        from lima2cli.files.frame_writer import FrameWriter  # brings in h5py, which no compiler needs

        return FrameWriter(channel, directory, receiver, start_ns)

    def open_together(
        self, channel: Channel, directory: str, receiver: int, start_ns: int, collective: "CollectiveGroup"
    ) -> "CommonWriter":
        """See `Sink.open_together`."""
        from lima2cli.files.common_writer import CommonWriter

        return CommonWriter(channel, directory, receiver, start_ns, collective)


LARGEST_CHUNK = 1 << 32
"""Bytes that a chunk of HDF5 is smaller than."""


def check_chunk(channel: Channel) -> NodeMisuse | None:
    """Return what keeps the chunks of a channel from being chunks of HDF5."""
    frame = channel.height * channel.width * np.dtype(channel.dtype).itemsize
    size = frame * channel.frames_per_chunk
    if channel.layout == "common" or channel.sparse or size < LARGEST_CHUNK:
        return None
    most = (LARGEST_CHUNK - 1) // frame
    message = f"a chunk of {channel.frames_per_chunk} frames of {frame} bytes is too large: HDF5 takes less than 4 GiB"
    help = f"at most {most} frames_per_chunk" if most else "a smaller part of the image: `roi_flip_rot` before it"
    return NodeMisuse("chunk-too-large", message, ("frames_per_chunk",), help)


def check_common(channel: Channel) -> NodeMisuse | None:
    """Return what keeps a channel of ``layout: common`` from being one dataset, laid out before the run."""
    if channel.layout != "common":
        return None
    files = "`files` writes each receiver's frames to files of its own, shown as one dataset by the master"
    if channel.selected is None:
        help = "acquisition.frames, or slices.count of the flow; " + files
        return NodeMisuse("layout-common", "a common file needs a known number of frames", ("layout",), help)
    if channel.filtered:
        message = "how many frames a filter lets pass is not known when the common file is made"
        return NodeMisuse("layout-common", message, ("layout",), files)
    if channel.places:
        help = "layout: virtual, or `reconstruction` before it"
        return NodeMisuse("layout-common", "a common file holds whole frames, these are parts", ("layout",), help)
    return None
