"""The data flow of a plan as a drawing: datasets, flows, nodes, files; as a tree of text, for Mermaid, for Graphviz."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from lima2cli.dataclass import dataclass
from lima2cli.files.nexus import master_file, table_file
from lima2cli.plan.figures import unused_nodes, volumes
from lima2cli.plan.ir import Gdt, Plan, Step
from lima2cli.units import counted_text, frames_text, hertz_text, rate_text, volume_text


@dataclass(frozen=True)
class Box:
    """One thing that frames or rows come from, pass, or end in.

    name   as the user knows it;  facts  about it, a few words each
    group  index of the kernel that it is fused into; None where it is computed alone
    """

    name: str
    kind: Literal["dataset", "flow", "node", "file"]
    facts: tuple[str, ...]
    group: int | None = None


@dataclass(frozen=True)
class Arrow:
    """A way of frames, or of rows, from one box to another, by their indices; ``label`` is the input, of several."""

    source: int
    target: int
    label: str = ""
    rows: bool = False


@dataclass(frozen=True)
class Drawing:
    """Boxes and arrows, each in the order of the data; ``groups`` are the nodes of each fused kernel."""

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    groups: tuple[tuple[str, ...], ...]


def draw(plan: Plan) -> Drawing:
    """Return the drawing of a plan."""
    groups = tuple(kernel.nodes for kernel in plan.kernels if kernel.fused)
    unused = unused_nodes(plan)
    boxes = [Box(dataset.name, "dataset", ("dataset", dataset.dtype)) for dataset in plan.info.datasets]
    arrows: list[Arrow] = []
    at: dict[str, int] = {}
    for flow in dict.fromkeys(gdt.flow for gdt in plan.gdts):
        gdts = plan.gdts_of(flow)
        at[flow] = len(boxes)
        arrows.append(Arrow(gdts[0].dataset, at[flow]))
        boxes.append(Box(flow, "flow", _flow_facts(plan, gdts)))
    for step in plan.steps:
        group = next((index for index, nodes in enumerate(groups) if step.name in nodes), None)
        at[step.name] = len(boxes)
        left_out = ("left out: its output is unused",) if step.name in unused else ()
        boxes.append(Box(step.name, "node", (step.node.kind, *_leaving(step), *left_out), group))
    for step in plan.steps:
        names = {source: name for name, source in step.inputs.items()} if len(step.sources) > 1 else {}
        arrows += [Arrow(at[source], at[step.name], names.get(source, "")) for source in step.sources]
        arrows += [Arrow(at[source], at[step.name], "rows", rows=True) for source in step.tables]
    for name, file, facts in _files(plan):
        arrows.append(Arrow(at[name], len(boxes)))
        boxes.append(Box(file, "file", facts))
    return Drawing(_title(plan), tuple(boxes), tuple(arrows), groups)


def _title(plan: Plan) -> str:
    frames = "until stopped" if plan.frames is None else frames_text(plan.frames)
    pace = "" if plan.period_s is None else f", {hertz_text(1 / plan.period_s)}"
    return f"{plan.name}: {plan.info.name} {plan.info.width} x {plan.info.height}, {frames}{pace}"


def _flow_facts(plan: Plan, gdts: Sequence[Gdt]) -> tuple[str, ...]:
    first = gdts[0]
    receivers = [plan.receivers[number] for number in dict.fromkeys(r for gdt in gdts for r in gdt.receivers)]
    sources = dict.fromkeys(
        f"full {gdt.source.width} x {gdt.source.height}" if gdt.full else str(gdt.source) for gdt in gdts
    )
    facts = ["flow", *sources]
    if plan.period_s is not None:
        rate = 1 / (plan.period_s * first.rule.step)
        size = sum(part.width * part.height * gdt.pixel_bytes for gdt in gdts for part in gdt.parts)
        facts += [hertz_text(rate), rate_text(rate * size)]
    elif first.rule.step > 1:
        facts.append(f"step {first.rule.step}")
    shown = ", ".join(receivers) if len(receivers) <= 4 else f"{len(receivers)} receivers"
    return (*facts, f"{'modules' if first.place is not None else 'frames'} to {shown}")


def _leaving(step: Step) -> tuple[str, ...]:
    return (str(step.after), *(("receivers together",) if step.collective else ()))


def _files(plan: Plan) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield the files that show what nodes save in an acquisition: node, name, facts."""
    for volume in volumes(plan):
        frames = plan.channels[volume.node].selected
        size = "" if frames is None else f"{'at most ' * volume.less}{volume_text(frames * volume.frame_bytes)}"
        facts = ("endless",) if frames is None else (counted_text(frames, "frame"), size)
        yield volume.node, master_file(plan.name, volume.node), facts
    for name, table in plan.tables.items():
        rows = "endless" if table.selected is None else counted_text(table.selected, "row")
        yield name, table_file(plan.name, name), (rows,)


WIDTH = 80
"""Columns of a tree."""


