"""Words that shells complete: runs and their nodes, kinds, rules, keys. Names of files the shell completes itself."""

from collections.abc import Iterable
from contextlib import suppress

import typer

from lima2cli.errors import Lima2Error

LATEST = "latest"


def run_names(incomplete: str) -> list[str]:
    """Return the runs below ``runs`` whose names begin so."""
    from pathlib import Path

    from lima2cli.runs.directory import RUNS
    from lima2cli.runs.saved_plan import PLAN_FILE

    found = [file.parent.name for file in sorted(Path(RUNS).glob(f"*/{PLAN_FILE}"))]
    return _beginning(sorted(found, key=lambda name: name != LATEST), incomplete)


def node_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the nodes that have saved something in the run of the command, by default the latest."""
    from lima2cli.runs.directory import find_run
    from lima2cli.runs.ending import record_of

    with suppress(Lima2Error, OSError):
        # of a line that ends in an option without its value, the arguments before it are not yet parameters
        known = [*context.args[:1], *(context.params.get(name) for name in ("first", "run", "source"))]
        record = record_of(find_run(next((name for name in known if name), LATEST)))
        return _beginning([*record.channels, *record.tables], incomplete)
    return []


def runs_and_nodes(context: typer.Context, incomplete: str) -> list[str]:
    """Return names of runs, and of nodes of the latest one."""
    return [*run_names(incomplete), *node_names(context, incomplete)]


def node_kinds(incomplete: str) -> list[str]:
    """Return the kinds of node."""
    from lima2cli.nodes.registry import NODES

    return _beginning(NODES.all(), incomplete)


def detector_kinds(incomplete: str) -> list[str]:
    """Return the kinds of detector."""
    from lima2cli.detectors.base import DETECTORS

    return _beginning(DETECTORS.all(), incomplete)


def scaffolds(incomplete: str) -> list[str]:
    """Return how an expression of `lima2 new` goes on: ``DETECTOR/``, then kinds of node after the last comma."""
    detector, slash, nodes = incomplete.partition("/")
    if not slash:
        return [f"{kind}/" for kind in detector_kinds(detector)]
    before, comma, last = nodes.rpartition(",")
    return [f"{detector}/{before}{comma}{kind}" for kind in node_kinds(last)]


def rules_and_keys(incomplete: str) -> list[str]:
    """Return the rules of diagnostics, and keys of the language down to the next dot."""
    from lima2cli.cli.explanations import rules

    return _beginning([*_keys(incomplete), *rules()], incomplete)


def key_paths(incomplete: str) -> list[str]:
    """Return the paths of keys that ``--set`` may replace, down to the next dot; nothing for values and own names."""
    if "=" in incomplete:
        return []
    return _beginning([f"{path}{'.' if below else '='}" for path, below in _keys(incomplete).items()], incomplete)


def _keys(incomplete: str) -> dict[str, bool]:
    """Return the keys where the last step of a path stands, and whether there are any below each."""
    from lima2cli.cli.explanations import ITEM, NAME, Entry, UnknownKey, find
    from lima2cli.language.schema import complete_shape

    parent = incomplete.rpartition(".")[0]
    root = complete_shape()[0]
    try:
        entry = find(root, parent) if parent else Entry("", "", root)
    except UnknownKey:
        return {}
    before = f"{parent}." if parent else ""
    return {before + key: bool(one.below()) for key, one in entry.below().items() if key not in (NAME, ITEM)}


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
