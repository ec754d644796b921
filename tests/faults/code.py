"""Let users' code misbehave in every way that is known, inline and by MPI, and look at what becomes of the run.

    python -m tests.faults.code [--seconds 600] [--seed 1] [--kinds REGEX] [--where python mpi receiver plugin detector]

Each round is one run of a node ``u`` with the code, beside a channel ``raw`` that has nothing to do with it. It must
end in time, with exit code 0 or 10; a failure names the node and the user's line; ``on_error`` is obeyed; all frames
that were saved are right, pixel for pixel; each frame has its account, and `inspect` finds the same; nothing of the
job is left: no process, no shared memory, no temporary file. Exit code 1 where one was not so.
"""

import argparse
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lima2cli.geometry import Rect
from lima2cli.runs.processes import NAMES, _used, processes_with
from tests.faults import Outcome
from tests.faults.apart import forked
from tests.faults.misbehaviour import (
    DETECTORS,
    DIES,
    ENDS,
    FAILS,
    FINE,
    KINDS,
    PLUGINS,
    PROCESSING,
    Kind,
    plugin,
    receiver_program,
)
from tests.running import counter

FRAMES, SIZE, LONGEST_S = 20, 8, 75.0

PLACES = ("python", "mpi", "receiver", "plugin", "detector")
NAMED = r"\bu\b|receiver0|u\.py|lima2_mine\.py|users' code|detector|the ranks ended without a summary"
PACKED = PLACES[2:]
"""Places without ``on_error``."""

TEXT = """
lima2: 1
name: k
detector: {remu: {image: {width: 8, height: 8}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 20, timeout: TIMEOUT}
flows: {data: {dataset: data, rules: {blocks_per_group: 5}, buffers: {frames: 5}}}
nodes:
  u: {input: data, NODE}
  save: {input: u, io_hdf5: {}}
  raw: {input: data, io_hdf5: {}}
"""

SHORTER = """
import lima2cli.foreign as watch
watch.IMPORT_S, watch.CALL_S = 1.6, 1.5
watch.RESORT_S = 0.5
"""
"""A module that is put before all processes of a run (``sitecustomize``) whose code hangs: it is found sooner. Other
code has as long as users give it, since a slow machine is no fault.
"""


