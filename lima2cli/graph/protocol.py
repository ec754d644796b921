"""The protocol of operators, the nodes at work at one receiver, and what passes between them.

An operator is pushed what comes to it, and answers at once; or it keeps what it gets, because it has to wait for other
flows, receivers or processes, and is polled for results. A node that answers at once is the trivial case: it has `push`
alone. What is prepared to be saved can still be discarded, until it is committed.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from lima2cli.dataclass import dataclass
from lima2cli.frames import Array, Block, Files
from lima2cli.messages import NEVER
from lima2cli.nodes.base import Partial
from lima2cli.plan.ir import Step

END = NEVER
"""A frame number beyond the last frame: nothing more will come."""


class Lease:
    """A hold on memory: it is given back when all who hold it are done.

    Whoever makes one holds it first.
    """

    def __init__(self, give_back: Callable[[], object]) -> None:
        self._holders, self._give_back = 1, give_back

    def take(self) -> "Lease":
        """Hold the memory, too."""
        self._holders += 1
        return self

    def done(self) -> None:
        """Release the hold."""
        self._holders -= 1
        if not self._holders:
            self._give_back()

    def last_frame(self, frames: Array) -> Array | None:
        """Return a copy of the last of some frames in the memory, where that is elsewhere; None = they are as given."""
        return None


@dataclass(slots=True)
class Arrival:
    """An arrival of some consecutive frames, the last of which is ``last``: a block, rows, or nothing (None).

    source       what gives them;  received_ns  when they arrived, ns since the epoch
    hold         of the memory of the block, None where the arrays are its own
    blocks, tables  of an operator that answers at once: all results of these frames so far, by source
    """

    source: str
    last: int
    block: Block | None = None
    rows: Partial | None = None
    hold: Lease | None = None
    received_ns: int = 0
    blocks: Mapping[str, Block] | None = None
    tables: Mapping[str, Partial] | None = None

    @property
    def there(self) -> Block:
        """Return the block, for operators that are pushed only where there is one."""
        assert self.block is not None
        return self.block

    def done(self) -> None:
        """Note that it is not read any more."""
        if self.hold is not None:
            self.hold.done()
            self.hold = None


@dataclass(slots=True)
class Result:
    """A result of an operator, as it stands for the frames up to ``last``.

    rows    partial results, by the names of nodes
    staged  what is to be committed, by the names of the operators that save it
    hold    of the memory of the block, where that is given back when it is not read any more
    elsewhere_ns  what it took a device, while this process did other things
    """

    last: int
    block: Block | None = None
    rows: Mapping[str, Partial] | None = None
    staged: Mapping[str, Any] | None = None
    hold: Lease | None = None
    elsewhere_ns: int = 0

    @property
    def frames(self) -> int:
        """Return how many frames the result is, or has rows about."""
        if self.block is not None:
            return len(self.block.numbers)
        return max((len(rows["frame_number"]) for rows in (self.rows or {}).values()), default=0)


class BlockFailed(Exception):
    """The work of a node that waits has failed for a block.

    ``frame`` is the first of the block, None where no frame is concerned.
    """

    def __init__(self, frame: int | None, error: Exception) -> None:
        super().__init__(str(error))
        self.frame, self.error = frame, error


class PartFailed(Exception):
    """One node of an operator raised; the others work."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.name, self.error = name, error


class Operator:
    """A node at work at one receiver; each method has a default that does nothing.

    Of each acquisition: `ready`, `begin`, then `push` and `poll`, and `commit` of what they staged, `flush` now and
    then, `limit` when its end is known, a last push up to `END`, `close`. `leave` is the end of all. Arrivals of each
    source are in the order of frames, and so are results.

    always    it is also pushed where its sources have given nothing
    waits     it keeps what it is pushed, and its results, which come by `poll`, begin a pass of their own
    saves     it saves what it is given, and hands it on, even where it has failed
    same      the frames that it gives are frames that it got, where these lie

    dropped   (first, last) numbers of frames given up, or that should have been paired; None where it drops none
    single    number of frames that are of one of its flows only;  vetoed  number of those that did not pass
    saved     number of frames or rows of the acquisition that are saved, whatever comes
    warnings  what users should know;  silent  ranks that did not reply in time; both are for the caller to clear
    """

    always: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    saves: ClassVar[bool] = False
    same: ClassVar[bool] = False

    saved: int = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.warnings: list[str] = []
        self.silent: list[int] = []

    @property
    def nodes(self) -> Collection[str]:
        """Return the names of the nodes that are at work in it."""
        return (self.name,)

    @property
    def label(self) -> str:
        """Return its name in messages."""
        return self.name

    @property
    def dropped(self) -> list[tuple[int, int]] | None:
        """Return the ranges of frames that it dropped, see the class."""
        return None

    @property
    def single(self) -> int | None:
        """Return a count, see the class; None where there is no such thing."""
        return None

    @property
    def vetoed(self) -> int | None:
        """Return a count, see the class; None where there is no such thing."""
        return None

    @property
    def polled(self) -> bool:
        """Return whether it has something to poll: it takes part in what others do, too, whatever happens here."""
        return type(self).poll is not Operator.poll

    @property
    def idle(self) -> bool:
        """Return whether nothing is under way."""
        return True

    @property
    def full(self) -> bool:
        """Return whether its sources should rest until it has gone on."""
        return False

    def ready(self, directory: str) -> None:
        """Announce an acquisition, whose files are in ``directory``: they may be made now."""

    def begin(self, start_ns: int) -> None:
        """Begin the acquisition, which started at ``start_ns``, ns since the epoch; counts start again."""

    def push(self, arrival: Arrival) -> Result | None:
        """Take an arrival, and return what it gives at once; None = nothing, or not yet.

        Raises:
            PartFailed: one of its nodes failed: once more without it.
        """
        raise NotImplementedError

    def poll(self) -> Result | None:
        """Return the next result, if it is there; does not wait.

        Raises:
            BlockFailed: the node fails; it then goes on with nothing.
        """
        return None

    def rebind(self, step: Step, files: Files) -> Callable[[], None] | None:
        """Make ready another node in the place of one of its own; return what puts it there, None where it has none.

        Raises: as binding does.
        """
        return None

    def last_frame(self, name: str, block: Block) -> Array | None:
        """Return the last frame (height, width) that a node in it makes of a block, where that is made on the way only.

        Its own array; None where no such node is in it.
        """
        return None

    def limit(self, frames: int) -> None:
        """Note the end of the acquisition, which has so many frames."""

    def give_up(self, gone: Collection[str]) -> None:
        """Go on without nodes that have failed, or lack what they read; where it is among them, with nothing."""

    def commit(self, staged: Any) -> None:
        """Make permanent what was staged."""

    def flush(self) -> None:
        """Make what was committed readable by others."""

    def close(self) -> None:
        """End the files of the acquisition."""

    def leave(self) -> None:
        """Release what it holds: no more acquisitions follow."""
