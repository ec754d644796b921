"""Nodes of one run write different files, with names that a file system takes."""

from collections.abc import Sequence

from lima2cli.artefacts.appending import NOT_STARTED
from lima2cli.artefacts.file_names import frame_file_names, master_file, part_names, table_file
from lima2cli.config.directory_name import LONGEST
from lima2cli.diagnostics import Findings, Path, Related
from lima2cli.nodes.base import Reduce, Sink
from lima2cli.plan.records import Step


def check_file_names(name: str, steps: Sequence[Step], findings: Findings) -> None:
    """Report names of nodes that come to the same file, or to none: too long, or told apart by case alone."""
    saving = [step for step in steps if isinstance(step.node, Reduce | Sink)]
    _check_clashes(name, saving, findings)
    _check_lengths(name, [step.name for step in saving], findings)
    _warn_of_case([step.name for step in saving], findings)


def _check_lengths(name: str, nodes: Sequence[str], findings: Findings) -> None:
    """The longest file of a node: a frame file that is not yet begun, of a long run on many receivers."""
    for node in nodes:
        length = len(f"{name}_{node}_1023_0000000.h5{NOT_STARTED}")
        if length > LONGEST:
            at: Path = ("name",) if len(name) > len(node) else ("nodes", node)
            message = f"files of node {_short(node)} would have names of {length} bytes, file systems take {LONGEST}"
            help = (
                f"`name` and the node's name together of at most {LONGEST - length + len(name) + len(node)} characters"
            )
            findings.error("name-too-long", message, at, on_key=at[0] == "nodes", help=help)
            if at == ("name",):
                return


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"


def _warn_of_case(nodes: Sequence[str], findings: Findings) -> None:
    first: dict[str, str] = {}
    for node in nodes:
        other = first.setdefault(node.casefold(), node)
        if other != node:
            findings.warning(
                "names-differ-in-case",
                f"files of nodes {other} and {node} differ in case only",
                ("nodes", node),
                on_key=True,
                notes=["where case does not count (disks of Windows and macOS) one replaces the other"],
                help=f"give {node} another name",
                related=[Related(("nodes", other), "the other")],
            )


def _check_clashes(name: str, steps: Sequence[Step], findings: Findings) -> None:
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
    if isinstance(step.node, Sink) and file == master_file(name, step.name):
        return True
    patterns = (frame_file_names(name, step.name), part_names(name, step.name))
    return any(pattern.fullmatch(file) for pattern in patterns[isinstance(step.node, Reduce) :])
