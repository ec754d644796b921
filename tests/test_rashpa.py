"""The calls of librashpa: as a listing in C, and made by the detector `rashpa` on a library that records them."""

import math
import re

from lima2cli.plan.listing import c_listing
from tests.compiling import plan_of
from tests.golden import FOLDER, agrees
from tests.running import EXAMPLES

MAZE = (EXAMPLES / "maze.yaml").read_text()

DECK = """
rashpaManagerCreateGDT(manager_pt, "FullDet1", "CTR1")
rashpaGDTSetSourceFullImage(GDT)
rashpaGDTSetAlignment(GDT, 256, 1, 0, 0)
rashpaGDTSetSourceSlices(GDT, 0, 12, 10)
rashpaGDTSetRules(GDT, 1, 0, RASHPA_CONCATENATE | RASHPA_CIRCULAR)
rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP)
rashpaManagerGetGDTBuffer(manager_pt, GDT, 16777216)
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "dataMSpace")
rashpaManagerCreateGDT(manager_pt, "FullDet2", "CTR2")
rashpaGDTSetSourceFullImage(GDT)
rashpaGDTSetAlignment(GDT, 256, 1, 0, 0)
rashpaGDTSetSourceSlices(GDT, 0, 22, 5)
rashpaGDTSetRules(GDT, 1, 0, RASHPA_CONCATENATE | RASHPA_CIRCULAR)
rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP)
rashpaManagerGetGDTBuffer(manager_pt, GDT, 16777216)
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "dataMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "dataMSpace")
rashpaManagerCreateGDT(manager_pt, "GhostRoom", "CTR1")
rashpaGDTSetSourceImage(GDT, 190, 125, 190, 78)
rashpaGDTSetAlignment(GDT, 1, 1, 0, 0)
rashpaGDTSetSourceSlices(GDT, 0, 22, 5)
rashpaGDTSetRules(GDT, 1, 0, RASHPA_CONCATENATE | RASHPA_CIRCULAR)
rashpaGDTSetEvents(GDT, 0, RASHPA_EV_ATEND)
rashpaManagerGetGDTBuffer(manager_pt, GDT, 10485760)
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "dataMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "dataMSpace")
rashpaManagerCreateGDT(manager_pt, "LeftCorridor", "CTR1")
rashpaGDTSetSourceImage(GDT, 35, 89, 204, 50)
rashpaGDTSetAlignment(GDT, 1, 1, 0, 0)
rashpaGDTSetSourceSlices(GDT, 0, 114, 1)
rashpaGDTSetRules(GDT, 4, 0, RASHPA_OVERWRITE | RASHPA_ONESHOT)
rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP | RASHPA_EV_ATEND)
rashpaManagerGetGDTBuffer(manager_pt, GDT, 10485760)
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "GPUMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "GPUMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "GPUMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "GPUMSpace")
"""
"""The calls of the deck's four listings, with the buffer sizes of the example (the deck's 16 KiB hold no frame)."""


def calls_in(listing: str) -> list[str]:
    """The calls of a listing, with sizes in place of the variable."""
    sizes = iter(re.findall(r"lbuff_bytes = (.*);", listing))
    calls = re.findall(r"rashpa[A-Z]\w+\(.*?\)(?=;)", listing)
    return [re.sub("lbuff_bytes", lambda _: str(_product(next(sizes))), call) for call in calls]


def _product(text: str) -> int:
    return math.prod(map(int, re.findall(r"\d+", text)))


def test_the_listing_of_the_maze() -> None:
    listing = c_listing(plan_of(MAZE))
    agrees(FOLDER / "maze.c", re.sub(r"lima2 \d\S*", "lima2 VERSION", listing))
    assert calls_in(listing) == DECK.strip().splitlines()


def test_flows_without_end_and_names_that_are_no_identifiers() -> None:
    text = """
lima2: 1
detector: {remu: {image: {width: 8, height: 8}, datasets: {d: {dtype: uint8}}}}
receivers: {node-a: {memspaces: {host: {host: {}}}}}
flows: {f: {dataset: d, buffers: {size: 640 B}}}
nodes: {s: {input: f, checkpoint: {}}}
"""
    calls = calls_in(c_listing(plan_of(text)))
    assert "rashpaGDTSetSourceSlices(GDT, 0, 0, 1)" in calls
    assert 'rashpaBufferCreateLocalBufferInMemSpace(buffer, node_a_pt, "host")' in calls
    assert "rashpaManagerGetGDTBuffer(manager_pt, GDT, 640)" in calls
    assert "rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP | RASHPA_EV_ATEND)" in calls
