"""Faults made on purpose, many times over: each module is a command, and prints what was found."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """A search that has ended: how many faults were tried, what broke a promise, and a line of figures."""

    name: str
    tried: int
    failures: list[str]
    figures: str


def command(search: Callable[..., Outcome], doc: str | None, size: str, default: int, **options: bool) -> int:
    """Run a search by the options of the command line; the exit code is 1 where anything broke a promise.

    size, default   the parameter of ``search`` that bounds it, and its value where none is given
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{size}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--seed", type=int, default=1)
    given = vars(parser.parse_args())
    outcome = search(60 * given["minutes"], given["seed"], **{size: given[size]}, **options)
    print("\n".join([outcome.figures, *(f"--- {failure}" for failure in outcome.failures)]))
    return 1 if outcome.failures else 0
