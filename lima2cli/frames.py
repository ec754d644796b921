"""Descriptions of detectors and of frames along an edge of the graph, and blocks of frames."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.geometry import Rect
from lima2cli.view import View

Array = NDArray[Any]

DTYPES = ("uint16", "uint8", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64")
"""numpy names of the pixel types that exist."""

MOST_PIXELS = 1 << 27
"""Most pixels of a frame: masks and calibrations of as many are held when a pipeline is checked."""


@dataclass(frozen=True)
class Invalid:
    """Values that single pixels hold where nothing was measured; NaN is one always, in frames of floats.

    values  these ones
    below   all that are less, None = no such limit
    above   all that are greater, None = no such limit
    """

    values: tuple[float, ...] = ()
    below: float | None = None
    above: float | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """An independent frame stream of a detector.

    dtype   numpy name of the pixels, e.g. ``uint16``
    bits    significant bits, at most those of the dtype
    frames  how many exist (recorded data), None where the source has no end
    threshold_ev  photons of less energy are not counted, in eV; None where there is no such thing
    invalid  values of pixels that are not measurements
    packed   how frames come that are compressed by the detector: ``bslz4``; empty where they do not. Such a detector
             is a `SendsPacked`
    """

    name: str
    index: int
    dtype: str
    bits: int
    frames: int | None = None
    threshold_ev: float | None = None
    invalid: Invalid = Invalid()
    packed: str = ""

    @property
    def pixel_bytes(self) -> int:
        """Return the bytes of one pixel."""
        return np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class DetectorInfo:
    """Static information and capabilities of a detector that pipelines are compiled against.

    modules      their rectangles in the image, numbered from 0; of area 0 where the detector's own ROI leaves one out
    channels     data channels per module, None = unlimited
    gap_value    stored in pixels that no module covers
    can_wait     True if the source stands still until receivers have released memory (credits)
    pixel_size   (x, y) in metres, None if unknown
    saturation   pixels at or above it count as saturated, None if unknown
    versions     of hardware, firmware and software, by what they are of
    can_fail     True if a module may fail to give its part of a frame (see `Detector.missing`)
    operated     what the detector's own operations (binning, ROI, flip, accumulation) are applied to; None without any
    pixel_mask   reference of an image of the detector's own pixels (0 = good, as NeXus has it), for `Files.image`;
                 None = no pixel is known to be defective
    skips        True if missing frames are left out because the pipeline asks for that: not losses
    taken        sources of its description that the pipeline does not name, a line each; `plan` shows them
    doubts       facts that it could not use, a sentence each: warnings
    shows        of recorded frames: how the image shows the sensor that they were recorded with, as far as the file
                 says; None = it is a sensor
    """

    kind: str
    name: str
    width: int
    height: int
    modules: tuple[Rect, ...]
    datasets: tuple[DatasetInfo, ...]
    channels: int | None = None
    gap_value: float = 0
    can_wait: bool = False
    pixel_size: tuple[float, float] | None = None
    saturation: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    can_fail: bool = False
    operated: "Operated | None" = None
    pixel_mask: str | None = None
    skips: bool = False
    taken: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    shows: View | None = None

    @property
    def image(self) -> Rect:
        """Return the whole image as a rectangle."""
        return Rect(0, 0, self.width, self.height)

    @property
    def base(self) -> View:
        """Return the view of the sensor that the image shows, after all operations so far."""
        shown = self.sensor.shows or View(self.sensor.image)
        return shown if self.operated is None else shown.then(self.operated.view)

    @property
    def sensor(self) -> "DetectorInfo":
        """Return the detector without its own operations: the result of `DetectorConfig.describe`."""
        return self if self.operated is None else self.operated.sensor

    def dataset(self, name: str) -> DatasetInfo:
        """Return the dataset of that name.

        Raises: KeyError if there is none.
        """
        for item in self.datasets:
            if item.name == name:
                return item
        raise KeyError(name)


@dataclass(frozen=True)
class Operated:
    """The base of a detector's own operations.

    sensor     the detector without them
    view       the part of the sensor that frames show, and how
    exposures  summed to each frame
    """

    sensor: DetectorInfo
    view: View
    exposures: int = 1


@dataclass(frozen=True)
class Experiment:
    """Facts of the experiment that the pipeline gives, as far as it does: ``metadata``, and the detector's pixels.

    photon_energy  eV;  distance  from the sample to the detector, m
    beam_center    (x, y) of the direct beam, in pixels of the sensor, whose centres are whole numbers
    pixel_size     (x, y) of a pixel of the sensor, m
    sensor         (width, height) of the sensor, before the detector's own operations
    """

    photon_energy: float | None = None
    distance: float | None = None
    beam_center: tuple[float, float] | None = None
    pixel_size: tuple[float, float] | None = None
    sensor: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class FrameSpec:
    """Dense frames on an edge of the graph.

    dtype       numpy name
    view        which part of the detector the frames show, and how
    detector    (width, height) of the whole detector image
    mask        bool (height, width), True = masked (gap, defective); never written to. None = nothing masked
    saturation  in the units of the pixels, None if unknown or no longer meaningful
    whole       of partial frames: the view of the whole frame that these are a part of; ``view`` is what the part
                shows, with the same binning and turn. None = these are whole
    invalid     values of pixels of single frames that are not measurements; NaN is one always, and is among the values
                where it may stem from such pixels
    gap         the detector's gap value: what masked pixels become in integers where they were NaN
    holds       what most masked pixels hold, None = the gap value
    base        how the detector's image shows the sensor; None = it is the sensor
    packed      how most of the frames are compressed by the detector, and come to the receivers: of a flow, and behind
                nodes that take them so (`Node.as_sent`); empty where they are not
    experiment  where the sensor stands in the beam, as far as the pipeline says
    """

    dtype: str
    view: View
    detector: tuple[int, int]
    mask: NDArray[np.bool_] | None = None
    saturation: float | None = None
    whole: View | None = None
    invalid: Invalid = Invalid()
    gap: float = 0.0
    holds: float | None = None
    base: View | None = None
    packed: str = ""
    experiment: Experiment = Experiment()

    @property
    def shape(self) -> tuple[int, int]:
        """Return (height, width) of a frame."""
        return self.view.shape

    @property
    def place(self) -> tuple[slice, slice]:
        """Return the index of a part in an array that shows the whole frame."""
        return self.view.area.within((self.whole or self.view).area)

    @property
    def part(self) -> Rect:
        """Return the place of a part in the whole frame."""
        area, whole = self.view.area, (self.whole or self.view).area
        return Rect(area.x - whole.x, area.y - whole.y, area.width, area.height)

    def of_sensor(self, view: View) -> View:
        """Return the view of the sensor for frames that show the detector's image as ``view`` does."""
        return view if self.base is None else self.base.then(view)

    @property
    def hole(self) -> float:
        """Return the value of pixels that nothing is written to: ``holds``, or the gap value."""
        return self.gap if self.holds is None else self.holds

    def masked(self, more: NDArray[np.bool_] | None) -> "FrameSpec":
        """Return the spec with more pixels masked, those of ``more`` (height, width)."""
        if more is None or not more.any():
            return self
        return replace(self, mask=more if self.mask is None else self.mask | more)

    def __str__(self) -> str:
        height, width = self.shape
        return f"{self.dtype} {width} x {height}"


