"""Formulae over images, as users write them: a small part of Python's grammar, checked before anything is computed.

Names of inputs, numbers, ``+ - * / // % **``, comparisons (chained too), ``and or not`` and ``& | ~ ^`` of conditions,
parentheses and the functions of `FUNCTIONS`; precedence is as in Python. All else is refused with its column. The
result is a tree of `Name`, `Scalar` and `Op`, in which every operation is a primitive; the text itself is never
evaluated.

Meaning is numpy's for floats, except for the sign of zeros: ``//`` rounds down and ``%`` has the sign of the divisor;
`minimum` and `maximum` give NaN where one side is; a condition counts as 1 or 0 where a number is needed. Numbers alone
are computed once, in float64.
"""

import ast
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import did_you_mean

LENGTH = 2000
"""Most characters of a formula."""

OPERATIONS = 100
"""Most different operations of a formula: an evaluator has a register for each."""

WRITTEN_OUT = 500
"""Most operations of a formula with shared ones counted each time."""


class FormulaError(ValueError):
    """A formula that is refused; ``help`` is the cure, if we know one."""

    def __init__(self, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.help = help


@dataclass(frozen=True)
class Name:
    """An input."""

    name: str
    size: int = 0


@dataclass(frozen=True)
class Scalar:
    """A number, the same for all pixels."""

    value: float
    size: int = 0


@dataclass(frozen=True)
class Op:
    """A primitive on others. ``condition``: its result is true or false."""

    name: str
    args: "tuple[Tree, ...]"
    condition: bool = False

    @cached_property
    def size(self) -> int:
        """Return the number of operations, shared ones counted each time."""
        return 1 + sum(arg.size for arg in self.args)


Tree = Name | Scalar | Op

PRIMITIVES: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.true_divide, "pow": np.power, "neg": np.negative,
    "fmod": np.fmod, "floor": np.floor, "ceil": np.ceil, "abs": np.abs, "sqrt": np.sqrt,
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log10": np.log10, "log1p": np.log1p,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "arcsin": np.arcsin, "arccos": np.arccos, "arctan": np.arctan,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "arctan2": np.arctan2,
}  # fmt: skip
"""Functions from numbers to numbers; the others are ``where``, ``lt le gt ge eq ne`` and ``and or xor not``."""

FUNCTIONS: Mapping[str, int] = {
    "where": 3, "minimum": 2, "maximum": 2, "abs": 1, "sqrt": 1, "exp": 1, "expm1": 1, "log": 1, "log10": 1,
    "log1p": 1, "sin": 1, "cos": 1, "tan": 1, "arcsin": 1, "arccos": 1, "arctan": 1, "arctan2": 2, "sinh": 1,
    "cosh": 1, "tanh": 1, "floor": 1, "ceil": 1, "isnan": 1, "isfinite": 1,
}  # fmt: skip
"""Functions that may be called, and their number of arguments."""

_BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.Pow: "pow", ast.Mod: "%",
           ast.FloorDiv: "//", ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor"}  # fmt: skip
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_COMPARED = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne"}


def read_formula(text: str, inputs: Collection[str]) -> Tree:
    """Return the tree of a formula, a number for each pixel.

    Raises: FormulaError.
    """
    tree = read_text(text, lambda line, body: _number(Reader(line, inputs).read(body)))
    if not names(tree):
        raise FormulaError("the formula uses no input", f"its inputs are {', '.join(inputs)}")
    return tree