def as_tree(drawing: Drawing) -> str:
    """Return the drawing as a tree from datasets to files, a line for each box.

    What several feed stands at the first of them, and is named at the others.
    """
    outgoing: dict[int, list[Arrow]] = {}
    for arrow in drawing.arrows:
        outgoing.setdefault(arrow.source, []).append(arrow)
    first: dict[int, Arrow] = {}
    for arrow in sorted(drawing.arrows, key=lambda arrow: arrow.rows):  # frames come before rows
        first.setdefault(arrow.target, arrow)
    lines = [drawing.title]

    def show(index: int, here: str, below: str, label: str) -> None:
        box = drawing.boxes[index]
        mark = "" if box.group is None else f" [fused {box.group + 1}]"
        text = f"{label}{box.name}{mark}" + f"  {', '.join(box.facts)}" * bool(box.facts)
        arrows = outgoing.get(index, [])
        lines.extend(
            textwrap.wrap(
                text, WIDTH, initial_indent=here, subsequent_indent=below + ("│    " if arrows else "     "),
                break_on_hyphens=False, break_long_words=False,
            )
        )  # fmt: skip
        for arrow in arrows:
            last = arrow is arrows[-1]
            branch, inner = below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")
            named = f"{arrow.label}: " if arrow.label else ""
            if first[arrow.target] is arrow:
                show(arrow.target, branch, inner, named)
            else:
                lines.append(f"{branch}{named}→ {drawing.boxes[arrow.target].name}")

    for index, box in enumerate(drawing.boxes):
        if box.kind == "dataset":
            lines.append("")
            show(index, "", "", "")
    if drawing.groups:
        lines.append("")
    for number, nodes in enumerate(drawing.groups, 1):
        lines += textwrap.wrap(
            f"[fused {number}] {' + '.join(nodes)}: one kernel", WIDTH, subsequent_indent="    ",
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
    return "\n".join(lines) + "\n"


_MERMAID: Mapping[str, tuple[str, str]] = {
    "dataset": ("[(", ")]"), "flow": ("[[", "]]"), "node": ("(", ")"), "file": ("[/", "/]"),
}  # fmt: skip


def as_mermaid(drawing: Drawing) -> str:
    """Return the drawing as a flowchart of Mermaid."""
    lines = ["---", f"title: {json.dumps(drawing.title)}", "---", "flowchart LR"]
    for group, indices in _together(drawing):
        indent = "  " if group is None else "    "
        lines += [] if group is None else [f'  subgraph k{group}["one kernel"]']
        for index in indices:
            box = drawing.boxes[index]
            before, after = _MERMAID[box.kind]
            text = "<br/>".join(map(mermaid_text, (box.name, *box.facts)))
            lines.append(f'{indent}b{index}{before}"{text}"{after}')
        lines += [] if group is None else ["  end"]
    for arrow in drawing.arrows:
        line = "-.->" if arrow.rows else "-->"
        label = f'|"{mermaid_text(arrow.label)}"|' if arrow.label else ""
        lines.append(f"  b{arrow.source} {line}{label} b{arrow.target}")
    return "\n".join(lines) + "\n"


def mermaid_text(text: str) -> str:
    """Return a text for a label of Mermaid: what has a meaning there is written by its code."""
    return "".join(char if char.isalnum() or char in " _-.,:()/+*" else f"#{ord(char)};" for char in text)


_DOT: Mapping[str, str] = {"dataset": "cylinder", "flow": "box3d", "node": "box", "file": "note"}


def as_dot(drawing: Drawing) -> str:
    """Return the drawing in the language of Graphviz."""
    lines = ["digraph {", "  rankdir=LR", f"  label={dot_text(drawing.title)}", '  node [fontname="sans-serif"]']
    for group, indices in _together(drawing):
        indent = "  " if group is None else "    "
        lines += [] if group is None else [f"  subgraph cluster_{group} {{", '    label="one kernel"']
        for index in indices:
            box = drawing.boxes[index]
            label = dot_text("\n".join((box.name, *box.facts)))
            lines.append(f"{indent}b{index} [shape={_DOT[box.kind]}, label={label}]")
        lines += [] if group is None else ["  }"]
    for arrow in drawing.arrows:
        facts = [f"label={dot_text(arrow.label)}"] * bool(arrow.label) + ["style=dashed"] * arrow.rows
        lines.append(f"  b{arrow.source} -> b{arrow.target}" + f" [{', '.join(facts)}]" * bool(facts))
    return "\n".join([*lines, "}"]) + "\n"


def dot_text(text: str) -> str:
    """Return a text as a string of Graphviz, lines centred."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _together(drawing: Drawing) -> Iterator[tuple[int | None, list[int]]]:
    """Yield the boxes by kernel, each kernel where its first box stands; those computed alone one by one."""
    for index, box in enumerate(drawing.boxes):
        if box.group is None:
            yield None, [index]
        elif box.name == drawing.groups[box.group][0]:
            yield box.group, [at for at, one in enumerate(drawing.boxes) if one.group == box.group]
