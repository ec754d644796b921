"""What a run leaves besides the frame files: masters, joined tables, and the file that links all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lima2cli.artefacts.channel import Channel, TableChannel
from lima2cli.artefacts.common_file import complete_common
from lima2cli.artefacts.counts import tells
from lima2cli.artefacts.file_names import master_file
from lima2cli.artefacts.flow_record import FlowRecord, cut_short, expected_rows, whole_windows
from lima2cli.artefacts.links import write_links
from lima2cli.artefacts.master import write_master
from lima2cli.artefacts.record import Record
from lima2cli.artefacts.status import last_row
from lima2cli.artefacts.tables import merge_tables
from lima2cli.plan.records import Plan
from lima2cli.runtime.accounts import ChannelAccount


def write_ends(
    plan: Plan,
    accounts: Mapping[str, ChannelAccount] | None,
    flows: Mapping[str, FlowRecord],
    beside: Mapping[str, Mapping[str, int]],
    directory: str,
    problems: list[str],
    start_ns: int | None = None,
) -> None:
    """Masters, tables, the linking file; each that fails is told, and does not keep the others from being written.

    Without accounts (nobody is left to give them) masters say what the ``flows`` say, if these are known; else they
    end with the last saved frame, and those that tell more are left as they are. ``beside`` are the counts of unmatched
    frames of each node behind joins, ``start_ns`` the start of the run, ns since the epoch, where files that hold no
    frames can't tell it.
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
    """Of the flows that feed a node those of which accounts are known."""
    return [flows[name] for name in channel.flows or (channel.flow,) if name in flows]


def _rebuilt(channel: Channel, flows: Mapping[str, FlowRecord]) -> dict[str, Any]:
    """What a master that is made without the ranks' reports says of its rows; see `write_master`."""
    record = Record.of(channel, "master")
    expected = expected_rows(record, flows)
    if expected is None:
        return {"totals": {} if record.planned < 0 else {"expected": record.planned}}
    told: dict[str, Any] = {"totals": {"expected": expected}}
    whole = not cut_short(record, {name: flow.expected for name, flow in flows.items()})
    if whole:
        told["rows"] = whole_windows(record, flows) if record.window > 1 else expected
    if channel.complete:
        flow = flows[channel.flow]
        told |= {"rows": expected if whole else last_row(flow, expected), "statuses": flow}
    return told


def ends_made(summary: Mapping[str, Any]) -> bool:
    """Whether the end of a run made all that a summary can name."""
    return None not in end_files(summary)


def end_files(summary: Mapping[str, Any]) -> list[str | None]:
    """Names of the files that the end of a run made; None for each that could not be made."""
    channels = [item["dataset"] and item["dataset"].partition("::")[0] for item in summary["channels"].values()]
    return [*channels, *(item["file"] for item in summary["tables"].values()), summary["file"]]


def link_file(plan: Plan, directory: Path) -> str | None:
    """The file that links all others; None where there is none."""
    name = f"{plan.name}.h5"
    return name if (directory / name).exists() else None


def table_file(plan: Plan, name: str, directory: Path) -> str | None:
    """The joined table of a node; None where there is none."""
    file = f"{plan.name}_{name}.h5"
    return file if (directory / file).exists() else None