@dataclass(frozen=True, eq=False)
class SparseSpec(FrameSpec):
    """Sparse frames on an edge of the graph: chosen pixels of what would be such dense frames.

    Pixels are identified by their place in the whole detector image.

    background  each frame comes with that of its rings about the beam, see `SparseBlock`
    """

    background: bool = False

    def __str__(self) -> str:
        return f"sparse {super().__str__()}"


def dense_image(shape: tuple[int, int], index: Array, pixels: Array) -> Array:
    """Return the whole detector image (height, width) that a sparse frame stands for: 0 where no pixel was chosen.

    index  places of the pixels (m,), y * width + x
    """
    image = np.zeros(shape, pixels.dtype)
    image.reshape(-1)[index] = pixels
    return image


@dataclass(frozen=True)
class TableAxis:
    """The place of each value of a vector: ``values`` in ``unit``, saved as a dataset ``name``, shown as ``label``.

    edges  limits of the bins, one more than values, where they are bins whose limits are saved, too
    """

    name: str
    values: tuple[float, ...]
    unit: str = ""
    label: str = ""
    edges: tuple[float, ...] = ()


@dataclass(frozen=True)
class TableSpec:
    """Rows, one per frame: name of each column and its numpy dtype name. ``default`` is the one to plot.

    lengths  values per row, of columns that have a vector (n, length) instead of one value (n,)
    labels   of columns, for plots, where the name would not do
    others   columns to plot with the default one, of the same length
    axes     of all columns with vectors; of several axes a vector is an image, row by row, whose shape is that of the
             axes, and is saved so
    errors   the column with the standard error of the default one
    facts    further attributes of columns, by name: as of the parameters that a run begins with
    """

    columns: Mapping[str, str]
    default: str | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    axes: tuple[TableAxis, ...] = ()
    errors: str | None = None
    facts: Mapping[str, Mapping[str, int]] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"table of {len(self.columns)} columns"


Spec = FrameSpec | TableSpec


