"""Damaged files, of lima2 and of users, given to the commands that read them.

    python -m tests.faults.files [--files 250] [--minutes n] [--seed n]

A run directory with a damaged file, between two that are sound: `runs` lists all three, and no command that reads it
ends with a traceback or another exit code than it should. An input of a user's, damaged: `validate` says what is wrong
within its budget, or accepts it, and then the run ends as runs end.
"""

import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fabio.cbfimage
import fabio.edfimage
import fabio.tifimage
import h5py
import numpy as np

from tests.faults import Outcome, command
from tests.faults.apart import Ended, forked
from tests.faults.texts import VALUES

CPU_S, MEMORY = 5.0, 500 << 20
"""Cost that `validate` may have, beyond what the process has already."""

MOST_S, MOST_MEMORY = 30.0, 1 << 30
"""The same of other commands."""

OURS = """
lima2: 1
name: k
detector:
  remu: {image: {width: 16, height: 8}, modules: {columns: 2, rows: 1, width: 8, height: 8},
    datasets: {D: {dtype: uint16}}, scene: {counter: {}}}
acquisition: {frames: 12}
receivers: 2
flows: {F: {dataset: D}, P: {dataset: D, dispatch: modules}}
nodes:
  dense: {input: F, io_hdf5: {frames_per_file: 4}}
  some: {input: F, sparsify: {above: 1}}
  sparse: {input: some, io_hdf5: {}}
  common: {input: F, io_hdf5: {layout: common}}
  virtual: {input: P, io_hdf5: {layout: virtual, compression: none}}
  table: {input: F, roi_counters: {rois: {a: {rect: {x: 0, y: 0, width: 8, height: 8}}}}}
"""

REPLAY = """
lima2: 1
name: k
detector: {{replay: {{file: "{file}"}}}}
nodes: {{save: {{input: data, io_hdf5: {{}}}}}}
"""

NODES = {
    "mask": "mask: {{image: '{file}'}}",
    "background": "background_sub: {{image: '{file}'}}",
    "flat": "flatfield: {{image: '{file}'}}",
}

CALIBRATED = """
lima2: 1
name: k
detector: {{remu: {{image: {{width: 16, height: 8}}, datasets: {{data: {{dtype: uint16}}}}}}}}
acquisition: {{frames: 4}}
nodes: {{it: {{input: data, NODE}}, save: {{input: it, io_hdf5: {{}}}}}}
"""

FRAMES = np.arange(1, 5 * 8 * 16 + 1, dtype=np.uint16).reshape(5, 8, 16)
DIGITS = re.compile(rb"\d+")
HUGE = (b"99999999", b"-1", b"0", b"4294967296", b"9" * 300, b"1e9", b"nan")

Damage = Callable[[bytes, random.Random], bytes]


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 30))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _zeroed(data: bytes, draw: random.Random) -> bytes:
    first = draw.randrange(len(data))
    count = min(len(data) - first, draw.choice((4, 64, 4096)))
    return data[:first] + draw.choice((b"\0", b"\xff")) * count + data[first + count :]


