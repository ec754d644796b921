"""Faults made on purpose, many times over: each module is a command, and prints what was found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """The end of a search: how many faults were tried, the promises that broke, and a line of figures."""

    name: str
    tried: int
    failures: list[str]
    figures: str
