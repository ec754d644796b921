"""What is known on the way through one pass: blocks and rows by name, and whose memory they lie in."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lima2cli.nodes.base import Partial
from lima2cli.runtime.arrivals import Hold
from lima2cli.runtime.bound import End
from lima2cli.spec import Block, SparseBlock

Staged = tuple[str, End, Any]
"""What a node has prepared, and can still throw away."""


@dataclass(slots=True)
class Course:
    """One pass under way, of frames up to ``last``: blocks and rows by name; ``held`` are the blocks that lie in the
    memory of ``hold``."""

    last: int
    received_ns: int
    hold: Hold | None
    blocks: dict[str, Block] = field(default_factory=dict)
    rows: dict[str, Partial] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    staged: list[Staged] = field(default_factory=list)


def copy_of(block: Block) -> Block:
    """The block with arrays of its own."""
    if isinstance(block, SparseBlock):  # has them
        return block
    return Block(block.frames.copy(), block.numbers.copy(), block.times.copy())


def whole(blocks: list[Block]) -> Block:
    """Blocks that follow each other as one."""
    if len(blocks) == 1:
        return blocks[0]
    frames, numbers, times = zip(*((b.frames, b.numbers, b.times) for b in blocks), strict=True)
    return Block(np.concatenate(frames), np.concatenate(numbers), np.concatenate(times))
