"""The processing graph resolved: what each node reads, in topological order."""

from collections.abc import Iterable, Mapping

from lima2cli.config.pipeline import DataFlow, GraphNode
from lima2cli.diagnostics import Findings, Related
from lima2cli.names import did_you_mean
from lima2cli.nodes.base import Map
from lima2cli.nodes.kinds import NodeUse
from lima2cli.poison import POISON, Poisoned, attempt
from lima2cli.spec import DetectorInfo


def resolve_nodes(
    uses: Mapping[str, NodeUse], flows: Mapping[str, DataFlow], info: DetectorInfo, findings: Findings
) -> Mapping[str, GraphNode]:
    """The nodes, each after the one that it reads."""
    attempt(lambda: _check_names(uses, flows, findings))
    sources = {name: attempt(lambda n=name: _source(n, uses, flows, info, findings)) for name in uses}  # type: ignore[misc]
    parents = {
        name: source
        for name, source in sources.items()
        if source is not POISON and source in uses and (flows is POISON or source not in flows)
    }
    for cycle in _cycles(parents):
        _report_cycle(cycle, findings)
        for name in cycle:
            sources[name] = POISON
            del parents[name]
    attempt(lambda: _warn_of_unused(uses, flows, sources, findings))
    nodes: dict[str, GraphNode] = {}
    for name in _in_order(uses, parents):
        flow = nodes[parents[name]].flow if name in parents else sources[name]
        nodes[name] = GraphNode(name, sources[name], flow, attempt(lambda n=name: uses[n].node))  # type: ignore[misc]
    return nodes


def _check_names(uses: Mapping[str, NodeUse], flows: Mapping[str, DataFlow], findings: Findings) -> None:
    """Flows and nodes share one namespace."""
    for name in uses:
        if name in flows:
            related = [Related(("flows", name), "the flow")]
            message = f"`{name}` is the name of a flow and of a node"
            findings.error("name-taken", message, ("nodes", name), on_key=True, related=related)


def _source(
    name: str, uses: Mapping[str, NodeUse], flows: Mapping[str, DataFlow], info: DetectorInfo, findings: Findings
) -> str:
    """The name of what a node reads."""
    source = uses[name].input
    if source in uses or source in flows:
        return source
    known = [*flows, *(other for other in uses if other != name)]
    carriers = attempt(lambda: _carriers(source, flows, info))
    help = carriers if isinstance(carriers, str) else did_you_mean(source, known)
    message = f"`{name}` reads `{source}`, which is neither a flow nor a node"
    findings.error("unknown-input", message, ("nodes", name, "input"), help=help)
    raise Poisoned


def _carriers(source: str, flows: Mapping[str, DataFlow], info: DetectorInfo) -> str | None:
    """Help where a dataset is named as an input: the flows that carry it."""
    names = [dataset.name for dataset in info.datasets]
    if source not in names:
        return None
    index = names.index(source)
    carriers = [name for name, flow in flows.items() if flow is not POISON and flow.dataset is not POISON
                and flow.dataset == index]  # fmt: skip
    if not carriers:
        return f"`{source}` is a dataset, and no flow carries it"
    return f"`{source}` is a dataset; flows that carry it: {', '.join(carriers)}"


def _cycles(parents: Mapping[str, str]) -> list[list[str]]:
    """Each cycle once, from its first node in file order along the data: where ``a`` reads ``b``, b comes before a."""
    cycles: list[list[str]] = []
    done: set[str] = set()
    for start in parents:
        trail: dict[str, None] = {}
        name = start
        while name in parents and name not in done and name not in trail:
            trail[name] = None
            name = parents[name]
        if name in trail:
            around = list(trail)[list(trail).index(name) :]
            cycles.append([name, *reversed(around[1:])])
        done |= trail.keys()
    return cycles


def _report_cycle(cycle: list[str], findings: Findings) -> None:
    words = " → ".join([*cycle, cycle[0]])
    related = [Related(("nodes", name, "input"), f"{name} reads the one before") for name in cycle[1:]]
    message = f"cycle: {words}"
    help = "a node cannot read what is made from its own output"
    findings.error("cycle", message, ("nodes", cycle[0], "input"), related=related, help=help)


def _in_order(names: Iterable[str], parents: Mapping[str, str]) -> list[str]:
    """Names as written, but each after its parent. There are no cycles any more."""
    done: dict[str, None] = {}
    for start in names:
        chain: list[str] = []
        name: str | None = start
        while name is not None and name not in done:
            chain.append(name)
            name = parents.get(name)
        done |= dict.fromkeys(reversed(chain))
    return list(done)


def _warn_of_unused(
    uses: Mapping[str, NodeUse], flows: Mapping[str, DataFlow], sources: Mapping[str, str], findings: Findings
) -> None:
    """What nobody reads. A bad input may have meant any of them, so that nothing is said then."""
    read = set(sources.values())
    for name in flows:
        if name not in read:
            findings.warning("unused-flow", f"no node reads the flow `{name}`", ("flows", name), on_key=True)
    for name, use in uses.items():
        if name not in read and isinstance(attempt(lambda u=use: u.node), Map):  # type: ignore[misc]
            message = f"nobody reads the output of `{name}`"
            findings.warning("unused-node", message, ("nodes", name), on_key=True)
