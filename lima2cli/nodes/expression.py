"""Node `expression`: a formula over the pixels of one or several inputs.

    {inputs: {a: raw, b: flat}, expression: {expr: "where(b > 0.1, a / b, 0)"}}

With a single input, `{input: raw, expression: {expr: "raw - 2"}}`, its own name is that of the variable.

``expr`` may have the names of the inputs, numbers, ``+ - * / // % **``, comparisons, ``and or not`` of conditions (or
``& | ~ ^``, with parentheses around comparisons) and the functions `where`, `minimum`, `maximum`, `abs`, `sqrt`,
`exp`, `expm1`, `log`, `log10`, `log1p`, `sin`, `cos`, `tan`, `arcsin`, `arccos`, `arctan`, `arctan2`, `sinh`, `cosh`,
`tanh`, `floor`, `ceil`, `isnan`, `isfinite`. All of them mean what they mean in numpy; a condition counts as 1 or 0. It
is computed by numexpr, in as many threads as the receiver has.

The result is float32, or float64 where an input is, or of ``dtype``; integers are rounded half to even and clipped to
their range, NaN becomes the detector's gap value. Pixels are computed in float32 where it holds all inputs exactly
(integers of up to 16 bits, float32) and the result is float32; else in float64, rounded once at the end. Integers
beyond 2**53 are rounded before.

Frames are paired by their number; those that are not in all inputs are left out and counted as unmatched. The same
frame of all inputs is at one receiver, and they show the same part of the detector the same way.

A pixel is masked where it is in any input, also in one that the formula does not use, by the static mask or in single
frames. Whatever the formula says, it is NaN, in integers what the first input holds that is masked there (a warning
where valid results could be mistaken for it). Only a formula that asks by `isnan` or `isfinite` sees the NaN of single
frames, and decides. The saturation level is no longer known.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from lima2cli.declare import Choice, Text, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import DTYPES, Array, FrameSpec, Invalid
from lima2cli.kernels.formula import (
    FormulaError,
    Name,
    Op,
    Scalar,
    Tree,
    asks_for_nan,
    carries_nan,
    names,
    numbers,
    read_formula,
)
from lima2cli.kernels.masked import JoinedHoles, collision, gap_in, joined_rule, unmarked
from lima2cli.kernels.opencl import formula_text
from lima2cli.kernels.strips import DeviceText, Formula, Stage, Steps, store, tiles
from lima2cli.nodes.base import Inputs, Map, joined, node

MOST_INPUTS = 16
"""Inputs of a formula; numpy iterates over 32 arrays at most."""


@node("expression")
class Expression(Map):
    """Computes a formula over the pixels of its inputs."""

    changeable: ClassVar[tuple[str, ...]] = ("expr",)

    wiring: ClassVar[Literal["input", "inputs"]] = "inputs"
    parts: ClassVar[bool] = True

    expr: str = param("The formula; its names are those of `inputs`.", Text())
    dtype: str | None = param(
        "Type of the pixels of the result; default: float32, or float64 where an input is.", Choice(DTYPES), None
    )

    def in_strips(self, inputs: int) -> bool:
        """See `Map.in_strips`."""
        return inputs == 1

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`."""
        specs = inputs.specs
        if len(specs) > MOST_INPUTS:
            message = f"a formula has at most {MOST_INPUTS} inputs, not {len(specs)}"
            raise NodeMisuse("out-of-range", message, ("inputs",))
        self._tree(specs)
        target = self.dtype or _natural(specs)
        holds = math.nan if np.dtype(target).kind == "f" else None
        return replace(joined(specs), saturation=None, dtype=target, invalid=joined_rule(specs, target), holds=holds)

    def warnings(self, inputs: Inputs) -> Sequence[NodeMisuse]:
        """See `Node.warnings`: inputs that are not used, and results that could be mistaken."""
        used = names(self._tree(inputs.specs))
        return [*self._doubtful(inputs.specs)] + [
            NodeMisuse("unused-input", f"`{name}` is not in the formula", ("inputs", name), "use it, or leave it out")
            for name in inputs.specs
            if name not in used
        ]

    def _doubtful(self, specs: Mapping[str, FrameSpec]) -> Sequence[NodeMisuse]:
        """Integer results that could be mistaken for pixels without a measurement, or the other way round."""
        target = self.dtype or _natural(specs)
        if np.dtype(target).kind == "f":
            return ()
        rule = joined_rule(specs, target)
        found = [collision(rule, ("dtype",))] if rule != Invalid() else []
        found += [it for name, spec in specs.items() if (it := unmarked(spec, rule, target, f"`{name}`")) is not None]
        return found

    def bind(self, inputs: Inputs) -> Callable[..., Array]:
        """See `Map.bind`."""
        specs, target = inputs.specs, self.infer(inputs)
        tree = self._tree(specs)
        strips = _Strips(tree, work_dtype(tree, specs, target.dtype), np.dtype(target.dtype), target.gap)
        order = list(specs)
        used = [order.index(name) for name in strips.names]
        through = list(range(len(order))) if asks_for_nan(self.expr) else used if carries_nan(tree) else []
        return _Evaluation(strips, used, JoinedHoles(list(specs.values()), target.dtype, through), target)

    def stage_of(self, inputs: Inputs) -> Stage:
        """See `Map.stage_of`: all inputs are the same one, perhaps by several names."""
        spec, specs = inputs.spec, inputs.specs
        target, tree = self.infer(inputs).dtype, self._tree(specs)
        work, steps = work_dtype(tree, specs, target), linear(tree)
        if steps is not None and np.dtype(target).kind == "f":
            return Steps(spec.dtype, target, work=work.name, numbers=steps).of(spec)
        strips = partial(_Strips, tree, work, np.dtype(target), spec.gap)
        through = asks_for_nan(self.expr) or carries_nan(tree)
        c = DeviceText(formula_text(tree, work), work.name, _gap(np.dtype(target), spec.gap))
        return Formula(spec.dtype, target, make=lambda: _OfOne(strips()), propagates=through, c=c).of(spec)

    def _tree(self, specs: Mapping[str, FrameSpec]) -> Tree:
        try:
            return read_formula(self.expr, specs)
        except FormulaError as error:
            raise NodeMisuse("bad-expression", str(error), ("expr",), error.help) from error


