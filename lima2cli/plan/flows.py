"""Data flows laid out in memory: every flow's slots, and a place in its memspace for each local buffer."""

from lima2cli.config.pipeline import DataFlow, Pipeline
from lima2cli.config.records import FileMemspace, GpuMemspace, Memspace
from lima2cli.diagnostics import Findings, Path
from lima2cli.geometry import Rect, up
from lima2cli.human import exact_size, grouped, size_text
from lima2cli.plan.flow_checks import check_channels, check_flow
from lima2cli.plan.flow_layout import FlowLayout, lay_out_flow
from lima2cli.plan.groups import choose_groups
from lima2cli.plan.records import Gdt, LocalBuffer, Part, Region
from lima2cli.poison import POISON, attempt


def place_buffers(
    pipeline: Pipeline, layouts: list[FlowLayout], findings: Findings
) -> tuple[tuple[Region, ...], dict[str, tuple[LocalBuffer, ...]]]:
    """Memspaces as regions, and each local buffer's place: in file order, aligned to max(block alignment, 64)."""
    keys = [(r, name) for r, table in enumerate(pipeline.receivers.values()) for name in table.memspaces]
    used = dict.fromkeys(keys, 0)
    users: dict[tuple[int, str], list[str]] = {key: [] for key in keys}
    placed: dict[str, tuple[LocalBuffer, ...]] = {}
    for it in layouts:
        buffers = []
        for place in it.places:
            key = (place.receiver, place.memspace)
            offset = up(used[key], max(it.layout.alignment, 64))
            used[key] = offset + it.size
            users[key].append(f"{it.name} {size_text(it.size)}")
            buffers.append(LocalBuffer(place.receiver, keys.index(key), offset, it.size))
        placed[it.name] = tuple(buffers)
    names = list(pipeline.receivers)
    regions = []
    for receiver, name in keys:
        memspace = pipeline.receivers[names[receiver]].memspaces[name]
        at: Path = ("receivers", names[receiver], "memspaces", name)
        regions.append(
            attempt(lambda m=memspace, r=receiver, n=name, a=at: _region(m, r, n, used[r, n], users[r, n], a, findings))  # type: ignore[misc]
        )
    return tuple(regions), placed


def _region(
    memspace: Memspace, receiver: int, name: str, used: int, users: list[str], at: Path, findings: Findings
) -> Region:
    size = memspace.size if memspace.size is not None else used
    if used > size:
        findings.error(
            "memspace-full",
            f"memspace {name} of {at[1]} has {size_text(size)}, its local buffers need {size_text(used)}",
            (*at, memspace.kind, "size"),
            notes=[f"{' + '.join(users)} = {grouped(used)} bytes"],
            help=f"size: {exact_size(up(used, 2**20))}",
        )
    kind, path = "host", None
    if isinstance(memspace, FileMemspace):
        kind, path = "file", memspace.path
    elif isinstance(memspace, GpuMemspace):
        if memspace.fallback is None:
            findings.error(
                "not-available",
                f"memspace {name} of {at[1]} is on a GPU: this version moves data to host memory only",
                (*at, "gpu"),
                help="fallback: host",
            )
        else:
            findings.warning(
                "gpu-fallback",
                f"memspace {name} of {at[1]} is in host memory: this version moves no data to GPUs",
                (*at, "gpu", "fallback"),
            )
    return Region(receiver, name, kind, memspace.kind, size, used, path)  # type: ignore[arg-type]


def gap_pixels(source: Rect, parts: tuple[Part, ...]) -> int:
    """Pixels of a source that no module covers (modules don't overlap)."""
    return source.area - sum(part.width * part.height for part in parts)


def gdt_of(pipeline: Pipeline, index: int, it: FlowLayout, buffers: tuple[LocalBuffer, ...]) -> Gdt:
    """The compiled flow."""
    flow, table, info = it.flow, it.flow.said, pipeline.detector
    dataset = info.datasets[flow.dataset]
    alignment = table.alignment
    return Gdt(
        name=it.name,
        flow=flow.name,
        place=it.place,
        index=index,
        dataset=flow.dataset,
        dataset_name=dataset.name,
        dtype=dataset.dtype,
        pixel_bytes=dataset.pixel_bytes,
        source=it.source,
        full=table.source == "full" and it.place is None,
        layout=it.layout,
        rule=it.rule,
        selected=it.selected,
        group_event=table.events.group,
        end_event=table.events.end,
        alignment=(alignment.block, alignment.row, alignment.header, alignment.footer),
        buffer_size=it.size,
        buffers=buffers,
        parts=it.parts,
        gap_pixels=gap_pixels(it.source, it.parts),
        gap_value=info.gap_value,
        overrun=flow.overrun,  # type: ignore[arg-type]
    )


def lay_out(pipeline: Pipeline, findings: Findings) -> tuple[tuple[Region, ...], tuple[Gdt, ...]]:
    """All flows of a pipeline, checked. One that is dispatched by modules is a GDT for each place."""
    layouts: list[FlowLayout] = []
    single = {name: attempt(lambda flow=flow: _layouts(pipeline, flow)) for name, flow in pipeline.flows.items()}  # type: ignore[misc]
    single = {name: own for name, own in single.items() if own is not POISON}
    groups = attempt(lambda: choose_groups(pipeline, single))
    for name, own in single.items():
        if groups is not POISON and groups.get(name, 1) > 1:
            own = _layouts(pipeline, pipeline.flows[name], groups[name])
        attempt(lambda own=own: check_flow(pipeline, own, findings))  # type: ignore[misc]
        layouts += own
    attempt(lambda: check_channels(pipeline, layouts, findings))
    regions, placed = place_buffers(pipeline, layouts, findings)
    gdts = tuple(gdt_of(pipeline, index, it, placed[it.name]) for index, it in enumerate(layouts))
    return regions, gdts


def _layouts(pipeline: Pipeline, flow: DataFlow, blocks: int = 1) -> list[FlowLayout]:
    if flow.shares is None:
        return [lay_out_flow(pipeline, flow, None, blocks)]
    return [lay_out_flow(pipeline, flow, place, blocks) for place in range(len(flow.shares))]
