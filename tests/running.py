"""Runs of pipelines in tests, and what they should have saved."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from lima2cli.cli import app
from lima2cli.geometry import Rect

PATIENCE_S = 180.0
"""What has not ended by then hangs, on a busy machine too."""

EXAMPLES = Path(__file__).parent.parent / "examples" / "pipelines"

needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="MPI is not installed")


def mpi(*values: Any) -> Any:
    """Parameters of a test that runs on MPI, ``values`` and the transport. A run costs a second or two: one such case
    is enough where the others differ in what each process does by itself."""
    return pytest.param(*values, "mpi", marks=[pytest.mark.mpi, needs_mpi])


TRANSPORTS = ["inline", mpi()]


@dataclass(frozen=True)
class Ran:
    """A finished ``lima2 run``."""

    code: int
    output: str
    directory: Path

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary.json."""
        summary: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return summary

    def saved(self, node: str) -> tuple[NDArray[Any], NDArray[np.uint64], NDArray[np.uint8]]:
        """Frames, numbers and status of a channel, through its master."""
        import h5py
        import hdf5plugin  # noqa: F401

        name, path = self.summary["channels"][node]["dataset"].split("::")
        with h5py.File(self.directory / name) as file:
            detector = file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent
            return file[path][()], detector["frame_number"][()], detector["frame_status"][()]


def _clean() -> dict[str, str]:
    """The environment, without what would make a run join another's ranks."""
    hidden = ("PMI", "HYDRA", "PYTHONDONTWRITEBYTECODE")  # the last would compile all modules anew in every rank
    return {key: value for key, value in os.environ.items() if not key.startswith(hidden)}


Done = subprocess.CompletedProcess[str]


