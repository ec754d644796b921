"""What code of the user's returns, as frames of the declared dtype: value for value, or not at all.

integers  take whole numbers within their range: booleans (0 and 1), integers, floats without a fraction; no NaN, no
          infinity, nothing masked
floats    take booleans, integers and floats, rounded to the nearest value that they have, infinity and NaN as they are;
          no finite number that would become infinite. Masked values become NaN

Nothing else is a pixel: complex numbers, objects (None, say), strings, dates. Byte order, memory layout and subclasses
of arrays do not matter. Where the cast is safe by numpy's rules no value is looked at, where the dtype is the declared
one nothing is copied.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import UserCodeError
from lima2cli.spec import Array


def fitted(result: Any, numbers: NDArray[np.uint64], shape: tuple[int, ...], dtype: str, name: str) -> Array:
    """``result`` of ``name`` as an array (n, *shape) of ``dtype`` for the frames ``numbers`` (n,).

    Raises `UserCodeError` where it has another shape, or a value that the dtype has not, with the frame of the first.
    """
    try:
        return _fitted(result, numbers, shape, np.dtype(dtype))
    except UserCodeError as error:
        raise UserCodeError(f"{name} returned {error}", error.frame) from error


def _fitted(result: Any, numbers: NDArray[np.uint64], shape: tuple[int, ...], target: "np.dtype[Any]") -> Array:
    array, masked = _as_array(result)
    declared = (len(numbers), *shape)
    if array.dtype.kind not in "biuf":
        what = type(result).__name__ if array.ndim == 0 else f"values of the kind {array.dtype}"
        raise UserCodeError(f"{what}, {target} {declared} was declared")
    if array.shape != declared:
        raise UserCodeError(f"{array.shape}, {declared} was declared")
    if masked is not None and target.kind == "f":
        array = np.where(masked, np.asarray(np.nan, target), array)
    elif masked is not None:
        _raise_first(masked, "a masked value", target, numbers)
    if np.can_cast(array.dtype, target):
        return array.astype(target, copy=False)
    return _integers(array, target, numbers) if target.kind in "iu" else _floats(array, target, numbers)


def _as_array(result: Any) -> tuple[Array, NDArray[np.bool_] | None]:
    """The values, and which of them are masked; None = none."""
    several = isinstance(result, list | tuple) and any(isinstance(one, np.ma.MaskedArray) for one in result)
    try:
        array = np.ma.array(result) if several else np.asanyarray(result)
    except ValueError as error:
        raise UserCodeError(f"no array: {error}") from error
    if not isinstance(array, np.ma.MaskedArray):
        return np.asarray(array), None
    masked = np.ma.getmaskarray(array)
    return array.data, masked if masked.any() else None


def _integers(array: Array, target: "np.dtype[Any]", numbers: NDArray[np.uint64]) -> Array:
    limits = np.iinfo(target)
    if array.dtype.kind == "f":
        array = array.astype(np.promote_types(array.dtype, np.float32), copy=False)  # which has 2**64
        with np.errstate(invalid="ignore"):
            cast = array.astype(target)
            inside = (array >= float(limits.min)) & (array < 2.0 ** (limits.bits - (target.kind == "i")))
            fits = inside & (cast == array)
        if not fits.all():
            _raise_first(~fits, array, target, numbers)
        return cast
    if int(array.min()) < limits.min or int(array.max()) > limits.max:
        # compared with numbers that the array's own dtype has: nothing is rounded
        own = np.iinfo(array.dtype)
        low, high = max(limits.min, own.min), min(limits.max, own.max)
        _raise_first((array < low) | (array > high), array, target, numbers)
    return array.astype(target)


def _floats(array: Array, target: "np.dtype[Any]", numbers: NDArray[np.uint64]) -> Array:
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    infinite = np.isinf(cast)
    if infinite.any() and (beyond := infinite & np.isfinite(array)).any():
        _raise_first(beyond, array, target, numbers)
    return cast


def _raise_first(
    misfits: NDArray[np.bool_], of: Array | str, target: "np.dtype[Any]", numbers: NDArray[np.uint64]
) -> None:
    """Raise what is said of the first of some misfits."""
    place = tuple(int(i) for i in np.unravel_index(int(misfits.argmax()), misfits.shape))
    frame, *inside = place
    where = ("", " at element {}", " at y {}, x {}")[len(inside)].format(*inside)
    value = of if isinstance(of, str) else of[place]
    number = int(numbers[frame])
    raise UserCodeError(f"{value} in frame {number}{where}, {_range(target)}", number)


def _range(target: "np.dtype[Any]") -> str:
    """What a dtype has."""
    if target.kind == "f":
        return f"{target} has numbers up to {np.finfo(target).max:g}"
    limits = np.iinfo(target)
    return f"{target} has whole numbers from {limits.min} to {limits.max}"