def read_text(text: str, read: Callable[[str, ast.expr], Tree]) -> Tree:
    """Return the result of ``read`` for the line and its syntax, if it is not too large.

    Raises: FormulaError.
    """
    line = " ".join(text.split("\n")).strip()
    if len(line) > LENGTH:
        raise FormulaError(f"the formula has {len(line)} characters, more than {LENGTH}")
    try:
        body = ast.parse(line, mode="eval").body
    except SyntaxError as error:
        column = f" at column {error.offset}" if error.offset else ""
        raise FormulaError(f"the formula cannot be read{column}: {error.msg}", _slip(line)) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise FormulaError(f"the formula cannot be read: {error or 'it is nested too deeply'}") from error
    if (
        sum(isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.Compare | ast.Call) for node in ast.walk(body))
        > OPERATIONS
    ):
        raise FormulaError(f"the formula has more than {OPERATIONS} operations")
    tree = read(line, body)
    parts = set(_parts(tree))
    if sum(isinstance(part, Op) for part in parts) > OPERATIONS or len(parts) > 2 * OPERATIONS:
        raise FormulaError(f"the formula has more than {OPERATIONS} operations, `%` and `//` being several each")
    return tree


_OTHERS = (("&&", "and"), ("||", "or"), ("!", "not"), ("=", "=="))
"""Signs of other languages, with those of formulae."""


def _slip(line: str) -> str | None:
    """Return help for a sign of another language in a formula that cannot be read."""
    bare = re.sub("[<>=!]=", "", line)
    return next((f"write `{ours}` for `{theirs}`" for theirs, ours in _OTHERS if theirs in bare), None)


def names(tree: Tree) -> list[str]:
    """Return the inputs that a formula uses, each once, in order."""
    return list(dict.fromkeys(part.name for part in _parts(tree) if isinstance(part, Name)))


def numbers(tree: Tree) -> list[float]:
    """Return the numbers that a formula holds."""
    return [part.value for part in _parts(tree) if isinstance(part, Scalar)]


_CARRYING = frozenset(PRIMITIVES) - {"pow"}  # NaN ** 0 is 1


def carries_nan(tree: Tree) -> bool:
    """Return True if the result is NaN wherever one of its inputs is."""
    return all(part.name in _CARRYING for part in _parts(tree) if isinstance(part, Op))


def asks_for_nan(text: str) -> bool:
    """Return True if a formula itself decides on pixels that are NaN."""
    return any(
        isinstance(part, ast.Name) and part.id in ("isnan", "isfinite")
        for part in ast.walk(ast.parse(" ".join(text.split("\n")).strip(), mode="eval"))
    )


def _parts(tree: Tree) -> Iterator[Tree]:
    yield tree
    if isinstance(tree, Op):
        for arg in tree.args:
            yield from _parts(arg)


