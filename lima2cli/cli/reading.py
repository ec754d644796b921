"""Files of the command line, read and checked."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lima2cli.check import Checked, check_text
from lima2cli.diagnostics import Diagnostic, Findings
from lima2cli.document import Source
from lima2cli.errors import UnreadableInput


def check_file(file: str, overrides: Sequence[str] = (), *, fuse: bool = True) -> Checked:
    """Check a file, or standard input for ``-``, whose data files are relative to the working directory.

    Raises `UnreadableInput`.
    """
    base = Path(".") if file == "-" else Path(file).parent
    cores = len(os.sched_getaffinity(0))
    return check_text(read(file), file, base, cores=cores, environment=os.environ, overrides=overrides, fuse=fuse)


def check_pipeline(file: str, overrides: Sequence[str] = (), *, fuse: bool = True) -> Checked:
    """The same for a file that must be a pipeline; raises `UnreadableInput` where it has but graphs."""
    checked = check_file(file, overrides, fuse=fuse)
    if checked.plan is None and not checked.findings.failed:
        raise UnreadableInput(f"{file} is no pipeline: it has graphs for pipelines to take")
    return checked


def unreadable(file: str, error: UnreadableInput) -> Checked:
    """What is shown for a file that cannot be read."""
    return Checked(Source(file, ""), Findings([Diagnostic("unreadable-input", str(error))]))


def read(file: str) -> str:
    """Its text, UTF-8; raises `UnreadableInput`."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are no UTF-8, a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableInput(f"cannot read {file}: {reason}") from error
