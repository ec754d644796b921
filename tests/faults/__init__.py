"""Faults made on purpose, many times over: each module is a command, and prints what was found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """A search: how many faults were tried, what was not as promised, and the figures in one line."""

    name: str
    tried: int
    failures: list[str]
    figures: str
