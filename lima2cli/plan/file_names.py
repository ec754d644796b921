"""Nodes of one run write different files."""

from collections.abc import Sequence

from lima2cli.artefacts.file_names import frame_file_names, master_file, part_names, table_file
from lima2cli.diagnostics import Findings, Related
from lima2cli.nodes.base import Reduce, Sink
from lima2cli.plan.records import Step


def check_file_names(name: str, steps: Sequence[Step], findings: Findings) -> None:
    """A table ``{name}_{node}.h5`` is none of the numbered files, masters or parts of another node."""
    for table in steps:
        if not isinstance(table.node, Reduce):
            continue
        file = table_file(name, table.name)
        for other in steps:
            if _writes(name, other, file):
                findings.error(
                    "file-name-clash",
                    f"nodes {table.name} and {other.name} would both write {file}",
                    ("nodes", table.name),
                    on_key=True,
                    help=f"give {table.name} another name",
                    related=[Related(("nodes", other.name), "writes it too")],
                )


def _writes(name: str, step: Step, file: str) -> bool:
    """Whether ``file`` is the master, a frame file, or a receiver's part of the table of a node."""
    if isinstance(step.node, Sink):
        return file == master_file(name, step.name) or frame_file_names(name, step.name).fullmatch(file) is not None
    return isinstance(step.node, Reduce) and part_names(name, step.name).fullmatch(file) is not None
