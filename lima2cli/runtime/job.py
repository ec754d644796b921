"""What the launcher hands to the ranks: one record, in a private file of the run directory.

The ranks are told the digest of the file on their command line, so that nothing is unpickled but what the launcher
wrote. (mpiexec forwards standard input too slowly to carry it: the word `STOP` is all that goes that way.)
"""

import hashlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

from lima2cli import __version__
from lima2cli.errors import RunFailed
from lima2cli.plan.records import Plan

STOP = b"stop\n"
JOB_FILE = ".job"

LAUNCHED = "LIMA2_LAUNCHED"
"""Set in the environment of a run's processes that the launcher has started."""


@dataclass(frozen=True)
class Job:
    """A plan, the folder that its file names are relative to, and the run directory (both absolute)."""

    plan: Plan
    base: str
    directory: str
    version: str = __version__


def write_job(job: Job) -> tuple[Path, str]:
    """Write the file, readable by its owner only; its path and digest."""
    data = pickle.dumps(job)
    path = Path(job.directory) / JOB_FILE
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    return path, hashlib.sha256(data).hexdigest()


def read_job(path: str, digest: str) -> Job:
    """The job, once: the file is removed. Raises `RunFailed` where it is not the launcher's."""
    file = Path(path)
    data = file.read_bytes()
    file.unlink()
    if hashlib.sha256(data).hexdigest() != digest:
        raise RunFailed(f"{path} is not what the launcher wrote")
    job = pickle.loads(data)  # noqa: S301  its digest is the one that the launcher gave
    if not isinstance(job, Job) or job.version != __version__:
        raise RunFailed("launcher and ranks are of different versions of lima2")
    return job