class Reader:
    """Reader of the syntax of one line. Grammars with more to them extend `_read`."""

    def __init__(self, line: str, inputs: Collection[str]) -> None:
        self._line, self._inputs = line, inputs

    def read(self, node: ast.expr) -> Tree:
        """Return the tree of a part of the line.

        Raises: FormulaError where it is not of the grammar.
        """
        tree = self._read(node)
        if tree.size > WRITTEN_OUT:
            raise self._refused(node, f"the formula has more than {WRITTEN_OUT} operations written out")
        return tree

    def _read(self, node: ast.expr) -> Tree:
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.BinOp):
            return self._binary(node)
        if isinstance(node, ast.BoolOp):
            return self._boolean(node)
        if isinstance(node, ast.UnaryOp):
            return self._unary(node)
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        help = "write where(condition, a, b)" if isinstance(node, ast.IfExp) else None
        raise self._refused(node, f"a formula cannot have {_words(node)}", help)

    def _name(self, node: ast.Name) -> Tree:
        if node.id in self._inputs:
            return Name(node.id)
        if node.id in FUNCTIONS:
            raise self._refused(node, f"`{node.id}` is a function: {node.id}({', '.join('…' * FUNCTIONS[node.id])})")
        raise self._refused(node, f"`{node.id}` is not an input", did_you_mean(node.id, list(self._inputs)))

    def _constant(self, node: ast.Constant) -> Tree:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise self._refused(node, f"`{node.value!r}` is not a number")
        try:
            value = float(node.value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self._refused(node, "the number is too large")
        return Scalar(value)

    def _binary(self, node: ast.BinOp) -> Tree:
        name = _BINARY.get(type(node.op))
        if name is None:
            raise self._refused(node, f"a formula cannot have {_words(node.op)}")
        one, other = self.read(node.left), self.read(node.right)
        if name in _LOGIC:
            return Op(name, (self._condition(one, node.left), self._condition(other, node.right)), True)
        one, other = _number(one), _number(other)
        if name == "pow":
            return _power(one, other)
        if name in ("%", "//"):
            return _remainder(one, other) if name == "%" else _quotient(one, other)
        return _op(name, one, other)

    def _boolean(self, node: ast.BoolOp) -> Tree:
        name = "and" if isinstance(node.op, ast.And) else "or"
        whole, *others = (self._condition(self.read(value), value) for value in node.values)
        for other in others:
            whole = Op(name, (whole, other), True)
        return whole

    def _unary(self, node: ast.UnaryOp) -> Tree:
        if isinstance(node.op, ast.Invert | ast.Not):
            return Op("not", (self._condition(self.read(node.operand), node.operand),), True)
        value = _number(self.read(node.operand))
        return _op("neg", value) if isinstance(node.op, ast.USub) else value

    def _compare(self, node: ast.Compare) -> Tree:
        values = [_number(self.read(value)) for value in (node.left, *node.comparators)]
        whole: Tree | None = None
        for op, one, other in zip(node.ops, values, values[1:], strict=False):
            if type(op) not in _COMPARED:
                raise self._refused(node, f"a formula cannot have {_words(op)}")
            if isinstance(one, Scalar) and isinstance(other, Scalar):
                raise self._refused(node, "this compares only numbers", "compare something that depends on an input")
            pair = Op(_COMPARED[type(op)], (one, other), True)
            whole = pair if whole is None else Op("and", (whole, pair), True)
        assert whole is not None
        return whole

    def _call(self, node: ast.Call) -> Tree:
        if not isinstance(node.func, ast.Name):
            raise self._refused(node, f"a formula cannot have a call of {_words(node.func)}")
        name = node.func.id
        if name not in FUNCTIONS:
            help = did_you_mean(name, list(FUNCTIONS)) or f"functions: {', '.join(FUNCTIONS)}"
            raise self._refused(node, f"there is no function `{name}`", help)
        if node.keywords:
            raise self._refused(node, f"`{name}` takes no keywords")
        if len(node.args) != FUNCTIONS[name]:
            raise self._refused(node, f"`{name}` takes {FUNCTIONS[name]} arguments, got {len(node.args)}")
        trees = [self.read(arg) for arg in node.args]
        if name == "where":
            return Op("where", (self._condition(trees[0], node.args[0]), *map(_number, trees[1:])))
        args = [_number(tree) for tree in trees]
        if name in ("isnan", "isfinite") and isinstance(args[0], Scalar):
            raise self._refused(
                node, f"the argument of `{name}` is only a number", "use something that depends on an input"
            )
        return _DERIVED[name](*args) if name in _DERIVED else _op(name, *args)

    def _condition(self, tree: Tree, node: ast.expr) -> Tree:
        if not is_condition(tree):
            help = "put parentheses around comparisons: (a > 1) & (b < 2)"
            raise self._refused(node, "a condition is needed here, not a number", help)
        return tree

    def _refused(self, node: ast.expr, message: str, help: str | None = None) -> FormulaError:
        column = len(self._line.encode()[: node.col_offset].decode()) + 1
        return FormulaError(f"{message}, at column {column}", help)


def _words(node: ast.AST) -> str:
    words = {
        ast.IfExp: "`if`", ast.Attribute: "attributes", ast.Subscript: "subscripts",
        ast.Lambda: "functions of its own", ast.NamedExpr: "assignments", ast.MatMult: "`@`", ast.LShift: "`<<`",
        ast.RShift: "`>>`", ast.In: "`in`", ast.NotIn: "`not in`", ast.Is: "`is`", ast.IsNot: "`is not`",
        ast.JoinedStr: "strings", ast.Starred: "`*` before a value",
    }  # fmt: skip
    return words.get(type(node), f"{type(node).__name__.lower()}s")


def is_condition(tree: Tree) -> bool:
    """Return True if the result of a tree is true or false."""
    return isinstance(tree, Op) and tree.condition


def _number(tree: Tree) -> Tree:
    return Op("where", (tree, Scalar(1.0), ZERO)) if is_condition(tree) else tree


def _op(name: str, *args: Tree) -> Tree:
    """Return the operation, computed at once where nothing depends on a pixel."""
    given = [arg for arg in args if isinstance(arg, Scalar)]
    return Op(name, args) if len(given) < len(args) else _folded(PRIMITIVES[name], *given)


def _power(base: Tree, exponent: Tree) -> Tree:
    """Return a power; small whole ones are products, which are much the faster."""
    if isinstance(base, Scalar) or exponent not in (Scalar(2.0), Scalar(3.0), Scalar(4.0)):
        return _op("pow", base, exponent)
    square = Op("mul", (base, base))
    if exponent == Scalar(2.0):
        return square
    return Op("mul", (square, base if exponent == Scalar(3.0) else square))


ZERO = Scalar(0.0)


def _remainder(one: Tree, other: Tree) -> Tree:
    if isinstance(one, Scalar) and isinstance(other, Scalar):
        return _folded(np.remainder, one, other)
    rest = Op("fmod", (one, other))
    return Op("where", (_other_side(rest, other), Op("add", (rest, other)), rest))


def _quotient(one: Tree, other: Tree) -> Tree:
    """Return the quotient in numpy's steps, to match the remainder: rounded, and one less where that was corrected."""
    if isinstance(one, Scalar) and isinstance(other, Scalar):
        return _folded(np.floor_divide, one, other)
    rest = Op("fmod", (one, other))
    ratio = Op("div", (Op("sub", (one, rest)), other))
    ratio = Op("where", (_other_side(rest, other), Op("sub", (ratio, Scalar(1.0))), ratio))
    down = Op("floor", (ratio,))
    up = Op("gt", (Op("sub", (ratio, down)), Scalar(0.5)), True)
    whole, plain = Op("where", (up, Op("add", (down, Scalar(1.0))), down)), Op("div", (one, other))
    if isinstance(other, Scalar):
        return whole if other.value else plain
    return Op("where", (Op("eq", (other, ZERO), True), plain, whole))


def _other_side(rest: Tree, other: Tree) -> Tree:
    """Return the condition that a remainder has not the sign of the divisor."""
    if isinstance(other, Scalar):
        return Op("gt" if other.value < 0 else "lt", (rest, ZERO), True)
    signs = Op("xor", (Op("lt", (rest, ZERO), True), Op("lt", (other, ZERO), True)), True)
    return Op("and", (Op("ne", (rest, ZERO), True), signs), True)


def _folded(function: Callable[..., Any], *values: Scalar) -> Scalar:
    """Return the result of numbers alone, computed at once."""
    with np.errstate(all="ignore"):
        return Scalar(float(function(*(number.value for number in values))))


def _extreme(name: str) -> Callable[[Tree, Tree], Tree]:
    def of(one: Tree, other: Tree) -> Tree:
        """Return the lesser or the greater of two; the first where it is NaN."""
        if isinstance(one, Scalar) and isinstance(other, Scalar):
            return _folded(np.minimum if name == "lt" else np.maximum, one, other)
        chosen: Tree = Op(name, (one, other), True)
        if not isinstance(one, Scalar):
            chosen = Op("or", (chosen, Op("ne", (one, one), True)), True)
        elif math.isnan(one.value):
            return one
        return Op("where", (chosen, one, other))

    return of


_DERIVED: Mapping[str, Callable[..., Tree]] = {
    "minimum": _extreme("lt"),
    "maximum": _extreme("gt"),
    "isnan": lambda one: Op("ne", (one, one), True),
    "isfinite": lambda one: Op("eq", (Op("sub", (one, one)), ZERO), True),
}