def _natural(specs: Mapping[str, FrameSpec]) -> str:
    return "float64" if any(spec.dtype == "float64" for spec in specs.values()) else "float32"


def work_dtype(tree: Tree, specs: Mapping[str, FrameSpec], target: str) -> "np.dtype[Any]":
    """Return the dtype of the arithmetic."""
    exact = all(np.can_cast(specs[name].dtype, np.float32) for name in names(tree))
    largest = float(np.finfo(np.float32).max)
    fits = all(abs(value) <= largest for value in numbers(tree) if np.isfinite(value))
    return np.dtype("float32" if exact and fits and target == "float32" else "float64")


Linear = tuple[tuple[np.ufunc, float], ...]

_LINEAR: Mapping[str, np.ufunc] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


def linear(tree: Tree) -> Linear | None:
    """Return the steps of a formula that only adds numbers to one input and multiplies with them; None for all others.

    The steps round as the formula does.
    """
    if isinstance(tree, Name):
        return ()
    if isinstance(tree, Scalar) or (tree.name != "neg" and tree.name not in _LINEAR):
        return None
    negative: Linear = ((np.multiply, -1.0),)
    *left, right = tree.args
    if not left:
        return _then(linear(right), negative)
    if isinstance(right, Scalar):
        return _then(linear(left[0]), ((_LINEAR[tree.name], right.value),))
    if not isinstance(left[0], Scalar) or tree.name == "div":
        return None
    if tree.name == "sub":
        return _then(linear(right), (*negative, (np.add, left[0].value)))
    return _then(linear(right), ((_LINEAR[tree.name], left[0].value),))


def _then(before: Linear | None, steps: Linear) -> Linear | None:
    return None if before is None else (*before, *steps)


