"""Rectangles, and the place of each block of a data flow in the receivers' memory.

A `Rule` holds the whole addressing of a GDT; modules, receivers, the plan and the files all ask it, so that a choice
can change in one place. `locate` does the same for one frame, written out: the rule is tested against it.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass

N = TypeVar("N", int, NDArray[np.int64])
"""One number, or an array of them."""


@dataclasses.dataclass(frozen=True, order=True)
class Rect:
    """A rectangle of pixels: x to the right, y down, (0, 0) top left."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """Return the first column beyond the rectangle."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """Return the first row beyond the rectangle."""
        return self.y + self.height

    @property
    def area(self) -> int:
        """Return the number of pixels."""
        return self.width * self.height

    def __and__(self, other: "Rect") -> "Rect":
        """Return the common part; of area 0 where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width = max(0, min(self.right, other.right) - x)
        height = max(0, min(self.bottom, other.bottom) - y)
        return Rect(x, y, width, height) if width and height else Rect(x, y, 0, 0)

    def contains(self, other: "Rect") -> bool:
        """Return True if ``other`` lies inside."""
        return self.x <= other.x and self.y <= other.y and other.right <= self.right and other.bottom <= self.bottom

    def within(self, outer: "Rect") -> tuple[slice, slice]:
        """Return the index of this rectangle in an array that shows ``outer``."""
        return (
            slice(self.y - outer.y, self.bottom - outer.y),
            slice(self.x - outer.x, self.right - outer.x),
        )

    def __str__(self) -> str:
        return f"{self.width} x {self.height} at ({self.x}, {self.y})"


def bounding_box(rects: Sequence[Rect]) -> Rect:
    """Return the smallest rectangle around all of them; at least one."""
    x, y = min(rect.x for rect in rects), min(rect.y for rect in rects)
    return Rect(x, y, max(rect.right for rect in rects) - x, max(rect.bottom for rect in rects) - y)


def round_up(n: int, multiple: int) -> int:
    """Return ``n`` rounded up to a multiple."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class BlockLayout:
    """The layout of one block in its slot, all in bytes.

    ``pitch`` from one row to the next, ``payload_offset`` from the slot's start to the first pixel, ``stride`` from one
    slot to the next, ``alignment`` of blocks.
    """

    pitch: int
    payload_offset: int
    stride: int
    alignment: int


def lay_out_block(
    width: int, height: int, pixel_bytes: int, *, block_bits: int, row_bits: int, header: int, footer: int
) -> BlockLayout:
    """Return the layout of ``height`` rows of ``width`` pixels; alignments in bits, header and footer in bytes."""
    block, row = max(1, block_bits // 8), max(1, row_bits // 8)
    pitch = round_up(width * pixel_bytes, row)
    payload = round_up(header, block)
    return BlockLayout(pitch, payload, round_up(payload + pitch * height + footer, block), block)


@dataclass(frozen=True)
class Location:
    """The place of one frame of a flow. ``offset`` in bytes from the start of the local buffer to the slot."""

    index: int
    group: int
    block: int
    buffer: int
    visit: int
    position: int
    slot: int
    offset: int


@dataclass(frozen=True, eq=False)
class Places:
    """The places of frames of a flow, int64 (n,) each, as of `Location`; computed on demand.

    The values of frames that are not `kept` mean nothing.
    """

    rule: "Rule"
    index: NDArray[np.int64]
    selected: NDArray[np.bool_]

    @cached_property
    def group(self) -> NDArray[np.int64]:
        """Return the group of each frame."""
        return self.rule.group(self.index)

    @cached_property
    def block(self) -> NDArray[np.int64]:
        """Return the block in the group."""
        return self.index % self.rule.blocks

    @cached_property
    def buffer(self) -> NDArray[np.int64]:
        """Return the local buffer."""
        return self.rule.turn(self.group)[0]

    @cached_property
    def visit(self) -> NDArray[np.int64]:
        """Return the visit of the local buffer."""
        return self.rule.turn(self.group)[1]

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Return a mask, bool (n,), of the frames that the flow selects, and does not drop."""
        return self.selected & (self.visit < self.rule.groups_per_buffer) if self.rule.bounded else self.selected

    @cached_property
    def position(self) -> NDArray[np.int64]:
        """Return the group place in the local buffer."""
        return np.zeros_like(self.visit) if self.rule.overwrite else self.visit % self.rule.groups_per_buffer

    @cached_property
    def slot(self) -> NDArray[np.int64]:
        """Return the slot of the local buffer."""
        return self.rule.start_slot + self.position * self.rule.blocks + self.block

    @cached_property
    def offset(self) -> NDArray[np.int64]:
        """Return the bytes from the start of the local buffer to the slot."""
        return self.slot * self.rule.stride


