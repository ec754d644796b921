"""Node `python`: delegates processing to a Python function of the user's.

    f(frames, numbers, **params) → (n, *shape)

``frames`` (n, height, width) is read-only, ``numbers`` (n,) uint64 are their frame numbers. Instead of a function a
class may be named: ``C(spec, **params)`` is made once per receiver, called like the function, and closed at the end
where it has a method ``close``. ``spec`` is the `FrameSpec` of what comes in.

``output`` declares dtype and shape of what is returned, per frame: (height, width); default: as the input. What is
returned must convert to that dtype without changing kind (numpy's ``same_kind``). Where the shape is the input's the
static mask goes on with the frames; else they are no longer a picture of the detector.

``on_error`` says what an exception does: ``stop`` ends the run with file, line and frame number; ``drop`` gives the
frames of the block up, and counts them; ``pass`` hands the input on unchanged (it must then be of the output's dtype
and shape). Validation looks for the name in the file's text; nothing of the user's is run before the run.
"""

import ast
import importlib
import importlib.util
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from lima2cli.declare import Anything, Choice, FunctionReference, Integer, ListOf, MapOf, Table, param
from lima2cli.errors import FileProblem, Misfit
from lima2cli.geometry import Rect, Rule
from lima2cli.nodes.base import Dropped, Transform, Transformer
from lima2cli.spec import DTYPES, Array, Block, Files, FrameSpec
from lima2cli.view import View


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a function returns for each frame."""

    dtype: str | None = param("Pixels; default: as the input.", Choice(DTYPES), None)
    shape: tuple[int, ...] | None = param("[height, width]; default: as the input.", ListOf(Integer(1), 1), None)


@dataclass(frozen=True, kw_only=True)
class Python(Transform):
    """Delegates processing to a Python function."""

    kind: ClassVar[str] = "python"

    function: str = param(
        "`module:name`, or `file.py:name`, relative to the pipeline's file.",
        FunctionReference(),
    )
    params: Mapping[str, Any] = param("Keyword arguments.", MapOf(Anything(), r"^[A-Za-z_][A-Za-z0-9_]*$"), {})
    output: Output = param("What it returns for each frame.", Table(Output), Output())
    on_error: str = param(
        "stop the run; drop the block and count it; or pass the input on unchanged.",
        Choice(("stop", "drop", "pass")),
        "stop",
    )

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`; looks whether the function is there, without running anything."""
        self._look(files)
        shape = self.output.shape or spec.shape
        if len(shape) != 2:
            raise Misfit("not-available", "this version takes images only", ("output", "shape"), "[height, width]")
        dtype = self.output.dtype or spec.dtype
        if self.on_error == "pass" and (dtype, tuple(shape)) != (spec.dtype, spec.shape):
            message = f"the input ({spec}) can't be passed on as {dtype} {shape[1]} x {shape[0]}"
            raise Misfit("edge-mismatch", message, ("on_error",), "on_error: drop")
        if tuple(shape) == spec.shape:
            return replace(spec, dtype=dtype, saturation=None)
        return FrameSpec(dtype, View(Rect(0, 0, shape[1], shape[0])), (shape[1], shape[0]))

    def start(self, spec: FrameSpec, files: Files, rule: Rule) -> Transformer:
        """See `Transform.start`."""
        function, params = self._load(spec, files)
        return _Call(self, function, params, self.infer(spec, files))

    def _look(self, files: Files) -> None:
        where, _, name = self.function.rpartition(":")
        if not where.endswith(".py"):
            if importlib.util.find_spec(where.partition(".")[0]) is None:
                raise Misfit("unknown-function", f"there is no module {where}", ("function",))
            return
        path = files.path(where)
        try:
            tree = ast.parse(Path(path).read_bytes(), path)
        except (SyntaxError, ValueError, OSError) as error:
            raise FileProblem(f"{where} is not Python: {error}", "file-unreadable") from error
        names = _defined(tree)
        if name not in names:
            known = ", ".join(sorted(names)) or "nothing"
            raise Misfit("unknown-function", f"{where} defines no {name}", ("function",), f"it defines {known}")

    def _load(self, spec: FrameSpec, files: Files) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        """What is called for each block, and with which parameters: an object got them when it was made."""
        where, _, name = self.function.rpartition(":")
        module = _module(files.path(where)) if where.endswith(".py") else importlib.import_module(where)
        found: Any = getattr(module, name)
        if isinstance(found, type):
            return found(spec, **self.params), {}
        if not callable(found):
            raise TypeError(f"{self.function} is no function")
        return found, self.params


def _defined(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top: functions, classes, assignments, imports."""
    names = set()
    for item in tree.body:
        if isinstance(item, ast.FunctionDef | ast.ClassDef):
            names.add(item.name)
        elif isinstance(item, ast.Assign):
            names |= {target.id for target in item.targets if isinstance(target, ast.Name)}
        elif isinstance(item, ast.ImportFrom | ast.Import):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in item.names}
    return names


def _module(path: str) -> ModuleType:
    """A file as a module of its own; its folder is not put on the path."""
    spec = importlib.util.spec_from_file_location(f"lima2_user_{Path(path).stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Call:
    """See `Transformer`."""

    def __init__(
        self, node: Python, function: Callable[..., Any], params: Mapping[str, Any], output: FrameSpec
    ) -> None:
        self._node, self._function, self._params = node, function, dict(params)
        self._dtype, self._shape = np.dtype(output.dtype), output.shape

    def step(self, block: Block) -> Block | None:
        """See `Transformer.step`."""
        frames = block.frames.view()
        frames.flags.writeable = False
        try:
            result = self._checked(self._function(frames, block.numbers, **self._params), len(frames))
        except Exception as error:  # noqa: BLE001  user code may raise anything
            return self._failed(error, block)
        return Block(result, block.numbers, block.times, False)

    def _checked(self, result: Any, count: int) -> Array:
        array = np.asarray(result)
        if array.shape != (count, *self._shape):
            raise ValueError(f"it returned {array.shape}, {(count, *self._shape)} was declared")
        return array.astype(self._dtype, casting="same_kind", copy=False)

    def _failed(self, error: Exception, block: Block) -> Block:
        node = self._node
        if node.on_error == "pass":
            return block
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}: " if where.filename != __file__ else ""
        message = f"{place}{type(error).__name__}: {error}"
        if node.on_error == "drop":
            raise Dropped(message) from error
        raise RuntimeError(message) from error

    def finish(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """See `Transformer.close`."""
        close = getattr(self._function, "close", None)
        if close is not None:
            close()