def _swapped(data: bytes, draw: random.Random) -> bytes:
    a, b, c = sorted(draw.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _numbers(data: bytes, draw: random.Random) -> bytes:
    """A number in the text at the begin of a file, as headers are, is another."""
    found = list(DIGITS.finditer(data[:2000]))
    if not found:
        return _flip(data, draw)
    it = draw.choice(found)
    return data[: it.start()] + draw.choice(HUGE) + data[it.end() :]


def _json(data: bytes, draw: random.Random) -> bytes:
    """A value of an object is another; or all is deep, or wide."""
    try:
        held = json.loads(data)
    except ValueError:
        return _flip(data, draw)
    places: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        if isinstance(item, dict | list):
            for key in item if isinstance(item, dict) else range(len(item)):
                places.append((item, key))
                walk(item[key])

    walk(held)
    if not places:
        return b"[" * 5000
    for _ in range(draw.choice((1, 1, 2))):
        holder, key = draw.choice(places)
        holder[key] = draw.choice((*VALUES, float("nan"), 10**400 if draw.random() < 0.2 else 10**30))
    deep, text = draw.random(), json.dumps(held)
    if deep < 0.1:
        return b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    return text.replace('"version"', '"Version"', 1).encode() if deep < 0.15 else text.encode()


DAMAGES: dict[str, Damage] = {
    "flipped": _flip,
    "cut": lambda data, draw: data[: draw.randrange(len(data))],
    "zeroed": _zeroed,
    "swapped": _swapped,
    "numbers": _numbers,
    "garbage": lambda data, draw: draw.randbytes(draw.choice((0, 1, 100, 100_000))),
    "longer": lambda data, draw: data + draw.randbytes(draw.choice((1, 5000))),
    "json": _json,
}


BOMBS = ("huge", "long", "flat", "strings", "compound", "complex", "nan", "empty", "null", "loop", "gzip", "many",
         "deep", "external", "bool", "bytes", "virtual", "attributes")  # fmt: skip


def bomb(path: Path, kind: str, draw: random.Random) -> None:
    """Make an HDF5 file whose dataset is of another size, dtype or kind than any that is meant."""
    with h5py.File(path, "w") as file:
        name, more = "entry/data/data", {}
        match kind:
            case "huge":
                file.create_dataset(name, (2**40, 8, 16), "u2", chunks=(1, 8, 16))
            case "long":
                file.create_dataset(name, (5, 2**31, 2**31), "u2", chunks=(1, 64, 64))
            case "flat":
                file[name] = FRAMES.reshape(
                    draw.choice(((-1,), (1, 1, 5, 8, 16), (5, 128), (0, 8, 16), (8, 0, 16))[:3])
                )
            case "strings":
                file[name] = ["a", "b"] * 3
            case "compound":
                file[name] = np.zeros((5, 8, 16), [("a", "u2"), ("b", "f8")])
            case "complex" | "bool" | "nan":
                dtype = {"complex": "c16", "bool": "?", "nan": "f8"}[kind]
                file[name] = np.full((5, 8, 16), np.nan if kind == "nan" else 1, dtype)
            case "empty":
                file.create_dataset(name, draw.choice(((0, 8, 16), (5, 0, 16), (5, 8, 0))), "u2")
            case "null":
                file[name] = h5py.Empty("u2")
            case "loop":
                file["entry/data"] = h5py.SoftLink("/entry/data")
                more = {"a": h5py.SoftLink("/b"), "b": h5py.ExternalLink(path.name, "/a")}
            case "gzip":
                file.create_dataset(
                    name, (5, 8192, 8192), "u2", chunks=(1, 8192, 8192), compression="gzip", fillvalue=1
                )
            case "many":
                for number in range(2000):
                    file[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(f"x{number}.h5", "/data")
            case "deep":
                file["/".join("g" * 500) + "/data"] = FRAMES
            case "external":
                file.create_dataset(name, (5, 8, 16), "u2", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])
            case "bytes":
                file[name] = np.zeros((5, 8, 16), "V3")
            case "virtual":
                layout = h5py.VirtualLayout((10**6, 8, 16), "u2", maxshape=(None, 8, 16))
                layout[:10] = h5py.VirtualSource(path.name, name, (10, 8, 16))
                file.create_virtual_dataset(name, layout)
            case "attributes":
                file[name] = FRAMES
                for key in ("signal", "interpretation", "NX_class", "default", "pixel_mask"):
                    for item in (file["entry"], file["entry/data"], file[name]):
                        item.attrs[key] = draw.choice(
                            (1.5, "\udcff".encode(errors="replace"), np.arange(3000), "data", "/")
                        )
        for key, value in more.items():
            file[key] = value


def inputs(folder: Path) -> dict[str, Path]:
    """Sound files of users, one of each format."""
    (folder / "in").mkdir()
    stack = folder / "in" / "s.h5"
    with h5py.File(stack, "w") as file:
        file.create_dataset("entry/data/data", data=FRAMES, chunks=(1, 8, 16), compression="gzip")
    np.save(folder / "in" / "s.npy", FRAMES)
    found = {"h5": stack, "npy": folder / "in" / "s.npy"}
    for kind in ("edf", "cbf", "tif"):
        image = getattr(getattr(fabio, f"{kind}image"), f"{kind.capitalize()}Image")(data=FRAMES[0].astype(np.int32))
        found[kind] = folder / "in" / f"s.{kind}"
        image.write(str(found[kind]))
    return found


def problem(command: str, ended: Ended, good: tuple[int, ...]) -> str | None:
    """Return the faults in how a command ended."""
    bad = [word for word in ("Traceback", "internal-error", "bug in lima2") if word in ended.said]
    if ended.code not in good or bad:
        return f"{command}: exit {ended.code}: {ended.said[-500:]}"
    cpu, memory = (CPU_S, MEMORY) if command == "validate" else (MOST_S, MOST_MEMORY)
    if ended.cpu_s > cpu or ended.memory > memory:
        return f"{command}: {ended.cpu_s:.1f} s, {ended.memory >> 20} MiB"
    if ended.code and not ended.said.strip():
        return f"{command}: exit {ended.code} without a word"
    return None


def damaged_run(sound: Path, folder: Path, draw: random.Random) -> tuple[str, list[str]]:
    """A damaged file of a run directory: what was done, and what is wrong with what commands made of it."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    for number in (1, 2, 3):
        shutil.copytree(sound, folder / f"runs/k_{number:04d}", symlinks=True)
    directory = folder / "runs/k_0002"
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    small = [name for name in names if not name.endswith(".h5")]
    name, how = draw.choice(small if draw.random() < 0.5 else names), draw.choice(list(DAMAGES))
    how = "json" if name.endswith(".json") and draw.random() < 0.6 else how
    path = directory / name
    path.write_bytes(DAMAGES[how](path.read_bytes() or b"\0", draw))
    if draw.random() < 0.3 and name != "summary.json":
        (directory / "summary.json").unlink(missing_ok=True)
    if name == "plan.json":  # what is made of its record has to be whole, or nothing is
        for lost in ("summary.json", "k_dense_master.h5", "k_table.h5"):
            (directory / lost).unlink(missing_ok=True)
    what, found = f"{name} {how}", []
    calls: list[tuple[list[str], tuple[int, ...]]] = [
        (["runs"], (0,)),
        (["runs", "show", "k_0002"], (0, 2)),
        (["inspect", "runs/k_0002", "--verify"], (0, 2, 10, 11)),
        (["stop", "runs/k_0002"], (1, 2, 10)),
        (["recover", "runs/k_0002"], (0, 2, 10)),
        (["inspect", "runs/k_0002"], (0, 2, 10)),
        (["runs"], (0,)),
    ]
    for words, good in calls:
        ended = forked(words, folder, 120)
        said = problem(" ".join(words), ended, good)
        if words == ["runs"] and said is None and not all(f"k_000{n}" in ended.said for n in (1, 3)):
            said = f"runs hides others: {ended.said}"
        found += [] if said is None else [f"{what}: {said}"]
    if name == "plan.json":
        made = [(directory / it).exists() for it in ("summary.json", "k_dense_master.h5")]
        ended = forked(["inspect", "runs/k_0002", "--verify"], folder, 120)
        if made not in ([True, True], [False, False]) or (ended.code == 0) != made[0]:
            found.append(f"{what}: recovered by halves ({made}): {ended.said}")
    return what, found


def damaged_input(sound: dict[str, Path], folder: Path, draw: random.Random) -> tuple[str, list[str]]:
    """A damaged file of a user's, replayed or taken for a calibration."""
    kind, how = draw.choice(list(sound)), draw.choice([it for it in DAMAGES if it != "json"])
    path = folder / f"d{sound[kind].suffix}"
    if kind == "h5" and draw.random() < 0.5:
        how = "bomb"
        bomb(path, draw.choice(BOMBS), draw)
    else:
        path.write_bytes(DAMAGES[how](sound[kind].read_bytes(), draw))
    reference = path.name + draw.choice(("", "", "::/entry/data/data", "::/entry")) * (kind == "h5")
    node = draw.choice(("replay", "replay", *NODES))
    text = REPLAY if node == "replay" else CALIBRATED.replace("NODE", NODES[node])
    (folder / "p.yaml").write_text(text.format(file=reference))
    what, found = f"{kind} {how} as {node}", []
    ended = forked(["validate", "p.yaml"], folder, 60)
    said = problem("validate", ended, (0, 1))
    if said is None and ended.code == 0:
        few = ["-s", "acquisition.frames=4"] if node == "replay" else []
        words = ["run", "p.yaml", "--transport", "inline", "--progress", "none", *few]
        said = problem("run", forked(words, folder, 120), (0, 1, 10, 11, 12))
    shutil.rmtree(folder / "runs", ignore_errors=True)
    path.unlink()
    return what, found if said is None else [*found, f"{what}: {said}"]


def _rounds(folder: Path, draw: random.Random) -> Iterator[tuple[str, list[str]]]:
    (folder / "k.yaml").write_text(OURS)
    made = forked(["run", "k.yaml", "--transport", "inline", "--progress", "none"], folder, 120)
    if made.code:
        raise RuntimeError(f"the sound run ends with {made.code}: {made.said}")
    sound = folder / "sound"
    shutil.move(str((folder / "runs/latest").resolve()), sound)
    files = inputs(folder)
    while True:
        yield damaged_run(sound, folder, draw)
        yield damaged_input(files, folder, draw)
        yield damaged_input(files, folder, draw)


def search(seconds: float, seed: int, *, files: int = 10**9) -> Outcome:
    """Damage files until time is up or there were so many."""
    from lima2cli.files.compression import load_filters

    load_filters()
    end, kinds, failures = time.monotonic() + seconds, Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        for number, (what, found) in enumerate(_rounds(Path(folder), random.Random(seed)), 1):
            kinds[what] += 1
            failures += found
            if number >= files or time.monotonic() > end:
                break
    figures = f"{kinds.total()} damaged files of {len(kinds)} kinds, {len(failures)} broken promises"
    return Outcome("files", kinds.total(), failures, figures)


if __name__ == "__main__":
    sys.exit(command(search, __doc__, "files", 250))
