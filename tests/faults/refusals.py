"""A disk that refuses in the middle of a run, in all ways but being full: ``python -m tests.faults.refusals``, as root.

It fails (all calls end with EIO), becomes read-only after an error, has no more inodes, its files may not grow, the run
directory may not be changed; the folder of temporary files goes, is full or read-only; the link ``latest`` goes or is
replaced. Each in a run by MPI and in one process, in a namespace of mounts. Then what was wrong is put right, and
`lima2 recover` has to give a run whose files are sound, with all frames that were told saved.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lima2cli.runs.channel import LAUNCHED
from lima2cli.runs.processes import processes_with
from tests.faults import Outcome
from tests.faults.disk_oracle import pipeline, shown

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN of ioctl(2)."""

INODES = 512
"""Enough for a run, and few enough that they are soon all taken."""

KIND, NUMBER, RATE_HZ, LONGEST_S = "one file none", 8000, 400, 60
GARBAGE = ("HDF5-DIAG", "Traceback", "this is a bug", "slist", "major:")


def command(*words: object) -> None:
    """Run a program of the system."""
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


class Place:
    """A small file system in a file, and a folder for temporary files, which is one of its own."""

    def __init__(self, folder: Path) -> None:
        self.image, self.disk, self.tmp = folder / "image", folder / "disk", folder / "tmp"
        for made in (self.disk, self.tmp):
            made.mkdir()
        with self.image.open("wb") as file:
            file.truncate(96 << 20)
        command("mkfs.ext4", "-q", "-F", "-N", INODES, self.image)
        self.mount()
        command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", self.tmp)
        self.run = self.disk / "runs/k"

    def mount(self) -> None:
        """Have it there, sound."""
        command("mount", "-o", "loop,errors=remount-ro", self.image, self.disk)

    def again(self) -> None:
        """As after the machine was started again."""
        command("umount", self.disk)
        subprocess.run(["e2fsck", "-y", "-f", str(self.image)], check=False, capture_output=True)
        self.mount()

    def close(self) -> None:
        """Leave nothing mounted."""
        subprocess.run(["chattr", "-i", str(self.run)], check=False, capture_output=True)
        for path in (self.disk, self.tmp):
            subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def fails(place: Place, _: list[int]) -> None:
    """All further calls end with EIO."""
    descriptor = os.open(place.disk, os.O_RDONLY)
    fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", 1))
    os.close(descriptor)


def read_only(place: Place, _: list[int]) -> None:
    """The kernel has found an error in the file system."""
    device = subprocess.run(["findmnt", "-no", "SOURCE", str(place.disk)], check=True, capture_output=True, text=True)
    Path(f"/sys/fs/ext4/{Path(device.stdout.strip()).name}/trigger_fs_error").write_text("as asked for")


def no_inodes(place: Place, _: list[int]) -> None:
    """Nothing can be made any more."""
    with contextlib.suppress(OSError):
        for number in range(1 << 20):
            (place.disk / f"x{number}").touch()


def inodes_again(place: Place) -> None:
    """They can."""
    for path in place.disk.glob("x*"):
        path.unlink()


def small_files(place: Place, pids: list[int]) -> None:
    """They may not grow beyond what they are."""
    import resource

    size = max(path.stat().st_size for path in place.run.glob("*.h5"))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 4096, size + 4096))


def immutable(place: Place, _: list[int]) -> None:
    """Nothing may be made in the run directory, or renamed."""
    command("chattr", "+i", place.run)


def latest_replaced(place: Place, _: list[int]) -> None:
    """By what is not ours."""
    (place.run.parent / "latest").unlink()
    (place.run.parent / "latest").mkdir()


def nothing(place: Place) -> None:
    """All is as it should be already."""


FAULTS: dict[str, tuple[Callable[[Place, list[int]], None], Callable[[Place], None], int, str]] = {
    "fails": (fails, Place.again, 10, "the disk fails"),
    "read-only": (read_only, Place.again, 10, "the disk is read-only"),
    "no inodes": (no_inodes, inodes_again, 10, "the disk is full"),
    "small files": (small_files, nothing, 10, "the limit of the file size is reached"),
    "immutable": (immutable, lambda it: command("chattr", "-i", it.run), 10, "files may not be changed"),
    "TMPDIR gone": (lambda it, _: command("umount", "-l", it.tmp) or it.tmp.rmdir(), nothing, 130, ""),
    "TMPDIR read-only": (lambda it, _: command("mount", "-o", "remount,ro", it.tmp), nothing, 130, ""),
    "TMPDIR full": (lambda it, _: fill(it.tmp / "x"), nothing, 130, ""),
    "latest gone": (lambda it, _: (it.run.parent / "latest").unlink(), nothing, 130, ""),
    "latest replaced": (latest_replaced, nothing, 130, ""),
}
"""The fault, its cure, the exit code of the run that is then stopped, and what it says."""