@dataclass
class Round:
    """One run with misbehaving code: ``where`` it is, what that node does with errors, and by which transport."""

    name: str
    kind: Kind
    where: str
    on_error: str
    transport: str
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} ({self.where}, on_error: {self.on_error}, {self.transport})"

    @property
    def _hangs(self) -> bool:
        return self.kind.slow or "hang" in self.name or self.kind.said == "TookTooLong"

    def run(self) -> "Round":
        """Run it, and note what was not as it should be."""
        with tempfile.TemporaryDirectory(prefix="lima2-faults-") as name:
            self._folder = Path(name) / "work"
            self._folder.mkdir()
            self._write(Path(name))
            self._start(Path(name))
            self._look(Path(name))
        return self

    def _write(self, base: Path) -> None:
        (base / "site").mkdir()
        (base / "tmp").mkdir()
        if self._hangs:
            (base / "site" / "sitecustomize.py").write_text(SHORTER)
        (self._folder / "u.py").write_text(self.kind.code, encoding="utf-8")
        for file, text in self.kind.files:
            (self._folder / file).parent.mkdir(exist_ok=True)
            (self._folder / file).write_text(text)
        node = f'{self.where}: {{function: "u.py:f", on_error: {self.on_error}}}'
        if self.where == "plugin":
            plugin(base / "site", self.kind.code)
            node = "mine: {}"
        elif self.where == "detector":
            plugin(base / "site", self.kind.code, "detectors")
        if self.where in ("receiver", "detector"):
            node = "roi_flip_rot: {}"
        text = TEXT.replace("NODE", node).replace("TIMEOUT", "4 s" if self._hangs else "10 s")
        (self._folder / "k.yaml").write_text(text.replace("remu:", "mine:") if self.where == "detector" else text)

    def _start(self, base: Path) -> None:
        self._shared = set(os.listdir("/dev/shm"))
        hidden = ("PMI", "HYDRA", "PYTHONDONTWRITEBYTECODE")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        environment |= {"TMPDIR": str(base / "tmp"), "PYTHONPATH": str(base / "site"), "LIMA2_FAULT": str(base)}
        command = [str(Path(sys.executable).with_name("lima2")), "run", "k.yaml", "--transport", self.transport]
        if self.where == "receiver":
            command += ["--receiver", "u.py:f"]
        began = time.monotonic()
        with (base / "out").open("wb") as out:
            process = subprocess.Popen(
                [*command, "--progress", "plain"], cwd=self._folder, env=environment, stdin=subprocess.PIPE,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                self.code: int | None = process.wait(LONGEST_S)
            except subprocess.TimeoutExpired:
                self.code = None
                self.faults.append(f"no end in {LONGEST_S:g} s")
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.seconds = time.monotonic() - began
        left = self._wait_for(f"{base}")
        self.faults += [f"processes are left: {left}"] if left else []
        self.output = (base / "out").read_bytes().decode(errors="replace")

    @staticmethod
    def _wait_for(value: str) -> list[str]:
        """Processes of the round that have not ended within eight seconds after it; they are ended."""
        end = time.monotonic() + 8
        while (left := list(processes_with("LIMA2_FAULT", value))) and time.monotonic() < end:
            time.sleep(0.05)
        found = []
        for pid in left:
            try:
                found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        return found

    def _look(self, base: Path) -> None:
        by_signal = self.transport == "inline" and self.kind.made in (DIES, ENDS) and (self.code or 0) < 0
        if self.code is not None and self.code not in (0, 10) and not by_signal:
            self._wrong(f"exit code {self.code}")
        for word in ("Traceback", "this is a bug"):
            if word in self.output:
                self._wrong(f"{word!r} is printed")
        new = set(os.listdir("/dev/shm")) - self._shared if self.transport == "mpi" else ()  # else they are of others
        shared = [name for name in new if NAMES.fullmatch(name)]
        self.faults += [f"/dev/shm/{name} is left" for name in shared if _unused(name)]
        self.faults += [f"{path} is left" for path in (base / "tmp").iterdir() if "lima2" in path.name]
        directory = self._folder / "runs/k_0001"
        if (directory / "control.json").exists():
            self.faults.append("control.json is left")
        try:
            self.summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
        except (OSError, ValueError) as error:
            self._wrong(f"no summary: {error}")
            return
        self._accounts(directory)
        self._outcome()
        self._frames(directory, "raw")
        if self.kind.made != "ends" and self.where in ("python", "mpi", "plugin"):
            self._frames(directory, "save")

    def _wrong(self, text: str) -> None:
        self.faults.append(f"{text}: …{self.output[-400:]!r}")

    def _accounts(self, directory: Path) -> None:
        for name, flow in self.summary["flows"].items():
            parts = [flow[key] for key in ("received", "lost", "dropped", "missing")]
            if None not in parts and flow["expected"] != sum(parts):
                self.faults.append(f"sums of flow {name}: {flow}")
        for name, channel in self.summary["channels"].items():
            parts = [channel[key] for key in ("saved", "vetoed", "dropped", "lost")]
            if None not in parts and channel["expected"] != sum(parts):
                self.faults.append(f"sums of {name}: {channel}")
        for path in directory.iterdir():
            if (
                path.suffix in (".h5", ".json", ".log")
                and not path.is_symlink()
                and not path.stat().st_mode & stat.S_IRUSR
            ):
                self.faults.append(f"{path.name} cannot be read: mode {path.stat().st_mode:o}")
        ended = forked(["inspect", "--verify", "--format", "json", str(directory)], self._folder.parent, 20)
        if ended.code:
            self.faults.append(f"inspect: {ended.said[-600:]}")

    def _outcome(self) -> None:
        """Compare the node's accounts with what they should be."""
        told = f"{self.summary['reason']} {' '.join(self.summary['warnings'] + self.summary['problems'])}"
        state, made, kept = self.summary["state"], self.kind.made, self.summary["channels"]["save"]
        failed = made == DIES or (made == FAILS and (self.on_error == "stop" or self.where in PACKED))
        if made in (FINE, FAILS, DIES) and (state == "failed") != failed:
            self.faults.append(f"it should {'fail' if failed else 'be complete'}: {state}, {told[:300]}")
        if self.code is not None and (self.code != 0) != (state == "failed"):
            self.faults.append(f"exit code {self.code}, and the state is {state}")
        if self.kind.said not in told:
            self.faults.append(f"{self.kind.said!r} is not said: {told[:400]}")
        if made in (FAILS, DIES) and self.kind.said and not self.name.startswith(("result: n", "result: array")):
            line = next((at for at, text in enumerate(self.kind.code.splitlines(), 1) if "# HERE" in text), None)
            file = "lima2_mine.py" if self.where in ("plugin", "detector") else "u.py"
            if line is not None and f"{file}:{line}" not in told:
                self.faults.append(f"{file}:{line} is not said: {told[:400]}")
        if made in (FAILS, DIES) and failed and not re.search(NAMED, told):
            self.faults.append(f"nobody is named: {told[:300]}")
        if made == FAILS and not failed and self.where in ("python", "mpi"):
            want = {"drop": (15, 5), "pass": (20, 0)}[self.on_error]
            if (kept["saved"], kept["dropped"]) != want:
                self.faults.append(f"on_error: {self.on_error}, and {kept['saved']} saved, {kept['dropped']} dropped")
        if made == FINE and kept["saved"] != FRAMES:
            self.faults.append(f"{kept['saved']} saved: {told[:300]}")
        if not failed and state == "complete" and self.summary["channels"]["raw"]["saved"] != FRAMES:
            self.faults.append(f"{self.summary['channels']['raw']['saved']} of the other node are saved")

    def _frames(self, directory: Path, node: str) -> None:
        """Saved frames are those of the scene."""
        import h5py
        import hdf5plugin  # noqa: F401

        dataset = self.summary["channels"][node]["dataset"]
        if dataset is None:
            return
        name, path = dataset.split("::")
        with h5py.File(directory / name) as file:
            detector = file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent
            data, numbers, status = file[path][()], detector["frame_number"][()], detector["frame_status"][()]
        held = status == 0
        right = counter(numbers[held], Rect(0, 0, SIZE, SIZE), SIZE)
        if not np.array_equal(data[held], right):
            wrong = numbers[held][(data[held] != right).any(axis=(1, 2))]
            self.faults.append(f"frames of {node} are wrong: {wrong[:10]}")
        if held.sum() != self.summary["channels"][node]["saved"]:
            self.faults.append(f"{node} holds {held.sum()} frames, {self.summary['channels'][node]['saved']} are told")


def _unused(name: str) -> bool:
    try:
        status = os.stat(f"/dev/shm/{name}")
    except FileNotFoundError:
        return False
    time.sleep(1)
    return not _used([(status.st_dev, status.st_ino)]) and Path("/dev/shm", name).exists()


def rounds(seed: int, places: tuple[str, ...] = PLACES) -> list[Round]:
    """All rounds, in an order that a seed gives: first each kind once, then at all places by both transports."""
    chance, found = random.Random(seed), list[Round]()
    for name, kind in KINDS.items():
        for where in ("python", "mpi"):
            for transport in ("inline", "mpi"):
                if transport == "inline" and (name.startswith("mpi:") or name == "death: exec"):
                    continue
                on_error = chance.choice(("stop", "drop", "pass"))
                found.append(Round(name, kind, where, on_error, transport))
    for name, (statement, said) in PROCESSING.items():
        made = "ends" if name == "ends" else DIES if name == "dies" else FAILS
        kind = Kind(receiver_program(statement), made, said)
        found += [Round(f"receiver: {name}", kind, "receiver", "stop", it) for it in ("inline", "mpi")]
    for name, kind in PLUGINS.items():
        found += [Round(f"plugin: {name}", kind, "plugin", "stop", it) for it in ("inline", "mpi")]
    for name, kind in DETECTORS.items():
        found += [Round(f"detector: {name}", kind, "detector", "stop", it) for it in ("inline", "mpi")]
    found = [one for one in found if one.where in places]
    chance.shuffle(found)
    once: dict[str, Round] = {}
    others = [one for one in found if once.setdefault(one.name, one) is not one]
    return [*once.values(), *others]


def search(seconds: float, seed: int) -> Outcome:
    """As many rounds as there is time for."""
    return _search(rounds(seed), seconds)


def _search(chosen: list[Round], seconds: float, *, loud: bool = False) -> Outcome:
    end, failures, tried, longest = time.monotonic() + seconds, list[str](), list[Round](), 0.0
    for one in chosen:
        if time.monotonic() > end:
            break
        tried.append(one.run())
        longest = max(longest, one.seconds)
        failures += [f"{one}: {fault}" for fault in one.faults]
        if loud:
            print(f"{one}: {one.seconds:.1f} s, {'; '.join(one.faults) or 'as promised'}", flush=True)
    kinds = len({one.name for one in tried})
    bad = sum(bool(one.faults) for one in tried)
    figures = f"{len(tried)} runs with {kinds} kinds of code, {bad} not as promised, the longest {longest:.0f} s"
    return Outcome("code", len(tried), failures, figures)


def main() -> int:
    """All rounds, or those that are asked for, until the time is over."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--seconds", type=float, default=1e9)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--kinds", default="", help="a regular expression")
    arguments.add_argument("--where", nargs="*", default=PLACES)
    arguments.add_argument("--transport", nargs="*", default=("inline", "mpi"))
    asked = arguments.parse_args()
    chosen = [
        one for one in rounds(asked.seed, tuple(asked.where))
        if re.search(asked.kinds, one.name) and one.transport in asked.transport
    ]  # fmt: skip
    outcome = _search(chosen, asked.seconds, loud=True)
    print(outcome.figures)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
