"""Data flows resolved: dataset, source, places of local buffers, policy."""

from collections.abc import Mapping
from dataclasses import replace

from lima2cli.config.dispatch import module_shares
from lima2cli.config.pipeline import DataFlow, Place
from lima2cli.config.records import Alignment, Buffers, Flow, Receiver
from lima2cli.diagnostics import Findings, Path, Related
from lima2cli.geometry import Rect
from lima2cli.names import did_you_mean, nearest
from lima2cli.poison import POISON, Poisoned, attempt
from lima2cli.spec import DetectorInfo


def resolve_flows(
    said: Mapping[str, Flow] | None, info: DetectorInfo, receivers: Mapping[str, Receiver], findings: Findings
) -> Mapping[str, DataFlow]:
    """The flows by name, in order; where none are said, a full flow per dataset, named after it."""
    if said is None:
        said = {dataset.name: Flow(dataset=dataset.name) for dataset in info.datasets}
    return {name: _resolve(name, flow, info, receivers, findings) for name, flow in said.items()}


def _resolve(
    name: str, flow: Flow, info: DetectorInfo, receivers: Mapping[str, Receiver], findings: Findings
) -> DataFlow:
    at: Path = ("flows", name)
    attempt(lambda: _check_alignment(flow.alignment, at, findings))
    attempt(lambda: _check_buffers(flow.buffers, at, findings))
    dataset = attempt(lambda: _dataset(flow, info, at, findings))
    source = attempt(lambda: _source(flow, info, at, findings))
    places = attempt(lambda: _places(flow.buffers.at, receivers, (*at, "buffers", "at"), findings))
    return DataFlow(
        name=name,
        said=attempt(lambda: replace(flow, dataset=info.datasets[dataset].name)),
        dataset=dataset,
        source=source,
        places=places,
        shares=attempt(lambda: module_shares(flow.dispatch, info, source, places, at, findings)),
        overrun=attempt(lambda: _overrun(flow, info, at, findings)),
    )


def _dataset(flow: Flow, info: DetectorInfo, at: Path, findings: Findings) -> int:
    names = [dataset.name for dataset in info.datasets]
    if flow.dataset is None and len(names) == 1:
        return 0
    if flow.dataset is None:
        message = f"`{at[-1]}` does not say which dataset it takes: the detector has {len(names)}"
        findings.error("missing-key", message, at, on_key=True, help=f"`dataset:` one of {', '.join(names)}")
        raise Poisoned
    if flow.dataset in names:
        return names.index(flow.dataset)
    message = f"the detector has no dataset `{flow.dataset}`"
    findings.error("unknown-dataset", message, (*at, "dataset"), help=did_you_mean(flow.dataset, names))
    raise Poisoned


def _source(flow: Flow, info: DetectorInfo, at: Path, findings: Findings) -> Rect:
    if flow.source == "full":
        return info.image
    source: Rect = flow.source.rect
    if not info.image.contains(source):
        findings.error(
            "roi-outside",
            f"the source of {at[-1]}, {source}, is not within the image of {info.width} x {info.height} pixels",
            (*at, "source"),
            help=f"x up to {info.width - 1}, y up to {info.height - 1}; "
            f"from ({source.x}, {source.y}) at most {max(0, info.width - source.x)} x "
            f"{max(0, info.height - source.y)}",
            related=[Related(("detector", info.kind, "image"), "full image")],
        )
        raise Poisoned
    return source


def _overrun(flow: Flow, info: DetectorInfo, at: Path, findings: Findings) -> str:
    policy = flow.overrun or ("wait" if info.can_wait else "stop")
    if policy == "wait" and not info.can_wait:
        message = f"the detector {info.name} cannot wait for receivers"
        findings.error("cannot-wait", message, (*at, "overrun"), help="`stop`, or `continue` and count what is lost")
        raise Poisoned
    return policy


