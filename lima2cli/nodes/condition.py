"""Conditions on the rows of tables, as users write them: the grammar of `formula`, about columns.

    counters.door_sum > 1e6 and not (counters.door_max >= 65535 or 0.9 < monitor.beam_avg < 1.1)

A column is written ``node.column``, both names as they are: a ``-`` between letters or digits belongs to the name, so
that a minus has spaces around it.

All columns are computed as float64. Comparisons with NaN are false, but for ``!=``, which is true.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.nodes.formula import (
    FUNCTIONS,
    PRIMITIVES,
    FormulaError,
    Name,
    Number,
    Reader,
    Tree,
    is_condition,
    names,
    read_text,
)

COLUMN = re.compile(r"(?<![\w.])[A-Za-z][\w-]*(?:\.[A-Za-z](?:[\w-]*\w)?)+", re.ASCII)
"""A column as users write it, in the text of a condition."""

_HYPHEN = "\N{MIDDLE DOT}"
"""Stands for a ``-`` of a name: Python takes it for a letter."""

_LOGIC = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}
_COMPARED = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
_COMPUTED: Mapping[str, Any] = {**PRIMITIVES, **_LOGIC, **_COMPARED, "where": np.where}


EXAMPLE = "write a comparison, such as counters.door_sum > 1e6"

WRITTEN = "columns are written node.column"


def read_condition(text: str) -> Tree:
    """The tree of a condition; its names are columns, ``node.column``. Raises `FormulaError`."""
    if _HYPHEN in text:
        raise FormulaError(f"the formula cannot be read: it has a {_HYPHEN}, which is in no name")
    tree = read_text(COLUMN.sub(lambda found: found[0].replace("-", _HYPHEN), text), _read)
    if not names(tree):
        raise FormulaError("the condition looks at no column", EXAMPLE)
    return tree


def _read(line: str, body: ast.expr) -> Tree:
    tree = _Reader(line, ()).read(body)
    if not is_condition(tree):
        raise FormulaError("a condition is needed, not a number", EXAMPLE)
    return tree


class _Reader(Reader):
    """Reads the syntax of one line."""

    def _read(self, node: ast.expr) -> Tree:
        if isinstance(node, ast.Attribute):
            return self._column(node)
        return super()._read(node)

    def _column(self, node: ast.Attribute) -> Tree:
        if isinstance(node.value, ast.Name):
            return Name(f"{node.value.id}.{node.attr}".replace(_HYPHEN, "-"))
        inner = node.value
        while isinstance(inner, ast.Attribute):
            inner = inner.value
        if isinstance(inner, ast.Name):
            raise self._refused(node, "a column has one point", f"{WRITTEN}, a minus with spaces around it")
        raise self._refused(node, "a formula has no attributes", WRITTEN)

    def _name(self, node: ast.Name) -> Tree:
        if node.id in FUNCTIONS:
            return super()._name(node)
        raise self._refused(node, f"`{node.id}` is no column", WRITTEN)


def evaluate(tree: Tree, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Whether each row fulfils a condition, bool (n,); columns by name, each (n,)."""

    def value(part: Tree) -> Any:
        if isinstance(part, Name):
            return columns[part.name]
        if isinstance(part, Number):
            return part.value
        return _COMPUTED[part.name](*map(value, part.args))

    with np.errstate(all="ignore"):
        return np.asarray(value(tree), np.bool_)
