"""Files that a run leaves besides the frames: masters, joined tables, the file that links them, and their contents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lima2cli.accounting.account import ChannelAccount
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.files.common_file import complete_common
from lima2cli.files.master import write_master
from lima2cli.files.nexus import ENTRY, MEASUREMENT, ChannelRecord, master_file
from lima2cli.files.rows import SAVED, last_row
from lima2cli.files.run_file import FlowRecord, cut_short, expected_rows, whole_windows, write_links
from lima2cli.files.tables import merge_tables
from lima2cli.plan.ir import Plan

STEP = 1 << 20
"""Rows that are read at once."""


def saved_frames(master: str) -> int:
    """Return the number of frames that a master shows.

    Raises:
        OSError: it can't be read.
    """
    import h5py

    with h5py.File(master) as file:
        entry = file[ENTRY]
        status = entry[str(entry.attrs["default"]).rpartition("/")[0]]["frame_status"]
        return sum(int(np.count_nonzero(status[k : k + STEP] == SAVED)) for k in range(0, len(status), STEP))


def table_rows(table: str) -> int:
    """Return the number of rows of a table.

    Raises:
        OSError: it can't be read.
    """
    import h5py

    with h5py.File(table) as file:
        return len(file[f"{MEASUREMENT}/frame_number"])


def tells(master: str) -> bool:
    """Return whether a master is there that can be read and has the reasons why frames are not saved."""
    import h5py

    try:
        with h5py.File(master) as file:
            entry = file[ENTRY]
            detector = entry[str(entry.attrs["default"]).rpartition("/")[0]]
            return bool(detector["flow"].attrs["told"])
    except (OSError, RuntimeError, KeyError):
        return False


def write_ends(
    plan: Plan,
    accounts: Mapping[str, ChannelAccount] | None,
    flows: Mapping[str, FlowRecord],
    beside: Mapping[str, Mapping[str, int]],
    directory: str,
    problems: list[str],
    start_ns: int | None = None,
) -> None:
    """Write masters, tables and the linking file; each that fails is reported, and the others are still written.

    Without accounts (of ranks that died) masters have the statuses of the ``flows``, if these are known; else they end
    with the last saved frame, and those that have more are left as they are. ``beside`` are the counts of unmatched
    frames of each node behind joins, ``start_ns`` the start of the run, ns since the epoch, where files that hold no
    frames don't have it.
    """
    folder = Path(directory)
    for name, channel in plan.channels.items():
        write = complete_common if channel.layout == "common" else write_master
        own: dict[str, Any] = {"flows": _known(channel, flows), **beside.get(name, {})}
        try:
            if accounts is None and tells(str(folder / master_file(plan.name, name))):
                continue
            if accounts is None:
                write(channel, directory, **own, **_rebuilt(channel, flows))
            else:
                account = accounts[name]
                totals = account.flows[0].totals | {"expected": account.expected, "vetoed": account.vetoed}
                own |= {"rows": account.rows(), "statuses": account, "totals": totals, "start_ns": start_ns}
                write(channel, directory, **own)
        except (OSError, ValueError) as error:
            problems.append(f"master of {name}: {error}")
    for name, table in plan.tables.items():
        try:
            merge_tables(table, directory, flows=_known(table, flows), **beside.get(name, {}))
        except (OSError, ValueError) as error:
            problems.append(f"table of {name}: {error}")
    try:
        masters = [str(path) for name in plan.channels if (path := folder / master_file(plan.name, name)).exists()]
        tables = [str(folder / file) for name in plan.tables if (file := table_file(plan, name, folder))]
        write_links(plan.name, directory, masters, tables, list(flows.values()))
    except (OSError, ValueError) as error:
        problems.append(f"{plan.name}.h5: {error}")


def _known(channel: Channel | TableChannel, flows: Mapping[str, FlowRecord]) -> list[FlowRecord]:
    """Return the known accounts of the flows that feed a node."""
    return [flows[name] for name in channel.flows or (channel.flow,) if name in flows]


def _rebuilt(channel: Channel, flows: Mapping[str, FlowRecord]) -> dict[str, Any]:
    """Return what a master that is made without the ranks' reports has of its rows; see `write_master`."""
    record = ChannelRecord.of(channel, "master")
    expected = expected_rows(record, flows)
    if expected is None:
        return {"totals": {} if record.planned < 0 else {"expected": record.planned}}
    account: dict[str, Any] = {"totals": {"expected": expected}}
    whole = not cut_short(record, {name: flow.expected for name, flow in flows.items()})
    if whole:
        account["rows"] = whole_windows(record, flows) if record.window > 1 else expected
    if channel.complete:
        flow = flows[channel.flow]
        account |= {"rows": expected if whole else last_row(flow, expected), "statuses": flow}
    return account


def ends_made(summary: Mapping[str, Any]) -> bool:
    """Return whether the end of a run made all that a summary can name."""
    return None not in end_files(summary)


def end_files(summary: Mapping[str, Any]) -> list[str | None]:
    """Return the names of the files that the end of a run made; None for each that could not be made."""
    channels = [item["dataset"] and item["dataset"].partition("::")[0] for item in summary["channels"].values()]
    return [*channels, *(item["file"] for item in summary["tables"].values()), summary["file"]]


def link_file(plan: Plan, directory: Path) -> str | None:
    """Return the file that links all others; None where there is none."""
    name = f"{plan.name}.h5"
    return name if (directory / name).exists() else None


def table_file(plan: Plan, name: str, directory: Path) -> str | None:
    """Return the joined table of a node; None where there is none."""
    file = f"{plan.name}_{name}.h5"
    return file if (directory / file).exists() else None
