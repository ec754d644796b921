"""A line of ranks in one process: what is sent lies in the mailbox of the member that it is for."""

from collections import deque
from typing import Any

from lima2cli.spec import Array

Mail = tuple[int, Any, Array | None]


class LineTable:
    """What the members of one line share."""

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self.mail: list[deque[Mail]] = [deque() for _ in members]


class _Sent:
    """See `Pending`: of what is sent when it begins."""

    def done(self) -> bool:
        """It is a copy that has been sent."""
        return True


class InlineLine:
    """See `Line`."""

    def __init__(self, table: LineTable, rank: int) -> None:
        self._mail, self._member = table.mail, table.members.index(rank)

    def send(self, member: int, head: Any, frames: Array | None = None) -> _Sent:
        """See `Line.send`."""
        self._mail[member].append((self._member, head, None if frames is None else frames.copy()))
        return _Sent()

    def receive(self) -> Mail | None:
        """See `Line.receive`."""
        mail = self._mail[self._member]
        return mail.popleft() if mail else None
