"""Writer of the frames of one receiver into the file that all receivers of a channel write together."""

from collections.abc import Iterator
from enum import Enum, auto
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.files.channel import Channel
from lima2cli.files.checksums import row_sums
from lima2cli.files.common_file import WrittenRows, lay_out, unfinished
from lima2cli.files.nexus import fill_value
from lima2cli.files.rows import rows_of
from lima2cli.frames import Array, Block
from lima2cli.transport.base import CollectiveGroup, Pending, SharedFile, Stripes

ROUND_BYTES = 8 << 20
"""Bytes of each receiver in a round, where it has an equal share: large enough for any file system."""

SPARE = 4
"""Rounds whose memory is kept for the next ones."""

RoundPart = tuple["Round", Any, slice]
"""A round, the places in it, and the part of a block that belongs there."""


@dataclass(slots=True)
class Round:
    """Own frames (n, height, width) of consecutive rows, of which the ``first``-th own row is the first.

    filled   bool (n,), the frames that are there;  times   ns since the epoch;  whole   the memory, which may be longer
    sums     checksums of the frames, where they are taken
    """

    first: int
    whole: Array
    frames: Array
    times: NDArray[np.uint64]
    filled: NDArray[np.bool_]
    sums: NDArray[np.uint64]


class Rounds:
    """Rounds of ``rows`` consecutive rows of all receivers, up to ``total`` rows."""

    def __init__(self, channel: Channel, stripes: Stripes, total: int) -> None:
        self.stripes, self.total, self.planned = stripes, total, total
        self.rows = max(1, round(ROUND_BYTES * len(set(channel.receivers)) / stripes.row_bytes))
        self._frame, self._dtype = (channel.height, channel.width), np.dtype(channel.dtype)
        self._fill = fill_value(channel)
        self._summed = channel.checksum
        self._held: dict[int, Round] = {}
        self._spare: list[Array] = []

    def __len__(self) -> int:
        """Return the number of rounds that hold frames."""
        return len(self._held)

    def last(self, number: int) -> int:
        """Return the row after the last of a round."""
        return min((number + 1) * self.rows, self.total)

    def parts(self, rows: NDArray[np.int64]) -> Iterator[RoundPart]:
        """Yield the parts of a block of frames whose rows are these (n,), increasing."""
        own, rounds = self.stripes.index(rows), rows // self.rows
        for begin, end in pairwise([0, *(np.flatnonzero(np.diff(rounds)) + 1).tolist(), len(rows)]):
            held = self._round(int(rounds[begin]))
            places = own[begin:end] - held.first
            neighbours = int(places[-1] - places[0]) == end - begin - 1
            yield held, slice(int(places[0]), int(places[-1]) + 1) if neighbours else places, slice(begin, end)

    def bytes(self, number: int) -> tuple[int, NDArray[np.uint8]]:
        """Return the first own row of a round, and all of them (n, row_bytes), with the fill value for missing ones."""
        first, last = self._own(number)
        held = self._round(number)
        held.frames[~held.filled] = self._fill
        rows = held.frames[: last - first].view(np.uint8).reshape(last - first, self.stripes.row_bytes)
        if self._summed:
            held.sums[: len(rows)] = row_sums(rows)
        return first, rows

    def nothing(self, number: int) -> tuple[int, NDArray[np.uint8]]:
        """Return the same as `bytes`, with no row: (0, row_bytes)."""
        return self._own(number)[0], np.empty((0, self.stripes.row_bytes), np.uint8)

    def end(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
        """Return rows, times and checksums (n,) of the n frames of a round, and take its memory back."""
        held = self._held.pop(number, None)
        if held is None:
            nothing = np.empty(0, np.uint64)
            return np.empty(0, np.int64), nothing, nothing
        self._spare = [*self._spare, held.whole][-SPARE:]
        filled = held.filled
        rows = self.stripes.rows(held.first, held.first + len(filled))[filled]
        return rows, held.times[filled], held.sums[filled]

    def _own(self, number: int) -> tuple[int, int]:
        """Return the own rows of a round, (first, last + 1), counted among own rows."""
        return self.stripes.below(number * self.rows), self.stripes.below(self.last(number))

    def _round(self, number: int) -> Round:
        """Return a round, in memory that was used before where there is such."""
        if number not in self._held:
            first, last = self._own(number)
            fitting = [memory for memory in self._spare if len(memory) >= last - first]
            whole = fitting[0] if fitting else np.empty((last - first, *self._frame), self._dtype)
            self._spare = [memory for memory in self._spare if memory is not whole]
            count = last - first
            times, sums = np.zeros((2, count), np.uint64)
            self._held[number] = Round(first, whole, whole[:count], times, np.zeros(count, bool), sums)
        return self._held[number]


HELD_ROUNDS = 4
"""Rounds with frames in them from which on no more frames should be handed over."""

OK, FAILED, ABSENT = 0, 1, 2
"""Reports of a receiver about a round: its write went well, failed, or it has given up and wrote nothing."""

BEYOND = 1
"""Report of a receiver in place of a round: the run was stopped before it, and no round follows."""


class _State(Enum):
    LAYING_OUT = auto()
    OPENING = auto()
    FILLING = auto()
    READY = auto()
    WRITING = auto()
    AGREEING = auto()
    OVER = auto()
    DONE = auto()


class CommonWriter:
    """Writer of the frames of one receiver to a common file; see `Writer` in `lima2cli.nodes.base`.

    Its owner calls `poll` repeatedly, and reports by `advance` and `finish` how far the frames are. Where something
    fails, `poll` raises OSError once; from then on this receiver saves nothing more, but must go on to poll and to
    report, since the others wait for its part. A round of which any receiver's write failed is lost to all.

    saved   frames of this receiver that are in the file
    """

    def __init__(
        self, channel: Channel, directory: str, receiver: int, start_ns: int, collective: CollectiveGroup
    ) -> None:
        assert channel.selected is not None
        self._channel, self._directory, self._receiver, self._start_ns = channel, directory, receiver, start_ns
        self._collective = collective
        self._path = unfinished(channel, directory)
        self._dtype, self._frame = np.dtype(channel.dtype), (channel.height, channel.width)
        self._rounds = Rounds(channel, self._dealt(0), channel.selected)
        self._written: WrittenRows | None = None
        self._file: SharedFile | None = None
        self._pending: Pending | None = None
        self._number = self._passed = self.saved = 0
        self._sound, self._ended, self._broken = True, False, False
        self._error: OSError | None = None
        self._state, self._agreement = _State.LAYING_OUT, collective.agree(self._lay_out())

    @property
    def full(self) -> bool:
        """Return whether no more frames should be handed over for now."""
        return self._error is None and len(self._rounds) >= HELD_ROUNDS

    @property
    def done(self) -> bool:
        """Return whether all rounds are over; only after `finish`."""
        return self._state is _State.DONE

    @property
    def settled(self) -> int:
        """Return before which row all are in the file, or never will be, as far as this receiver knows."""
        return self._rounds.last(self._number - 1) if self._number else 0

    def stage(self, block: Block) -> NDArray[np.int64]:
        """Copy frames (n, height, width) of the channel's dtype to their rounds; they count when committed.

        Raises:
            ValueError: they have another dtype or shape.
        """
        frames = block.frames
        if frames.dtype != self._dtype or frames.shape[1:] != self._frame:
            raise ValueError(
                f"frames of {frames.dtype} {frames.shape[1:]} for a channel of {self._dtype} {self._frame}"
            )
        rows = rows_of(block.numbers, self._channel.rule.start, self._channel.rule.step)
        if self._error is None:
            for held, places, some in self._rounds.parts(rows):
                held.frames[places] = frames[some]
                held.times[places] = block.times[some]
        return rows

    def commit(self, staged: NDArray[np.int64]) -> int:
        """Count what was staged last; return the number of frames. Own frames left out before it are lost."""
        if len(staged):
            self._passed = max(self._passed, int(staged[-1]) + 1)
        if self._error is not None or not len(staged):
            return 0
        for held, places, _ in self._rounds.parts(staged):
            held.filled[places] = True
        return len(staged)

    def advance(self, number: int) -> None:
        """Report that all own frames with numbers below this one have passed: those not committed are lost."""
        self._passed = max(self._passed, min(self._channel.rule.before(number), self._rounds.total))

    def finish(self, rows: int) -> None:
        """Report that no more frames follow; ``rows`` is the number of rows of the run, the same on all receivers."""
        self._passed = self._rounds.total = min(self._rounds.total, rows)
        self._ended = True

    def poll(self) -> bool:
        """Do what can be done without waiting; return whether that was anything. OSError once, see the class."""
        moved = False
        while self._step():
            moved = True
        if self._error is not None and not self._broken:
            self._broken = True
            raise self._error
        return moved

    def flush(self) -> None:
        """Publish what is in the file, so that it survives a kill.

        Raises:
            OSError: the disk refuses.
        """
        if self._written is not None:
            self._written.flush()

    def close(self) -> None:
        """End what is open; all receivers do so when they are `done`. A second call does nothing.

        Raises:
            OSError: the disk refuses.
        """
        file, self._file = self._file, None
        written, self._written = self._written, None
        if file is not None and self.done:
            file.close()
        if written is not None:
            written.close()

    def _lay_out(self) -> int:
        """Return the offset of the dataset plus one, sent by the first receiver; 0 where there is none."""
        if self._collective.rank:
            return 0
        try:
            return 1 + lay_out(self._channel, self._directory, self._start_ns)
        except OSError as error:
            self._error = error
            return 0

    def _step(self) -> bool:
        """Do one step; return whether there was one."""
        if self._state is _State.FILLING:
            return self._tell_ready()
        if self._state is _State.WRITING:
            return self._end_writing()
        if self._state is _State.OVER and self._ended:
            self._state = _State.DONE
            return True
        if self._state in (_State.OVER, _State.DONE) or not self._agreement.done():
            return False
        after = {
            _State.LAYING_OUT: self._open,
            _State.OPENING: self._opened,
            _State.READY: self._write,
            _State.AGREEING: self._settle,
        }
        after[self._state]()
        return True

    def _open(self) -> None:
        offset, failed = int(self._agreement.words.max()) - 1, False
        try:
            if offset < 0:
                raise OSError(f"{self._path}: another receiver could not make it")
            self._rounds.stripes = self._dealt(offset)
            self._file = self._collective.open_file(self._path, self._rounds.stripes)
            self._written = WrittenRows(self._channel, self._directory, self._receiver, self._start_ns)
        except OSError as error:
            self._error, failed = self._error or error, True
        self._state, self._agreement = _State.OPENING, self._collective.agree(FAILED if failed else OK)

    def _opened(self) -> None:
        if self._agreement.words.any():  # on all receivers the end
            self._error = self._error or OSError(f"{self._path}: another receiver could not open it")
            self._state = _State.DONE
        else:
            self._state = _State.FILLING

    def _tell_ready(self) -> bool:
        """Report the rounds of which all own rows have passed."""
        begins = self._number * self._rounds.rows
        if begins >= self._rounds.total:
            if not self._ended:
                return False
            if begins < self._rounds.planned:  # one that has no own rows in this round may have begun it already
                self._state, self._agreement = _State.READY, self._collective.agree(BEYOND)
            else:
                self._state = _State.DONE
            return True
        own = self._rounds.stripes.below  # the last row of a round may be another receiver's
        if own(self._passed) < own(self._rounds.last(self._number)):
            return False
        self._state, self._agreement = _State.READY, self._collective.agree(OK)
        return True

    def _write(self) -> None:
        if self._agreement.words.any():
            self._state = _State.OVER
            return
        assert self._file is not None
        first, rows = (self._rounds.bytes if self._error is None else self._rounds.nothing)(self._number)
        self._pending, self._state = self._file.begin(first, rows), _State.WRITING

    def _end_writing(self) -> bool:
        assert self._pending is not None
        word = OK if self._error is None else ABSENT
        try:
            if not self._pending.done():
                return False
        except OSError as error:
            self._error, word = self._error or error, FAILED
        self._state, self._agreement = _State.AGREEING, self._collective.agree(word)
        return True

    def _settle(self) -> None:
        """End a round: note what it has brought to the file."""
        words = self._agreement.words
        self._sound = self._sound and not words.any()
        rows, times, sums = self._rounds.end(self._number)
        if (words == FAILED).any() or self._error is not None:
            rows, times, sums = rows[:0], times[:0], sums[:0]
        sound = self._rounds.last(self._number) if self._sound else 0
        self._number, self._state = self._number + 1, _State.FILLING
        assert self._written is not None
        rule = self._channel.rule
        try:
            self._written.append(rows * rule.step + rule.start, times, sums, sound)
            self.saved += len(rows)
        except OSError as error:
            self._error = self._error or error

    def _dealt(self, offset: int) -> Stripes:
        """Return which rows are this receiver's."""
        channel = self._channel
        own = tuple(place for place, receiver in enumerate(channel.receivers) if receiver == self._receiver)
        row_bytes = channel.height * channel.width * self._dtype.itemsize
        return Stripes(offset, row_bytes, channel.rule.blocks, channel.rule.buffers, own)
