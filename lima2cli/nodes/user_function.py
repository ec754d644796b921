"""Functions of users: where they are, what they take, how they are called, and what they return."""

import ast
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli import foreign as watch
from lima2cli.dataclass import dataclass
from lima2cli.declare import Choice, Integer, ListOf, param
from lima2cli.diagnostics import did_you_mean
from lima2cli.errors import FileProblem, NodeMisuse, UserCodeError
from lima2cli.foreign import call_foreign, error_text, place_of, restore_standards
from lima2cli.frames import DTYPES, MOST_PIXELS, Array, Files, FrameSpec, Invalid
from lima2cli.geometry import Rect
from lima2cli.view import View


def fitted(result: Any, numbers: NDArray[np.uint64], shape: tuple[int, ...], dtype: str, name: str) -> Array:
    """Return ``result`` of ``name`` as an array (n, *shape) of ``dtype`` for the frames ``numbers`` (n,).

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
    """Return the values, and which of them are masked; None = none."""
    several = isinstance(result, list | tuple) and any(isinstance(one, np.ma.MaskedArray) for one in result)
    try:
        array = np.ma.array(result) if several else np.asanyarray(result)
    except ValueError as error:
        raise UserCodeError(f"something that is not an array: {error}") from error
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
    """Raise the error of the first of some values that do not fit."""
    place = tuple(int(i) for i in np.unravel_index(int(misfits.argmax()), misfits.shape))
    frame, *inside = place
    where = ("", " at element {}", " at y {}, x {}")[len(inside)].format(*inside)
    value = of if isinstance(of, str) else of[place]
    number = int(numbers[frame])
    raise UserCodeError(f"{value} in frame {number}{where}, {_range(target)}", number)


def _range(target: "np.dtype[Any]") -> str:
    """Return the range of a dtype, in words."""
    if target.kind == "f":
        return f"{target} has numbers up to {np.finfo(target).max:g}"
    limits = np.iinfo(target)
    return f"{target} has whole numbers from {limits.min} to {limits.max}"


LARGEST = 1 << 20
"""Bytes of a module that is looked into."""

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_LITERALS = ast.Constant | ast.List | ast.Tuple | ast.Dict | ast.Set | ast.JoinedStr | ast.ListComp | ast.DictComp
_OPEN = ("globals", "locals", "vars", "setattr", "exec", "eval")
"""Functions by which a module may bind names that its text does not have."""


@dataclass
class UnfitFunction(Exception):
    """A mistake in a function, in words; ``param``: the parameter that it is about."""

    message: str
    help: str | None = None
    param: str | None = None


@dataclass(frozen=True)
class ModuleText:
    """The names that a module binds at its top: ``bound``; ``open`` where there may be more."""

    bound: Mapping[str, list[ast.AST]]
    open: bool


def module_of(source: bytes, path: str) -> ModuleText:
    """Parse a module. ValueError where it is not Python, or too large."""
    if len(source) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MiB")
    try:
        tree = ast.parse(source, path)
        bound: dict[str, list[ast.AST]] = {}
        for name, how in _bindings(tree.body):
            bound.setdefault(name, []).append(how)
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return ModuleText(bound, "*" in bound or "__getattr__" in bound or bool(named.intersection(_OPEN)))


def check_called(
    module: ModuleText, name: str, params: Mapping[str, Any], passed: frozenset[str] = frozenset()
) -> None:
    """Raise `UnfitFunction` where ``name`` can't be called as ``f(frames, numbers, **params)``.

    A class is called as ``C(spec, **params)``, its objects with frames and numbers. ``passed``: names on the way to
    this one.
    """
    how = module.bound.get(name, [])
    if len(how) != 1:
        return
    (found,) = how
    if isinstance(found, _LITERALS):
        raise UnfitFunction(f"{name} is not a function: line {getattr(found, 'lineno', 0)} assigns a value to it")
    if isinstance(found, ast.Lambda):
        _bind(name, found.args, 2, params, "frames and numbers")
    elif isinstance(found, ast.Name) and found.id not in passed:
        check_called(module, found.id, params, passed | {name})
    elif isinstance(found, _Definition) and not found.decorator_list:
        if isinstance(found, ast.ClassDef):
            _check_class(found, params)
            return
        if isinstance(found, ast.AsyncFunctionDef):
            raise UnfitFunction(f"{name} is a coroutine (async def), which nothing awaits", "write `def`")
        if any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in _own(found)):
            raise UnfitFunction(f"{name} is a generator (it has `yield`), and returns no frames", "return an array")
        _bind(name, found.args, 2, params, "frames and numbers")


def _check_class(found: ast.ClassDef, params: Mapping[str, Any]) -> None:
    methods = {it.name: it for it in found.body if isinstance(it, ast.FunctionDef)}
    others = {name for name, _ in _bindings(found.body)} - methods.keys()
    alone = not (found.bases or found.keywords or "__new__" in methods or "__getattr__" in methods)
    for name, given, words in (("__init__", params, "the spec"), ("__call__", {}, "frames and numbers")):
        method = methods.get(name)
        if method is not None and not method.decorator_list:
            count = 2 if name == "__init__" else 3  # with `self`
            _bind(f"{found.name}.{name}", method.args, count, given, words)
        elif method is None and alone and name not in others:
            raise UnfitFunction(f"{found.name} has no method {name}", f"def {name}(self, {words})")


def _bind(name: str, args: ast.arguments, count: int, params: Mapping[str, Any], words: str) -> None:
    """Hold a call with ``count`` values and ``params`` by name against the arguments of a definition."""
    try:
        _signature(args).bind(*[None] * count, **params)
    except TypeError as error:
        unknown = next((key for key in params if f"'{key}'" in str(error)), None)
        missing = str(error).partition("argument: '")[2].rstrip("'") if "missing" in str(error) else ""
        help = f"params: {{{missing}: …}}, or a default for {missing}" if missing else None
        if unknown is not None:
            named = [argument.arg for argument in (*args.args[count:], *args.kwonlyargs)]
            help = did_you_mean(unknown, named) or f"{name} takes no parameters"
        raise UnfitFunction(f"{name} can't be called with {words}{_and(params)}: {error}", help, unknown) from error


def _and(params: Mapping[str, Any]) -> str:
    return f" and {', '.join(params)}" if params else ""


def _signature(args: ast.arguments) -> inspect.Signature:
    """Return the signature of a definition; any value stands for a default."""
    kinds = inspect.Parameter
    plain = [*args.posonlyargs, *args.args]
    first = len(plain) - len(args.defaults)
    found = [
        kinds(
            arg.arg,
            kinds.POSITIONAL_ONLY if index < len(args.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD,
            default=None if index >= first else kinds.empty,
        )
        for index, arg in enumerate(plain)
    ]
    if args.vararg:
        found.append(kinds(args.vararg.arg, kinds.VAR_POSITIONAL))
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found.append(kinds(arg.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else None))
    if args.kwarg:
        found.append(kinds(args.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(found)


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Names that statements bind, within `if`, `try`, `for` and `with`, too; each with what it is bound to."""
    for item in body:
        if isinstance(item, _Definition):
            yield item.name, item
        elif isinstance(item, ast.ImportFrom | ast.Import):
            for alias in item.names:
                yield (alias.asname or alias.name).partition(".")[0], item
        elif isinstance(item, ast.Assign):
            for target in item.targets:
                simple = isinstance(target, ast.Name)
                yield from ((name, item.value if simple else item) for name in _names(target))
        elif isinstance(item, ast.AnnAssign):
            if item.value is not None:
                yield from ((name, item.value) for name in _names(item.target))
        else:
            yield from ((node.id, item) for node in _own(item) if _is_stored(node))
            for field in ("body", "orelse", "finalbody"):
                yield from _bindings([it for it in getattr(item, field, ()) if isinstance(it, ast.stmt)])
            for part in (*getattr(item, "handlers", ()), *getattr(item, "cases", ())):
                yield from _bindings(part.body)


