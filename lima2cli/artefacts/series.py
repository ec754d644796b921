"""Files, or members of a group, that are numbered and follow one another."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np

from lima2cli.artefacts.lack import spans
from lima2cli.errors import FileProblem

COUNTED = re.compile(r"%(0?\d*)d")
"""Where numbers stand in the name of a series, as in ``c_%05d.cbf``."""

MOST = 10_000_000
"""Numbers from the first to the last of a series; more is a mistake."""


@dataclass(frozen=True)
class Series:
    """What follows one another, in its order: paths, None where a number is missing.

    holes  missing numbers in words, as they are written;  group  that holds all, where they are members of one
    """

    paths: tuple[str | None, ...]
    holes: str = ""
    group: str = ""

    @property
    def text(self) -> str:
        """For messages: ``/entry/data/data_000001 to data_000003``."""
        there = [path for path in self.paths if path is not None]
        return there[0] if len(there) == 1 else f"{there[0]} to {there[-1].rpartition('/')[2]}"


def is_pattern(path: Path) -> bool:
    """Whether a name means several files; a file that has this very name is meant itself."""
    return bool(COUNTED.search(path.name) or re.search(r"[*?]", path.name)) and not path.exists()


def files_of(reference: str, path: Path) -> Series:
    """The files that ``c_%05d.cbf`` or ``c_*.cbf`` means, by number.

    Raises `FileProblem` where there are none, or where they are no one series.
    """
    try:
        entries = [entry.name for entry in os.scandir(path.parent) if entry.is_file()]
    except OSError as error:
        raise FileProblem(f"{reference}: {path.parent} cannot be read: {error.strerror}", "file-missing") from error
    counted = COUNTED.search(path.name)
    pattern = re.compile(_expression(path.name))
    names = [name for name in entries if pattern.fullmatch(name)]
    if not names:
        raise FileProblem(f"there is no file {reference} in {path.parent}", "file-missing")
    try:
        return series_of(names, "", step=1 if counted else None)
    except FileProblem as problem:
        raise FileProblem(f"{reference} means files that are no one series: {problem}", problem.rule) from None


def _expression(name: str) -> str:
    """A regular expression for the names that a pattern means."""
    pieces = []
    for piece in re.split(r"(%0?\d*d|[*?])", name):
        if COUNTED.fullmatch(piece):
            width = int(piece[1:-1] or 0)
            pieces.append(r"\d+" if width < 2 else rf"(?:\d{{{width}}}|[1-9]\d{{{width},}})")
        else:
            pieces.append({"*": ".*", "?": "."}.get(piece, re.escape(piece)))
    return "".join(pieces)


def series_of(names: Iterable[str], where: str, first: int | None = None, step: int | None = None) -> Series:
    """Names by their number, with None where one is missing.

    ``first`` is the number that they begin with, None: any; ``step`` from one to the next, None: what all have in
    common. Raises `FileProblem` (file-series) where names differ in more than one number.
    """
    split = [(re.split(r"(\d+)", name), name) for name in names]
    texts = {tuple(parts[::2]) for parts, _ in split}
    if len(texts) > 1:
        one, other = (next(name for parts, name in split if tuple(parts[::2]) == text) for text in sorted(texts)[:2])
        raise FileProblem(f"{one} and {other} differ in more than a number", "file-series")
    columns = list(zip(*(parts[1::2] for parts, _ in split), strict=True))
    varying = [i for i, column in enumerate(columns) if len({int(text) for text in column}) > 1]
    if len(varying) > 1:
        raise FileProblem(f"{split[0][1]} and others differ in {len(varying)} numbers", "file-series")
    if not columns:
        return Series(tuple(name for _, name in split))
    at = varying[0] if varying else len(columns) - 1
    by_number: dict[int, str] = {}
    for parts, name in split:
        number = int(parts[2 * at + 1])
        if number in by_number:
            raise FileProblem(f"{by_number[number]} and {name} have the same number", "file-series")
        by_number[number] = name
    numbers = sorted(by_number)
    low = numbers[0] if first is None else min(first, numbers[0])
    step = step or (1 if first is not None else gcd(*(number - numbers[0] for number in numbers))) or 1
    if (numbers[-1] - low) // step > MOST:
        raise FileProblem(f"numbers go from {low} to {numbers[-1]}", "file-series")
    paths = tuple(by_number.get(number) for number in range(low, numbers[-1] + 1, step))
    missing = np.array([low + step * i for i, path in enumerate(paths) if path is None], np.intp)
    if not len(missing):
        return Series(paths)
    parts = re.split(r"(\d+)", by_number[numbers[0]])
    width = len(parts[2 * at + 1])

    def name_of(number: int) -> str:
        return "".join([*parts[: 2 * at + 1], f"{number:0{width}d}", *parts[2 * at + 2 :]])

    return Series(paths, spans(missing, name_of))
