"""Inspection of a run directory: its files are opened one by one, damaged ones by a process of its own."""

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any

from lima2cli.files.appending import CHUNK_CACHE_BYTES
from lima2cli.files.nexus import ENTRY, ChannelRecord

PATIENCE_S = 60.0
"""Seconds for the rows that are read at once, from when on the reader has hung."""

COMMAND = [sys.executable, "-P", "-m", __name__]

DEATHS = 20
"""Deaths of the process while it reads a dataset, after which the rest is not read."""


class ReaderApart:
    """A reader of rows in a process that is started by the first call, and again after it has died; use `with`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lines = b""

    def __enter__(self) -> "ReaderApart":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def unreadable(self, path: str, dataset: str, first: int, last: int, step: int) -> Iterator[tuple[int, str]]:
        """Yield the first of each ``step`` rows from ``first`` to ``last - 1`` that cannot be read, and why."""
        for _ in range(DEATHS):
            row, reason = first, ""
            for word, number in self._answers(path, dataset, first, last, step):
                if word == "bad":
                    yield number, "cannot be read"
                row = number
                if word == "end":
                    return
                reason = word if word in ("died", "hung") else ""
            yield row, f"cannot be read: the process that read them {reason}"
            first = row + step
            if first >= last:
                return
        yield first, f"and those behind were not read, as {DEATHS} readers died"

    def _answers(self, path: str, dataset: str, first: int, last: int, step: int) -> Iterator[tuple[str, int]]:
        """Yield (word, row) of each answer.

        The last word is ``end``, or ``died`` or ``hung`` with the row that was being read.
        """
        process, row = self._running(), first
        asked = {"path": path, "dataset": dataset, "first": first, "last": last, "step": step}
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            self._end()
        while (line := self._line()) is not None:
            word, _, number = line.partition(" ")
            row = int(number) if number else last
            yield word, row
            if word == "end":
                return
        hung = self._process is not None and self._process.poll() is None
        self._end()
        yield "hung" if hung else "died", row

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
            self._process = subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, stderr=nothing)
            self._lines = b""
        return self._process

    def _line(self) -> str | None:
        """Return the next line; None where the process has ended, or is silent for too long."""
        if self._process is None:
            return None
        output = self._process.stdout
        assert output is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(output, selectors.EVENT_READ)
            while b"\n" not in self._lines:
                if not waiting.select(PATIENCE_S):
                    return None
                more = os.read(output.fileno(), 1 << 16)
                if not more:
                    self._process.wait()
                    return None
                self._lines += more
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def main(requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until there are no more."""
    from lima2cli.files.compression import load_filters

    load_filters()

    def answer(line: str) -> None:
        answers.write(f"{line}\n")
        answers.flush()

    for request in requests:
        asked: dict[str, Any] = json.loads(request)
        directory, name = os.path.split(asked["path"])
        with Inspection(directory, False).open(name) as file:
            data = file[asked["dataset"]]
            for row in range(asked["first"], asked["last"], asked["step"]):
                answer(f"at {row}")
                try:
                    data[row : min(asked["last"], row + asked["step"])]
                except (OSError, RuntimeError, ValueError, MemoryError):
                    answer(f"bad {row}")
        answer("end")


if __name__ == "__main__":
    own = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # filters print what they find wrong
    with os.fdopen(own, "w") as answers:
        main(sys.stdin, answers)


Unreadable = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""Exceptions that damaged files cause: errors of the HDF5 library, and objects that are not what they should be."""


@dataclass
class Inspection:
    """Findings so far about the files of one directory; ``verify`` reads every frame.

    unchecked   by node, how many frames have no checksum;  reader   for data that may be damaged, to be ended
    """

    directory: str
    verify: bool
    problems: list[str] = field(default_factory=list)
    unchecked: dict[str, int] = field(default_factory=dict)
    reader: ReaderApart = field(default_factory=ReaderApart)

    def tell(self, problem: str) -> None:
        """Add a problem, once."""
        if problem not in self.problems:
            self.problems.append(problem)

    def tell_of(self, name: str, problem: object) -> None:
        """Add a problem of a file of which no other is known."""
        if not any(known.startswith(name) for known in self.problems):
            self.problems.append(f"{name}: {problem}")

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Return the open file; a file whose writer was interrupted is reported and read as far as it goes."""
        import h5py

        path = os.path.join(self.directory, name)
        try:
            file = h5py.File(path, locking="best-effort", rdcc_nbytes=CHUNK_CACHE_BYTES)
        except OSError as error:
            if "already open for write" not in str(error):
                raise
            self.tell(f"{name} was not closed (or is still being written): `lima2 recover` makes it readable")
            file = h5py.File(path, swmr=True, locking="best-effort", rdcc_nbytes=CHUNK_CACHE_BYTES)
        with file:
            yield file

    def records(self, roles: Sequence[str]) -> list[ChannelRecord]:
        """Return one record of each node that has files of these roles, the first role preferred."""
        known: dict[str, ChannelRecord] = {}
        for record in self._records.values():
            if record is not None and record.role in roles and (record.node not in known or record.role == roles[0]):
                known[record.node] = record
        return list(known.values())

    @property
    def ends(self) -> list[str]:
        """Return the names of the files that the end of a run makes: masters, tables, the linking file."""
        return [name for name, record in self._records.items() if record is None or record.role in ("master", "table")]

    @property
    def files(self) -> list[str]:
        """Return the names of all HDF5 files that can be opened."""
        return [name for name, record in self._records.items() if record is not None]

    @cached_property
    def _records(self) -> dict[str, ChannelRecord | None]:
        """Return the record in each HDF5 file, by name; None where it has none."""
        known: dict[str, ChannelRecord | None] = {}
        for name in sorted(os.listdir(self.directory)):
            if not name.endswith(".h5"):
                continue
            try:
                with Inspection(self.directory, False).open(name) as file:
                    known[name] = ChannelRecord.read(file)
            except Unreadable as error:
                self.tell(f"{name} can't be read: {error}")
        return known


def detector_of(file: Any) -> Any:
    """Return the NXdetector group, by the default plot of the entry.

    Raises:
        KeyError: there is none.
    """
    entry = file[ENTRY]
    return entry[str(entry.attrs["default"]).rpartition("/")[0]]
