"""Functions of the user's: where they are, how they are called, what they return, and where they failed.

    f(frames, numbers, **params) → (n, *shape)

``frames`` (n, height, width) and ``numbers`` (n,) uint64, their frame numbers, are read-only. Instead of a function a
class may be named: ``C(spec, **params)`` is made once, called like the function, and closed at the end where it has a
method ``close``. ``spec`` is the `FrameSpec` of what comes in.
"""

import importlib
import importlib.util
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli import watch
from lima2cli.declare import Choice, Integer, ListOf, param
from lima2cli.errors import FileProblem, Misfit, UserCodeError
from lima2cli.foreign import call_foreign, place_of, said, standard_descriptors
from lima2cli.geometry import Rect
from lima2cli.nodes.results import fitted
from lima2cli.nodes.signature import LARGEST, Unfit, check_called, module_of
from lima2cli.spec import DTYPES, MOST_PIXELS, Array, Files, FrameSpec, Invalid
from lima2cli.view import View


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a function returns for each frame."""

    dtype: str | None = param("Pixels; default: as the input.", Choice(DTYPES), None)
    shape: tuple[int, ...] | None = param(
        "[height, width], or [length] of a vector; default: as the input.", ListOf(Integer(1), 1), None
    )

    def infer(self, spec: FrameSpec, on_error: str) -> FrameSpec:
        """Frames as they are returned where ``spec`` enters; vectors are frames of one row. Raises `Misfit`."""
        shape = self.shape or spec.shape
        if len(shape) > 2:
            message = f"{len(shape)} dimensions per frame, 2 at most can be returned"
            raise Misfit("not-available", message, ("output", "shape"), "[height, width], or [length]")
        rows, columns = shape if len(shape) == 2 else (1, shape[0])
        if rows * columns > MOST_PIXELS:
            message = f"{columns} x {rows} values per frame are more than {MOST_PIXELS}"
            raise Misfit("image-too-large", message, ("output", "shape"))
        dtype = self.dtype or spec.dtype
        if on_error == "pass" and (dtype, (rows, columns)) != (spec.dtype, spec.shape):
            message = f"the input ({spec}) can't be passed on as {dtype} {columns} x {rows}"
            raise Misfit("edge-mismatch", message, ("on_error",), "on_error: drop")
        if (rows, columns) == spec.shape:
            rule = spec.invalid if dtype == spec.dtype else Invalid()
            return replace(spec, dtype=dtype, saturation=None, invalid=rule)
        return FrameSpec(dtype, View(Rect(0, 0, columns, rows)), (columns, rows))

    def fit(self, result: Any, numbers: NDArray[np.uint64], spec: FrameSpec, name: str) -> Array:
        """What ``name`` returned for the frames ``numbers`` (n,) as frames of ``spec``, (n, height, width).

        Raises `UserCodeError` where it is not what was declared; see `nodes.results`.
        """
        array = fitted(result, numbers, self.shape or spec.shape, spec.dtype, name)
        return array.reshape(len(numbers), *spec.shape)


def look(reference: str, files: Files, params: Mapping[str, Any] | None = None) -> None:
    """See that ``module:name`` or ``file.py:name`` is there, without running it. Raises `Misfit` or `FileProblem`.

    params   it must take these as keywords, besides frames and numbers; None: it is called in another way
    """
    where, _, name = reference.rpartition(":")
    path = files.path(where) if where.endswith(".py") else _source_of(where)
    if path is None:
        return
    try:
        with Path(path).open("rb") as file:
            module = module_of(file.read(LARGEST + 1), path)
    except (ValueError, OSError) as error:
        raise FileProblem(f"{where} is not Python: {error}", "file-unreadable") from error
    if name not in module.bound:
        if module.open:
            return
        known = ", ".join(sorted(module.bound)) or "nothing"
        raise Misfit("unknown-function", f"{where} defines no {name}", ("function",), f"it defines {known}")
    if params is not None:
        try:
            check_called(module, name, params)
        except Unfit as unfit:
            key = ("function",) if unfit.param is None else ("params", unfit.param)
            raise Misfit("unfit-function", f"{where}: {unfit.message}", key, unfit.help) from unfit


def _source_of(module: str) -> str | None:
    """The file of a module's text, None where it has none; no package is imported. Raises `Misfit`."""
    found, places, name = None, None, ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        try:
            found = importlib.util.find_spec(part) if places is None else PathFinder.find_spec(name, places)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise Misfit("unknown-function", f"there is no module {name}", ("function",))
        places = found.submodule_search_locations
        if places is None and name != module:
            return None  # a module that makes others when it is run
    assert found is not None
    return found.origin if found.has_location and str(found.origin).endswith(".py") else None