def lima2(*arguments: str, cwd: Path, timeout: float = PATIENCE_S) -> Done:
    """The program, in this process: imports are paid once. Ranks of MPI are processes all the same."""

    def late(number: int, frame: object) -> None:
        pytest.fail(f"lima2 {' '.join(arguments)}: no end after {timeout:g} s")

    runner = CliRunner(env=dict.fromkeys(os.environ.keys() - _clean().keys()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            done = runner.invoke(app, arguments, prog_name="lima2", catch_exceptions=False)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def program(*arguments: str, cwd: Path) -> Done:
    """The program, as a user calls it."""
    command = [sys.executable, "-m", "lima2cli", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=_clean(),
        stdin=subprocess.DEVNULL,
    )


def mpiexec(ranks: int, *arguments: str, cwd: Path) -> Done:
    """The program as ``ranks`` processes of one job."""
    from lima2cli.job.launch import find_mpiexec

    return subprocess.run(
        [str(find_mpiexec()), "-n", str(ranks), sys.executable, "-m", "lima2cli", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=_clean(),
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


class Live:
    """A run under way, for tests that disturb it. Its progress is JSON, its standard error is kept for the end."""

    def __init__(self, text: str, cwd: Path, transport: str, *arguments: str) -> None:
        import psutil

        (cwd / "pipeline.yaml").write_text(text)
        command = [sys.executable, "-m", "lima2cli", "run", "pipeline.yaml", "--transport", transport]
        self._cwd = cwd
        self.process = subprocess.Popen(
            [*command, "--progress", "json", *arguments],
            cwd=cwd, env=_clean(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._seen: list[str] = []
        self._watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        self._watchdog.start()
        self.wait_for('"type": "start"')
        self.ranks = [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if "lima2cli.job.rank_main" in child.cmdline() and "python" in Path(child.cmdline()[0]).name
        ]
        self.ranks.sort(key=lambda rank: int(rank.environ()["PMI_RANK"]))

    def wait_for(self, text: str) -> None:
        """Read on until a line holds ``text``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._seen.append(line)
            if text in line:
                return
        raise AssertionError(f"no {text!r} in\n" + "".join(self._seen))

    def wait_for_frames(self, count: int = 1) -> None:
        """Until so many progress events have told of frames, in every flow."""
        for _ in range(count + 40):
            self.wait_for('"type": "progress"')
            if all(flow["received"] for flow in json.loads(self._seen[-1])["flows"].values()):
                count -= 1
            if count <= 0:
                return
        raise AssertionError("".join(self._seen))

    def limit_files(self, size: int) -> None:
        """From now on the disk is full for files that grow beyond ``size`` bytes."""
        for pid in [self.process.pid, *(rank.pid for rank in self.ranks)]:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))

    def end(self) -> Ran:
        """Its end."""
        try:
            rest, _ = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self._watchdog.cancel()
            self.process.kill()
        output = "".join(self._seen) + rest
        return Ran(self.process.returncode, output, (self._cwd / "runs" / "latest").resolve())

    def survivors(self) -> list[int]:
        """Ranks that are still there half a minute after the end."""
        import psutil

        return [rank.pid for rank in psutil.wait_procs(self.ranks, timeout=30)[1]]


def truth(ran: Ran, *, problems: bool = False) -> dict[str, Any]:
    """The summary, after all that must hold however a run ended: sums, files that open, and what `inspect` finds.

    ``problems``: the summary tells of some; else there are none.
    """
    import h5py
    import silx.io

    summary = ran.summary
    assert "Traceback" not in ran.output
    assert bool(summary["problems"]) == problems, summary["problems"]
    for flow in summary["flows"].values():
        assert flow["expected"] == flow["received"] + flow["lost"] + flow["dropped"] + flow["missing"]
        absent = sum(len(range(first, last + 1, step)) for first, last, step in flow["missing_frames"])
        assert absent == flow["expected"] - flow["received"]
    for channel in summary["channels"].values():
        assert channel["expected"] == channel["saved"] + channel["vetoed"] + channel["dropped"] + channel["lost"]
    for path in sorted(ran.directory.glob("*.h5")):
        with h5py.File(path) as file, silx.io.open(str(path)) as seen:
            assert file.attrs["default"] in seen
    found = lima2("inspect", "--verify", "--format", "json", str(ran.directory), cwd=ran.directory)
    inspected = json.loads(found.stdout)
    assert found.returncode == 0, inspected["problems"]
    keys = ("expected", "saved", "dropped", "lost", "bytes", "files", "dataset")
    for name, channel in inspected["channels"].items():
        assert {key: channel[key] for key in keys} == {key: summary["channels"][name][key] for key in keys}
    keys = ("expected", "received", "lost", "dropped", "missing", "missing_frames")
    saved = {channel["flow"] for channel in _channels(ran)}
    for name in saved:
        if summary["state"] != "failed" or not problems:
            flow = inspected["flows"][name]
            assert {key: flow[key] for key in keys} == {key: summary["flows"][name][key] for key in keys}
    return summary


def _channels(ran: Ran) -> list[dict[str, Any]]:
    channels: dict[str, dict[str, Any]] = json.loads((ran.directory / "plan.json").read_text())["channels"]
    return list(channels.values())


def run(
    text: str, cwd: Path, transport: str, *arguments: str, name: str = "pipeline", by: Callable[..., Done] = lima2
) -> Ran:
    """Run a pipeline given as text; ``by`` `lima2` or `program`."""
    (cwd / f"{name}.yaml").write_text(text)
    done = by("run", f"{name}.yaml", "--transport", transport, *arguments, cwd=cwd)
    return Ran(done.returncode, done.stdout + done.stderr, (cwd / "runs" / "latest").resolve())


def counter(
    numbers: NDArray[np.uint64], source: Rect, image_width: int, *, dataset: int = 0, bits: int = 16
) -> NDArray[Any]:
    """Scene ``counter`` by its formula, for a part of the image: (n, height, width)."""
    y, x = np.mgrid[source.y : source.bottom, source.x : source.right].astype(np.uint64)
    frames = numbers.astype(np.uint64)[:, None, None] * np.uint64(7919)
    values = frames + np.uint64(104729 * dataset) + y * np.uint64(image_width) + x
    return (values % np.uint64(2**bits)).astype(f"u{max(8, 1 << (bits - 1).bit_length()) // 8}")


def covered(modules: list[Rect], source: Rect) -> NDArray[np.bool_]:
    """Which pixels of a source some module covers."""
    mask = np.zeros((source.height, source.width), bool)
    for module in modules:
        common = module & source
        if common.area:
            mask[common.within(source)] = True
    return mask
