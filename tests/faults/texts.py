"""Mutated pipelines against what `validate` promises.

    python -m tests.faults.texts [--texts 100000] [--minutes n] [--seed n] [--processes 2]

Each text is checked and, where it is accepted, lowered and shown: no exception, and no more CPU time and memory than
`validate` may cost. Of those that are accepted one in `RUN_ONE_IN` runs inline for a few frames, in a process of its
own: it ends with exit code 0, 10 for a reason of the run, 11 or 12, never with 1 or 3.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lima2cli.check import Checked, check_text
from lima2cli.cli.border import Format
from lima2cli.cli.plan_text import show_plan
from lima2cli.cli.reading import show_all
from lima2cli.diagnostics import Findings
from lima2cli.document import load
from lima2cli.plan.figures import plan_figures
from lima2cli.program import lower
from tests.faults import Outcome
from tests.faults.apart import forked, reset_peak, status

EXAMPLES = Path(__file__).parents[2] / "examples" / "pipelines"

CPU_S, MEMORY = 5.0, 500 << 20
"""The budget of `validate`: CPU time in seconds and resident bytes."""

ADDRESSES = 8 << 30
"""Bytes of address space of a process, so that a mistake takes no machine down."""

RUN_S = 60
"""Seconds of a run; a text without an end is stopped then."""

RUN_ONE_IN = 40
"""Accepted texts to each one that is run."""

STATIC = re.compile(r"\b(MemoryError|OverflowError|ValueError|TypeError|KeyError|IndexError|AssertionError)\b")
"""Reasons of a run that has failed that `validate` should have known."""

VALUES = (
    None, True, 0, 1, -1, 2, 1.5, 2**31, 2**32, 2**40, 10**18, 2**62, 2**63 - 1, 1e-300, 1e18, "", "x", "full", "data",
    "1 ms", "16 KiB", "1e18 B", "nan", "a" * 300, ".", "..", "/dev/zero", "{run}", "{run:{run}}", "${HOME}", {}, [],
    [1], {"x": 1}, {"host": None}, "nope.h5::/data", "u.py:K", "é" * 200, 65536, 65535, 256, 257, 8192, 4096, 3, 7,
    "uint8", "float64", "1 GHz", "0.5 Hz", "4 GiB", -2**31, 1e308, "wait", "virtual", "common", ["x"] * 300,
)  # fmt: skip
"""Texts in the place of a value."""

MARKS = ("{", "}", "[", "]", ":", ",", "&a ", "*a", "!!python/object ", "- ", "\t", "\n", "'", '"', "#", "|", "%", "?",
         "<<: ", "${", "\0", "\ufeff", "\u2028", "1e9", "~", "---\n", "...\n")  # fmt: skip
"""Pieces that are put anywhere into a text."""


@dataclass(frozen=True)
class Tried:
    """A text, what was done with it, and what is wrong with that (None: nothing). ``code``: the exit code."""

    text: str
    what: str
    code: int
    problem: str | None
    cpu_s: float = 0.0
    memory: int = 0


def mutants(seed: int) -> Iterator[str]:
    """Texts of examples with values replaced, moved, scaled or dropped, and one in five with odd characters; without
    an end, the same for the same seed.
    """
    draw = random.Random(seed)
    paths = sorted(EXAMPLES.glob("*.yaml"))
    loaded = [load(path.read_text(), path.name, Findings(), environment=os.environ) for path in paths]
    datas = sorted((document.data for document in loaded if document is not None), key=json.dumps)
    while True:
        if draw.random() < 0.2:
            yield _spoiled(draw.choice(paths).read_text(), draw)
            continue
        data = json.loads(json.dumps(draw.choice(datas)))
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            _mutate(data, draw.choice((data, data, draw.choice(datas))), draw)
        yield json.dumps(data)


def _mutate(data: Any, giver: Any, draw: random.Random) -> None:
    """One change; values are moved here from ``giver``."""
    change = draw.random()
    places = [(it, key) for it in _holders(data) for key in (it if isinstance(it, dict) else range(len(it)))]
    if change < 0.5:  # a number, which may be fine: most other changes are refused at once
        places = [it for it in places if isinstance(it[0][it[1]], int | float)] or places
    if not places:
        return
    holder, key = draw.choice(places)
    if change < 0.1:
        del holder[key]
    elif change < 0.4 and isinstance(holder[key], int | float):
        holder[key] *= draw.choice((0, -1, 0.5, 2, 3, 10, 1000, 10**9))
    elif change < 0.5 and isinstance(holder[key], int | float):
        holder[key] = draw.choice([it for it in VALUES if isinstance(it, int)])
    elif change < 0.7:
        other = draw.choice(list(_holders(giver)))
        holder[key] = json.loads(json.dumps(draw.choice(list(other.values() if isinstance(other, dict) else other))))
    else:
        holder[key] = draw.choice(VALUES)


def _holders(data: Any) -> Iterator[Any]:
    if data and isinstance(data, dict | list):
        yield data
        for item in data.values() if isinstance(data, dict) else data:
            yield from _holders(item)


def _spoiled(text: str, draw: random.Random) -> str:
    """A text with characters put in, left out, and lines doubled or dropped."""
    for _ in range(draw.randint(1, 4)):
        at, lines = draw.randrange(len(text) + 1), text.splitlines(keepends=True)
        match draw.randrange(5):
            case 0:
                text = text[:at] + draw.choice(MARKS) * draw.choice((1, 1, 2, 70, 3000)) + text[at:]
            case 1:
                text = text[:at] + text[at + draw.choice((1, 1, 5, 40)) :]
            case 2 if lines:
                lines.insert(draw.randrange(len(lines)), draw.choice(lines))
                text = "".join(lines)
            case 3 if lines:
                del lines[draw.randrange(len(lines))]
                text = "".join(lines)
            case _:
                text = text[:at] + chr(draw.choice((draw.randrange(1, 128), draw.randrange(128, 0xD800)))) + text[at:]
    return text


def check(text: str, folder: Path) -> tuple[Tried, Checked | None]:
    """Do in this process all that `validate` and `plan` do, and hold it against the budget."""
    reset_peak()
    before, ends = time.process_time(), signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, CPU_S * 12)
    problem, checked = None, None
    try:
        checked = check_text(text, "m.yaml", EXAMPLES, cores=2, environment=os.environ, here=folder)
        show_all([checked], Format.TEXT)
        cpu, peak = time.process_time() - before, status("VmHWM")
        if any(item.rule == "internal-error" for item in checked.findings):
            problem = "internal-error"
        if checked.plan is not None:
            lower(checked.plan)
            show_plan(checked.plan)
            json.dumps(plan_figures(checked.plan))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        cpu, peak = time.process_time() - before, status("VmHWM")
        problem = f"{type(error).__name__}: {error}"[:500]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, ends)
    if problem is None and (cpu > CPU_S or peak > MEMORY):
        problem = f"{cpu:.1f} s, {peak >> 20} MiB"
    accepted = checked is not None and checked.plan is not None
    return Tried(text, "validate", 0 if accepted else 1, problem, cpu, peak), checked


def try_run(text: str, frames: int | None, folder: Path) -> Tried:
    """Run an accepted text, of ``frames`` (None: no end), inline for a few of them, in a process of its own."""
    own = folder / "run"
    shutil.copytree(EXAMPLES, own)
    (own / "m.yaml").write_text(text)
    few = ["run", "m.yaml", "--transport", "inline", "--progress", "none", "-s", "acquisition.timeout=2"]
    if frames is None or frames > 1000:
        few += ["-s", "acquisition.frames=6"]
    try:
        if forked(["validate", "m.yaml", *few[6:]], own, CPU_S * 8).code:  # another text, which is refused
            return Tried(text, "validate", 0, None)
        ran = forked(few, own, RUN_S)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    wrong = ran.code not in (0, 10, 11, 12, 130, 143, -9)
    wrong = wrong or (ran.code == 10 and STATIC.search(ran.said) is not None)
    return Tried(text, "run", ran.code, ran.said[-600:] if wrong else None)


def try_text(text: str, folder: Path, *, run: bool) -> Tried:
    """Check a text in this process and, with ``run``, run it where it was accepted."""
    tried, checked = check(text, folder)
    if not run or tried.problem is not None or checked is None or checked.plan is None:
        return tried
    return try_run(text, checked.plan.frames, folder)


def _late(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no end after {CPU_S * 12:g} s")


def work(seed: int, texts: int, end: float, folder: Path, share: int, of: int) -> None:
    """Try every ``of``-th mutant; a line of JSON for each, a short one where all is well."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, resource.RLIM_INFINITY))
    accepted = 0
    for number, text in enumerate(mutants(seed)):
        if number >= texts or time.monotonic() > end:
            return
        if number % of != share:
            continue
        (folder / "text").write_text(text, errors="surrogatepass")  # of a process that dies the last is known
        tried, checked = check(text, folder)
        found = [tried]
        if checked is not None and checked.plan is not None and tried.problem is None:
            if accepted % RUN_ONE_IN == share:
                found.append(try_run(text, checked.plan.frames, folder))
            accepted += 1
        for one in found:
            line = {"what": one.what, "code": one.code, "cpu": one.cpu_s, "memory": one.memory}
            if one.problem is not None:
                line |= {"problem": one.problem, "text": one.text, "number": number}
            print(json.dumps(line), flush=True)


