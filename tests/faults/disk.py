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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENOUGH = 64 << 20
"""Bytes of a disk on which a run fits, and that of a recovery."""

SIZES = 40
PATIENCE_S = 120
HEIGHT, WIDTH, FRAMES = 48, 64, 240

CODECS = ("none", "gzip", "lz4", "zstd", "bslz4", "blosc")
SAVE = {
    **{f"files {codec}": f"io_hdf5: {{compression: {codec}, frames_per_file: 35}}" for codec in CODECS},
    **{f"one file {codec}": f"io_hdf5: {{compression: {codec}, frames_per_chunk: 7}}" for codec in CODECS},
    "common": "io_hdf5: {layout: common}",
    "virtual": "io_hdf5: {layout: virtual, compression: lz4}",
    "sparse": "io_hdf5: {compression: lz4, frames_per_file: 50}",
}
"""Kinds of channels."""


def pipeline(kind: str, frames: int = FRAMES, rate: int = 800) -> str:
    """A pipeline that saves in this way, by two receivers, and has a table."""
    source = "some" if kind == "sparse" else "data"
    sparse = "\n  some: {input: data, sparsify: {above: 60000}}" if kind == "sparse" else ""
    return f"""\
lima2: 1
name: k
detector:
  remu: {{image: {{width: {WIDTH}, height: {HEIGHT}}}, datasets: {{data: {{dtype: uint16}}}}, scene: {{counter: {{}}}}}}
acquisition: {{frames: {frames}, rate: {rate} Hz}}
receivers: 2
output: {{directory: ./k}}
nodes:{sparse}
  save: {{input: {source}, {SAVE[kind]}}}
  count: {{input: data, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: {WIDTH}, height: {HEIGHT}}}}}}}}}}}
"""


