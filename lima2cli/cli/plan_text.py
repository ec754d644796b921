"""A plan for people to read."""

from collections.abc import Iterable, Sequence
from typing import Any

from lima2cli.frames import Invalid
from lima2cli.kernels.masked import words
from lima2cli.plan.figures import (
    gdt_figures,
    kernel_figures,
    link_figures,
    slack_s,
    unused_nodes,
    volumes,
    waiting,
)
from lima2cli.plan.ir import Gdt, Placement, Plan
from lima2cli.plan.prediction import Limits, Prediction
from lima2cli.units import count_text, hertz_text, rate_text, seconds_text, size_text, volume_text


def show_plan(plan: Plan) -> str:
    """Return ranks, flows, local buffers, memory, rates, nodes, kernels of a plan, in lines."""
    sections = [
        _head(plan),
        _taken(plan),
        _ranks(plan),
        _flows(plan),
        _buffers(plan),
        _memory(plan),
        _rates(plan),
        _nodes(plan),
        _kernels(plan),
        _volume(plan),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(plan: Plan) -> str:
    frames = "until stopped" if plan.frames is None else f"{count_text(plan.frames)} frames"
    pace = "as fast as the slowest part allows" if plan.period_s is None else hertz_text(1 / plan.period_s, 6)
    info = plan.info
    head = (
        f"{plan.name}: {info.name} {info.width} x {info.height}, {len(info.modules)} "
        f"module{'s' * (len(info.modules) != 1)}, {frames}, {pace}"
    )
    invalid = [f"{dataset.name}: {words(dataset.invalid)}" for dataset in info.datasets if dataset.invalid != Invalid()]
    return head + f"\npixels without a measurement hold {'; '.join(invalid)}" * bool(invalid)


def _taken(plan: Plan) -> str:
    """Return what of the detector's description was taken from a file and is not in the pipeline."""
    return (
        "taken from the file\n" + "\n".join(f"  {line}" for line in plan.info.sensor.taken)
        if plan.info.sensor.taken
        else ""
    )


def _ranks(plan: Plan) -> str:
    rows = []
    for role in plan.ranks:
        if role.role == "control":
            rows.append((str(role.rank), "control", ""))
        elif role.role == "detector":
            rows.append((str(role.rank), "detector", "module " + _compact(role.modules)))
        elif role.worker is not None:
            rows.append((str(role.rank), "worker", role.worker))
        else:
            assert role.receiver is not None
            flows = [gdt.name for gdt in plan.gdts if role.receiver in gdt.receivers]
            threads = plan.threads[role.receiver]
            work = f"{plan.receivers[role.receiver]}: {', '.join(flows) or 'idle'}"
            work += f", {threads} threads" if threads > 1 else ""
            rows.append((str(role.rank), "receiver", work + _placement(plan.placement_of(role))))
    return "ranks\n" + _table(rows)


def _placement(it: Placement) -> str:
    place = f", on {it.host}" if it.host is not None else ""
    place += f", CPU{'s' * (len(it.cpus) > 1)} {', '.join(map(str, it.cpus))}" if it.cpus else ""
    return place + (f", NUMA node {it.numa}" if it.numa is not None else "")


def _flows(plan: Plan) -> str:
    rows = [("flow", "dataset", "source", "frames", "block", "group", "events", "overrun")]
    for gdt in plan.gdts:
        last = "…" if gdt.selected is None else str(gdt.rule.frame(gdt.selected - 1))
        step = f" step {gdt.rule.step}" if gdt.rule.step > 1 else ""
        count = "endless" if gdt.selected is None else count_text(gdt.selected)
        rows.append(
            (
                gdt.name,
                gdt.dataset_name,
                ("full " if gdt.full else "") + str(gdt.source),
                f"{count} ({gdt.rule.start}..{last}{step})",
                size_text(gdt.layout.stride),
                f"{gdt.rule.blocks}",
                _events(gdt),
                gdt.overrun,
            )
        )
    return "data flows\n" + _table(rows) + "".join(_packed(plan, gdt) for gdt in plan.gdts if gdt.packed)


def _packed(plan: Plan, gdt: Gdt) -> str:
    """Return how frames travel that the detector has compressed, and which nodes take them as they are."""
    nodes = plan.takes_as_sent(gdt.flow)
    taken = f", and taken as they are by {', '.join(nodes)}" if nodes else ""
    read = ", unpacked by receivers" if plan.reads_pixels(gdt.flow) else ""
    return f"\n  {gdt.name}: frames travel as the detector compresses them ({gdt.packed}){read}{taken}"


def _events(gdt: Gdt) -> str:
    words = [f"every {gdt.group_event} groups" if gdt.group_event > 1 else "every group"] if gdt.group_event else []
    return " + ".join(words + (["end"] if gdt.end_event else []))


def _buffers(plan: Plan) -> str:
    rows = [("flow", "local buffers", "slots", "groups", "slack", "frames per receiver")]
    for gdt in plan.gdts:
        places = ", ".join(f"{plan.receivers[b.receiver]}.{plan.regions[b.region].name}" for b in gdt.buffers)
        slack = slack_s(plan, gdt)
        figures: dict[str, Any] = gdt_figures(plan, gdt)
        shares = figures["blocks_per_receiver"]
        rows.append(
            (
                gdt.name,
                f"{size_text(gdt.buffer_size)} in {places}",
                str(gdt.rule.slots),
                f"{gdt.rule.depth}",
                seconds_text(slack, 4),
                "endless" if shares is None else " + ".join(map(count_text, shares.values())),
            )
        )
    return "local buffers\n" + _table(rows) + "".join(_unreleased(plan, gdt) for gdt in plan.gdts)


def _unreleased(plan: Plan, gdt: Gdt) -> str:
    """Return what is missing in the slack."""
    slack = waiting(plan, gdt)
    if not slack.nodes:
        return ""
    frames = f"{count_text(slack.frames)} frame{'s' * (slack.frames != 1)}"
    return f"\n  {gdt.name}: up to {frames} wait for other flows or receivers, at {', '.join(slack.nodes)}"


def _memory(plan: Plan) -> str:
    rows = []
    for region in plan.regions:
        kind: str = region.kind
        if region.device is not None:
            kind = f"{region.asked} {region.device}{', else host' if region.fallback else ''}"
        share = 100 * region.used / region.size if region.size else 0
        name = f"{plan.receivers[region.receiver]}.{region.name}"
        rows.append((name, kind, f"{size_text(region.used)} of {size_text(region.size)}", f"{share:.0f} %"))
    return "memory\n" + _table(rows)


def _rates(plan: Plan) -> str:
    if plan.period_s is None:
        return ""
    links = link_figures(plan)
    rows = [(name, rate_text(rate)) for name, rate in links["receivers"].items()]
    rows += [(f"module {name}", rate_text(rate)) for name, rate in links["modules"].items()]
    return "rates (into receivers, out of modules)\n" + _table(rows)


def _nodes(plan: Plan) -> str:
    rows = []
    for step in plan.steps:
        receivers = ", ".join(plan.receivers[r] for r in dict.fromkeys(step.numbering.receivers))
        receivers += ", together" if step.collective else ""
        rows.append((step.name, step.node.kind, step.node.role, f"{', '.join(step.sources)} → {step.after}", receivers))
    return "nodes\n" + _table(rows) if rows else ""


def _kernels(plan: Plan) -> str:
    """Return what is computed together; before fusion each node is a kernel."""
    rows = [(k["flow"], " + ".join(k["nodes"]), _strips(k)) for k in kernel_figures(plan)]
    flows = {step.name: step.flow for step in plan.steps}
    rows += [(flows[name], name, "left out: no node reads it") for name in unused_nodes(plan)]
    title = f"kernels: {len(plan.steps)} before fusion, {len(plan.kernels)} after\n"
    return title + _table(rows) if rows else ""


def _volume(plan: Plan) -> str:
    """Return the frames that are saved, and their bytes before compression."""
    rows = [
        (
            volume.node,
            "endless" if volume.frames is None else f"{volume.frames} frames",
            f"{volume_text(volume.frame_bytes)} each",
            "" if volume.bytes is None else volume_text(volume.bytes),
            "before compression"
            if plan.channels[volume.node].compression != "none"
            else "at most"
            if volume.less
            else "",
        )
        for volume in volumes(plan)
    ]
    return "to be saved\n" + _table(rows) if rows else ""


def _strips(kernel: dict[str, Any]) -> str:
    parts = [_on_device(kernel)] if "device" in kernel else []
    if not kernel["fused"]:
        return "; ".join(parts)
    parts.insert(0, "fused")
    parts += [f"cut and flipped first: {', '.join(kernel['first'])}"] if kernel["first"] else []
    parts += [f"makes the frames of {', '.join(kernel['materialised'])}"] if kernel["materialised"] else []
    parts += [f"computes {100 * kernel['computed']:.2g} % of the pixels"] if kernel["computed"] < 1 else []
    return "; ".join(parts)


def _on_device(kernel: dict[str, Any]) -> str:
    """Return where a kernel is computed, and what of each frame is copied."""
    device = kernel["device"]
    there_bytes, back_bytes = device["there_bytes"], device["back_bytes"]
    there = f"{size_text(there_bytes)} a frame there" if there_bytes else "the frames are there"
    back = "its own stay there" if kernel["materialised"] else "sums back"
    if back_bytes:
        back = f"{size_text(back_bytes)}{'' if there_bytes else ' a frame'} back"
    return f"on the device of {', '.join(device['receivers'])}: {there}, {back}"


def _compact(numbers: Iterable[int]) -> str:
    items = list(numbers)
    return f"{items[0]} to {items[-1]}" if len(items) > 2 else ", ".join(map(str, items))


def show_prediction(prediction: Prediction, limits: Limits, file: str) -> str:
    """Return what is predicted of a plan from the limits of a file, in lines."""
    machine = f" ({limits.processor or 'unknown processor'}, {limits.cores} cores)"
    rows = [
        (name, hertz_text(one.hz), ", ".join(f"{stage.name} {seconds_text(stage.frame_s)}" for stage in one.stages))
        for name, one in prediction.receivers.items()
        if one.stages
    ]
    rows += [(stage.name, hertz_text(stage.hz), seconds_text(stage.frame_s)) for stage in prediction.shared]
    lines = [f"predicted from {file}{machine}", _table(rows)] if rows else [f"nothing is predicted from {file}"]
    lines += [f"  {predicted_text(prediction)}"] if prediction.bottleneck is not None else []
    lines += [f"  without {', '.join(prediction.left_out)}, not measured"] if prediction.left_out else []
    lines += [f"  without {', '.join(prediction.on_devices)}, on devices"] if prediction.on_devices else []
    return "\n".join(lines) + "\n"


def predicted_text(prediction: Prediction) -> str:
    """Return the highest rate that is predicted, and what limits it; there is such a stage."""
    slow = prediction.bottleneck
    assert slow is not None
    nodes = f" of {', '.join(slow.nodes)}" if slow.nodes else ""
    most = "at most " if prediction.left_out or prediction.on_devices else ""
    return f"{most}{hertz_text(prediction.hz)}, limited by {slow.name}{nodes} ({slow.place})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
