"""Whether what a run writes fits on the disk."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lima2cli.errors import EnvironmentUnfit
from lima2cli.human import volume_text
from lima2cli.plan.records import Plan
from lima2cli.plan.volume import volumes
from lima2cli.runtime.job_events import said
from lima2cli.runtime.placement import elsewhere
from lima2cli.transport.mapped import allocated


@dataclass(frozen=True)
class Need:
    """Bytes that will be written where ``folder`` is, in words; ``less``: or fewer."""

    words: str
    bytes: int
    less: bool
    folder: Path


def output_folder(template: str) -> Path:
    """The folder in which run directories are made, as far as it exists."""
    return existing(Path(template.partition("{")[0] + "x").parent)


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def needs(plan: Plan, base: Path) -> Iterator[Need]:
    """All that is known before: frames, and memspaces in files as far as these are not there yet. ``base`` resolves
    names of files."""
    folder, away = output_folder(plan.output_directory), elsewhere(plan)
    for volume in volumes(plan):
        if volume.bytes is not None:
            yield Need(str(volume), volume.bytes, volume.less, folder)
    for region in plan.regions:
        if region.path is not None and region.receiver not in away:
            path = base / region.path
            size = max(0, region.size - allocated(path))
            name = f"memspace {region.name} of {plan.receivers[region.receiver]}"
            yield Need(f"{name} {volume_text(size)}", size, False, existing(path.parent))


def check_disk(plan: Plan, base: Path) -> list[str]:
    """Raise `EnvironmentUnfit`, with the arithmetic, where a disk has no room for what will surely be written; warnings
    where it may have none, if compression is poor."""
    warnings = []
    by_disk: dict[int, list[Need]] = {}
    for need in needs(plan, base):
        by_disk.setdefault(os.stat(need.folder).st_dev, []).append(need)
    for wanted in by_disk.values():
        folder, free = wanted[0].folder, shutil.disk_usage(wanted[0].folder).free
        sure, most = sum(it.bytes for it in wanted if not it.less), sum(it.bytes for it in wanted)
        has = f"{folder.resolve()} has {volume_text(free)} free"
        if sure > free:
            terms = " + ".join(it.words for it in wanted if not it.less)
            raise EnvironmentUnfit(
                f"the run writes {volume_text(sure)} ({terms}), {has}; another disk, or fewer frames"
            )
        if most > free:
            terms = " + ".join(it.words for it in wanted)
            warnings.append(f"the run writes up to {volume_text(most)} before compression ({terms}), {has}")
    return warnings


def free(plan: Plan) -> str:
    """What is free where runs go, the last line of a plan for people; empty where nothing is saved."""
    return f"  {_free(plan)}\n" if plan.channels else ""


def _free(plan: Plan) -> str:
    folder = output_folder(plan.output_directory)
    return f"{folder.resolve()} has {volume_text(shutil.disk_usage(folder).free)} free"


def tell_of_disk(plan: Plan, warnings: Sequence[str], emit: Callable[[dict[str, Any]], None]) -> None:
    """Say at the start of a run what it saves, what is free, and what `check_disk` warns of."""
    if found := volumes(plan):
        less = " before compression" if any(it.less for it in found) else ""
        emit(said("disk", f"to be saved{less}: {', '.join(map(str, found))}; {_free(plan)}"))
    for warning in warnings:
        emit(said("warning", f"warning: {warning}"))
