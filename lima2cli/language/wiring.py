"""Resolve the processing graph: the sources of each node, in topological order.

A node reads frames of flows and nodes, and may read rows of nodes, too. Both are edges of the graph.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from lima2cli.diagnostics import POISON, Findings, KeyPath, Poisoned, Related, attempt, did_you_mean
from lima2cli.errors import NodeMisuse
from lima2cli.frames import DetectorInfo
from lima2cli.language.records import Flow, GraphNode
from lima2cli.nodes.base import Map, Reduce, Select
from lima2cli.nodes.registry import NodeUse

N = TypeVar("N", bound=Hashable)


Edges = Sequence[tuple[KeyPath, str]]
"""Sources of a node, frames and rows, each by the place below the node where it is named."""


def resolve_nodes(
    uses: Mapping[str, NodeUse], flows: Mapping[str, Flow], info: DetectorInfo, findings: Findings
) -> Mapping[str, GraphNode]:
    """Return the nodes, each after those that it reads."""
    attempt(lambda: _check_names(uses, flows, findings))
    reads = {name: attempt(lambda n=name: _reads(n, uses, flows, info, findings)) for name in uses}  # type: ignore[misc]
    tables = {name: attempt(lambda n=name: _tables(n, uses, flows, findings)) for name in uses}  # type: ignore[misc]
    edges = {name: attempt(lambda n=name: [*reads[n].items(), *tables[n]]) for name in uses}  # type: ignore[misc]
    parents: dict[str, tuple[str, ...]] = {
        name: tuple(
            dict.fromkeys(source for _, source in read if source in uses and (flows is POISON or source not in flows))
        )
        for name, read in edges.items()
        if read is not POISON
    }
    for cycle in find_cycles(parents):
        _report_cycle(cycle, edges, findings)
        for name in cycle:
            edges[name] = POISON
            parents.pop(name, None)
    attempt(lambda: _warn_of_unused(uses, flows, edges, findings))
    nodes: dict[str, GraphNode] = {}
    for name in _in_order(uses, parents):
        read: Any = POISON if edges[name] is POISON else reads[name]
        flow = attempt(lambda n=name, r=read: _flow(n, r, nodes, findings))  # type: ignore[misc]
        read = POISON if flow is POISON else read
        rows = attempt(lambda n=name: tuple(table for _, table in tables[n]))  # type: ignore[misc]
        nodes[name] = GraphNode(name, read, flow, attempt(lambda n=name: uses[n].node), rows)  # type: ignore[misc]
    return nodes


def _flow(name: str, reads: Mapping[KeyPath, str], nodes: Mapping[str, GraphNode], findings: Findings) -> str:
    """Return the flow that feeds a node, through its first input."""
    flows = [nodes[source].flow if source in nodes else source for source in reads.values()]
    return flows[0]


def _check_names(uses: Mapping[str, NodeUse], flows: Mapping[str, Flow], findings: Findings) -> None:
    """Report names that a flow and a node share: both are of one namespace."""
    for name in uses:
        if name in flows:
            related = [Related(("flows", name), "the flow")]
            message = f"`{name}` is the name of a flow and of a node"
            findings.error("name-taken", message, ("nodes", name), on_key=True, related=related)


def _reads(
    name: str, uses: Mapping[str, NodeUse], flows: Mapping[str, Flow], info: DetectorInfo, findings: Findings
) -> Mapping[KeyPath, str]:
    """Return the names of a node's sources, by place; every unknown one is reported.

    Raises: Poisoned, after reporting it, where one is unknown.
    """
    read = {
        place: attempt(lambda p=place, s=source: _source(name, p, s, uses, flows, info, findings))  # type: ignore[misc]
        for place, source in uses[name].reads.items()
    }
    if not read or any(source is POISON for source in read.values()):
        raise Poisoned
    return read


def _source(
    name: str,
    place: KeyPath,
    source: str,
    uses: Mapping[str, NodeUse],
    flows: Mapping[str, Flow],
    info: DetectorInfo,
    findings: Findings,
) -> str:
    if source in uses or source in flows:
        return source
    known = [*flows, *(other for other in uses if other != name)]
    carriers = attempt(lambda: _carriers(source, flows, info))
    help = carriers if isinstance(carriers, str) else did_you_mean(source, known)
    message = f"`{name}` reads `{source}`, which is neither a flow nor a node"
    findings.error("unknown-input", message, ("nodes", name, *place), help=help)
    raise Poisoned


def _tables(name: str, uses: Mapping[str, NodeUse], flows: Mapping[str, Flow], findings: Findings) -> Edges:
    """Return the nodes of which a node reads rows; every one that has none is reported.

    Raises: Poisoned, after reporting it, where one has no rows.
    """
    node = uses[name].node
    if not isinstance(node, Select):
        return ()
    try:
        tables = node.tables
    except NodeMisuse as misfit:
        findings.error(misfit.rule, misfit.message, ("nodes", name, node.kind, *misfit.key), help=misfit.help)
        raise Poisoned from misfit
    place: KeyPath = (node.kind, node.names_in)
    known = [_gives_rows(name, place, table, uses, flows, findings) for table in tables]
    if not all(known):
        raise Poisoned
    return [(place, table) for table in tables]


def _gives_rows(
    name: str,
    place: KeyPath,
    table: str,
    uses: Mapping[str, NodeUse],
    flows: Mapping[str, Flow],
    findings: Findings,
) -> bool:
    """Return True if there are rows of that name; else report it. A bad node may have been meant to have some."""
    nodes = {other: attempt(lambda u=use: u.node) for other, use in uses.items()}  # type: ignore[misc]
    if table in nodes and (nodes[table] is POISON or isinstance(nodes[table], Reduce)):
        return True
    help = did_you_mean(table, [other for other, node in nodes.items() if isinstance(node, Reduce)])
    if table in uses or table in flows:
        message = f"`{name}` reads rows of `{table}`, which has none"
        findings.error("edge-mismatch", message, ("nodes", name, *place), help=help)
    else:
        message = f"`{name}` reads rows of `{table}`, which is not a node"
        findings.error("unknown-input", message, ("nodes", name, *place), help=help)
    return False


def _carriers(source: str, flows: Mapping[str, Flow], info: DetectorInfo) -> str | None:
    """Return help where a dataset is named as an input: the flows that carry it."""
    names = [dataset.name for dataset in info.datasets]
    if source not in names:
        return None
    index = names.index(source)
    carriers = [name for name, flow in flows.items() if flow.index is not POISON and flow.index == index]  # fmt: skip
    if not carriers:
        return f"`{source}` is a dataset, and no flow carries it"
    return f"`{source}` is a dataset; flows that carry it: {', '.join(carriers)}"


def find_cycles(parents: Mapping[N, Sequence[N]]) -> list[list[N]]:
    """Return the cycles, each from its first node in file order, along the data: a reader comes after its source.

    Without the nodes of these cycles the graph has none.
    """
    cycles: list[list[N]] = []
    done: set[N] = set()
    for start in parents:
        trail = {start: iter(parents[start])} if start not in done else {}
        while trail:
            name = next(reversed(trail))
            source = next(trail[name], None)
            if source is None:
                del trail[name]
                done.add(name)
            elif source in trail:
                around = list(trail)[list(trail).index(source) :]
                cycles.append([source, *reversed(around[1:])])
            elif source in parents and source not in done:
                trail[source] = iter(parents[source])
    return cycles


def _report_cycle(cycle: list[str], edges: Mapping[str, Edges], findings: Findings) -> None:
    def place(name: str, before: str) -> KeyPath:
        """Return the place where a node names its predecessor."""
        read = edges[name]
        if read is POISON:  # of another cycle, too
            return ("nodes", name)
        return ("nodes", name, *next(place for place, source in read if source == before))

    words = " → ".join([*cycle, cycle[0]])
    related = [Related(place(name, before), f"{name} reads the previous node") for before, name in pairwise(cycle)]
    message = f"cycle: {words}"
    help = "a node cannot read what is made from its own output"
    findings.error("cycle", message, place(cycle[0], cycle[-1]), related=related, help=help)


def _in_order(names: Iterable[str], parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names as written, but each after its parents. Cycles have been removed before."""
    done: dict[str, None] = {}
    for start in names:
        ahead = [start]
        while ahead:
            missing = [parent for parent in parents.get(ahead[-1], ()) if parent not in done]
            if missing:
                ahead.append(missing[0])
            else:
                done[ahead.pop()] = None
    return list(done)


def _warn_of_unused(
    uses: Mapping[str, NodeUse],
    flows: Mapping[str, Flow],
    edges: Mapping[str, Edges],
    findings: Findings,
) -> None:
    """Warn of flows and nodes that are unused; not where a bad input may have meant any of them."""
    read = {source for sources in edges.values() for _, source in sources}
    for name in flows:
        if name not in read:
            findings.warning("unused-flow", f"no node reads the flow `{name}`", ("flows", name), on_key=True)
    for name, use in uses.items():
        if name not in read and isinstance(attempt(lambda u=use: u.node), Map | Select):  # type: ignore[misc]
            message = f"the output of `{name}` is unused"
            findings.warning("unused-node", message, ("nodes", name), on_key=True)
