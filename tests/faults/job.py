"""A run that is disturbed, and what has to hold when it has ended: for all kinds of kills and signals."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from lima2cli.files.live_master import is_final
from tests.faults import mixed
from tests.faults.apart import forked
from tests.faults.leavings import Leavings

LONGEST_S = 120.0

CALL_S = 30.0
"""Seconds of CPU time that other commands than `lima2 run` may take."""

BLAMED = re.compile(
    r"rank (\d+) \([^)]*\) (?:was the first|ended the job)|: (mpiexec) was the first|(process of mpiexec) that started"
)
"""Who is named: a rank's number, mpiexec, its proxy."""


class JobRun:
    """A run of the mixed pipeline in a folder of its own: ``k.yaml``, ``runs/k_0001``."""

    def __init__(
        self, folder: Path, *, frames: int = 900, rate: int = 300, worker: bool = True, transport: str = "mpi"
    ) -> None:
        self.folder, self.frames = folder, frames
        self.directory = folder / "runs/k_0001"
        (folder / "u.py").write_text(mixed.CODE)
        (folder / "k.yaml").write_text(mixed.pipeline(frames, rate, worker=worker))
        (folder / "tmp").mkdir()
        self.leavings = Leavings(folder / "tmp")
        self.launcher = self._start(
            "run", "k.yaml", "--transport", transport, "--progress", "json", out="out", err="err"
        )
        self.sent: list[tuple[str, int]] = []
        self.reason, self.known = "", 0

    def _start(self, *words: str, out: str, err: str) -> "subprocess.Popen[bytes]":
        with (self.folder / out).open("wb") as output, (self.folder / err).open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "lima2cli", *words], cwd=self.folder, env=self.leavings.environment,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
            )  # fmt: skip

    def call(self, *words: str) -> tuple[int, str]:
        """Another command of the program: its exit code, and all that it prints."""
        ended = forked(list(words), self.folder, CALL_S, environment=self.leavings.environment)
        return ended.code, ended.said

    def processes(self) -> dict[str, int]:
        """Processes by their role: launcher, mpiexec, proxy, and ranks as rank0, rank1."""
        found = {"launcher": self.launcher.pid} if self.launcher.poll() is None else {}
        for pid in self.leavings.processes():
            try:
                child = psutil.Process(pid)
                words, environment = child.cmdline(), child.environ()
            except psutil.Error:
                continue
            if words and "lima2cli.job.rank_main" in words and "PMI_RANK" in environment:
                found[f"rank{environment['PMI_RANK']}"] = pid
            elif words and Path(words[0]).name.startswith("mpiexec"):
                found["mpiexec"] = pid
            elif words and "proxy" in words[0]:
                found["proxy"] = pid
        return found

    def roles(self) -> dict[str, list[str]]:
        """Ranks of each role of the plan, as `processes` calls them; the first receiver is ``first``."""
        found: dict[str, list[str]] = {}
        with suppress(OSError, ValueError):
            for it in json.loads((self.directory / "plan.json").read_text())["ranks"]:
                found.setdefault(it["role"], []).append(f"rank{it['rank']}")
        return found

    def ready(self, phase: str) -> bool:
        """True where it has come to a phase: ``starting``, ``joining``, ``running``, ``finishing`` or ``ended``."""
        if phase == "starting" or self.launcher.poll() is not None:
            return True
        if phase == "joining":
            return "rank0" in self.processes()
        if phase == "finishing":
            return any(map(is_final, self.directory.glob("k_*_master.h5")))
        return phase == "running" and b'"type": "start"' in (self.folder / "out").read_bytes()

    def wait(self, phase: str) -> None:
        """Until it has."""
        end = time.monotonic() + LONGEST_S
        while not self.ready(phase) and time.monotonic() < end:
            time.sleep(0.01)

    def send(self, names: list[str], number: int) -> None:
        """A signal to some processes, as `processes` calls them, at once; which were there is in ``sent``."""
        there = self.processes()
        for name in names:
            with suppress(KeyError, ProcessLookupError):
                os.kill(there[name], number)
                self.sent.append((name, number))

    def kill_recovery(self, after_s: float) -> None:
        """Start `lima2 recover`, and kill it."""
        self.launcher.wait(LONGEST_S)
        process = self._start("recover", str(self.directory), out="said", err="said.err")
        time.sleep(after_s)
        process.kill()
        process.wait()

    def failures(self, codes: set[int]) -> list[str]:
        """Return all that is not as it should be after the end; ``codes`` are those that the launcher may end with."""
        try:
            code = self.launcher.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            self.launcher.kill()
            return [f"no end in {LONGEST_S:g} s", *self.leavings.left()]
        wrong = [name for name in self.leavings.left() if "/dev/shm" not in name or code >= 0]
        errors = (self.folder / "err").read_text(errors="replace")
        if code not in codes or re.search("this is a bug|Traceback|Exception ignored", errors):
            wrong.append(f"exit code {code}: {errors[-400:]}")
        if not (self.directory / "plan.json").exists():  # nothing was started
            return wrong + [f"{path.name} without a plan" for path in self.directory.glob("*.h5")]
        summary = self.directory / "summary.json"
        if code >= 0 and not (summary.exists() and summary.stat().st_size):
            wrong.append("the launcher has left no summary")
        wrong += self._recovered() + self._files(code)
        return wrong + self.leavings.left()

    def _recovered(self) -> list[str]:
        """Inspect, recover twice, verify."""
        wrong, name = [], str(self.directory)
        code, said = self.call("inspect", name)
        if code not in (0, 10) or "Traceback" in said:
            wrong.append(f"inspect before recovery ends with {code}: {said[-400:]}")
        code, said = self.call("recover", name)
        if code:
            wrong.append(f"recover ends with {code}: {said[-400:]}")
        before = contents(self.directory)
        code, said = self.call("recover", name)
        after = contents(self.directory)
        if code or after != before:
            changed = sorted(it for it in before.keys() | after.keys() if before.get(it) != after.get(it))
            wrong.append(f"the second recover ends with {code}, changed {changed}: {said[-200:]}")
        code, said = self.call("inspect", "--verify", name)
        if code:
            wrong.append(f"inspect --verify ends with {code}: {said[-600:]}")
        return wrong + ["control.json is left"] * (self.directory / "control.json").exists()

    def _files(self, code: int) -> list[str]:
        """Rows against the scene, against what the progress said, and against the summary."""
        try:
            summary = json.loads((self.directory / "summary.json").read_text())
        except (OSError, ValueError) as error:
            return [f"no summary: {error}"]
        self.reason = str(summary["reason"])
        found = mixed.shown(self.directory, frames=self.frames)
        wrong = list(found.wrong) + [f"problem: {it}" for it in summary["problems"]]
        for name, count in mixed.told(self.folder / "out").items():
            here = mixed.parts(self.directory, name) if name == "virtual" else len(found.rows.get(name, ()))
            self.known += count
            if here < count:
                wrong.append(f"{name}: {count} were called saved, {here} are there")
        wrong += accounted(summary, found)
        if (summary["state"] == "complete") != (code == 0) and code >= 0 and code not in (130, 143):
            wrong.append(f"exit code {code}, {summary['state']}")
        if summary["state"] != "complete" and not summary["reason"]:
            wrong.append("no reason is given")
        return wrong + self._blame(self.reason)

    def _blame(self, reason: str) -> list[str]:
        """Nobody is named who got no signal."""
        blamed = BLAMED.search(reason)
        if blamed is None:
            return []
        rank, mpiexec, _ = blamed.groups()
        name = f"rank{rank}" if rank else "mpiexec" if mpiexec else "proxy"
        hit = {it for it, _ in self.sent}
        just = name in hit or (name == "mpiexec" and "proxy" in hit) or (name == "proxy" and "mpiexec" in hit)
        return [] if just else [f"{sorted(hit)} were hit; {reason}"]


