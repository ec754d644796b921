"""A disk that is full at any byte: ``python -m tests.faults.disk [--minutes n]``, as root or where users may mount.

Each round runs a pipeline on a file system of some size (tmpfs), which fills up in the middle; makes room; lets ``lima2
recover`` mend the files, twice; and holds the masters and tables against what was known before, and against the
scene. Forty sizes of each kind, spread over all that the run writes. Runs, recoveries and inspections are processes
that are forked, so that one that crashes is seen.
"""

import argparse
import contextlib
import json
import os
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lima2cli.runs.processes import _used
from tests.faults import Outcome
from tests.faults.disk_oracle import SAVE, TABLES, parts_of, pipeline, rows_of, seen, shown

ENOUGH = 64 << 20
"""Bytes of a disk on which a run fits, and that of a recovery."""

SIZES = 40
PATIENCE_S = 120
GARBAGE = ("HDF5-DIAG", "Traceback", "this is a bug", "slist", "major:", "minor:", "Segmentation", "\\x00")
"""In what a user is told."""


@dataclass
class Found:
    """The findings of one round; ``wrong``: sentences."""

    kind: str
    size: int
    code: int = 0
    known: int = 0
    wrong: list[str] = field(default_factory=list)


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of ``size`` bytes at ``folder``; gives what resizes it."""
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield lambda size: void(subprocess.run([*mount, f"remount,size={size}", str(folder)], check=True))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def void(_: object) -> None:
    """Nothing."""


OTHERS = ("bluesky", "pva", "web", "testing", "notebook", "__main__")
"""Modules and packages that no command of these rounds needs; most of what they import is large."""


def preload() -> None:
    """Import all that a run needs but MPI, once instead of in each process."""
    import h5py  # noqa: F401
    import hdf5plugin  # noqa: F401

    import lima2cli

    for module in pkgutil.walk_packages(lima2cli.__path__, "lima2cli."):
        path = getattr(module.module_finder, "path", "")
        text = Path(path, f"{module.name.rpartition('.')[2]}.py")
        if module.name.split(".")[1] not in OTHERS and not (text.is_file() and "mpi4py" in text.read_text()):
            with contextlib.suppress(ImportError):
                __import__(module.name)


def forked(arguments: Sequence[str], folder: Path, output: Path) -> int:
    """The exit code of the command line in a process of its own, minus the signal that ended it."""
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.chdir(folder)
            for stream in (1, 2):
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            code = _main(arguments)
            _end_library()
        finally:
            sys.stdout.flush()
            os._exit(code)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -int(signal.SIGALRM)


def _main(arguments: Sequence[str]) -> int:
    from lima2cli.cli import app
    from lima2cli.job import run

    vars(run)["check_disk"] = lambda *_: []  # as if others filled the disk when the run has begun
    try:
        return int(app(list(arguments), standalone_mode=False) or 0)
    except SystemExit as ended:
        return int(ended.code or 0)


def _end_library() -> None:
    """End the HDF5 library as an interpreter that ends does."""
    import gc

    gc.collect()
    import h5py

    h5py._errors.silence_errors()
    from ctypes import CDLL

    CDLL(h5py.h5.__file__).H5close()


def attempt(kind: str, size: int, transport: str, folder: Path) -> Found:
    """One round; see the module."""
    found = Found(kind, size)
    mounted, out = folder / "disk", folder / "out"
    mounted.mkdir(exist_ok=True)
    (folder / "k.yaml").write_text(pipeline(kind))
    out.unlink(missing_ok=True)
    shared = set(os.listdir("/dev/shm"))
    with disk(mounted, size) as resize:
        run = ["run", str(folder / "k.yaml"), "--set", f"output.directory={mounted}/k"]
        found.code = forked([*run, "--transport", transport, "--progress", "json"], folder, out)
        directory = mounted / "k"
        _end(found, directory, out)
        if transport == "mpi" and (left := _left_shared(shared)):
            found.wrong.append(f"left in /dev/shm: {left}")
        if found.code == 12:
            return found  # there was no room for the start: nothing was started
        known, told = seen(kind, directory), _told(out, directory)
        rows = {table: parts_of(directory, table) for table in TABLES}
        resize(ENOUGH)
        code = forked(["recover", str(directory)], folder, out)
        _compare(found, directory, known, told, code, out)
        for table in TABLES if not code else ():
            if (directory / f"k_{table}.h5").exists():
                lost = rows[table] - rows_of(directory, table, found.wrong)
                found.wrong += [f"rows of {table} are lost: {sorted(lost)[:5]}"] if lost else []
            elif rows[table]:
                found.wrong.append(f"there is no {table} of {len(rows[table])} rows")
        if not found.wrong:
            first = _contents(directory)
            if forked(["recover", str(directory)], folder, out) or _contents(directory) != first:
                found.wrong.append(f"a second recover is not as good as one: {_last(out)}")
        found.wrong += _left(directory)
    said = out.read_text(errors="replace")
    found.wrong += [f"users are told {it!r}: {_last(out)}" for it in GARBAGE if it in said]
    return found


def _end(found: Found, directory: Path, out: Path) -> None:
    """The end of the run itself: its code, what it said, and its summary."""
    said = out.read_text(errors="replace")
    if found.code not in (0, 10, 12):
        found.wrong.append(f"the run ended with {found.code}: {_last(out)}")
    if found.code == 12 and directory.exists():
        found.wrong.append(f"it was not started and left {os.listdir(directory)}")
    if found.code in (10, 12) and not ("disk is full" in said and "room" in said):
        found.wrong.append(f"nothing says that the disk is full, and what to do: {_last(out)}")
    if found.code == 10 and not (directory / "summary.json").exists():
        found.wrong.append("it has no summary")


def _compare(found: Found, directory: Path, known: set[int], told: int, code: int, out: Path) -> None:
    """Compare the recovered frames with those that were known."""
    if code:
        found.wrong.append(f"recover ended with {code}: {_last(out)}")
        return
    if forked(["inspect", "--verify", str(directory)], directory.parent, out):
        found.wrong.append(f"inspect: {_last(out)}")
    if not SAVE[found.kind]:
        return
    held = shown(found.kind, directory, found.wrong)
    found.known = max(told, len(known))
    lost = sorted(known - held)
    if lost or len(held) < told:
        found.wrong.append(f"{told} were told saved, {len(known)} in files, the master has {len(held)}: {lost[:5]}")
    channel = json.loads((directory / "summary.json").read_text())["channels"]["save"]
    if channel["saved"] != len(held):
        found.wrong.append(f"the summary says {channel['saved']} of {len(held)}")
    parts = [channel[it] for it in ("saved", "vetoed", "dropped", "lost")]
    if None in parts or channel["expected"] != sum(parts):
        found.wrong.append(f"losses without a name: {channel}")


def _left_shared(before: set[str]) -> list[str]:
    """Shared memory of MPI that is new, and that nobody, of other runs either, uses a second later."""
    time.sleep(1 if set(os.listdir("/dev/shm")) - before else 0)
    left = []
    for name in set(os.listdir("/dev/shm")) - before:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(f"/dev/shm/{name}")
            if name.startswith(("mpich", "ucx")) and not _used([(status.st_dev, status.st_ino)]):
                left.append(name)
    return left


def _told(out: Path, directory: Path) -> int:
    """Frames that the progress or the summary said are saved."""
    events = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
    told = [event["saved"].get("save", 0) for event in events if event.get("type") == "progress"]
    with contextlib.suppress(OSError, ValueError, KeyError):
        told.append(json.loads((directory / "summary.json").read_text())["channels"]["save"]["saved"])
    return max(told, default=0)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "lima2.log"}


def _left(directory: Path) -> Iterator[str]:
    """Yield leftovers: files that are being made, and room beyond the ends of files."""
    for path in directory.iterdir():
        if path.name.endswith((".part", ".new")) or path.name == "control.json":
            yield f"{path.name} is left"
        status = path.stat()
        if status.st_blocks * 512 > status.st_size + (64 << 10):
            yield f"{path.name} of {status.st_size} bytes takes {status.st_blocks * 512}"


def _last(out: Path) -> str:
    return " | ".join(out.read_text(errors="replace").splitlines()[-6:])[-600:]


def used(kind: str, folder: Path) -> tuple[int, int]:
    """Bytes of the smallest disk on which a run starts, about, and of one that has enough for it."""
    (folder / "disk").mkdir(exist_ok=True)
    (folder / "k.yaml").write_text(pipeline(kind))
    (folder / "out").unlink(missing_ok=True)
    with disk(folder / "disk", ENOUGH):
        arguments = ["run", str(folder / "k.yaml"), "--set", f"output.directory={folder}/disk/k", "--progress", "none"]
        code = forked([*arguments, "--transport", "inline"], folder, folder / "out")
        if code:
            raise SystemExit(f"{kind}: a run with room ends with {code}: {_last(folder / 'out')}")
        most = shutil.disk_usage(folder / "disk").used
    low, high = 0, most
    while high - low > 131072:
        middle = (low + high) // 2 // 4096 * 4096
        with disk(folder / "disk", middle):
            started = forked([*arguments, "--transport", "inline"], folder, folder / "out") != 12
        low, high = (low, middle) if started else (middle, high)
    return high, most


def sizes(least: int, most: int, chance: random.Random, count: int = SIZES) -> list[int]:
    """Sizes of a disk, in pages: half of them spread over all that is written, at random places, a few where runs just
    do not start, the rest near the end.
    """
    spread = np.linspace(least, 1.02 * most, count // 2) + chance.random() * (most - least) / (count // 2)
    start = least + 4096 * np.arange(-4, 4)
    end = most - 8192 * np.arange(count - count // 2 - len(start)) + 4096 * chance.randrange(2)
    chosen = [max(16, round(size / 4096)) * 4096 for size in (*spread, *start, *end)]
    chance.shuffle(chosen)
    return chosen


def search(seconds: float, seed: int) -> Outcome:
    """Rounds of all kinds for so long, in a namespace of mounts; none where that cannot be."""
    command = [sys.executable, "-m", "tests.faults.disk", "--minutes", str(seconds / 60), "--seed", str(seed)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    *failures, figures = done.stdout.splitlines() or [f"no mounts here: {done.stderr[-300:]}"]
    tried = int(figures.split()[0]) if figures[:1].isdigit() else 0
    if done.returncode and tried and not failures:
        failures = [done.stderr[-600:]]
    return Outcome("disk", tried, failures, figures)


def main() -> None:
    """All kinds, size by size, until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; without it all is tried")
    parser.add_argument("--kinds", nargs="*", default=list(SAVE), help="only these kinds of channels")
    parser.add_argument("--sizes", nargs="*", type=int, help="of the disk, in KiB, instead of forty")
    parser.add_argument("--transport", default="inline", choices=("inline", "mpi"))
    parser.add_argument("--seed", type=int, default=1, help="of the order and the sizes")
    arguments = parser.parse_args()
    if os.environ.get("LIMA2_OWN_MOUNTS") != "1":
        command = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "--propagation", "private"]
        environment = os.environ | {"LIMA2_OWN_MOUNTS": "1"}
        os.execvpe("unshare", [*command, sys.executable, "-m", "tests.faults.disk", *sys.argv[1:]], environment)
    until, bad, done, codes = time.monotonic() + 60 * arguments.minutes, 0, 0, dict[int, int]()
    known, chance, given = 0, random.Random(arguments.seed), [1024 * size for size in arguments.sizes or ()]
    kinds = list(arguments.kinds)
    chance.shuffle(kinds)
    preload()
    with tempfile.TemporaryDirectory(prefix="lima2-faults-") as name:
        folder, chosen = Path(name), dict[str, list[int]]()
        for index in range(len(given) or SIZES):
            for kind in kinds:
                if time.monotonic() > until:
                    break
                if kind not in chosen:
                    chosen[kind] = given or sizes(*used(kind, folder), chance)
                found = attempt(kind, chosen[kind][index], arguments.transport, folder)
                done, known = done + 1, known + found.known
                codes[found.code] = codes.get(found.code, 0) + 1
                for text in found.wrong:
                    bad += 1
                    print(f"{kind}, {found.size} bytes: {text}", flush=True)
    print(f"{done} disks, exit codes {codes}, {known} frames known before, {bad} things wrong")
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
