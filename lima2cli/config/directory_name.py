"""The name of the run directory against what file systems take."""

from lima2cli.config.records import Output
from lima2cli.diagnostics import Findings, Path

LONGEST = 255
"""Bytes of the name of a file, on all file systems in use."""

LONGEST_PATH = 4096 - 1024
"""Bytes of a path; the rest is for the working directory and the files."""


def check_directory_name(name: str, output: Output, findings: Findings) -> None:
    """Report a run directory that no file system takes; one whose format is wrong has been reported."""
    directory = str(output.directory)
    try:
        path = directory.format(name=name, run=9999, date="2025-01-31", time="12-00-00", uuid=32 * "0")
    except (ValueError, LookupError, AttributeError):
        return
    longest = max(len(part.encode()) for part in path.split("/"))
    if longest <= LONGEST and len(path.encode()) <= LONGEST_PATH:
        return
    at: Path = ("name",) if "{name" in directory and longest <= LONGEST + len(name) else ("output", "directory")
    if longest > LONGEST:
        message = f"the run directory would have a name of {longest} bytes, file systems take {LONGEST}"
    else:
        message = f"the path of the run directory would have {len(path.encode())} bytes, more than {LONGEST_PATH}"
    findings.error("name-too-long", message, at, help="a shorter one")
