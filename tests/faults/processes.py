"""Kill every kind of process of runs, at random moments, and let users' code misbehave; see what is said and left.

    python -m tests.faults.processes [--minutes 5] [--seed 1]

Each round is one run. It must end in time, with exit code 0 or 10, with a summary that adds up; whoever is blamed is
who was killed; nothing of the job is left: no process, no shared memory, no file of a socket. Exit code 1 where one was
not so.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from lima2cli.runs.channel import LAUNCHED
from lima2cli.runs.processes import NAMES, _used, processes_with

LONGEST_S = 150.0

BLAMED = re.compile(
    r"rank \d+ \((\w+)[^)]*\) was the first|: (mpiexec) was the first|process of (mpiexec) that started"
)

TEXT = """
lima2: 1
name: k
detector: {remu: {image: {width: 32, height: 32}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 400, rate: 200 Hz}
receivers: 2
nodes: {w: {input: data, mpi: {function: "u.py:f"}}, save: {input: w, io_hdf5: {}}}
"""
FINE = "def f(frames, numbers): return frames\n"

KILLS = ["control", "detector", "receiver", "worker", "mpiexec", "proxy", "launcher", "starting", "two Ctrl-C"]

CODES = {
    "thread": "import threading, time\nthreading.Thread(target=lambda: time.sleep(900)).start()\n" + FINE,
    "exit": "import os\ndef f(frames, numbers): os._exit(3)\n",
    "fork": "import os, time\ndef f(frames, numbers):\n    if 7 in numbers and not os.fork(): time.sleep(900)\n"
    "    return frames\n",
    "returning child": "import os\ndef f(frames, numbers):\n    os.fork()\n    return frames\n",
    "sys.exit": "import sys\ndef f(frames, numbers): sys.exit(0)\n",
    "descriptors": "import os\ndef f(frames, numbers):\n    for d in (0, 1, 2): os.close(d)\n    return frames\n",
    "hang": "import time\ndef f(frames, numbers): time.sleep(900)\n",
    "import hangs": "import time\ntime.sleep(900)\n" + FINE,
    "segfault": "import ctypes\ndef f(frames, numbers): ctypes.string_at(0)\n",
}


class Round:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path, code: str, kind: str) -> None:
        self.folder = folder
        (folder / "u.py").write_text(code)
        (folder / "k.yaml").write_text(TEXT.replace("mpi:", f"{kind}:"))
        (folder / "tmp").mkdir()
        self.before = set(os.listdir("/dev/shm"))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PMI", "HYDRA"))}
        self.launcher = subprocess.Popen(
            [sys.executable, "-m", "lima2cli", "run", "k.yaml", "--progress", "none"],
            cwd=folder, env=environment | {"TMPDIR": str(folder / "tmp")}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(folder / "err").open("w"),
        )  # fmt: skip
        self.job = ""

    def tree(self) -> dict[str, int]:
        """Processes by what they are, once all are there."""
        roles = ["control", "detector", "receiver", "receiver1"]
        found: dict[str, int] = {"launcher": self.launcher.pid}
        for child in psutil.Process(self.launcher.pid).children(recursive=True):
            try:
                words, environment = child.cmdline(), child.environ()
            except psutil.Error:
                continue
            self.job = environment.get(LAUNCHED, self.job)
            if not words:
                continue
            if "lima2cli.job.rank_main" in words and "PMI_RANK" in environment:
                rank = int(environment["PMI_RANK"])
                found[roles[rank] if rank < len(roles) else "worker"] = child.pid
            elif Path(words[0]).name.startswith("mpiexec"):
                found["mpiexec"] = child.pid
            elif "proxy" in words[0]:
                found["proxy"] = child.pid
        return found

    def wait(self, condition: str) -> dict[str, int]:
        """Until the run is there as far as ``condition`` says: ``started`` (ranks are processes) or ``frames``."""
        end = time.monotonic() + 60
        while time.monotonic() < end and self.launcher.poll() is None:
            tree = self.tree()
            frames = list(self.folder.glob("runs/k_0001/k_save_*_00000.h5"))
            if "control" in tree and (condition == "started" or frames):
                return tree
            time.sleep(0.02)
        return self.tree() if self.launcher.poll() is None else {}

    def faults(self, victim: str) -> list[str]:
        """Return all that is not as it should be, once the run has ended."""
        try:
            code = self.launcher.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            self.launcher.kill()
            return [f"no end in {LONGEST_S:g} s"]
        end = time.monotonic() + 90  # ranks without a launcher end in order
        while (left := list(processes_with(LAUNCHED, self.job)) if self.job else []) and time.monotonic() < end:
            time.sleep(0.05)
        faults = [f"processes are left: {left}"] if left else []
        errors = (self.folder / "err").read_text(errors="replace")
        killed = victim == "launcher"
        if code not in ((-9,) if killed else (0, 10, 130)) or "this is a bug" in errors or "Traceback" in errors:
            faults.append(f"exit code {code}: {errors[-300:]}")
        if killed:
            subprocess.run([sys.executable, "-m", "lima2cli", "recover", "runs/k_0001"], cwd=self.folder, check=False,
                           capture_output=True)  # fmt: skip
        try:
            summary = json.loads((self.folder / "runs/k_0001/summary.json").read_text())
        except OSError as error:
            return [*faults, f"no summary: {error}"]
        self.reason = str(summary["reason"])
        channel = summary["channels"]["save"]
        parts = [channel[key] for key in ("saved", "vetoed", "dropped", "lost")]
        if None not in parts and channel["expected"] != sum(parts):
            faults.append(f"its sums: {channel}")
        blamed = BLAMED.search(self.reason)
        if blamed and not self.just(victim, next(filter(None, blamed.groups()))):
            faults.append(f"{victim} was killed; {self.reason}")
        shared = [name for name in set(os.listdir("/dev/shm")) - self.before if NAMES.fullmatch(name)]
        faults += [f"{name} is left" for name in shared if self.unused(name)]
        faults += [f"{path} is left" for path in (self.folder / "tmp").rglob("*lima2*")]
        faults += ["control.json is left"] * (self.folder / "runs/k_0001/control.json").exists()
        return faults

    @staticmethod
    def just(victim: str, blamed: str) -> bool:
        """True where the one that is blamed is the one that was killed."""
        return victim.startswith(blamed) or blamed.startswith(victim) or (victim, blamed) == ("proxy", "mpiexec")

    @staticmethod
    def unused(name: str) -> bool:
        """True where no process, of other runs either, uses a file of shared memory."""
        try:
            status = os.stat(f"/dev/shm/{name}")
        except FileNotFoundError:
            return False
        time.sleep(1)
        return not _used([(status.st_dev, status.st_ino)]) and Path("/dev/shm", name).exists()


def kill(what: str, chance: random.Random) -> tuple[list[str], str]:
    """A round with a kill: its faults, and what was said."""
    with tempfile.TemporaryDirectory(prefix="lima2-faults-") as folder:
        ran = Round(Path(folder), FINE, "mpi")
        early = what in ("starting", "two Ctrl-C")
        tree = ran.wait("started" if early else "frames")
        time.sleep(chance.uniform(0, 0.4))
        victim = what
        if what == "two Ctrl-C":
            for _ in range(2):
                ran.launcher.send_signal(signal.SIGINT)
                time.sleep(0.03)
        else:
            victim = chance.choice([name for name in tree if name != "launcher"] or [""]) if early else what
            if victim in tree:
                os.kill(tree[victim], signal.SIGKILL)
        return ran.faults(victim), getattr(ran, "reason", "")


def misbehave(name: str, chance: random.Random) -> tuple[list[str], str]:
    """A round with code of the user's: its faults, and what was said."""
    with tempfile.TemporaryDirectory(prefix="lima2-faults-") as folder:
        kind = chance.choice(["python", "mpi"])
        ran = Round(Path(folder), CODES[name], kind)
        ran.wait("started")
        return ran.faults("receiver" if kind == "python" else "worker"), getattr(ran, "reason", "")


def main() -> int:
    """Rounds of each kind in turn, until the time is over."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=5)
    arguments.add_argument("--seed", type=int, default=1)
    asked = arguments.parse_args()
    chance, end = random.Random(asked.seed), time.monotonic() + 60 * asked.minutes
    rounds, bad, named = Counter[str](), Counter[str](), Counter[str]()
    while time.monotonic() < end:
        for what in [*KILLS, *CODES]:
            if time.monotonic() > end:
                break
            faults, reason = (kill if what in KILLS else misbehave)(what, chance)
            rounds[what] += 1
            named[what] += "first to end" in reason
            bad[what] += bool(faults)
            print(f"{what}: {'; '.join(faults) or 'as promised'} [{reason[:160]}]", flush=True)
    for what, count in rounds.items():
        print(f"{what:16} {count:3} rounds, {bad[what]} not as promised, {named[what]} with a name")
    return 1 if sum(bad.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
