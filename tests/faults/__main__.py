"""All searches for faults, each for its share of the time: ``python -m tests.faults [--minutes 30] [--seed 1]``.

Each module beside this one that has a function ``search(seconds, seed)`` is a search; it runs in a process of its own.
After each nothing may be left: no process, no shared memory, no temporary file, no socket. A line of figures for each,
then all that broke a promise; the exit code is 1 where anything did.
"""

import argparse
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import tests.faults
from tests.faults import Outcome
from tests.faults.leavings import Leavings

OVERTIME_S = 900.0
"""A search may take so much longer than its share: for the round that it is in."""

OWN = "LIMA2_OWN_MOUNTS"
"""Set where mounts, and shared memory, are of this command alone."""

ALONE = 'mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec "$@"'


def searches() -> list[str]:
    """Names of the modules that are searches."""
    names = [
        it.name for it in pkgutil.iter_modules(tests.faults.__path__) if not it.name.startswith(("__main__", "test_"))
    ]
    modules = [f"tests.faults.{name}" for name in names]
    return [module for module in modules if hasattr(importlib.import_module(module), "search")]


def run(module: str, seconds: float, seed: int) -> tuple[Outcome, list[str]]:
    """Run a search; return its findings and its leavings."""
    with tempfile.TemporaryDirectory(prefix="lima2-faults-", ignore_cleanup_errors=True) as name:
        temporary, answer = Path(name, "tmp"), Path(name, "outcome.json")
        temporary.mkdir()
        leavings = Leavings(temporary)
        command = [sys.executable, "-m", "tests.faults", "--search", module, "--minutes", str(seconds / 60)]
        process = subprocess.Popen(
            [*command, "--seed", str(seed), "--outcome", str(answer)], env=leavings.environment, start_new_session=True,
            stdout=sys.stderr.fileno(),
        )  # fmt: skip
        try:
            code = process.wait(seconds + OVERTIME_S)
        except subprocess.TimeoutExpired:
            code = -int(signal.SIGALRM)
        try:
            outcome = Outcome(**json.loads(answer.read_text()))
        except (OSError, ValueError, TypeError):
            short = module.rpartition(".")[2]
            outcome = Outcome(short, 0, [f"the search itself ended with {code}"], f"{short}: nothing")
        left = leavings.left()
        for pid in leavings.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return outcome, left


def alone() -> None:
    """Have mounts and shared memory of one's own, where the system lets us: what is left is nobody else's then."""
    for options in (["-m"], ["-r", "-m"]):
        command = ["unshare", *options, "--propagation", "private", "sh", "-c", ALONE, "sh"]
        with suppress(OSError):
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                words = [*command, sys.executable, "-m", "tests.faults", *sys.argv[1:]]
                os.execvpe("unshare", words, os.environ | {OWN: "1"})
    print("no mounts of our own here: leftovers of others may be taken for ours", file=sys.stderr)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="of all searches together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="modules, by default all searches")
    parser.add_argument("--search", help=argparse.SUPPRESS)  # this one, in this process
    parser.add_argument("--outcome", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.search is not None:
        outcome = importlib.import_module(given.search).search(60 * given.minutes, given.seed)
        Path(given.outcome).write_text(json.dumps(asdict(outcome)))
        return 0
    if os.environ.get(OWN) != "1":
        alone()
    modules = given.only or searches()
    failures: list[str] = []
    for module in modules:
        began = time.monotonic()
        outcome, left = run(module, 60 * given.minutes / len(modules), given.seed)
        wrong = outcome.failures + [f"left behind: {it}" for it in left]
        name = module.rpartition(".")[2]
        figures = f"{outcome.figures}; {time.monotonic() - began:.0f} s, {len(wrong)} not as promised"
        print(figures, flush=True)
        failures += [f"{name}: {it}" for it in wrong]
    print("\n".join(failures) if failures else "nothing broke a promise")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