@dataclass(frozen=True)
class Rule:
    """The addressing rule of one flow.

    start, step, count   selected frames are start + k*step for 0 <= k < count; count None = without end
    blocks               B, blocks per group
    buffers              L, number of local buffers, used in turn
    slots                S, slots of ``stride`` bytes in each local buffer
    start_slot           slots before it are never written
    overwrite            every group to the same place; else one after another (concatenate)
    circular             start again when the buffer is full; else the rest is dropped (oneshot)
    """

    start: int
    step: int
    count: int | None
    blocks: int
    buffers: int
    slots: int
    stride: int
    start_slot: int = 0
    overwrite: bool = False
    circular: bool = True

    @cached_property
    def groups_per_buffer(self) -> int:
        """Return C, the groups that fit in one local buffer; below 1 the flow can't run."""
        return max(0, self.slots - self.start_slot) // self.blocks

    @cached_property
    def depth(self) -> int:
        """Return D, the groups of one local buffer that hold data at the same time."""
        return 1 if self.overwrite else self.groups_per_buffer

    @cached_property
    def bounded(self) -> bool:
        """Return True for concatenate + oneshot: nothing is ever overwritten, frames that do not fit are dropped."""
        return not self.overwrite and not self.circular

    def frame(self, index: N) -> N:
        """Return the number of the ``index``-th selected frame."""
        return self.start + index * self.step

    def index(self, frame: N) -> N:
        """Return the index of a frame among the selected ones; for another number that of the one before it."""
        return (frame - self.start) // self.step

    def before(self, frame: int) -> int:
        """Return the count of frames of the progression, which may have no end, with a number below ``frame``."""
        return max(0, -(-(frame - self.start) // self.step))

    def group(self, index: N) -> N:
        """Return the group of the ``index``-th selected frame."""
        return index // self.blocks

    def turn(self, group: N) -> tuple[N, N]:
        """Return local buffer and visit of a group."""
        return group % self.buffers, group // self.buffers

    def group_of(self, buffer: int, visit: int) -> int:
        """Return the group of a visit: the inverse of `turn`."""
        return buffer + visit * self.buffers

    def place(self, frames: NDArray[np.int64]) -> Places:
        """Return the places of frames, int64 (n,), from their numbers alone. See `locate`, its equal for one frame."""
        index = self.index(frames)
        selected = (index >= 0) & (self.frame(index) == frames)
        return Places(self, index, selected if self.count is None else selected & (index < self.count))

    def selected(self, frames: int | None) -> int | None:
        """Return the number of frames selected of ``frames`` acquired ones (None: endless)."""
        if frames is None:
            return self.count
        available = self.before(frames)
        return available if self.count is None else min(available, self.count)

    def position(self, visit: int) -> int:
        """Return the group place in the local buffer of a visit; meaningless for dropped ones."""
        return 0 if self.overwrite else visit % self.groups_per_buffer

    def dropped(self, visit: int) -> bool:
        """Return True if a visit finds its oneshot buffer full."""
        return self.bounded and visit >= self.groups_per_buffer

    def group_offset(self, visit: int) -> int:
        """Return the bytes from the start of the local buffer to the first slot of the group of ``visit``."""
        return (self.start_slot + self.position(visit) * self.blocks) * self.stride

    def groups(self, selected: int) -> int:
        """Return the number of groups, the last perhaps partial."""
        return -(-selected // self.blocks)

    def visits(self, buffer: int, selected: int) -> int:
        """Return the number of groups (dropped ones too) that go to a local buffer."""
        return self.visits_before(buffer, self.groups(selected))

    def visits_before(self, buffer: int, group: int) -> int:
        """Return the number of groups before ``group`` that go to a local buffer."""
        return max(0, -(-(group - buffer) // self.buffers))

    def blocks_of_group(self, group: int, selected: int | None) -> int:
        """Return the blocks in a group; fewer than B only in the last."""
        if selected is None:
            return self.blocks
        return max(0, min(self.blocks, selected - group * self.blocks))

    def written(self, buffer: int, selected: int) -> int:
        """Return the blocks written to a local buffer, in constant time."""
        visits = self.visits(buffer, selected)
        kept = min(visits, self.groups_per_buffer) if self.bounded else visits
        blocks = kept * self.blocks
        last = self.groups(selected) - 1
        if kept == visits and visits and last % self.buffers == buffer:
            blocks -= self.blocks - self.blocks_of_group(last, selected)
        return blocks

    def epoch(self, selected: int) -> int:
        """Return the visits of a local buffer that an acquisition counts for where several follow each other.

        These are whole rounds, so that visit v of each is at the position of v, and overwrites the oldest data.
        """
        return round_up(max(1, self.visits(0, selected)), self.depth)

    def full_visits(self, buffer: int, selected: int) -> int:
        """Return the written visits of B blocks: those that can raise a group event."""
        whole = self.visits_before(buffer, self.group(selected))
        return min(whole, self.groups_per_buffer) if self.bounded else whole

    def numbers(self, buffer: int, visit: int, visits: int) -> NDArray[np.uint64]:
        """Return the frame numbers, uint64, of ``visits`` whole consecutive visits of a local buffer, in order."""
        index: NDArray[np.uint64]
        index = np.arange(visit, visit + visits, dtype=np.uint64) * np.uint64(self.buffers) + np.uint64(buffer)
        if self.blocks > 1:
            inner = np.arange(self.blocks, dtype=np.uint64)
            index = np.add.outer(index * np.uint64(self.blocks), inner).ravel()
        return index * np.uint64(self.step) + np.uint64(self.start)


def locate(rule: Rule, frame: int) -> Location | None:
    """Return the place of a frame, from its number alone; None where the flow does not select it or drops it.

    Selection against the number of acquired frames is the caller's. For dispatch by modules, where the local buffer is
    that of the place, ask with a rule of one buffer.
    """
    k, rest = divmod(frame - rule.start, rule.step)
    if rest or k < 0 or (rule.count is not None and k >= rule.count):
        return None
    group, block = divmod(k, rule.blocks)
    buffer, visit = group % rule.buffers, group // rule.buffers
    if not rule.overwrite and not rule.circular and visit >= rule.groups_per_buffer:
        return None
    position = 0 if rule.overwrite else visit % rule.groups_per_buffer
    slot = rule.start_slot + position * rule.blocks + block
    return Location(k, group, block, buffer, visit, position, slot, slot * rule.stride)
