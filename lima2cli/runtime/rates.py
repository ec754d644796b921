"""Which rates a simulation tries: as asked, and one after another until the highest without loss is known. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lima2cli.plan.records import Gdt, Plan
from lima2cli.runtime.verdict import BUSY

SECONDS = 5.0
"""Of frames, where nothing else is said."""

UNPACED = 1000
"""Frames without a period, where nothing else is said."""

PROBE_S, PROBE_FRAMES = 1.5, 40
"""Of frames for each rate that is tried, and so many at least."""

CLOSE = 1.05
"""Two rates of this ratio are close enough."""

MOST_PROBES = 16


@dataclass(frozen=True)
class Probe:
    """A rate that was tried. ``kept_up`` None: the emulator could not send so fast; ``capacity_hz``: see `Verdict`."""

    hz: float
    kept_up: bool | None
    sustained_hz: float | None
    capacity_hz: float | None


@dataclass(frozen=True)
class MaxRate:
    """The highest rate that was found to be kept up with, None where there is none; ``bounded``: the next rate that was
    tried was not kept up with, so that it is the pipeline's limit, and not the emulator's."""

    hz: float | None
    bounded: bool


def next_rate(probes: Sequence[Probe], first: float) -> float | None:
    """The rate to try next, None when it is known.

    The first guess may be far off: what receivers were measured to do leads to the neighbourhood, then the interval is
    halved, in ratios. A rate that fails although receivers had time left is tried once more: it may have been the
    machine, which others use, too.
    """
    if not probes:
        return first
    if len(probes) >= MOST_PROBES:
        return None
    last = probes[-1]
    guess = last.capacity_hz or last.sustained_hz or last.hz
    if last.kept_up is False and last.hz < BUSY * guess and sum(probe.hz == last.hz for probe in probes) == 1:
        return last.hz
    low, high = bracket(probes)
    if high is None:
        return max(2 * last.hz, 0.9 * guess)
    if low is None:
        return min(0.9 * guess, high / 1.5)
    if high / low <= CLOSE:
        return None
    middle = math.sqrt(low * high)
    trusted = len(probes) % 2 == 0  # each other time only: what was measured may be far off
    return min(middle, max(1.2 * low, 1.1 * guess)) if trusted and high > 1.5 * low else middle


def bracket(probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    """The highest rate that was kept up with below the lowest that was not, and that one; None where there is none."""
    kept = {probe.hz for probe in probes if probe.kept_up}
    high = min((probe.hz for probe in probes if probe.hz not in kept), default=None)
    return max((hz for hz in kept if high is None or hz < high), default=None), high


def max_rate(probes: Sequence[Probe]) -> MaxRate:
    """What has been found."""
    low, high = bracket(probes)
    return MaxRate(low, any(probe.hz == high and probe.kept_up is False for probe in probes))


def enough_frames(plan: Plan, period_s: float | None) -> int:
    """Frames after which an overrun has shown: of `SECONDS`, and twice what the buffers hold.

    Where receivers are told at the end only, no more than the pipeline has: its buffers are made for these.
    """
    if plan.frames is not None and any(not gdt.group_event and not gdt.rule.bounded for gdt in plan.gdts):
        return plan.frames
    frames = UNPACED if period_s is None else math.ceil(SECONDS / period_s)
    depth = max(gdt.rule.step * gdt.rule.blocks * gdt.rule.depth * gdt.rule.buffers for gdt in plan.gdts)
    return whole_groups(plan.gdts, max(frames, 2 * depth))


def probe_frames(plan: Plan, hz: float) -> int:
    """Frames to try a rate with."""
    return min(enough_frames(plan, 1 / hz), whole_groups(plan.gdts, max(PROBE_FRAMES, math.ceil(PROBE_S * hz))))


def whole_groups(gdts: Sequence[Gdt], frames: int) -> int:
    """So many frames or a few more, that no flow has a group that no event would tell of, and each has two groups."""
    rules = [gdt.rule for gdt in gdts]
    start = max(rule.start for rule in rules)
    groups = max(gdt.rule.step * gdt.rule.blocks * gdt.rule.buffers * max(1, gdt.group_event) for gdt in gdts)
    need = [
        rule.step * rule.blocks * rule.buffers * gdt.group_event
        for gdt, rule in zip(gdts, rules, strict=True)
        if not gdt.end_event and not rule.bounded
    ]
    unit = math.lcm(*need) if need else 1
    return start + -(-max(frames - start, 2 * groups) // unit) * unit
