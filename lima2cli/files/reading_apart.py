"""Rows of HDF5 datasets read by a process of its own, which damaged data may kill."""

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

PATIENCE_S = 60.0
"""Seconds for the rows that are read at once, from when on the reader has hung."""

COMMAND = [sys.executable, "-P", "-m", __name__]

DEATHS = 20
"""Deaths of the process while it reads a dataset, after which the rest is not read."""


class ReaderApart:
    """Reads rows in a process that is started by the first call, and again after it has died. Use it with `with`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lines = b""

    def __enter__(self) -> "ReaderApart":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def unreadable(self, path: str, dataset: str, first: int, last: int, step: int) -> Iterator[tuple[int, str]]:
        """The first of each ``step`` rows from ``first`` to ``last - 1`` that cannot be read, and why."""
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
        """(word, row) of each answer; ``died`` or ``hung`` with the row that was being read is the last, or ``end``."""
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
        """The next line; None where the process has ended, or says nothing for too long."""
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
    from lima2cli.files.inspection import Inspection

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
