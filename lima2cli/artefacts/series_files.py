"""Stacks of several files, or of several datasets of a group, one after another; and stacks with holes."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lima2cli.artefacts.frame_files import OpenStack
from lima2cli.artefacts.lack import Lack, both, chained, lack_of
from lima2cli.errors import FileProblem
from lima2cli.spec import Array, StackInfo

OPEN = 4
"""Files of a series that stay open."""

TOLD = 8
"""Frames of which it is kept why they could not be read."""


@dataclass(frozen=True)
class Member:
    """One of a series, in its file. ``open`` is None where it is missing; ``frames`` is how many it has, None: it must
    be opened."""

    name: str
    file: str
    open: Callable[[], OpenStack] | None
    frames: int | None = None


class SeriesStack(OpenStack):
    """Frames of all members in their order. A member that is missing has as many as the first that is there."""

    def __init__(self, name: str, members: Sequence[Member], holes: str, total: int | None = None) -> None:
        """``holes`` says which are missing; ``total`` frames were to be there, None: not known."""
        self._members = members
        self._kept: OrderedDict[int, OpenStack] = OrderedDict()
        self.name = name
        first, found = self._first(name)
        counts, lacks, files = self._counted(found, first, holes)
        self._ends = np.cumsum(counts)
        held = int(self._ends[-1])
        count = max(held, total or 0)
        super().__init__(name, (count, *found.info.shape[1:]), np.dtype(found.info.dtype))
        whole = chained(zip(counts, lacks, ("" for _ in counts), strict=True), count)
        beyond = lack_of(np.arange(count) >= held, f"{count} were to be taken, and {held} are in the files")
        self.info = replace(found.info, shape=self.info.shape, taken=name, missing=0, lacking=None)
        self.lacks(both(whole, beyond))
        self.files = tuple(dict.fromkeys(files))

    def _first(self, name: str) -> tuple[int, OpenStack]:
        """The first member that can be read, which says what frames are like."""
        problem: FileProblem | None = None
        for number, member in enumerate(self._members):
            if member.open is not None:
                try:
                    return number, self._opened(number)
                except FileProblem as error:
                    problem = problem or error
                    if number > OPEN:
                        break
        if problem is None:
            raise FileProblem(f"{name}: nothing of it is there", "file-missing")
        raise FileProblem(f"{name}: {problem}", problem.rule, problem.help)

    def _counted(self, found: OpenStack, first: int, holes: str) -> tuple[list[int], list[Lack | None], list[str]]:
        """Frames of each member, what they lack, and all files."""
        counts: list[int] = []
        lacks: list[Lack | None] = []
        files: list[str] = list(found.files)
        nominal = found.info.shape[0]
        for number, member in enumerate(self._members):
            count, lack = nominal, None
            if member.open is None:
                lack = lack_of(np.ones(nominal, bool), f"{holes} missing")
            elif member.frames is not None and number != first:
                count = member.frames
                files.append(member.file)
            else:
                try:
                    stack = self._opened(number)
                    count, lack = stack.info.shape[0], stack.lack
                    lack = None if lack is None else lack_of(lack.rows, f"{member.name} {lack}")
                    files += stack.files
                except FileProblem as error:
                    lack = lack_of(np.ones(nominal, bool), str(error))
                    files.append(member.file)
            counts.append(count)
            lacks.append(lack)
        return counts, lacks, files

    def _opened(self, number: int) -> OpenStack:
        """A member, open. Raises `FileProblem`, also where its frames are not like the first's."""
        stack = self._kept.pop(number, None)
        if stack is None:
            member = self._members[number]
            assert member.open is not None
            stack = member.open()
        self._kept[number] = stack
        reference = next(iter(self._kept.values())) if not hasattr(self, "_like") else None
        if reference is not None:
            self._like = (stack.info.shape[1:], stack.info.dtype)
        elif (stack.info.shape[1:], stack.info.dtype) != self._like:
            self._kept.pop(number).close()
            (height, width), dtype = self._like
            message = f"{stack.name} differs from the others of its series, which are {height} x {width} {dtype}"
            raise FileProblem(message, "file-shape")
        while len(self._kept) > OPEN:
            self._kept.popitem(last=False)[1].close()
        return stack

    def _read(self, numbers: Sequence[int]) -> Array:
        asked = np.asarray(numbers, np.int64)
        out = np.empty((len(asked), *self.info.shape[1:]), self.info.dtype)
        owners = np.searchsorted(self._ends, asked, "right")
        edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(asked)]
        for begin, end in pairwise(edges):
            if begin == end:
                continue
            owner = int(owners[begin])
            first = int(self._ends[owner - 1]) if owner else 0
            part = asked[begin:end] - first
            stack = self._opened(owner)
            if stack.lack is not None and stack.lack.rows[part].any():
                raise FileProblem(f"{stack.name} {stack.lack}", "file-incomplete")
            if int(part.max()) >= stack.info.shape[0]:
                raise FileProblem(f"{stack.name} has only {stack.info.shape[0]} frames", "file-incomplete")
            out[begin:end] = stack.read(_sequence(part))
        return out

    def close(self) -> None:
        """See `OpenStack`."""
        while self._kept:
            self._kept.popitem()[1].close()


def _sequence(numbers: NDArray[np.int64]) -> Sequence[int]:
    """The same numbers, as a range where they go in equal steps: such frames are read at once."""
    steps = np.diff(numbers)
    step = int(steps[0]) if len(steps) else 1
    if len(numbers) and step > 0 and (steps == step).all():
        return range(int(numbers[0]), int(numbers[-1]) + 1, step)
    return [int(number) for number in numbers]


class Skipping:
    """A `FrameReader` for those who skip frames that are not all there, and those that cannot be read."""

    def __init__(self, stack: OpenStack) -> None:
        self._stack = stack
        self.info: StackInfo = stack.info
        self._unread: list[str] = []
        count = stack.info.shape[0]
        self._absent = np.zeros(count, bool) if stack.lack is None else stack.lack.rows.copy()

    def read(self, numbers: Sequence[int]) -> Array:
        """See `FrameReader`."""
        asked = np.asarray(numbers, np.int64)
        there = np.flatnonzero(~self._absent[asked])
        if len(there) == len(asked):
            frames = self._together(numbers)
            if frames is not None:
                return frames
        out = np.zeros((len(asked), *self.info.shape[1:]), self.info.dtype)
        for places in np.split(there, np.flatnonzero(np.diff(there) != 1) + 1):
            part = _sequence(asked[places])
            frames = self._together(part) if len(part) else out[:0]
            out[places] = self._one_by_one(part) if frames is None else frames
        return out

    def _together(self, numbers: Sequence[int]) -> Array | None:
        """Frames that should be there; None where one cannot be read."""
        try:
            return self._stack.read(numbers)
        except FileProblem:
            return None  # which one, and why, `_one_by_one` finds

    def _one_by_one(self, numbers: Sequence[int]) -> Array:
        """Frames, zeros for those that cannot be read, which are missing from now on."""
        out = np.zeros((len(numbers), *self.info.shape[1:]), self.info.dtype)
        for frame, number in zip(out, numbers, strict=True):
            try:
                frame[:] = self._stack.read(range(number, number + 1))[0]
            except FileProblem as problem:
                self._absent[number] = True
                if len(self._unread) < TOLD:
                    self._unread.append(f"frame {number} counts as missing: {problem}")
        return out

    def unread(self) -> Sequence[str]:
        """See `FrameReader`."""
        return self._unread

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `FrameReader`."""
        found: NDArray[np.bool_] = self._absent[np.asarray(numbers, np.int64)]
        return found if found.any() else None
