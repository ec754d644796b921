"""Calibration images, brought to the shape of a node's input.

A calibration image is a number, or a file that holds an image (h, w) or a stack of images (n, h, w):

* of the whole detector's shape, always in detector coordinates: it is cut, binned, flipped and rotated as the frames
  were on their way to the node. Of a binned pixel's images dark and background are the sum, flat fields and weights are
  the mean, and a mask is bad where any is;
* of the node's input shape: taken as it is; where the input is parts of frames, of the full frames' shape;
* saved by lima2, whose files say how they show the detector (`image_operation`): turned back, then cut, binned, flipped
  and rotated as the frames were, whatever its shape. Refused (``calibration-view``) where it does not show all of what
  the frames show, or is binned otherwise.

A number is taken as it is too: it counts for pixels as the node gets them. Images come back as float64, so that what
they are subtracted from or divided by decides the precision.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Either, FileReference, Number
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array
from lima2cli.nodes.base import Inputs
from lima2cli.view import How, View

IMAGE = Either((Number(), FileReference()))
"""Shape of a parameter that takes a calibration image."""


def calibration(reference: float | str, inputs: Inputs, key: str, binning: How) -> float | NDArray[np.float64]:
    """Return a number, or float64 (height, width) of the frames that enter; a stack is averaged in float64.

    ``binning`` says what binned pixels have of an image of the detector: the ``sum``, or the ``mean``.
    NaN pixels stay NaN (one NaN in a stack makes the pixel NaN). Raises `FileProblem`, and `NodeMisuse`
    (``calibration-shape``, ``calibration-dtype``, ``calibration-value``) at the parameter ``key``.
    """
    if not isinstance(reference, str):
        return _finite(reference, key)
    part = _part(reference, inputs, key, binning, kinds="iuf")
    if part.ndim == 3:
        return np.asarray(part.mean(axis=0, dtype=np.float64))
    return np.ascontiguousarray(part, dtype=np.float64)


def stages(reference: str, count: int, inputs: Inputs, key: str, binning: How) -> NDArray[np.float64]:
    """float64 (count, height, width): one image for each gain stage. Raises as `calibration`."""
    found = inputs.files.stack(reference).shape[0]
    if found != count:
        message = f"{reference} holds {found} image{'s' * (found != 1)}, {count} are needed: one for each gain stage"
        raise NodeMisuse("calibration-shape", message, (key,), f"({count}, height, width)")
    return np.ascontiguousarray(_part(reference, inputs, key, binning, kinds="iuf"), dtype=np.float64)


def weights(reference: str, inputs: Inputs, key: str) -> Array:
    """Return weights of the pixels (n, height, width), one image or several; of binned pixels the mean.

    They have the file's dtype, float64 with binning. Raises as `calibration`, also where they are not all finite.
    """
    found = _part(reference, inputs, key, "mean", kinds="biuf")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise NodeMisuse("calibration-value", f"weights of {reference} are NaN or infinite", (key,))
    return found if found.ndim == 3 else found[np.newaxis]


def bad_pixels(reference: float | str, inputs: Inputs, key: str) -> NDArray[np.bool_] | None:
    """Return bool (height, width) of the frames, True where the image is not 0 (NaN too); of a stack, where any is.

    None where nothing is bad. Raises as `calibration`; images of bool are allowed too.
    """
    if not isinstance(reference, str):
        bad = np.full(inputs.spec.shape, _finite(reference, key) != 0)
    else:
        part = _part(reference, inputs, key, "any", kinds="biuf")
        bad = np.asarray((part != 0).any(axis=0) if part.ndim == 3 else part != 0)
    return bad if bad.any() else None


def mostly_masked(bad: NDArray[np.bool_] | None, what: str, key: str) -> Sequence[NodeMisuse]:
    """Return the warning ``mask-most``, with ``what`` as its help, where most pixels (height, width) are bad."""
    share = 0.0 if bad is None else float(bad.mean())
    if share <= 0.5:
        return ()
    return (NodeMisuse("mask-most", f"{share:.0%} of the pixels are masked", (key,), what),)


def _finite(number: float, key: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise NodeMisuse("calibration-value", f"a calibration image can't be {value}", (key,))
    return value


def _part(reference: str, inputs: Inputs, key: str, binning: How, kinds: str) -> Array:
    """Return the pixels of the frames, (height, width) or (n, height, width); in the file's dtype without binning."""
    spec, files = inputs.spec, inputs.files
    info = files.stack(reference)
    count, height, width = info.shape
    if np.dtype(info.dtype).kind not in kinds:
        raise NodeMisuse("calibration-dtype", f"{reference} holds {info.dtype}, not real numbers", (key,))
    if info.view is not None and count and info.view.shape == (height, width):
        return _recorded(reference, info.view, inputs, key, binning)
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
        turned = count > 0 and (width, height) in (shape, (detector_height, detector_width))
        help = "use an image of one of these two shapes" + (": this one may be transposed" if turned else "")
        raise NodeMisuse("calibration-shape", message, (key,), help)
    image = files.image(reference)
    return spec.view.apply(image, binning) if whole else image[(..., *spec.place)]


def _recorded(reference: str, view: View, inputs: Inputs, key: str, binning: How) -> Array:
    """Return the pixels of the frames from images that show the sensor as ``view`` does."""
    target = inputs.spec.of_sensor(inputs.spec.view)
    part = view.shown_as(inputs.files.image(reference), target, binning)
    if part is None:
        message = f"{reference} shows {view} of the detector, the frames show {target}"
        help = "record it without cutting and binning, or as the frames are"
        raise NodeMisuse("calibration-view", message, (key,), help)
    return part
