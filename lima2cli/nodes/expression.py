"""Node `expression`: a formula over the pixels of one or several inputs.

    {inputs: {a: raw, b: flat}, expression: {expr: "where(b > 0.1, a / b, 0)"}}

``expr`` may have the names of the inputs, numbers, ``+ - * / // % **``, comparisons, ``& | ~ ^`` of conditions (with
parentheses around comparisons) and the functions `where`, `minimum`, `maximum`, `abs`, `sqrt`, `exp`, `expm1`, `log`,
`log10`, `log1p`, `sin`, `cos`, `tan`, `arcsin`, `arccos`, `arctan`, `arctan2`, `sinh`, `cosh`, `tanh`, `floor`,
`ceil`, `isnan`, `isfinite`. All of them mean what they mean in numpy; a condition counts as 1 or 0. It is computed by
numexpr, on one thread unless `NUMEXPR_NUM_THREADS` says otherwise.

The result is float32, or float64 where an input is, or of ``dtype``; integers are rounded half to even and clipped to
their range, NaN becomes 0. Pixels are computed in float32 where it holds all inputs exactly (integers of up to 16 bits,
float32) and the result is float32; else in float64, rounded once at the end. Integers beyond 2**53 are rounded before.

Frames are paired by their number; those that are not in all inputs are left out and counted as unmatched. All inputs
come from one data flow, have frames of one numbering and show the same part of the detector the same way. A pixel is
masked where it is in any input; masked pixels are computed like any other. The saturation level is no longer known.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from lima2cli.declare import Choice, Text, param
from lima2cli.errors import Misfit
from lima2cli.nodes.base import Join
from lima2cli.nodes.formula import FormulaError, Name, Number, Op, Tree, names, numbers, read_formula
from lima2cli.nodes.joined import joined
from lima2cli.nodes.pixelwise import store
from lima2cli.nodes.tiles import tile_shape, tiles
from lima2cli.spec import DTYPES, Array, Files, FrameSpec

MOST_INPUTS = 16
"""Inputs of a formula; numpy iterates over 32 arrays at most."""


@dataclass(frozen=True, kw_only=True)
class Expression(Join):
    """Computes a formula over the pixels of its inputs."""

    kind: ClassVar[str] = "expression"

    expr: str = param("The formula; its names are those of `inputs`.", Text())
    dtype: str | None = param(
        "Pixels of the result; default: float32, or float64 where an input is.", Choice(DTYPES), None
    )

    def infer_all(self, specs: Mapping[str, FrameSpec], files: Files) -> FrameSpec:
        """See `Join.infer_all`."""
        if len(specs) > MOST_INPUTS:
            message = f"a formula has at most {MOST_INPUTS} inputs, not {len(specs)}"
            raise Misfit("out-of-range", message, ("inputs",))
        self._tree(specs)
        return replace(joined(specs), dtype=self.dtype or _natural(specs))

    def warnings_all(self, specs: Mapping[str, FrameSpec], files: Files) -> Sequence[Misfit]:
        """See `Join.warnings_all`."""
        used = names(self._tree(specs))
        return [
            Misfit("unused-input", f"`{name}` is not in the formula", ("inputs", name), "use it, or leave it out")
            for name in specs
            if name not in used
        ]

    def bind_all(self, specs: Mapping[str, FrameSpec], files: Files) -> Callable[[Mapping[str, Array]], Array]:
        """See `Join.bind_all`."""
        target = self.infer_all(specs, files)
        tree = self._tree(specs)
        return _Evaluation(tree, work_dtype(tree, specs, target.dtype), np.dtype(target.dtype), target.shape)

    def _tree(self, specs: Mapping[str, FrameSpec]) -> Tree:
        try:
            return read_formula(self.expr, specs)
        except FormulaError as error:
            raise Misfit("bad-expression", str(error), ("expr",), error.help) from error


def _natural(specs: Mapping[str, FrameSpec]) -> str:
    return "float64" if any(spec.dtype == "float64" for spec in specs.values()) else "float32"


def work_dtype(tree: Tree, specs: Mapping[str, FrameSpec], target: str) -> "np.dtype[Any]":
    """dtype of the arithmetic."""
    exact = all(np.can_cast(specs[name].dtype, np.float32) for name in names(tree))
    largest = float(np.finfo(np.float32).max)
    fits = all(abs(value) <= largest for value in numbers(tree) if np.isfinite(value))
    return np.dtype("float32" if exact and fits and target == "float32" else "float64")


class _Evaluation:
    """A formula bound; it keeps one output array, which grows with the largest block."""

    def __init__(self, tree: Tree, work: "np.dtype[Any]", target: "np.dtype[Any]", shape: tuple[int, int]) -> None:
        self._names, self._compute = names(tree), compiled(tree, work)
        self._work, self._target, self._shape = work, target, shape
        self._out: Array = np.empty((0, *shape), target)
        deep, tall = tile_shape(*shape)
        pixels = deep * tall * shape[1]
        self._given = {name: np.empty(pixels, work) for name in self._names}
        self._result = np.empty(pixels, work)

    def __call__(self, frames: Mapping[str, Array]) -> Array:
        """The result for frames (n, height, width) of each input."""
        count = len(next(iter(frames.values())))
        if count > len(self._out):
            self._out = np.empty((count, *self._shape), self._target)
        for deep, tall in tiles(count, *self._shape):
            out = self._out[deep, tall]
            given = [self._taken(name, frames[name][deep, tall]) for name in self._names]
            if self._work == self._target:
                self._compute(*given, out=out)
                continue
            result = self._result[: out.size].reshape(out.shape)
            self._compute(*given, out=result)
            with np.errstate(all="ignore"):
                if self._target.kind != "f":
                    result[np.isnan(result)] = 0
                store(result, out)
        return self._out[:count]

    def _taken(self, name: str, strip: Array) -> Array:
        """In the dtype of the arithmetic, in one piece: faster than to let numexpr convert."""
        if strip.dtype == self._work and strip.flags.c_contiguous:
            return strip
        own = self._given[name][: strip.size].reshape(strip.shape)
        np.copyto(own, strip, casting="unsafe")
        return own


def compiled(tree: Tree, work: "np.dtype[Any]") -> Callable[..., Array]:
    """numexpr's function of arrays of dtype ``work``, in the order of `names`, that takes ``out``.

    It is made of numexpr's own nodes, typed, and not from text.
    """
    import numexpr
    from numexpr import expressions

    if "NUMEXPR_NUM_THREADS" not in os.environ:
        numexpr.set_num_threads(1)
    single = work == np.float32
    kind = "float" if single else "double"  # numexpr's names of C's types

    def lower(part: Tree) -> Any:
        if isinstance(part, Name):
            return expressions.VariableNode(part.name, kind)
        if isinstance(part, Number):
            with np.errstate(all="ignore"):
                return expressions.ConstantNode(work.type(part.value), kind)
        return _lowered(part, [lower(arg) for arg in part.args], kind, expressions)

    with np.errstate(all="ignore"):
        root = lower(tree)
        signature = [(name, float if single else np.float64) for name in names(tree)]
        run = numexpr.NumExpr(root, signature)
    return lambda *arrays, out: run(*arrays, out=out, ex_uses_vml=False)


_OPERATORS = ("add", "sub", "mul", "div", "pow", "neg")
_REVERSED = {"lt": "gt", "le": "ge"}
_CONDITIONS = {"gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne", "and": "and", "or": "or", "xor": "xor", "not": "invert"}


def _lowered(op: Op, args: list[Any], kind: str, expressions: Any) -> Any:
    """An operation in numexpr's terms."""
    if op.name in _OPERATORS:
        return expressions.OpNode(op.name, args, kind)
    if op.name in _REVERSED:
        return expressions.OpNode(_REVERSED[op.name], args[::-1], "bool")
    if op.name in _CONDITIONS:
        return expressions.OpNode(_CONDITIONS[op.name], args, "bool")
    return expressions.functions[op.name](*args)
