"""Live masters of an acquisition, kept as long as its rows by the control rank, which has nothing else to do."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lima2cli.accounting.acquisitions import LiveAcquisition
from lima2cli.facts import Facts
from lima2cli.files.disk import library_is_broken
from lima2cli.files.informed import informed
from lima2cli.files.live_master import LiveMaster, Template
from lima2cli.plan.ir import Plan

PERIOD_S = 0.5
"""Seconds from one writing of a master to the next; after a trigger it is written at once."""

SHARE = 20
"""Time from one writing to the next, in times of what it takes: on a slow disk it is done less often."""


@dataclass
class _Written:
    """A master, and from when on (`time.monotonic`) it may be written again."""

    master: LiveMaster
    due: float = 0.0


class LiveMasters:
    """Masters of the channels of a plan whose rows are known while it runs.

    warn  is told of one that can't be written: the run goes on without it
    """

    def __init__(self, plan: Plan, warn: Callable[[str], None]) -> None:
        self._plan, self._warn = plan, warn
        self._templates: dict[str, Template] = {}
        self._masters: dict[str, _Written] = {}
        self._number = 0

    def begin(self, acquisition: LiveAcquisition) -> None:
        """Make the masters of an acquisition that was announced; they have no rows."""
        self._masters, self._number = {}, acquisition.outcome.number
        for name, channel in self._plan.channels.items():
            if not channel.live or library_is_broken():
                continue
            try:
                master = LiveMaster(channel, os.path.abspath(acquisition.directory), self._templates.get(name))
            except OSError as error:
                self._give_up(name, error)
            else:
                self._templates[name] = master.template
                self._masters[name] = _Written(master)

    def move(self, directory: str) -> None:
        """Note that the directory of the acquisition that was announced last has been moved."""
        for written in self._masters.values():
            written.master.move(directory)

    def inform(self, acquisition: LiveAcquisition, facts: Facts) -> None:
        """Take what the detector knows of the acquisition into the next writing, but for its flat fields."""
        if acquisition.outcome.number != self._number or library_is_broken():
            return
        few = facts.without_flatfields()
        for name, written in list(self._masters.items()):
            try:
                written.master.describe(informed(self._plan.channels[name], few))
            except (OSError, ValueError) as error:
                self._give_up(name, error)

    def follow(self, acquisition: LiveAcquisition, rows: Mapping[str, int], *, now: bool) -> None:
        """Write the masters that have more rows, those that are due or, where ``now``, all."""
        if acquisition.outcome.number != self._number or library_is_broken():
            return
        for name, written in list(self._masters.items()):
            began = time.monotonic()
            if rows.get(name, 0) <= written.master.rows or (began < written.due and not now):
                continue
            try:
                written.master.write(rows[name], self._saved(acquisition, name), acquisition.outcome.start_ns)
            except (OSError, ValueError, KeyError) as error:
                self._give_up(name, error)
            ended = time.monotonic()
            written.due = ended + max(PERIOD_S, SHARE * (ended - began))

    def _saved(self, acquisition: LiveAcquisition, name: str) -> dict[int, int]:
        """Return the frames that each receiver, by index, has saved of a channel."""
        roles = {role.rank: role.receiver for role in self._plan.ranks if role.receiver is not None}
        return {roles[rank]: stats.saved.get(name, 0) for rank, stats in acquisition.stats.items() if rank in roles}

    def _give_up(self, name: str, error: Exception) -> None:
        """Leave a master as it is, until the end of the run writes the final one."""
        self._masters.pop(name, None)
        self._warn(f"the master of {name} does not grow during the run: {error}")
