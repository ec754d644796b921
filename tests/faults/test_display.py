"""The display is not the run: whoever reads what a run shows may be gone, full, blocked or absent."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lima2cli.cli.display import KEPT, Display, ProgressStyle
from tests.running import PATIENCE_S, mpi

TEXT = """
lima2: 1
name: k
detector: {remu: {image: {width: 16, height: 16}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 100, rate: 200 Hz}
nodes: {save: {input: data, io_hdf5: {}}}
"""

PIPE_BYTES = 4096
Ends = tuple[int, Callable[[], None]]
"""A descriptor to write to, and what its reader does once the run has begun."""


def gone() -> Ends:
    """A pipe whose reader goes away."""
    read, write = os.pipe()
    return write, lambda: os.close(read)


def full() -> Ends:
    """A disk without room."""
    return os.open("/dev/full", os.O_WRONLY), lambda: None


def blocked() -> Ends:
    """A pipe that is full, and is not read."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.write(write, b"x" * (PIPE_BYTES - 16))
    return write, lambda: os.set_inheritable(read, False)  # which keeps it open


def terminal() -> Ends:
    """A terminal that is closed."""
    mine, theirs = pty.openpty()
    return theirs, lambda: os.close(mine)


def saved(folder: Path) -> int:
    """Frames that the run has saved, in order."""
    summary = json.loads((folder / "runs/k_0001/summary.json").read_text())
    assert summary["state"] == "complete"
    return int(summary["channels"]["save"]["saved"])


@pytest.mark.parametrize(
    ("make", "progress", "transport"),
    [(gone, "auto", "inline"), (full, "plain", "inline"), (blocked, "json", "inline"), (terminal, "auto", "inline"),
     mpi(gone, "json"), mpi(blocked, "plain")],
)  # fmt: skip
def test_a_run_goes_on_whoever_reads(make: Callable[[], Ends], progress: str, transport: str, tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(TEXT)
    write, leave = make()
    command = [sys.executable, "-m", "lima2cli", "run", "k.yaml", "--transport", transport, "--progress", progress]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=write, stderr=write) as process:
        os.close(write)
        leave()
        assert process.wait(PATIENCE_S) == 0
    assert saved(tmp_path) == 100
    assert "shown" in (tmp_path / "runs/k_0001/lima2.log").read_text()


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_run_goes_on_without_standard_streams(closed: str, tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(TEXT)
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m lima2cli run k.yaml --transport inline {closed}'],
        cwd=tmp_path, timeout=PATIENCE_S, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert saved(tmp_path) == 100


def test_a_terminal_that_closes_is_no_wish_to_stop(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(TEXT)
    command = [sys.executable, "-m", "lima2cli", "run", "k.yaml", "--transport", "inline", "--progress", "json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any('"start"' in line for line in process.stdout)
        process.send_signal(signal.SIGHUP)
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0
    assert saved(tmp_path) == 100


def test_what_nobody_takes_is_bounded_and_said(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        display = Display(ProgressStyle.JSON)
        for number in range(3 * KEPT):
            display({"type": "progress", "number": number})
        display({"type": "event", "event": "warning", "message": "the last"})
        taken = b""
        while b"the last" not in taken:
            taken += os.read(read, PIPE_BYTES)
        left_out = 3 * KEPT + 1 - taken.count(b"type")
        assert display.close() == f"{left_out} progress reports were not shown: the output was not read fast enough"
    os.close(read)