def scene(number: int) -> NDArray[np.uint16]:
    """Pixels of a frame of the scene ``counter``."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((7919 * number + y * WIDTH + x) % 65536, np.uint16)


@dataclass
class Found:
    """What one round has shown; ``wrong``: sentences."""

    kind: str
    size: int
    code: int = 0
    known: int = 0
    recovered: int = 0
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
    from lima2cli.runtime import run

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


def seen(directory: Path) -> dict[int, NDArray[Any]]:
    """Frames that any HDF5 reader finds in the frame files with their numbers, as far as they are right."""
    import h5py
    import hdf5plugin  # noqa: F401

    found: dict[int, NDArray[Any]] = {}
    for path in sorted(directory.glob("k_save_?_0*.h5")):
        with contextlib.suppress(OSError, KeyError, RuntimeError), h5py.File(path, swmr=True) as file:
            detector = _detector(file)
            data = detector["data"]
            if isinstance(data, h5py.Group):
                numbers = detector["frame_number"][: len(data["frame_ptr"]) - 1]
                found |= {int(n): np.zeros(0) for k, n in enumerate(numbers) if _sparse(data, k, int(n))}
                continue
            for number, frame in zip(detector["frame_number"][()], data, strict=False):
                if np.array_equal(frame, scene(int(number))):
                    found[int(number)] = frame
    return found


def _detector(file: Any) -> Any:
    entry = file["entry_0000"]
    return entry[str(entry.attrs["default"]).rpartition("/")[0]]


def _sparse(data: Any, row: int, number: int) -> bool:
    """Whether a row of sparse data has the pixels of a frame."""
    first, last = (int(it) for it in data["frame_ptr"][row : row + 2])
    if last > min(len(data["index"]), len(data["intensity"])):
        return False
    want = scene(number).ravel()
    at = np.flatnonzero(want > 60000)
    return np.array_equal(data["index"][first:last], at) and np.array_equal(data["intensity"][first:last], want[at])


def recovered(directory: Path, wrong: list[str]) -> set[int]:
    """Numbers of the frames that the master shows; wrong pixels and rows are told."""
    import h5py
    import hdf5plugin  # noqa: F401

    shown: set[int] = set()
    with h5py.File(directory / "k_save_master.h5") as file:
        detector = _detector(file)
        data, numbers, status = detector["data"], detector["frame_number"][()], detector["frame_status"][()]
        if (np.diff(numbers.astype(np.int64)) <= 0).any() or (len(numbers) and numbers[-1] >= FRAMES):
            wrong.append("rows of the master are made up")
        for row in np.flatnonzero(status == 0).tolist():
            number = int(numbers[row])
            sparse = isinstance(data, h5py.Group)
            if not (_sparse(data, row, number) if sparse else np.array_equal(data[row], scene(number))):
                wrong.append(f"frame {number} has wrong pixels")
            shown.add(number)
    return shown


def table_rows(directory: Path, wrong: list[str]) -> set[int]:
    """Frames of the table, whose sums are held against the scene."""
    import h5py

    with h5py.File(directory / "k_count.h5") as file:
        rows = file["entry_0000/measurement"]
        numbers, sums = rows["frame_number"][()], rows["all_sum"][()]
    if len(set(numbers.tolist())) < len(numbers):
        wrong.append("the table has rows twice")
    bad = [int(n) for n, total in zip(numbers, sums, strict=True) if total != scene(int(n)).sum(dtype=np.int64)]
    if bad:
        wrong.append(f"rows of the table are made up: frames {bad[:5]}")
    return set(numbers.tolist())


def attempt(kind: str, size: int, transport: str, folder: Path) -> Found:
    """One round; see the module."""
    found = Found(kind, size)
    mounted, kept = folder / "disk", folder / "kept"
    mounted.mkdir(exist_ok=True)
    (folder / "k.yaml").write_text(pipeline(kind))
    out = folder / "out"
    for each in (out, kept):
        shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
    with disk(mounted, size) as resize:
        run = ["run", str(folder / "k.yaml"), "--set", f"output.directory={mounted}/k"]
        found.code = forked([*run, "--transport", transport, "--progress", "json"], folder, out)
        directory = mounted / "k"
        if found.code == 12 and not (directory / "plan.json").exists():
            return found  # not even the plan fitted: nothing was started
        if found.code not in (0, 10):
            found.wrong.append(f"the run ended with {found.code}: {_last(out)}")
        before, told = seen(directory), _told(out, directory)
        resize(ENOUGH)
        code = forked(["recover", str(directory)], folder, out)
        if kind == "common" and not told and not any(directory.glob("k_save_master.h5*")):
            return found  # the disk was full before the file was laid out: no frame was taken for it
        _compare(found, directory, before, told, code, out)
        if not found.wrong:
            first = _contents(directory)
            if forked(["recover", str(directory)], folder, out) or _contents(directory) != first:
                found.wrong.append(f"a second recover is not as good as one: {_last(out)}")
    return found


def _compare(found: Found, directory: Path, before: dict[int, Any], told: int, code: int, out: Path) -> None:
    if code:
        found.wrong.append(f"recover ended with {code}: {_last(out)}")
        return
    shown = recovered(directory, found.wrong)
    table_rows(directory, found.wrong)
    found.known, found.recovered = max(told, len(before)), len(shown)
    lost = sorted(set(before) - shown)
    if lost or len(shown) < told:
        found.wrong.append(
            f"{told} were told saved, {len(before)} were in files, the master has {len(shown)}: {lost[:5]}"
        )
    if forked(["inspect", "--verify", str(directory)], directory.parent, out):
        found.wrong.append(f"inspect: {_last(out)}")
    summary = json.loads((directory / "summary.json").read_text())
    if summary["channels"]["save"]["saved"] != len(shown):
        found.wrong.append(f"the summary says {summary['channels']['save']['saved']} of {len(shown)}")


def _told(out: Path, directory: Path) -> int:
    """Frames that the progress or the summary said are saved."""
    events = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
    told = [event["saved"].get("save", 0) for event in events if event.get("type") == "progress"]
    with contextlib.suppress(OSError, ValueError):
        told.append(json.loads((directory / "summary.json").read_text())["channels"]["save"]["saved"])
    return max(told, default=0)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "lima2.log"}


def _last(out: Path) -> str:
    return " | ".join(out.read_text().splitlines()[-6:])[-600:]


def used(kind: str, folder: Path) -> int:
    """Bytes that a run takes of a disk that has enough."""
    (folder / "disk").mkdir(exist_ok=True)
    (folder / "k.yaml").write_text(pipeline(kind))
    (folder / "out").unlink(missing_ok=True)
    with disk(folder / "disk", ENOUGH):
        arguments = ["run", str(folder / "k.yaml"), "--set", f"output.directory={folder}/disk/k", "--progress", "none"]
        code = forked([*arguments, "--transport", "inline"], folder, folder / "out")
        if code:
            raise SystemExit(f"{kind}: a run with room ends with {code}: {_last(folder / 'out')}")
        return shutil.disk_usage(folder / "disk").used


def sizes(most: int, count: int = SIZES) -> list[int]:
    """Sizes of a disk, in pages: half of them spread over all that is written, half near the end."""
    spread = np.linspace(0.02 * most, 1.02 * most, count - count // 2)
    end = most - 8192 * np.arange(count // 2)
    return sorted({max(16, round(size / 4096)) * 4096 for size in (*spread, *end)}, key=lambda it: (it * 7919) % 10007)


def main() -> None:
    """All kinds, size by size, until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; without it all is tried")
    parser.add_argument("--kinds", nargs="*", default=list(SAVE), help="only these kinds of channels")
    parser.add_argument("--sizes", nargs="*", type=int, help="of the disk, in KiB, instead of forty")
    parser.add_argument("--transport", default="inline", choices=("inline", "mpi"))
    arguments = parser.parse_args()
    if os.environ.get("LIMA2_OWN_MOUNTS") != "1":
        command = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "--propagation", "private"]
        environment = os.environ | {"LIMA2_OWN_MOUNTS": "1"}
        os.execvpe("unshare", [*command, sys.executable, "-m", "tests.faults.disk", *sys.argv[1:]], environment)
    until, bad, done, codes = time.monotonic() + 60 * arguments.minutes, 0, 0, dict[int, int]()
    known = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [1024 * size for size in arguments.sizes or ()]
        tasks = {kind: given or sizes(used(kind, folder)) for kind in arguments.kinds}
        for index in range(max(map(len, tasks.values()))):
            for kind, chosen in tasks.items():
                if index >= len(chosen) or time.monotonic() > until:
                    continue
                found = attempt(kind, chosen[index], arguments.transport, folder)
                done, known = done + 1, known + found.known
                codes[found.code] = codes.get(found.code, 0) + 1
                for text in found.wrong:
                    bad += 1
                    print(f"{kind}, {found.size} bytes: {text}", flush=True)
    print(f"{done} disks, exit codes {codes}, {known} frames known before, {bad} things wrong")
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
