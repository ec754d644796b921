"""A circle of ranks in one process: contributions are laid on a table until all are there."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.geometry import Rect
from lima2cli.spec import Array
from lima2cli.transport.inline_file import InlineFile
from lima2cli.transport.shared_file import Stripes


class _Operation:
    """One operation; ``given`` by member. The last of them completes it."""

    def __init__(self, size: int) -> None:
        self.given: dict[int, Any] = {}
        self._size = size

    def complete(self) -> bool:
        return len(self.given) == self._size

    def all(self) -> list[Any]:
        return [self.given[member] for member in sorted(self.given)]


class CircleTable:
    """What the members of one circle share: their operations by kind and number, until all have begun them."""

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self._operations: dict[tuple[str, int], _Operation] = {}

    def give(self, kind: str, number: int, member: int, what: Any) -> _Operation:
        """Lay a contribution on the table."""
        key = (kind, number)
        operation = self._operations.setdefault(key, _Operation(len(self.members)))
        operation.given[member] = what
        if operation.complete():
            del self._operations[key]
        return operation


class _Inline:
    """An operation as a member sees it; ``finish`` is called once, when it is complete."""

    def __init__(self, operation: _Operation, finish: Callable[[list[Any]], None]) -> None:
        self._operation, self._finish, self._done = operation, finish, False
        self.words: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.parts: list[NDArray[np.uint8]] = []

    def done(self) -> bool:
        """See `Pending`."""
        if not self._done and self._operation.complete():
            self._finish(self._operation.all())
            self._done = True
        return self._done


class InlineCircle:
    """See `Circle`."""

    def __init__(self, table: CircleTable, rank: int) -> None:
        self.rank, self.size = table.members.index(rank), len(table.members)
        self._table = table
        self._begun: dict[str, int] = defaultdict(int)

    def tell(self, word: int) -> _Inline:
        """See `Circle.tell`."""

        def finish(words: list[int]) -> None:
            told.words = np.array(words, np.uint64)

        told = _Inline(self._give("tell", word), finish)
        return told

    def share(self, own: NDArray[np.uint8], sizes: Sequence[int]) -> _Inline:
        """See `Circle.share`."""

        def finish(parts: list[NDArray[np.uint8]]) -> None:
            shared.parts = parts

        shared = _Inline(self._give("move", own.copy()), finish)
        return shared

    def collect(self, root: int, part: Array, whole: Array, places: Sequence[Rect]) -> _Inline:
        """See `Circle.collect`. Whoever sees first that all is there copies, before anyone lets go of a part."""
        operation = self._give("move", (part, whole if self.rank == root else None))

        def finish(given: list[tuple[Array, Array | None]]) -> None:
            target = given[root][1]
            if target is None:  # another member was here before
                return
            for (piece, _), place in zip(given, places, strict=True):
                target[(slice(None), *place.within(Rect(0, 0, target.shape[2], target.shape[1])))] = piece
            operation.given[root] = (given[root][0], None)

        return _Inline(operation, finish)

    def open_file(self, path: str, stripes: Stripes) -> InlineFile:
        """See `Circle.open_file`; nothing to wait for."""
        return InlineFile(path, stripes)

    def _give(self, kind: str, what: Any) -> _Operation:
        number = self._begun[kind]
        self._begun[kind] += 1
        return self._table.give(kind, number, self.rank, what)