class _Strips:
    """A formula of strips, bound to one thread; ``gap`` instead of NaN in integers."""

    def __init__(self, tree: Tree, work: "np.dtype[Any]", target: "np.dtype[Any]", gap: float) -> None:
        self.names, self._compute = names(tree), compiled(tree, work)
        self._work, self._target = work, target
        self._gap = _gap(target, gap)
        self._scratch: dict[int, Array] = {}

    def __call__(self, strips: Sequence[Array], out: Array) -> None:
        """Return the result for strips (n, rows, width) of each of ``names``."""
        given = [self._taken(i, strip) for i, strip in enumerate(strips)]
        if self._work == self._target and out.flags.c_contiguous:
            self._compute(*given, out=out)
            return
        result = self._own(len(given), out)
        self._compute(*given, out=result)
        with np.errstate(all="ignore"):
            if self._target.kind != "f":
                result[np.isnan(result)] = self._gap
            store(result, out)

    def _taken(self, i: int, strip: Array) -> Array:
        """In the dtype of the arithmetic, in one piece: faster than to let numexpr convert."""
        if strip.dtype == self._work and strip.flags.c_contiguous:
            return strip
        own = self._own(i, strip)
        np.copyto(own, strip, casting="unsafe")
        return own

    def _own(self, i: int, like: Array) -> Array:
        """Memory of the shape of ``like``."""
        if i not in self._scratch or self._scratch[i].size < like.size:
            self._scratch[i] = np.empty(like.size, self._work)
        return self._scratch[i][: like.size].reshape(like.shape)


def _gap(target: "np.dtype[Any]", gap: float) -> int:
    """Return what stands for NaN in integers."""
    return 0 if target.kind == "f" else gap_in(gap, target.name)


class _OfOne:
    """A formula of one strip, whatever its names."""

    def __init__(self, strips: _Strips) -> None:
        self._strips = strips

    def __call__(self, raw: Array, out: Array, rows: slice) -> None:
        """See `StripFunction`."""
        self._strips([raw] * len(self._strips.names), out)


class _Evaluation:
    """A formula bound, of the inputs ``used``; it keeps one output array, which grows with the largest block."""

    def __init__(self, strips: _Strips, used: Sequence[int], holes: JoinedHoles, target: FrameSpec) -> None:
        self._strips, self._used, self._holes = strips, used, holes
        self._out: Array = np.empty((0, *target.shape), target.dtype)

    def __call__(self, *frames: Array) -> Array:
        """Return the result for frames (n, height, width) of each input."""
        count = len(frames[0])
        if count > len(self._out):
            self._out = np.empty((count, *self._out.shape[1:]), self._out.dtype)
        for deep, tall in tiles(*self._out[:count].shape):
            strips = [each[deep, tall] for each in frames]
            self._strips([strips[i] for i in self._used], self._out[deep, tall])
            self._holes.put(strips, self._out[deep, tall], tall)
        return self._out[:count]


def compiled(tree: Tree, work: "np.dtype[Any]") -> Callable[..., Array]:
    """Return numexpr's function of arrays of dtype ``work``, in the order of `names`, that takes ``out``.

    It is made of numexpr's own nodes, typed, and not from text. For one thread: it has registers, which two that run
    at the same time would both write to.
    """
    import numexpr
    from numexpr import expressions

    numexpr.set_num_threads(1)  # a receiver that has several splits the frames
    single = work == np.float32
    kind = "float" if single else "double"  # numexpr's names of C's types

    def lower(part: Tree) -> Any:
        if isinstance(part, Name):
            return expressions.VariableNode(part.name, kind)
        if isinstance(part, Scalar):
            with np.errstate(all="ignore"):
                value = work.type(part.value)
                constant = expressions.ConstantNode(abs(value) if value == 0 else value, kind)
            # numexpr keeps equal constants once, and takes -0 for 0
            return expressions.OpNode("neg", [constant], kind) if value == 0 and np.signbit(value) else constant
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
    """Translate an operation into numexpr's terms."""
    if op.name in _OPERATORS:
        return expressions.OpNode(op.name, args, kind)
    if op.name in _REVERSED:
        return expressions.OpNode(_REVERSED[op.name], args[::-1], "bool")
    if op.name in _CONDITIONS:
        return expressions.OpNode(_CONDITIONS[op.name], args, "bool")
    return expressions.functions[op.name](*args)
