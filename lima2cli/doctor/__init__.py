"""Diagnosis of this machine, to run pipelines or one pipeline: findings with what would help, and a verdict."""

from dataclasses import field
from typing import Any, Literal

from lima2cli.dataclass import dataclass

CheckStatus = Literal["ok", "warning", "problem"]

VERSION = 1


@dataclass(frozen=True)
class Check:
    """One check and its finding.

    status  problem: what was asked for cannot run here
    part    ``machine`` or ``pipeline``
    help    the cure, where there is something to cure
    """

    part: Literal["machine", "pipeline"]
    name: str
    status: CheckStatus
    message: str
    help: str | None = None


@dataclass(frozen=True)
class Bandwidths:
    """Bandwidths in bytes per second, None where they could not be measured.

    put   one-sided writes of one rank to the memory of another, in shared memory
    disk  writes to a file where runs are saved, until they are on the disk
    """

    put: float | None = None
    disk: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings."""

    checks: tuple[Check, ...]
    measured: Bandwidths = field(default_factory=Bandwidths)

    @property
    def fit(self) -> bool:
        """Return whether there is no problem."""
        return all(check.status != "problem" for check in self.checks)

    def count(self, status: CheckStatus) -> int:
        """Return how many checks have this status."""
        return sum(check.status == status for check in self.checks)


def as_plain(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return what ``doctor --format json`` prints."""
    return {
        "version": VERSION,
        "fit": diagnosis.fit,
        "measured": {
            "put_bytes_per_s": diagnosis.measured.put,
            "disk_bytes_per_s": diagnosis.measured.disk,
        },
        "checks": [
            {
                "part": check.part,
                "name": check.name,
                "status": check.status,
                "message": check.message,
                "help": check.help,
            }
            for check in diagnosis.checks
        ],
    }