def _places(
    said: tuple[str, ...] | str | None, receivers: Mapping[str, Receiver], at: Path, findings: Findings
) -> tuple[Place, ...]:
    """Where the local buffers lie, in rotation order."""
    if said is None:
        return tuple(Place(index, next(iter(it.memspaces))) for index, it in enumerate(receivers.values()))
    if isinstance(said, str):
        return _everywhere(said, receivers, at, findings)
    places = [attempt(lambda i=i, place=place: _place(place, receivers, (*at, i), findings))  # type: ignore[misc]
              for i, place in enumerate(said)]  # fmt: skip
    if any(place is POISON for place in places):
        raise Poisoned
    return tuple(places)


def _everywhere(memspace: str, receivers: Mapping[str, Receiver], at: Path, findings: Findings) -> tuple[Place, ...]:
    """That memspace on every receiver that has it."""
    places = tuple(Place(i, memspace) for i, it in enumerate(receivers.values()) if memspace in it.memspaces)
    if not places:
        names = dict.fromkeys(name for it in receivers.values() for name in it.memspaces)
        help = f"a single place is a list of one: [{memspace}]" if "." in memspace else did_you_mean(memspace, names)
        findings.error("unknown-memspace", f"no receiver has a memspace `{memspace}`", at, help=help)
        raise Poisoned
    return places


def _place(said: str, receivers: Mapping[str, Receiver], at: Path, findings: Findings) -> Place:
    """One `receiver.memspace`."""
    if said is POISON:
        raise Poisoned
    receiver, dot, memspace = said.partition(".")
    if not dot:
        owners = [name for name, it in receivers.items() if said in it.memspaces]
        help = f"`{(owners or [said])[0]}.{said if owners else '…'}`; without the brackets it means every receiver's"
        findings.error("unknown-receiver", f"expected `receiver.memspace`, got `{said}`", at, help=help)
    elif receiver not in receivers:
        meant = nearest(receiver, receivers)
        help = f"did you mean `{meant}.{memspace}`?" if meant else f"known: {', '.join(receivers)}"
        findings.error("unknown-receiver", f"there is no receiver `{receiver}`", at, help=help)
    elif memspace not in (known := receivers[receiver].memspaces):
        meant = nearest(memspace, known)
        help = f"did you mean `{receiver}.{meant}`?" if meant else f"known: {', '.join(known)}"
        findings.error("unknown-memspace", f"{receiver} has no memspace `{memspace}`", at, help=help)
    else:
        return Place(list(receivers).index(receiver), memspace)
    raise Poisoned


def _check_alignment(said: Alignment, at: Path, findings: Findings) -> None:
    for key in ("block", "row"):
        bits = getattr(said, key)
        if bits is not POISON and bits != 1 and bits % 8:
            message = f"an alignment is 1 bit or a multiple of 8 bits, got {bits}"
            findings.error("bad-alignment", message, (*at, "alignment", key))
    if 1 <= said.header <= 15:
        message = f"a header of {said.header} bytes cannot hold frame number and time, which take 16"
        findings.error("bad-header", message, (*at, "alignment", "header"), help="0, or at least 16")


def _check_buffers(said: Buffers, at: Path, findings: Findings) -> None:
    if said.size is not None and said.frames is not None:
        at = (*at, "buffers")
        related = [Related((*at, "size"), "the size")]
        findings.error("size-or-frames", "`size` and `frames` say the same twice", (*at, "frames"), related=related)


def warn_of_idle_receivers(
    receivers: Mapping[str, Receiver], flows: Mapping[str, DataFlow], findings: Findings
) -> None:
    """A receiver where no flow has a local buffer does nothing."""
    busy = {place.receiver for flow in flows.values() for place in flow.places}
    for index, name in enumerate(receivers):
        if index not in busy:
            message = f"{name} is idle: no flow has a local buffer there"
            findings.warning("idle-receiver", message, ("receivers", name), on_key=True)
