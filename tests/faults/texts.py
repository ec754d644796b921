"""Mutated pipelines against what `validate` promises: ``python -m tests.faults.texts [--minutes n] [--seed n]``.

Each text is checked in a process of its own with a limit of memory and of CPU time. There is no internal error and no
text beyond the budget; and what is accepted runs inline for a few frames: it ends with exit code 0, 10 for a reason of
the run, 11 or 12, never with 1 or 3.
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lima2cli.diagnostics import Findings
from lima2cli.document import load

EXAMPLES = Path(__file__).parents[2] / "examples" / "pipelines"

CPU_S, MEMORY = 5.0, 500 << 20
"""The budget of `validate`: CPU time in seconds and resident bytes."""

ADDRESSES = 8 << 30
"""Bytes of address space of a process that runs a pipeline, so that a mistake takes no machine down."""

RUN_S = 60
"""Seconds of a run; a text without an end is stopped then."""

STATIC = re.compile(r"\b(MemoryError|OverflowError|ValueError|TypeError|KeyError|IndexError|AssertionError)\b")
"""Reasons of a run that has failed that `validate` should have known."""

VALUES = (
    None, True, 0, 1, -1, 2, 1.5, 2**31, 2**32, 2**40, 10**18, 2**62, 2**63 - 1, 1e-300, 1e18, "", "x", "full", "data",
    "1 ms", "16 KiB", "1e18 B", "nan", "a" * 300, ".", "..", "/dev/zero", "{run}", "{run:{run}}", "${HOME}", {}, [],
    [1], {"x": 1}, {"host": None}, "nope.h5::/data", "u.py:K", "é" * 200, 65536, 65535, 256, 257,
)  # fmt: skip
"""What stands in the place of a value."""


@dataclass(frozen=True)
class Tried:
    """A text, what was done with it, and what is wrong with that (None: nothing). ``code``: the exit code."""

    text: str
    what: str
    code: int
    problem: str | None


def mutants(seed: int) -> Iterator[dict[str, Any]]:
    """Examples with values replaced, moved, scaled or dropped, without an end; the same for the same seed."""
    draw = random.Random(seed)
    sources = [
        load(path.read_text(), path.name, Findings(), environment=os.environ) for path in EXAMPLES.glob("*.yaml")
    ]
    datas = sorted((document.data for document in sources if document is not None), key=json.dumps)
    while True:
        data = json.loads(json.dumps(draw.choice(datas)))
        for _ in range(draw.choice((1, 1, 1, 2))):
            _mutate(data, draw)
        yield data


def _mutate(data: Any, draw: random.Random) -> None:
    change = draw.random()
    places = [(it, key) for it in _holders(data) for key in (it if isinstance(it, dict) else range(len(it)))]
    if change < 0.5:  # a number, which may be fine: most other changes are refused at once
        places = [it for it in places if isinstance(it[0][it[1]], int | float)] or places
    holder, key = draw.choice(places)
    if change < 0.1:
        del holder[key]
    elif change < 0.4 and isinstance(holder[key], int | float):
        holder[key] *= draw.choice((0, -1, 0.5, 2, 3, 10, 1000, 10**9))
    elif change < 0.5 and isinstance(holder[key], int | float):
        holder[key] = draw.choice([it for it in VALUES if isinstance(it, int)])
    elif change < 0.7:
        other = draw.choice(list(_holders(data)))
        holder[key] = json.loads(json.dumps(draw.choice(list(other.values() if isinstance(other, dict) else other))))
    else:
        holder[key] = draw.choice(VALUES)


def _holders(data: Any) -> Iterator[Any]:
    if data and isinstance(data, dict | list):
        yield data
        for item in data.values() if isinstance(data, dict) else data:
            yield from _holders(item)


def try_text(data: dict[str, Any], folder: Path, *, run: bool) -> Tried:
    """Validate a mutant in ``folder`` and, with ``run``, run it where it was accepted."""
    text = json.dumps(data)
    (folder / "m.yaml").write_text(text)
    code, cpu, peak, said = _call(["validate", "m.yaml", "--format", "concise"], folder, CPU_S * 4)
    if code not in (0, 1) or "internal-error" in said:
        return Tried(text, "validate", code, said[-300:])
    if cpu > CPU_S or peak > MEMORY:
        return Tried(text, "validate", code, f"{cpu:.1f} s, {peak >> 20} MiB")
    if code or not run or not isinstance(data.get("acquisition"), dict | None):
        return Tried(text, "validate", code, None)
    few = ["run", "m.yaml", "--transport", "inline", "--progress", "none", "-s", "acquisition.timeout=2"]
    if not isinstance(data.get("acquisition"), dict) or not 0 < data["acquisition"].get("frames", 0) <= 1000:
        few += ["-s", "acquisition.frames=6"]
    changed, *_ = _call(["validate", "m.yaml", *few[6:]], folder, CPU_S * 4)
    if changed:  # another text, which is refused
        return Tried(text, "validate", code, None)
    code, _, _, said = _call(few, folder, RUN_S)
    wrong = code not in (0, 10, 11, 12, 130, 143, -9) or (code == 10 and STATIC.search(said) is not None)
    return Tried(text, "run", code, said[-600:] if wrong else None)


def _call(words: list[str], folder: Path, seconds: float) -> tuple[int, float, int, str]:
    """Exit code, CPU seconds, resident bytes and output of the program; -9 where it took longer."""
    with (folder / "output").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lima2cli", *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, preexec_fn=_limit,
        )  # fmt: skip
        end, pid = time.monotonic() + seconds, 0
        while not pid:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if not pid and time.monotonic() > end:
                process.kill()
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read(1 << 20).decode(errors="replace")
    return process.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss << 10, said


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))


def main() -> int:
    """Try mutants for some minutes; the exit code is 1 where any breaks a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    end, counts, broken = time.monotonic() + 60 * given.minutes, Counter[str](), 0
    for number, data in enumerate(mutants(given.seed)):
        if time.monotonic() > end:
            break
        with tempfile.TemporaryDirectory() as folder:
            tried = try_text(data, Path(folder), run=number % 2 == 0)
        counts[f"{tried.what}: exit {tried.code}"] += 1
        if tried.problem is not None:
            broken += 1
            print(f"--- {tried.what}, exit {tried.code}: {tried.problem}\n{tried.text}\n", flush=True)
    print(f"{counts.total()} texts, {broken} broken promises: {dict(sorted(counts.items()))}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
