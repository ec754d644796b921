"""What the launcher hands to the ranks: one record, through the standard input of rank 0.

It is made and read by the same installation, never by users; nothing is unpickled that came from a file.
"""

import base64
import pickle
from dataclasses import dataclass
from typing import IO

from lima2cli import __version__
from lima2cli.errors import RunFailed
from lima2cli.plan.records import Plan

STOP = b"stop\n"


@dataclass(frozen=True)
class Job:
    """A plan, the folder that its file names are relative to, and the run directory."""

    plan: Plan
    base: str
    directory: str
    version: str = __version__


def write_job(job: Job, to: IO[bytes]) -> None:
    """One line."""
    to.write(base64.b64encode(pickle.dumps(job)) + b"\n")
    to.flush()


def read_job(source: IO[bytes]) -> Job:
    """The line that `write_job` wrote."""
    job = pickle.loads(base64.b64decode(source.readline()))  # noqa: S301  from our own launcher's pipe
    if not isinstance(job, Job) or job.version != __version__:
        raise RunFailed("launcher and ranks are of different versions of lima2")
    return job
