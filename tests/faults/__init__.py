"""Faults made on purpose, many times over: each module is a command, and prints what was found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """A search that has ended: how many faults were tried, what broke a promise, and a line of figures."""

    name: str
    tried: int
    failures: list[str]
    figures: str
