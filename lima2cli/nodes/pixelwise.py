"""Maps that compute each pixel from the same pixel of the raw frame, and calibration images in their shape."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Choice, Either, FileReference, Number
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, Files, FrameSpec, Invalid
from lima2cli.kernels.chain import Chain, settle
from lima2cli.kernels.masked import collision, met, valid_range
from lima2cli.kernels.strips import Affine, Stage
from lima2cli.nodes.base import Map
from lima2cli.view import How, View

RESULT = Choice(("float32", "keep"))
"""Shape of the parameter ``dtype``: float32, or the dtype of the input."""


class Pixelwise(Map):
    """A map that does the same to frames as its `Stage` says, whose ``bad`` pixels are masked from there on."""

    def stage(self, spec: FrameSpec, files: Files) -> Stage:
        """What is done to frames of ``spec``; ``bad`` are those that it masks itself. Raises as `infer`."""
        raise NotImplementedError

    def in_strips(self, inputs: int) -> bool:
        """See `Node.in_strips`."""
        return True

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`. The saturation goes through the same arithmetic where it is one value for all pixels."""
        stage = self.masking(spec, files)
        return replace(
            spec,
            dtype=stage.target,
            saturation=level(stage, spec.saturation),
            mask=stage.bad,
            invalid=stage.leaves,
            holds=spec.holds if stage.holds is None else stage.holds,
        )

    def bind(self, spec: FrameSpec, files: Files) -> Callable[[Array], Array]:
        """See `Map.bind`."""
        return Chain(settle([self.masking(spec, files)], spec.dtype, *spec.shape))

    def masking(self, spec: FrameSpec, files: Files) -> Stage:
        """What is done, with all that is masked: before, and by this map."""
        return self.stage(spec, files).of(spec)

    def warnings(self, spec: FrameSpec, files: Files) -> Sequence[NodeMisuse]:
        """See `Node.warnings`: what could be mistaken for a measurement, or for none."""
        return doubtful(self.masking(spec, files))


def level(stage: Stage, saturation: float | None) -> float | None:
    """What a pixel of value ``saturation`` becomes; None where that differs from pixel to pixel or is not known."""
    if not isinstance(stage, Affine):
        return None
    if saturation is None or stage.copies:
        return saturation
    if isinstance(stage.offset, np.ndarray) or isinstance(stage.divisor, np.ndarray) or stage.divisor < 0:
        return None
    source = np.dtype(stage.source)
    if source.kind != "f":
        saturation = math.ceil(saturation)
        if not np.iinfo(source).min <= saturation <= np.iinfo(source).max:
            return None
    pixel = np.full((1, 1, 1), saturation, source)
    return float(Chain(settle([stage.unmasked()], stage.source, 1, 1))(pixel)[0, 0, 0])


def target(dtype: str, spec: FrameSpec) -> str:
    """The dtype of the result, from the parameter declared as `RESULT`."""
    return spec.dtype if dtype == "keep" else dtype


def doubtful(stage: Stage) -> Sequence[NodeMisuse]:
    """Warnings: ``invalid-collision`` where valid results may be values that mean that nothing was measured."""
    rule = stage.leaves
    if np.dtype(stage.target).kind == "f" or stage.fill is not None or rule == Invalid():
        return ()
    low, high = reach(stage) if isinstance(stage, Affine) else (-math.inf, math.inf)
    return [collision(rule, ("dtype",))] if met(rule, stage.target, low, high) else ()


def reach(stage: Affine) -> tuple[float, float]:
    """The least and the largest that valid pixels of integers can become, rounded."""
    if np.dtype(stage.source).kind == "f":
        return -math.inf, math.inf
    low, high = valid_range(stage.invalid, stage.source)
    if stage.copies:
        return low, high
    offset, divisor = np.asarray(stage.offset, np.float64), np.asarray(stage.divisor, np.float64)
    good = np.ones((), np.bool_) if stage.bad is None else ~stage.bad
    with np.errstate(all="ignore"):
        ends = np.stack(np.broadcast_arrays((low - offset) / divisor, (high - offset) / divisor, good))
    first, last = (end[ends[2] > 0] for end in ends[:2])
    if not len(first):
        return 0.0, 0.0
    return float(np.rint(min(first.min(), last.min()))), float(np.rint(max(first.max(), last.max())))


IMAGE = Either((Number(), FileReference()))
"""Shape of a parameter that takes a calibration image."""


