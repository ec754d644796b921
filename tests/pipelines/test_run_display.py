"""`lima2 run` on a terminal: a line that is drawn again, and the nodes below it."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

import lima2cli as l2
from lima2cli.cli.display import ProgressPrinter, ProgressStyle
from lima2cli.cli.top import NodeTable
from tests.pipelines.test_top import PIPELINE
from tests.running import PATIENCE_S

LINES, COLUMNS = 12, 60


class Screen:
    """A terminal, as far as the display asks for one: what is seen in the end."""

    def __init__(self) -> None:
        self.lines, self._row, self._column = [""], 0, 0

    def feed(self, text: str) -> None:
        for code, number, kind in re.findall(r"(\x1b\[(\d*)([A-Z])|[^\x1b])", text, re.DOTALL):
            if kind == "A":
                self._row -= int(number)
                assert self._row >= 0
            elif kind == "J":
                del self.lines[self._row + 1 :]
                self.lines[self._row] = self.lines[self._row][: self._column]
            elif kind:
                raise AssertionError(f"unknown: {code!r}")
            elif code == "\n":
                self._row, self._column = self._row + 1, 0
                self.lines += [""] * (self._row == len(self.lines))
            elif code == "\r":
                self._column = 0
            else:
                before = self.lines[self._row].ljust(self._column)
                self.lines[self._row] = before[: self._column] + code + before[self._column + 1 :]
                self._column += 1


def progress(received: int) -> dict[str, Any]:
    flow = {"received": received, "lost": 0, "total": 100, "bytes": 0, "fill": 0.0}
    return {"type": "progress", "acquisition": 1, "seconds": 1.0, "flows": {"data": flow}, "saved": {}, "rows": {}}


START = {"type": "start", "name": "k", "frames": 100, "directory": "runs/k_0001", "acquisition": 1, "of": 1}


def test_nodes_are_below_the_line() -> None:
    """They follow it down where messages come, and are gone at the end."""
    out, screen, shown = io.StringIO(), Screen(), ["  nodes  a", "  save   1"]
    printer = ProgressPrinter(ProgressStyle.TTY, out, lambda directory: shown)

    def seen(event: dict[str, Any]) -> list[str]:
        printer(event)
        screen.feed(out.getvalue())
        out.seek(0)
        out.truncate()
        return screen.lines

    assert "nodes" not in str(seen(progress(1)))  # it is not known where
    seen(START)
    assert [line.split("  ")[0:1] for line in seen(progress(10))[2:]] == [[""], [""]]
    assert screen.lines[0] == "k: started, 100 frames"
    assert screen.lines[1].strip().startswith("1 s  10 %")
    assert screen.lines[2:] == shown
    seen({"type": "event", "event": "warning", "message": "warning: hot"})
    assert screen.lines[1:] == ["warning: hot", ""]
    shown.append("  roi    2")
    seen(progress(20))
    del shown[1:]
    seen(progress(30))
    assert [line.strip()[:5] for line in screen.lines[1:]] == ["warni", "1 s  ", "nodes"]
    seen({"type": "done", "state": "complete", "reason": None, "problems": [], "warnings": [], "directory": "d"})
    assert [line.strip()[:5] for line in screen.lines[1:]] == ["warni", "1 s  ", ""]


@pytest.mark.parametrize("style", [ProgressStyle.PLAIN, ProgressStyle.JSON, ProgressStyle.NONE])
def test_elsewhere_nobody_is_asked(style: ProgressStyle) -> None:
    printer = ProgressPrinter(style, io.StringIO(), lambda directory: pytest.fail("asked"))
    for event in (START, progress(3)):
        printer(event)


def test_the_table_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.yaml").write_text(PIPELINE)
    live, nodes = l2.run("k.yaml", transport="inline"), NodeTable()
    live.trigger(3)
    next(event for event in live.progress if min(event["rows"].values()) == 6)
    rows = nodes(live.directory)
    assert [row.split()[0] for row in rows] == ["nodes", "roi", "save"] or [row.split()[0] for row in rows] == [
        "nodes", "save", "roi",
    ]  # fmt: skip
    assert all("6" in row.split() for row in rows[1:])
    assert nodes(live.directory) is rows  # not asked again so soon
    live.stop()
    live.wait(60)
    nodes._due = 0.0
    assert nodes(live.directory) == rows


def test_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(
        PIPELINE.replace("frames: 12, period: 1 ms, trigger: software, frames_per_trigger: 2", "frames: 300, rate: 200")
    )
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "lima2cli", "run", "k.yaml", "--transport", "inline"]
    taken = b""
    with subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            while more := os.read(mine, 1 << 16):
                taken += more
        except OSError:  # all have closed it
            pass
        assert process.wait(PATIENCE_S) == 0
    os.close(mine)
    text = taken.decode()
    assert re.search(r"nodes +frames/s +per frame +busy time +saved", text)
    assert re.search(r"^  save +\d+", text, re.MULTILINE)
    screen = Screen()
    screen.feed(text.replace("\r\n", "\n"))
    assert not any("per frame" in line for line in screen.lines)
    assert "complete" in screen.lines