def accounted(summary: dict[str, Any], found: mixed.Shown) -> list[str]:
    """Find sums of a summary that are wrong, or not those of the files."""
    wrong = []
    for name, flow in summary["flows"].items():
        parts = [flow[key] for key in ("received", "lost", "dropped", "missing")]
        if flow["missing_frames"] is not None:
            absent = sum(len(range(first, last + 1, step)) for first, last, step in flow["missing_frames"])
            if flow["expected"] != sum(parts) or absent != flow["expected"] - flow["received"]:
                wrong.append(f"flow {name}: {flow}")
    for name, channel in summary["channels"].items():
        parts = [channel[key] for key in ("saved", "vetoed", "dropped", "lost")]
        if None not in parts and channel["expected"] != sum(parts):
            wrong.append(f"channel {name}: {channel}")
        rows = len(found.rows.get(name, ()))
        if channel["saved"] != rows:
            wrong.append(f"{name}: the summary says {channel['saved']} saved, the master shows {rows}")
    for name, table in summary["tables"].items():
        if (table["rows"] or 0) != len(found.rows.get(name, ())):
            wrong.append(
                f"{name}: the summary says {table['rows']} rows, the table has {len(found.rows.get(name, ()))}"
            )
    return wrong


def contents(directory: Path) -> dict[str, Any]:
    """The files of a run but its log; of those that its end makes all but pixels, and when they were made."""
    import h5py

    held: dict[str, Any] = {}
    for path in sorted(directory.iterdir()):
        if path.name == "lima2.log":
            continue
        if not re.fullmatch(r"k(_\w+_master|_[a-z]+)?\.h5", path.name):
            held[path.name] = path.read_bytes()
            continue
        with h5py.File(path) as file:

            def keep(name: str, it: Any, at: str = path.name) -> None:
                held[f"{at}/{name}"] = sorted((key, str(value)) for key, value in it.attrs.items())
                if hasattr(it, "shape") and name.rpartition("/")[2] not in ("data", "index", "intensity"):
                    held[f"{at}/{name}"].append(np.asarray(it[()]).tobytes() if it.dtype != object else str(it[()]))

            file.visititems(keep)
    return held