def load(reference: str, files: Files) -> Callable[..., Any]:
    """What a reference names; TypeError where it can't be called, and whatever the module raises."""
    where, _, name = reference.rpartition(":")
    module = _module(files.path(where)) if where.endswith(".py") else importlib.import_module(where)
    found: Any = getattr(module, name)
    if not callable(found):
        raise TypeError(f"{reference} is no function")
    return found  # type: ignore[no-any-return]


class Code:
    """A function of the user's, or an object of a class, at work. ``name`` is how messages call it.

    Whatever it raises, SystemExit too, is raised as `UserCodeError`: file and line, kind and message, then what was
    called, for which frames.
    """

    def __init__(self, name: str, found: Callable[[], Any], spec: FrameSpec, params: Mapping[str, Any]) -> None:
        """``found`` gives the function, or the class, which gets ``params`` when it is made. Raises `UserCodeError`."""
        self.name = name
        with self._told("import", watch.IMPORT_S):
            called = call_foreign(found)
        self._params = dict(params)
        if isinstance(called, type):
            with self._told("__init__", watch.IMPORT_S):
                called = call_foreign(called, spec, **params)
            self._params = {}
        self._called = called

    def __call__(self, frames: Array, numbers: NDArray[np.uint64]) -> Any:
        """What it returns for frames (n, height, width), which it can't write to, nor to their numbers."""
        with self._told(frames_in_words(numbers), watch.CALL_S):
            return call_foreign(self._called, read_only(frames), read_only(numbers), **self._params)

    def fit(self, output: Output, result: Any, numbers: NDArray[np.uint64], spec: FrameSpec, name: str) -> Array:
        """See `Output.fit`; what is returned may have code of its own, which is called then."""
        try:
            with self._told(f"the result for {frames_in_words(numbers)}", watch.CALL_S):
                return call_foreign(output.fit, result, numbers, spec, name)
        except UserCodeError as error:
            if isinstance(error.__cause__, UserCodeError):  # it does not fit
                raise error.__cause__ from error.__cause__.__cause__
            raise

    def close(self) -> None:
        """Close an object of a class that has a method for it."""
        with self._told("close", watch.CALL_S):
            closing = call_foreign(getattr, self._called, "close", None)
            if closing is not None:
                call_foreign(closing)

    @contextmanager
    def _told(self, when: str, least_s: float) -> Iterator[None]:
        try:
            with watch.WATCH.during(f"{self.name}, {when}", least_s):
                yield
        except (Exception, watch.TookTooLong) as error:
            frame = error.frame if isinstance(error, UserCodeError) else None
            raise UserCodeError(f"{words(error)} ({self.name}, {when})", frame) from error
        finally:
            standard_descriptors()


def read_only(array: Array) -> Array:
    """The same memory as an array that cannot be made writeable: others use it, too."""
    return np.asarray(array.data.toreadonly())


def words(error: BaseException) -> str:
    """An exception of the user's in one line: file, line, kind, message."""
    if isinstance(error, UserCodeError):  # it says where
        return str(error)
    trace = traceback.extract_tb(error.__traceback__)
    return f"{place_of((frame.filename, frame.lineno or 0) for frame in trace)}{said(error)}"


def frames_in_words(numbers: NDArray[np.uint64]) -> str:
    """Consecutive frames in words."""
    first, last = int(numbers[0]), int(numbers[-1])
    return f"frame {first}" if first == last else f"frames {first} to {last}"


def _module(path: str) -> ModuleType:
    """A file as a module of its own; its folder is not put on the path."""
    spec = importlib.util.spec_from_file_location(f"lima2_user_{Path(path).stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