def fill(path: Path) -> None:
    """Write as much as there is room for."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def attempt(name: str, transport: str, chance: random.Random, folder: Path) -> list[str]:
    """One round: what was not as promised."""
    fault, mend, code, words = FAULTS[name]
    place, wrong = Place(folder), list[str]()
    (folder / "k.yaml").write_text(pipeline(KIND, NUMBER, RATE_HZ).replace("./k", str(place.run)))
    try:
        out, launcher = folder / "out", _start(folder, place, transport)
        if not _wait(lambda: '"type": "progress"' in out.read_text(), launcher):
            return [f"it did not start: {out.read_text()[-400:]}"]
        time.sleep(1 + chance.random())
        job = _job(launcher.pid)
        pids = [launcher.pid, *(processes_with(LAUNCHED, job) if job else ())]
        fault(place, pids)
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(20 if fault in (fails, read_only, small_files) else 1.5)
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGINT)
        ended = launcher.wait(LONGEST_S)
        said = out.read_text()
        wrong += [f"exit code {ended}, not {code}: {said[-500:]}"] if ended not in (code, 10 if words else code) else []
        wrong += [f"{words!r} is not said: {said[-700:]}"] if words not in said else []
        wrong += [f"users are told {it!r}: {said[-500:]}" for it in GARBAGE if it in said]
        wrong += [f"processes are left: {left}" for left in [list(processes_with(LAUNCHED, job))] if job and left]
        mend(place)
        wrong += _restarted(place) if mend is Place.again else _recovered(place, _told(said))
    except subprocess.TimeoutExpired:
        launcher.kill()
        wrong.append(f"no end in {LONGEST_S} s")
    finally:
        place.close()
    return wrong


def _start(folder: Path, place: Place, transport: str) -> "subprocess.Popen[bytes]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PMI", "HYDRA"))}
    words = [sys.executable, "-m", "lima2cli", "run", "k.yaml", "--transport", transport, "--progress", "json"]
    return subprocess.Popen(
        words, cwd=folder, env=environment | {"TMPDIR": str(place.tmp)}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=(folder / "out").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def _wait(there: Callable[[], bool], launcher: "subprocess.Popen[bytes]") -> bool:
    end = time.monotonic() + LONGEST_S
    while not there() and launcher.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return launcher.poll() is None and there()


def _job(launcher: int) -> str:
    """The name of the job of a launcher's ranks; empty where there are none."""
    import psutil

    for child in psutil.Process(launcher).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if LAUNCHED in (environment := child.environ()):
                return environment[LAUNCHED]
    return ""


def _told(said: str) -> int:
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return max((event["saved"].get("save", 0) for event in events if event.get("type") == "progress"), default=0)


def _restarted(place: Place) -> list[str]:
    """Return the faults after the machine has started again: what no disk had taken yet is lost, which is said."""
    done = _lima2("recover", place.run)
    said = done.stdout + done.stderr
    wrong = [f"recover: {said[-500:]}"] if done.returncode not in (0, 10) or any(it in said for it in GARBAGE) else []
    if done.returncode == 10 and "problem: " not in said:
        wrong.append(f"recover does not say why: {said[-500:]}")
    if not done.returncode:
        wrong += _recovered(place, 0)
    return wrong


def _recovered(place: Place, told: int) -> list[str]:
    """Return the faults of the run when it was recovered, once and again."""
    for _ in range(2):
        done = _lima2("recover", place.run)
        if done.returncode:
            return [f"recover: {done.stdout[-500:]}{done.stderr[-300:]}"]
    wrong: list[str] = []
    held = shown(KIND, place.run, wrong, NUMBER)
    if len(held) < told:
        wrong.append(f"{told} were told saved, and {len(held)} are there")
    done = _lima2("inspect", "--verify", place.run)
    wrong += [f"inspect: {done.stdout[-500:]}"] if done.returncode else []
    left = [it for it in os.listdir(place.run) if it.endswith((".part", ".new", "control.json"))]
    return [*wrong, *([f"left: {left}"] if left else [])]


def _lima2(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lima2cli", *map(str, words)], check=False, capture_output=True, text=True, timeout=120
    )


def search(seconds: float, seed: int) -> Outcome:
    """Each way in turn for so long, in a namespace of mounts; none where that cannot be."""
    words = [sys.executable, "-m", "tests.faults.refusals", "--minutes", str(seconds / 60), "--seed", str(seed)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    *failures, figures = done.stdout.splitlines() or [f"no mounts here: {done.stderr[-300:]}"]
    return Outcome("refusals", int(figures.split()[0]) if figures[:1].isdigit() else 0, failures, figures)


def main() -> None:
    """Each way, by MPI and in one process, until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, help="go round for so long; without it each is tried once")
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS), help="only these")
    parser.add_argument("--transports", nargs="*", default=["inline", "mpi"])
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if os.environ.get("LIMA2_OWN_MOUNTS") != "1":
        words = ["unshare", "-m", "--propagation", "private", sys.executable, "-m", "tests.faults.refusals"]
        os.execvpe("unshare", [*words, *sys.argv[1:]], os.environ | {"LIMA2_OWN_MOUNTS": "1"})
    chance, bad, done = random.Random(asked.seed), 0, 0
    end = None if asked.minutes is None else time.monotonic() + 60 * asked.minutes
    rounds = [(name, transport) for name in asked.faults for transport in asked.transports]
    while True:
        chance.shuffle(rounds)
        for name, transport in rounds:
            if end is not None and time.monotonic() > end:
                break
            folder = Path(tempfile.mkdtemp(prefix="lima2-faults-"))
            try:
                for text in attempt(name, transport, chance, folder):
                    bad += 1
                    print(f"{name}, {transport}: {' | '.join(text.splitlines())}", flush=True)
            finally:
                shutil.rmtree(folder)
            done += 1
        if end is None or time.monotonic() > end:
            break
    print(f"{done} disks that refuse, {bad} things wrong")
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
