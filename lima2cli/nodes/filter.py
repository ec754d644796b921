"""Node `filter`: passes the frames whose counters satisfy a condition; the others are vetoed, and counted.

    counters: {input: data, roi_counters: {rois: {door: {rect: {x: 0, y: 10, width: 20, height: 30}}}}}
    bright:   {input: data, filter: {keep: "counters.door_sum > 1e6 and counters.door_max < 65535"}}
    save:     {input: bright, io_hdf5: {}}

``keep`` is a condition on the columns of nodes that make tables, such as `roi_counters` and `checkpoint`, written
``node.column``; their rows are paired with the frames by number, as frames are in joins. It may have numbers,
comparisons (chained, too), `and`, `or`, `not` or ``& | ~ ^``, ``+ - * / // % **`` and the functions of `expression`.
A ``-`` between letters or digits belongs to a name: put spaces around a minus. The column `frame_number` is in every
table; columns with a vector per frame can't be used.

All values are compared as float64, also those of float32 columns: 0.1 is then not the float32 nearest to it. Integers
beyond 2**53 are rounded before. NaN (of an ROI without a pixel that counts) is neither less, nor greater, nor equal to
anything: only `!=` is true. A frame for which one of the tables has no row (`checkpoint` with ``every``) is not kept.

``every: n`` also passes each n-th of the frames that the flow selects, the first among them, whatever their
counters. Frames pass as they are; masks, regions and saturation stay.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.declare import Integer, Text, param
from lima2cli.diagnostics import did_you_mean
from lima2cli.errors import NodeMisuse
from lima2cli.frames import FrameSpec
from lima2cli.geometry import Rule
from lima2cli.kernels.formula import (
    FUNCTIONS,
    PRIMITIVES,
    FormulaError,
    Name,
    Reader,
    Scalar,
    Tree,
    is_condition,
    names,
    read_text,
)
from lima2cli.nodes.base import Inputs, Rows, Select, node

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
    """Return the tree of a condition; its names are columns, ``node.column``. Raises `FormulaError`."""
    if _HYPHEN in text:
        raise FormulaError(f"the formula cannot be read: it has a {_HYPHEN}, which no name contains")
    tree = read_text(COLUMN.sub(lambda found: found[0].replace("-", _HYPHEN), text), _read_condition)
    if not names(tree):
        raise FormulaError("the condition uses no column", EXAMPLE)
    return tree


def _read_condition(line: str, body: ast.expr) -> Tree:
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
            raise self._refused(node, "a column is written with one point", f"{WRITTEN}, a minus with spaces around it")
        raise self._refused(node, "a formula cannot have attributes", WRITTEN)

    def _name(self, node: ast.Name) -> Tree:
        if node.id in FUNCTIONS:
            return super()._name(node)
        raise self._refused(node, f"`{node.id}` is not a column", WRITTEN)


def evaluate(tree: Tree, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Return for each row if it fulfils a condition, bool (n,); columns by name, each (n,)."""

    def value(part: Tree) -> Any:
        if isinstance(part, Name):
            return columns[part.name]
        if isinstance(part, Scalar):
            return part.value
        return _COMPUTED[part.name](*map(value, part.args))

    with np.errstate(all="ignore"):
        return np.asarray(value(tree), np.bool_)


NUMBER = "frame_number"


@node("filter")
class Filter(Select):
    """Passes the frames whose counters satisfy a condition."""

    parts: ClassVar[bool] = True

    keep: str = param("The condition, about columns of tables: `counters.door_sum > 1e6`.", Text())
    every: int = param("Also pass every n-th selected frame; 0 = none.", Integer(0), 0)

    @property
    def tables(self) -> tuple[str, ...]:
        """See `Select.tables`. Raises `NodeMisuse`: ``bad-expression``."""
        return tuple(dict.fromkeys(node for node, _ in self._columns()))

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Select.infer`. Raises `NodeMisuse`: ``bad-expression``, ``unknown-column``, ``edge-mismatch``."""
        for source, column in self._columns():
            table = inputs.tables[source]
            if column in table.lengths:
                message = f"`{source}.{column}` has {table.lengths[column]} values per frame, `keep` takes single ones"
                raise NodeMisuse("edge-mismatch", message, (self.names_in,), "use roi_counters of the same region")
            if column not in (*table.columns, NUMBER):
                single = [name for name in table.columns if name not in table.lengths]
                message = f"`{source}` has no column `{column}`"
                raise NodeMisuse("unknown-column", message, (self.names_in,), did_you_mean(column, single))
        return inputs.spec

    def choose(self, numbers: NDArray[np.uint64], rule: Rule, rows: Mapping[str, Rows]) -> NDArray[np.bool_]:
        """See `Select.choose`."""
        kept = self._satisfied(numbers, rows)
        if self.every:
            index = (numbers - np.uint64(rule.start)) // np.uint64(rule.step)
            kept |= index % np.uint64(self.every) == 0
        return kept

    def _satisfied(self, numbers: NDArray[np.uint64], rows: Mapping[str, Rows]) -> NDArray[np.bool_]:
        """Return the frames that have a row in each table, and whose rows satisfy the condition."""
        there = np.ones(len(numbers), np.bool_)
        at: dict[str, NDArray[np.intp]] = {}
        for source in self.tables:
            at[source], found = _places(numbers, rows[source][NUMBER])
            there &= found
        columns = {
            f"{node}.{name}": rows[node][name][at[node][there]].astype(np.float64) for node, name in self._columns()
        }
        kept = np.zeros(len(numbers), np.bool_)
        kept[there] = evaluate(self._tree(), columns)
        return kept

    def _columns(self) -> Sequence[tuple[str, str]]:
        """Return the columns that the condition is about, each with its node."""
        return [(node, column) for node, _, column in (name.partition(".") for name in names(self._tree()))]

    def _tree(self) -> Tree:
        try:
            return _read(self.keep)
        except FormulaError as error:
            raise NodeMisuse("bad-expression", str(error), (self.names_in,), error.help) from error


_read = lru_cache(maxsize=64)(read_condition)
"""Conditions are read once, not for each block."""


def _places(numbers: NDArray[np.uint64], among: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the index of each number among increasing ones, and whether it is there."""
    at = np.searchsorted(among, numbers)
    found = at < len(among)
    found[found] = among[at[found]] == numbers[found]
    return at, found