def calibration(
    reference: float | str, spec: FrameSpec, files: Files, key: str, binning: How
) -> float | NDArray[np.float64]:
    """A number, or float64 (height, width) of ``spec``; a stack is averaged in float64.

    ``binning`` says what binned pixels have of an image of the detector: the ``sum``, or the ``mean``.
    NaN pixels stay NaN (one NaN in a stack makes the pixel NaN). Raises `FileProblem`, and `NodeMisuse`
    (``calibration-shape``, ``calibration-dtype``, ``calibration-value``) at the parameter ``key``.
    """
    if not isinstance(reference, str):
        return _finite(reference, key)
    part = _part(reference, spec, files, key, binning, kinds="iuf")
    if part.ndim == 3:
        return np.asarray(part.mean(axis=0, dtype=np.float64))
    return np.ascontiguousarray(part, dtype=np.float64)


def stages(reference: str, count: int, spec: FrameSpec, files: Files, key: str, binning: How) -> NDArray[np.float64]:
    """float64 (count, height, width) of ``spec``: one image for each gain stage. Raises as `calibration`."""
    found = files.stack(reference).shape[0]
    if found != count:
        message = f"{reference} holds {found} image{'s' * (found != 1)}, {count} are needed: one for each gain stage"
        raise NodeMisuse("calibration-shape", message, (key,), f"({count}, height, width)")
    return np.ascontiguousarray(_part(reference, spec, files, key, binning, kinds="iuf"), dtype=np.float64)


def bad_pixels(reference: float | str, spec: FrameSpec, files: Files, key: str) -> NDArray[np.bool_] | None:
    """bool (height, width) of ``spec``, True where the image is not 0 (NaN too); of a stack, where any is.

    None where nothing is bad. Raises as `calibration`; images of bool are allowed too.
    """
    if not isinstance(reference, str):
        bad = np.full(spec.shape, _finite(reference, key) != 0)
    else:
        part = _part(reference, spec, files, key, "any", kinds="biuf")
        bad = np.asarray((part != 0).any(axis=0) if part.ndim == 3 else part != 0)
    return bad if bad.any() else None


def mostly_masked(bad: NDArray[np.bool_] | None, what: str, key: str) -> Sequence[NodeMisuse]:
    """The warning ``mask-most`` where more than half of the pixels are bad; ``what`` says which count as such."""
    share = 0.0 if bad is None else float(bad.mean())
    if share <= 0.5:
        return ()
    return (NodeMisuse("mask-most", f"{share:.0%} of the pixels are masked", (key,), what),)


def _finite(number: float, key: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise NodeMisuse("calibration-value", f"a calibration image can't be {value}", (key,))
    return value


def _part(reference: str, spec: FrameSpec, files: Files, key: str, binning: How, kinds: str) -> Array:
    """The pixels of ``spec``, (height, width) or (n, height, width), in the file's dtype where nothing is binned."""
    info = files.stack(reference)
    count, height, width = info.shape
    if np.dtype(info.dtype).kind not in kinds:
        raise NodeMisuse("calibration-dtype", f"{reference} holds {info.dtype}, not real numbers", (key,))
    if info.view is not None and count and info.view.shape == (height, width):
        return _recorded(reference, info.view, spec, files, key, binning)
    detector_width, detector_height = spec.detector
    whole = (height, width) == (detector_height, detector_width)
    shape = (spec.whole or spec.view).shape
    if count < 1 or not (whole or (height, width) == shape):
        message = (
            f"{reference} is {width} x {height}, the frames are {shape[1]} x {shape[0]}, "
            f"the whole detector {detector_width} x {detector_height}"
            if count
            else f"{reference} holds no image"
        )
        raise NodeMisuse("calibration-shape", message, (key,), "an image of one of these two shapes fits")
    image = files.image(reference)
    return spec.view.apply(image, binning) if whole else image[(..., *spec.place)]


def _recorded(reference: str, view: View, spec: FrameSpec, files: Files, key: str, binning: How) -> Array:
    """The pixels of ``spec`` from images that show the sensor as ``view`` does."""
    target = spec.of_sensor(spec.view)
    part = view.shown_as(files.image(reference), target, binning)
    if part is None:
        message = f"{reference} shows {view} of the detector, the frames show {target}"
        help = "record it without cutting and binning, or as the frames are"
        raise NodeMisuse("calibration-view", message, (key,), help)
    return part