def search(seconds: float, seed: int, *, texts: int = 10**9, processes: int = 2) -> Outcome:
    """Try mutants in some processes until time is up or there were so many."""
    counts, failures, cpu, memory = Counter[str](), [], 0.0, 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as base:
        workers = []
        for share in range(processes):
            folder = Path(base) / str(share)
            folder.mkdir()
            words = ["--work", f"{share}/{processes}", "--folder", str(folder), "--seed", str(seed)]
            words += ["--texts", str(texts), "--minutes", str(seconds / 60)]
            with (folder / "said").open("wb") as said:
                command = [sys.executable, "-m", "tests.faults.texts", *words]
                workers.append((folder, subprocess.Popen(command, stdout=said, cwd=EXAMPLES.parents[1])))
        for folder, worker in workers:
            try:
                code = worker.wait(max(0, end - time.monotonic()) + 4 * RUN_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                code = worker.wait()
            if code:
                failures.append(f"the process ended with {code} at this text:\n{(folder / 'text').read_text()}")
            for line in (folder / "said").read_text().splitlines():
                one = json.loads(line)
                counts[f"{one['what']}: exit {one['code']}"] += 1
                cpu, memory = max(cpu, one["cpu"]), max(memory, one["memory"])
                if "problem" in one:
                    failures.append(f"{one['what']}, exit {one['code']}: {one['problem']}\n{one['text']}")
    checked = sum(count for what, count in counts.items() if what.startswith("validate"))
    ran = counts.total() - checked
    most = f"at most {cpu:.1f} s and {memory >> 20} MiB"
    figures = f"{checked} texts, {most}; {ran} ran; {dict(sorted(counts.items()))}; {len(failures)} broken promises"
    return Outcome("texts", counts.total(), failures, figures)


def main() -> int:
    """Print what was found; the exit code is 1 where any text breaks a promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        share, of = map(int, given.work.split("/"))
        work(given.seed, given.texts, time.monotonic() + 60 * given.minutes, given.folder, share, of)
        return 0
    outcome = search(60 * given.minutes, given.seed, texts=given.texts, processes=given.processes)
    for failure in outcome.failures:
        print(f"--- {failure}\n")
    print(outcome.figures)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
