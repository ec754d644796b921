"""Runs of pipelines in tests, and what they should have saved."""

import faulthandler
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from lima2cli import foreign
from lima2cli.__main__ import main
from lima2cli.cli import app
from lima2cli.geometry import Rect
from tests import ROOT
from tests.world import FEWEST, Worlds, environment

PATIENCE_S = 180.0
"""Seconds after which a run hangs that has not ended, on a busy machine too."""

EXAMPLES = ROOT / "examples" / "pipelines"

needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="MPI is not installed")


def mpi(*values: Any) -> Any:
    """Parameters of a test that runs on MPI, ``values`` and the transport. A run costs a second or two: one such case
    is enough where the others differ in what each process does by itself.
    """
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


Done = subprocess.CompletedProcess[str]


def lima2(*arguments: str, cwd: Path, timeout: float = PATIENCE_S) -> Done:
    """The program, in this process: imports are paid once. Ranks of MPI are processes all the same."""

    def late(number: int, frame: object) -> None:
        pytest.fail(f"lima2 {' '.join(arguments)}: no end after {timeout:g} s")

    runner = CliRunner(env=dict.fromkeys(os.environ.keys() - environment().keys()))
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
        env=environment(),
        stdin=subprocess.DEVNULL,
    )


def mpiexec(ranks: int, *arguments: str, cwd: Path) -> Done:
    """The program as ``ranks`` processes of one job."""
    from lima2cli.job.launch import find_mpiexec

    return subprocess.run(
        [str(find_mpiexec()), "-n", str(ranks), sys.executable, "-m", "lima2cli", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=environment(),
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


class Copy:
    """The program in a copy of this process, which has imported it already; used as what `subprocess.Popen` makes.

    Its standard error goes where its standard output goes. Ranks are those that stay, unless the test is about the
    launch: no other run may use them before this one has ended.
    """

    def __init__(self, words: list[str], cwd: Path) -> None:
        from lima2cli.job.launch import find_mpiexec

        self._on_world = "mpi" in words and not Worlds.launched
        if self._on_world:
            Worlds.of(str(find_mpiexec()), FEWEST)
        read, write = os.pipe()
        self.stdout = os.fdopen(read, errors="replace")
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _become(words, cwd, write)
        os.close(write)

    def poll(self) -> int | None:
        """Return the exit code, or None before the end."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Wait for its end, return what it has printed since. It is killed after ``timeout`` seconds."""
        watchdog = threading.Timer(timeout, self.kill)
        watchdog.start()
        try:
            with self.stdout:
                printed = self.stdout.read()
            while self.poll() is None:
                time.sleep(0.005)
        finally:
            watchdog.cancel()
        if self._on_world and self.returncode and self.returncode < 0:
            Worlds.end()  # its ranks are in the middle of a run
        return printed, None


def _become(words: list[str], cwd: Path, output: int) -> NoReturn:
    """Run the program, and end this process as it ends."""
    code, world = 70, Worlds.now
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for name in os.environ.keys() - environment().keys():
            del os.environ[name]
        os.chdir(cwd)
        Worlds.owner = os.getpid()
        foreign._UMASK = None  # users' code may have been called by the tests, with another mask
        sys.argv = ["lima2", *words]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        if Worlds.now is not world:
            Worlds.end()
    except BaseException:  # noqa: BLE001  whatever it is, the tests must not run on in this process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def copied(*arguments: str, cwd: Path) -> Done:
    """The program in a process of its own that need not import it again; its standard error is in ``stdout``, too."""
    process = Copy(list(arguments), cwd)
    printed, _ = process.communicate(PATIENCE_S)
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, printed, "")


class Live:
    """A run under way, for tests that disturb it. Its progress is JSON, its standard error is kept for the end."""

    def __init__(self, text: str, cwd: Path, transport: str, *arguments: str) -> None:
        import psutil

        (cwd / "pipeline.yaml").write_text(text)
        self._cwd = cwd
        self.process = Copy(["run", "pipeline.yaml", "--transport", transport, "--progress", "json", *arguments], cwd)
        self.seen: list[str] = []
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
        for line in self.process.stdout:
            self.seen.append(line)
            if text in line:
                return
        raise AssertionError(f"no {text!r} in\n" + "".join(self.seen))

    def wait_for_frames(self, count: int = 1) -> None:
        """Until so many progress events have told of frames, in every flow."""
        for _ in range(count + 40):
            self.wait_for('"type": "progress"')
            if all(flow["received"] for flow in json.loads(self.seen[-1])["flows"].values()):
                count -= 1
            if count <= 0:
                return
        raise AssertionError("".join(self.seen))

    def wait_until_saved(self, count: int) -> None:
        """Until each node that saves has told of so many frames or rows."""
        while True:
            self.wait_for('"type": "progress"')
            if min(json.loads(self.seen[-1])["saved"].values(), default=0) >= count:
                return

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
        output = "".join(self.seen) + rest
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


def inspect_run(directory: str, *, verify: bool = False) -> Any:
    """Return the output of `lima2 inspect --format json`."""
    from lima2cli.accounting.inspect_run import inspect_run as inspect
    from lima2cli.declare.plain import to_plain

    return to_plain(inspect(directory, verify=verify))


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
    """Return the pixels of a source that some module covers."""
    mask = np.zeros((source.height, source.width), bool)
    for module in modules:
        common = module & source
        if common.area:
            mask[common.within(source)] = True
    return mask
