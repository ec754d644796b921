"""A plan as the calls of librashpa that set it up, as in the listings of the RASHPA deck (ESRF, 2020)."""

from lima2cli import __version__
from lima2cli.plan.records import Gdt, Plan


def c_listing(plan: Plan) -> str:
    """C statements, one block per flow; ``manager_pt`` and one ``<receiver>_pt`` for each receiver are the caller's."""
    lines = [f"/* {plan.name}: GDT set-up by lima2 {__version__} */", ""]
    for gdt in plan.gdts:
        lines += ["{", *(f"    {line}" if line else "" for line in _flow(plan, gdt)), "}", ""]
    return "\n".join(lines)


def _flow(plan: Plan, gdt: Gdt) -> list[str]:
    rule, source = gdt.rule, gdt.source
    block, row, header, footer = gdt.alignment
    count = rule.count if rule.count is not None else (gdt.selected or 0)
    placement = "RASHPA_OVERWRITE" if rule.overwrite else "RASHPA_CONCATENATE"
    cycle = "RASHPA_CIRCULAR" if rule.circular else "RASHPA_ONESHOT"
    events = [name for name, on in (("RASHPA_EV_GRP", gdt.group_event > 0), ("RASHPA_EV_ATEND", gdt.end_event)) if on]
    if gdt.full:
        take = "rashpaGDTSetSourceFullImage(GDT);"
    else:
        take = f"rashpaGDTSetSourceImage(GDT, {source.x}, {source.width}, {source.y}, {source.height});"
    lines = [
        f'rashpa_gdt_t *GDT = rashpaManagerCreateGDT(manager_pt, "{gdt.name}", "{gdt.dataset_name}");',
        take,
        f"rashpaGDTSetAlignment(GDT, {block}, {row}, {header}, {footer});",
        f"rashpaGDTSetSourceSlices(GDT, {rule.start}, {count}, {rule.step});",
        f"rashpaGDTSetRules(GDT, {rule.blocks}, {rule.start_slot}, {placement} | {cycle});",
        f"rashpaGDTSetEvents(GDT, {gdt.group_event}, {' | '.join(events)});",
        "",
        f"ssize_t lbuff_bytes = {_bytes(gdt.buffer_size)};",
        "rashpa_buffer_t* buffer = rashpaManagerGetGDTBuffer(manager_pt, GDT, lbuff_bytes);",
    ]
    for buffer in gdt.buffers:
        receiver, memspace = plan.receivers[buffer.receiver], plan.regions[buffer.region].name
        lines.append(f'rashpaBufferCreateLocalBufferInMemSpace(buffer, {receiver}_pt, "{memspace}");')
    return lines


def _bytes(size: int) -> str:
    for factor, text in ((2**20, "(1024*1024)"), (2**10, "1024")):
        if size % factor == 0:
            return f"{size // factor}*{text}"
    return str(size)