@dataclass(slots=True)
class Block:
    """A block of frames, the unit of work.

    frames   (n, height, width), a view of a memspace or a node's own array; read-only for nodes
    numbers  (n,) uint64 frame numbers, increasing
    times    (n,) uint64, the detector's time of each frame, ns since the epoch
    stable   the memory can't be overwritten until the block is released; where False (a source that
             doesn't wait) what is read from ``frames`` counts only after the runtime's second check
    """

    frames: Array
    numbers: NDArray[np.uint64]
    times: NDArray[np.uint64]
    stable: bool = True

    def part(self, which: slice | NDArray[np.bool_]) -> "Block":
        """Return some frames, chosen by a slice or (n,) bool: a view where they follow each other, else a copy."""
        which = _run_of(which)
        return Block(self.frames[which], self.numbers[which], self.times[which], self.stable)

    def copy(self) -> "Block":
        """Return the block with arrays of its own."""
        return Block(self.frames.copy(), self.numbers.copy(), self.times.copy())


def _run_of(which: slice | NDArray[np.bool_]) -> slice | NDArray[np.bool_]:
    """Return a choice as a slice, where it is of frames that follow each other."""
    if isinstance(which, slice):
        return which
    (places,) = np.nonzero(which)
    if len(places) and places[-1] - places[0] + 1 == len(places):
        return slice(int(places[0]), int(places[-1]) + 1)
    return which


@dataclass(slots=True, kw_only=True)
class SparseBlock(Block):
    """A block of sparse frames, as compressed sparse rows (CSR).

    frames     (m,) intensities of the pixels of all frames, one frame after another
    index      (m,) uint32, flat index of each pixel in the whole detector image: y * width + x
    frame_ptr  (n+1,) uint64, frame i has the pixels from ``frame_ptr[i]`` to ``frame_ptr[i+1] - 1``
    background  (n, 2, rings) float32, mean and standard deviation of each ring about the beam (`kernels.radial`), from
               0 on; NaN where no pixel counts. None: frames have none
    """

    index: NDArray[np.uint32]
    frame_ptr: NDArray[np.uint64]
    background: NDArray[np.float32] | None = None

    def part(self, which: slice | NDArray[np.bool_]) -> "SparseBlock":
        """See `Block.part`; of a slice."""
        assert isinstance(which, slice)
        pointers = self.frame_ptr[which.start : which.stop + 1]
        pixels = slice(int(pointers[0]), int(pointers[-1]))
        return SparseBlock(
            self.frames[pixels], self.numbers[which], self.times[which], self.stable,
            index=self.index[pixels], frame_ptr=pointers - pointers[0],
            background=None if self.background is None else self.background[which],
        )  # fmt: skip

    def copy(self) -> "SparseBlock":
        """See `Block.copy`: the block itself, which has them."""
        return self


@dataclass(slots=True)
class SparsePixels:
    """The pixels of a `SparseBlock`, see there, as a map gives them for the frames of a block."""

    frames: Array
    index: NDArray[np.uint32]
    frame_ptr: NDArray[np.uint64]
    background: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class StackInfo:
    """Frames in a file: shape (n, height, width), numpy dtype name.

    pixel_mask  reference of the mask that the file has for them, None where it has none
    invalid     values of pixels that the file declares to be no measurement
    saturation  pixels at or above it count as saturated, None if the file does not say
    taken       the meaning of the reference: ``my.h5::/entry/data``
    missing     how many frames are not all there; ``lacking`` says which, and why
    doubts      statements of the file that are not used, a sentence each
    view        how the file says that they show the sensor of the detector that they were recorded with; None where it
                does not say
    """

    shape: tuple[int, int, int]
    dtype: str
    pixel_mask: str | None = None
    invalid: Invalid = Invalid()
    saturation: float | None = None
    taken: str = field(default="", compare=False)
    missing: int = 0
    lacking: str | None = field(default=None, compare=False)
    doubts: tuple[str, ...] = ()
    view: View | None = None


class Files(Protocol):
    """Reader of files with data in them, by the reference that a pipeline gives (relative to the YAML file).

    Data that were read once are kept.

    Raises: FileProblem with a message that stands alone; also where frames are not all there (`StackInfo.missing`,
    file-incomplete), but for those who ``skip`` them.
    """

    def stack(self, reference: str, *, skip: bool = False) -> StackInfo:
        """Return shape and dtype of a stack of frames (a single image is a stack of one)."""
        ...

    def image(self, reference: str) -> Array:
        """Return a calibration image (height, width) or (n, height, width), whole."""
        ...

    def frames(self, reference: str, *, skip: bool = False) -> "FrameReader":
        """Return a reader of the frames one by one."""
        ...

    def path(self, reference: str) -> str:
        """Return the absolute path of a file that exists."""
        ...


class FrameReader(Protocol):
    """A reader of the frames of a file."""

    info: StackInfo

    def read(self, numbers: Sequence[int]) -> Array:
        """Return frames (len(numbers), height, width), C-contiguous; zeros for those that are `missing`."""
        ...

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """Return a mask, (len(numbers),) bool, of incomplete frames; None = none of them. Asked after `read`."""
        ...

    def unread(self) -> Sequence[str]:
        """Return reasons, a few, why frames thought to be there could not be read so far, and are `missing`."""
        ...
