"""Small channels, and frames that tell from which frame number and pixel each value comes."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lima2cli.files.channel import Channel, TableChannel
from lima2cli.files.frame_writer import FrameWriter
from lima2cli.frames import Block, DatasetInfo, DetectorInfo
from lima2cli.geometry import Rect, Rule
from lima2cli.view import View

START_NS = 10**18


def make_rule(*, start: int = 0, step: int = 1, count: int | None = None, blocks: int = 1, buffers: int = 1) -> Rule:
    return Rule(start, step, count, blocks, buffers, slots=1000, stride=64)


def make_channel(
    *,
    height: int = 6,
    width: int = 9,
    receivers: tuple[int, ...] = (0,),
    selected: int | None = None,
    start: int = 0,
    step: int = 1,
    blocks: int = 1,
    node: str = "save",
    **storage: Any,
) -> Channel:
    """Frames at (2, 1) of a detector of two modules with a gap of one column in the frames' middle."""
    half = width // 2
    modules = (Rect(0, 0, 2 + half, height + 1), Rect(3 + half, 0, width - half, height + 1))
    mask = np.zeros((height, width), bool)
    mask[:, half] = True
    return Channel(
        name="maze",
        node=node,
        flow="FullDet1",
        dtype="uint16",
        height=height,
        width=width,
        rule=make_rule(start=start, step=step, count=selected, blocks=blocks, buffers=len(receivers)),
        selected=selected,
        receivers=receivers,
        view=View(Rect(2, 1, width, height)),
        detector=DetectorInfo(
            kind="remu",
            name="remu",
            width=width + 3,
            height=height + 1,
            modules=modules,
            datasets=(DatasetInfo("CTR1", 0, "uint16", 16),),
            gap_value=7,
            pixel_size=(75e-6, 75e-6),
        ),
        mask=mask,
        **storage,
    )


def make_block(channel: Channel, numbers: Iterable[int], *, strided: bool = False, stable: bool = True) -> Block:
    """Pixel p of frame f is (f * 7919 + p) mod 2**16; frame f was taken f milliseconds after the start."""
    frame_numbers = np.array(list(numbers), np.uint64)
    pixels = np.arange(channel.height * channel.width, dtype=np.uint64).reshape(channel.height, channel.width)
    frames = (frame_numbers[:, None, None] * np.uint64(7919) + pixels).astype(np.uint16)
    if strided:
        wide = np.zeros((len(frames), channel.height, channel.width + 3), np.uint16)
        wide[:, :, : channel.width] = frames
        frames = wide[:, :, : channel.width]
    times = np.uint64(START_NS) + frame_numbers * np.uint64(1_000_000)
    return Block(frames, frame_numbers, times, stable)


def write_all(channel: Channel, directory: str, numbers: Iterable[int], receiver: int = 0) -> None:
    """All frames of one receiver, in one block."""
    writer = FrameWriter(channel, directory, receiver, START_NS)
    writer.commit(writer.stage(make_block(channel, numbers)))
    writer.close()


def detector_group(file: Any) -> Any:
    return file["entry_0000/instrument/remu"]


def make_table(**fields: Any) -> TableChannel:
    given: dict[str, Any] = {
        "name": "maze",
        "node": "counters",
        "flow": "FullDet1",
        "columns": {"door_avg": "float32", "door_sum": "float64", "door_max": "uint16"},
        "default": "door_sum",
        "rule": make_rule(),
        "selected": None,
        "receivers": (0,),
    }
    return TableChannel(**given | fields)