def _names(target: ast.AST) -> Iterator[str]:
    return (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _own(item: ast.AST) -> Iterator[Any]:
    """All nodes of a statement's own scope, without those of functions and classes in it."""
    ahead = list(ast.iter_child_nodes(item))
    while ahead:
        node = ahead.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            ahead.extend(ast.iter_child_nodes(node))


@dataclass(frozen=True, kw_only=True)
class FunctionOutput:
    """The result of a function for each frame."""

    dtype: str | None = param("Pixels; default: as the input.", Choice(DTYPES), None)
    shape: tuple[int, ...] | None = param(
        "[height, width], or [length] of a vector; default: as the input.", ListOf(Integer(1), 1), None
    )

    def infer(self, spec: FrameSpec, on_error: str) -> FrameSpec:
        """Frames as they are returned where ``spec`` enters; vectors are frames of one row. Raises `NodeMisuse`."""
        shape = self.shape or spec.shape
        if len(shape) > 2:
            message = f"{len(shape)} dimensions per frame, 2 at most can be returned"
            raise NodeMisuse("not-available", message, ("output", "shape"), "[height, width], or [length]")
        rows, columns = shape if len(shape) == 2 else (1, shape[0])
        if rows * columns > MOST_PIXELS:
            message = f"{columns} x {rows} values per frame are more than {MOST_PIXELS}"
            raise NodeMisuse("image-too-large", message, ("output", "shape"))
        dtype = self.dtype or spec.dtype
        if on_error == "pass" and (dtype, (rows, columns)) != (spec.dtype, spec.shape):
            message = f"the input ({spec}) can't be passed on as {dtype} {columns} x {rows}"
            raise NodeMisuse("edge-mismatch", message, ("on_error",), "on_error: drop")
        if (rows, columns) == spec.shape:
            rule = spec.invalid if dtype == spec.dtype else Invalid()
            return replace(spec, dtype=dtype, saturation=None, invalid=rule)
        return FrameSpec(dtype, View(Rect(0, 0, columns, rows)), (columns, rows))

    def fit(self, result: Any, numbers: NDArray[np.uint64], spec: FrameSpec, name: str) -> Array:
        """Return the result of ``name`` for the frames ``numbers`` (n,) as frames of ``spec``, (n, height, width).

        Raises `UserCodeError` where it is not what was declared; see `nodes.results`.
        """
        array = fitted(result, numbers, self.shape or spec.shape, spec.dtype, name)
        return array.reshape(len(numbers), *spec.shape)


def check_function(reference: str, files: Files, params: Mapping[str, Any] | None = None) -> None:
    """See that ``module:name`` or ``file.py:name`` is there, without running it. Raises `NodeMisuse` or `FileProblem`.

    params   it must take these as keywords, in addition to frames and numbers; None: it is called in another way
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
        raise NodeMisuse("unknown-function", f"{where} does not define {name}", ("function",), f"it defines {known}")
    if params is not None:
        try:
            check_called(module, name, params)
        except UnfitFunction as unfit:
            key = ("function",) if unfit.param is None else ("params", unfit.param)
            raise NodeMisuse("unfit-function", f"{where}: {unfit.message}", key, unfit.help) from unfit


def _source_of(module: str) -> str | None:
    """Return the file of a module's source, None without one; no package is imported. Raises `NodeMisuse`."""
    found, places, name = None, None, ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        try:
            found = importlib.util.find_spec(part) if places is None else PathFinder.find_spec(name, places)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise NodeMisuse("unknown-function", f"there is no module {name}", ("function",))
        places = found.submodule_search_locations
        if places is None and name != module:
            return None  # a module that makes others when it is run
    assert found is not None
    return found.origin if found.has_location and str(found.origin).endswith(".py") else None


def load(reference: str, files: Files) -> Callable[..., Any]:
    """Return what a reference names. Raises TypeError where it can't be called, and whatever the module raises."""
    where, _, name = reference.rpartition(":")
    module = _module(files.path(where)) if where.endswith(".py") else importlib.import_module(where)
    found: Any = getattr(module, name)
    if not callable(found):
        raise TypeError(f"{reference} is not a function")
    return found  # type: ignore[no-any-return]


class Code:
    """A function of the user's, or an object of a class, at work. ``name`` is how messages call it.

    Whatever it raises, SystemExit too, is raised as `UserCodeError`: file and line, kind and message, then what was
    called, for which frames.
    """

    def __init__(self, name: str, found: Callable[[], Any], spec: FrameSpec, params: Mapping[str, Any]) -> None:
        """``found`` gives the function, or the class, which gets ``params`` when it is made. Raises `UserCodeError`."""
        self.name = name
        with self._named_errors("import", watch.IMPORT_S):
            called = call_foreign(found)
        self._params = dict(params)
        if isinstance(called, type):
            with self._named_errors("__init__", watch.IMPORT_S):
                called = call_foreign(called, spec, **params)
            self._params = {}
        self._called = called

    def __call__(self, frames: Array, numbers: NDArray[np.uint64]) -> Any:
        """Call it with frames (n, height, width), which it can't write to, nor to their numbers."""
        with self._named_errors(frames_in_words(numbers), watch.CALL_S):
            return call_foreign(self._called, read_only(frames), read_only(numbers), **self._params)

    def fit(
        self, output: FunctionOutput, result: Any, numbers: NDArray[np.uint64], spec: FrameSpec, name: str
    ) -> Array:
        """See `FunctionOutput.fit`; what is returned may have code of its own, which is called then."""
        try:
            with self._named_errors(f"the result for {frames_in_words(numbers)}", watch.CALL_S):
                return call_foreign(output.fit, result, numbers, spec, name)
        except UserCodeError as error:
            if isinstance(error.__cause__, UserCodeError):  # it does not fit
                raise error.__cause__ from error.__cause__.__cause__
            raise

    def close(self) -> None:
        """Close an object of a class that has a method for it."""
        with self._named_errors("close", watch.CALL_S):
            closing = call_foreign(getattr, self._called, "close", None)
            if closing is not None:
                call_foreign(closing)

    @contextmanager
    def _named_errors(self, when: str, least_s: float) -> Iterator[None]:
        try:
            with watch.WATCH.during(f"{self.name}, {when}", least_s):
                yield
        except (Exception, watch.TookTooLong) as error:
            frame = error.frame if isinstance(error, UserCodeError) else None
            raise UserCodeError(f"{words(error)} ({self.name}, {when})", frame) from error
        finally:
            restore_standards()


def read_only(array: Array) -> Array:
    """Return the same memory as an array that cannot be made writeable: others use it, too."""
    return np.asarray(array.data.toreadonly())


def words(error: BaseException) -> str:
    """Return an exception of the user's in one line: file, line, kind, message."""
    if isinstance(error, UserCodeError):  # it says where
        return str(error)
    trace = traceback.extract_tb(error.__traceback__)
    return f"{place_of((frame.filename, frame.lineno or 0) for frame in trace)}{error_text(error)}"


def frames_in_words(numbers: NDArray[np.uint64]) -> str:
    """Consecutive frames in words."""
    first, last = int(numbers[0]), int(numbers[-1])
    return f"frame {first}" if first == last else f"frames {first} to {last}"


def _module(path: str) -> ModuleType:
    """Import a file as a module of its own; its folder is not put on the path."""
    spec = importlib.util.spec_from_file_location(f"lima2_user_{Path(path).stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
