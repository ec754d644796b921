"""Resolve data flows: dataset, source, local buffers, policy, and the modules that each receiver gets."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lima2cli.declare import params
from lima2cli.diagnostics import POISON, Findings, KeyPath, Poisoned, Related, attempt, did_you_mean, nearest
from lima2cli.frames import DetectorInfo
from lima2cli.geometry import Rect, bounding_box
from lima2cli.language.records import Alignment, BufferPlace, Buffers, Flow, ReceiverTable

Shares = tuple[tuple[int, ...], ...]


def module_shares(
    written: Any, info: DetectorInfo, source: Rect, places: Sequence[BufferPlace], at: KeyPath, findings: Findings
) -> Shares | None:
    """Return the module numbers of each place; None where places get whole frames.

    Without a list, place l of L gets the modules m of M with ``m * L // M == l``. The bounding boxes of the shares are
    what receivers hold: they must not overlap.

    Raises: Poisoned, after reporting it, where the shares are wrong.
    """
    if written == "frames":
        return None
    receivers = [place.receiver for place in places]
    if len(set(receivers)) < len(receivers):
        message = f"{at[-1]} sends parts of frames: each receiver may have only one place"
        findings.error("bad-dispatch", message, (*at, "buffers", "at"), help="one memspace of each receiver")
        raise Poisoned
    shares = _even(len(info.modules), len(places)) if written == "modules" else written.modules
    where: KeyPath = (*at, "dispatch") if written == "modules" else (*at, "dispatch", "modules")
    _check_numbers(shares, info, places, where, findings)
    boxes = [share_box(share, info, source) for share in shares]
    for place, box in enumerate(boxes):
        if not box.area:
            message = (
                f"place {place} of {at[-1]} gets modules {_listed(shares[place])}, which cover no pixel of its source"
            )
            findings.error("bad-dispatch", message, where, help="fewer places in `at`, or other modules for this one")
            raise Poisoned
    _check_apart(boxes, shares, info, source, where, findings)
    return shares


def share_box(share: Sequence[int], info: DetectorInfo, source: Rect) -> Rect:
    """Return the part of a source that some modules span; of area 0 where they cover none of it."""
    rects = [rect for module in share if (rect := info.modules[module]).area]
    return bounding_box(rects) & source if rects else Rect(source.x, source.y, 0, 0)


def _even(modules: int, places: int) -> Shares:
    return tuple(tuple(m for m in range(modules) if m * places // modules == place) for place in range(places))


def _check_numbers(
    shares: Shares, info: DetectorInfo, places: Sequence[BufferPlace], where: KeyPath, findings: Findings
) -> None:
    modules, flow = len(info.modules), where[1]
    named = [module for share in shares for module in share]
    problem = help = None
    if len(shares) != len(places):
        problem = f"{flow} has {len(places)} places, but modules for {len(shares)}"
        help = "a list of modules for each place of `at`"
    elif any(not share for share in shares):
        problem = f"{flow} has {len(places)} places for {modules} module{'s' * (modules != 1)}"
        help = "at most as many places as modules"
    elif unknown := [module for module in named if module >= modules]:
        problem, help = f"there is no module {unknown[0]}", f"modules are numbered from 0 to {modules - 1}"
    elif twice := [module for module in named if named.count(module) > 1]:
        problem = f"module {twice[0]} is given to more than one place"
    elif missing := sorted(set(range(modules)) - set(named)):
        problem, help = f"no place gets module{'s' * (len(missing) > 1)} {_listed(missing)}", "each module to one place"
    if problem is not None:
        findings.error("bad-dispatch", problem, where, help=help)
        raise Poisoned


def _check_apart(
    boxes: Sequence[Rect], shares: Shares, info: DetectorInfo, source: Rect, where: KeyPath, findings: Findings
) -> None:
    """Report receivers that hold the same pixels: both would count them."""
    for one, box in enumerate(boxes):
        for other, second in enumerate(boxes[:one]):
            if (box & second).area:
                message = (
                    f"the boxes around modules {_listed(shares[other])} ({second}) and {_listed(shares[one])} ({box}) "
                    "overlap"
                )
                findings.error("overlapping-shares", message, where, help=_proposal(len(shares), info, source))
                raise Poisoned


def _proposal(places: int, info: DetectorInfo, source: Rect) -> str:
    """Propose shares that do not overlap, along rows or along columns."""
    rects = info.modules
    for key in (lambda m: (rects[m].y, rects[m].x), lambda m: (rects[m].x, rects[m].y)):
        order = sorted(range(len(rects)), key=key)
        shares = [[order[i] for i in share] for share in _even(len(order), places)]
        boxes = [share_box(share, info, source) for share in shares]
        if all(box.area and not any((box & other).area for other in boxes[:i]) for i, box in enumerate(boxes)):
            return f"dispatch: {{modules: {shares}}}"
    return f"fewer places: {places} shares of these modules are always interleaved one way or another"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def resolve_flows(
    written: Mapping[str, Flow] | None, info: DetectorInfo, receivers: Mapping[str, ReceiverTable], findings: Findings
) -> Mapping[str, Flow]:
    """Return the flows by name, in order; where none are written, a full flow per dataset, named after it."""
    if written is None:
        written = {dataset.name: Flow(dataset=dataset.name) for dataset in info.datasets}
    return {name: _resolve(name, flow, info, receivers, findings) for name, flow in written.items()}


def _resolve(
    name: str, flow: Flow, info: DetectorInfo, receivers: Mapping[str, ReceiverTable], findings: Findings
) -> Flow:
    at: KeyPath = ("flows", name)
    if flow is POISON:
        unknown: dict[str, Any] = dict.fromkeys(("index", "rect", "places", "shares", *params(Flow)), POISON)
        return Flow(name=name, **unknown)
    attempt(lambda: _check_alignment(flow.alignment, at, findings))
    attempt(lambda: _check_buffers(flow.buffers, at, findings))
    rect = attempt(lambda: _source(flow, info, at, findings))
    places = attempt(lambda: _places(flow.buffers.at, receivers, (*at, "buffers", "at"), findings))
    return replace(
        flow,
        name=name,
        index=attempt(lambda: _dataset(flow, info, at, findings)),
        rect=rect,
        places=places,
        shares=attempt(lambda: module_shares(flow.dispatch, info, rect, places, at, findings)),
        overrun=attempt(lambda: _overrun(flow, info, at, findings)),
    )


def _dataset(flow: Flow, info: DetectorInfo, at: KeyPath, findings: Findings) -> int:
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


def _source(flow: Flow, info: DetectorInfo, at: KeyPath, findings: Findings) -> Rect:
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


def _overrun(flow: Flow, info: DetectorInfo, at: KeyPath, findings: Findings) -> str:
    policy = flow.overrun or ("wait" if info.can_wait else "stop")
    if policy == "wait" and not info.can_wait:
        message = f"the detector {info.name} cannot wait for receivers"
        findings.error("cannot-wait", message, (*at, "overrun"), help="`stop`, or `continue` and count what is lost")
        raise Poisoned
    return policy


def _places(
    written: tuple[str, ...] | str | None, receivers: Mapping[str, ReceiverTable], at: KeyPath, findings: Findings
) -> tuple[BufferPlace, ...]:
    """Return the places of the local buffers, in rotation order.

    Raises: Poisoned, after reporting it, where one is wrong.
    """
    if written is None:
        return tuple(BufferPlace(index, next(iter(table.memspaces))) for index, table in enumerate(receivers.values()))
    if isinstance(written, str):
        return _everywhere(written, receivers, at, findings)
    places = [attempt(lambda i=i, place=place: _place(place, receivers, (*at, i), findings))  # type: ignore[misc]
              for i, place in enumerate(written)]  # fmt: skip
    if any(place is POISON for place in places):
        raise Poisoned
    return tuple(places)


def _everywhere(
    memspace: str, receivers: Mapping[str, ReceiverTable], at: KeyPath, findings: Findings
) -> tuple[BufferPlace, ...]:
    """Return the places of a memspace on every receiver that has it.

    Raises: Poisoned, after reporting it, where no receiver has it.
    """
    places = tuple(BufferPlace(i, memspace) for i, each in enumerate(receivers.values()) if memspace in each.memspaces)
    if not places:
        names = dict.fromkeys(name for each in receivers.values() for name in each.memspaces)
        help = f"write a single place as a list: [{memspace}]" if "." in memspace else did_you_mean(memspace, names)
        findings.error("unknown-memspace", f"no receiver has a memspace `{memspace}`", at, help=help)
        raise Poisoned
    return places


def _place(reference: str, receivers: Mapping[str, ReceiverTable], at: KeyPath, findings: Findings) -> BufferPlace:
    """Return the place that `receiver.memspace` names.

    Raises: Poisoned, after reporting it, where it names none.
    """
    if reference is POISON:
        raise Poisoned
    receiver, dot, memspace = reference.partition(".")
    if not dot:
        owners = [name for name, table in receivers.items() if reference in table.memspaces]
        example = f"{(owners or [reference])[0]}.{reference if owners else '…'}"
        help = f"`{example}`; without the brackets it means every receiver's"
        findings.error("unknown-receiver", f"expected `receiver.memspace`, got `{reference}`", at, help=help)
    elif receiver not in receivers:
        nearest_name = nearest(receiver, receivers)
        help = f"did you mean `{nearest_name}.{memspace}`?" if nearest_name else f"known: {', '.join(receivers)}"
        findings.error("unknown-receiver", f"there is no receiver `{receiver}`", at, help=help)
    elif memspace not in (known := receivers[receiver].memspaces):
        nearest_name = nearest(memspace, known)
        help = f"did you mean `{receiver}.{nearest_name}`?" if nearest_name else f"known: {', '.join(known)}"
        findings.error("unknown-memspace", f"{receiver} has no memspace `{memspace}`", at, help=help)
    else:
        return BufferPlace(list(receivers).index(receiver), memspace)
    raise Poisoned


def _check_alignment(alignment: Alignment, at: KeyPath, findings: Findings) -> None:
    for key in ("block", "row"):
        bits = getattr(alignment, key)
        if bits is not POISON and bits != 1 and bits % 8:
            message = f"an alignment is 1 bit or a multiple of 8 bits, got {bits}"
            findings.error("bad-alignment", message, (*at, "alignment", key))
    if 1 <= alignment.header <= 15:
        message = f"a header of {alignment.header} bytes cannot hold frame number and time, which take 16"
        findings.error("bad-header", message, (*at, "alignment", "header"), help="0, or at least 16")


def _check_buffers(config: Buffers, at: KeyPath, findings: Findings) -> None:
    if config.size is not None and config.frames is not None:
        at = (*at, "buffers")
        related = [Related((*at, "size"), "the size")]
        findings.error("size-or-frames", "`size` and `frames` exclude each other", (*at, "frames"), related=related)


def warn_of_idle_receivers(
    receivers: Mapping[str, ReceiverTable], flows: Mapping[str, Flow], findings: Findings
) -> None:
    """Warn of receivers without a local buffer of any flow: they do nothing."""
    busy = {place.receiver for flow in flows.values() for place in flow.places}
    for index, name in enumerate(receivers):
        if index not in busy:
            message = f"{name} is idle: no flow has a local buffer there"
            findings.warning("idle-receiver", message, ("receivers", name), on_key=True)
