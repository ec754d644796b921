"""Which modules each place of a flow gets, where receivers hold parts of frames (`dispatch: modules`)."""

from collections.abc import Sequence
from typing import Any

from lima2cli.config.pipeline import Place
from lima2cli.diagnostics import Findings, Path
from lima2cli.geometry import Rect, bounding_box
from lima2cli.poison import Poisoned
from lima2cli.spec import DetectorInfo

Shares = tuple[tuple[int, ...], ...]


def module_shares(
    said: Any, info: DetectorInfo, source: Rect, places: Sequence[Place], at: Path, findings: Findings
) -> Shares | None:
    """Module numbers of each place; None where places get whole frames.

    Without a list, place l of L gets the modules m of M with ``m * L // M == l``. The bounding boxes of the shares
    are what receivers hold: they must not overlap.
    """
    if said == "frames":
        return None
    receivers = [place.receiver for place in places]
    if len(set(receivers)) < len(receivers):
        message = f"{at[-1]} sends parts of frames: each receiver is a place once"
        findings.error("bad-dispatch", message, (*at, "buffers", "at"), help="one memspace of each receiver")
        raise Poisoned
    shares = _even(len(info.modules), len(places)) if said == "modules" else said.modules
    where: Path = (*at, "dispatch") if said == "modules" else (*at, "dispatch", "modules")
    _check_numbers(shares, info, places, where, findings)
    boxes = [share_box(share, info, source) for share in shares]
    for place, box in enumerate(boxes):
        if not box.area:
            message = (
                f"place {place} of {at[-1]} gets modules {_listed(shares[place])}, which see nothing of its source"
            )
            findings.error("bad-dispatch", message, where, help="fewer places in `at`, or other modules for this one")
            raise Poisoned
    _check_apart(boxes, shares, info, source, where, findings)
    return shares


def share_box(share: Sequence[int], info: DetectorInfo, source: Rect) -> Rect:
    """The part of a source that some modules span; of area 0 where they see nothing of it."""
    seen = [rect for module in share if (rect := info.modules[module]).area]
    return bounding_box(seen) & source if seen else Rect(source.x, source.y, 0, 0)


def _even(modules: int, places: int) -> Shares:
    return tuple(tuple(m for m in range(modules) if m * places // modules == place) for place in range(places))


def _check_numbers(
    shares: Shares, info: DetectorInfo, places: Sequence[Place], where: Path, findings: Findings
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
    boxes: Sequence[Rect], shares: Shares, info: DetectorInfo, source: Rect, where: Path, findings: Findings
) -> None:
    """Two receivers that hold the same pixels would both count them."""
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
    """Shares that do not overlap, along rows or along columns."""
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
