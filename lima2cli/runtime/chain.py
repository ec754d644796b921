"""A fused kernel at work: pixel-wise maps in one, and the reductions that read their result strip by strip."""

from collections.abc import Mapping
from typing import cast

from lima2cli.nodes.base import Partial, StripReducer
from lima2cli.nodes.chain import Chain, StripReader, settle
from lima2cli.nodes.expression import Expression
from lima2cli.nodes.pixelwise import Pixelwise
from lima2cli.nodes.roi_flip_rot import RoiFlipRot
from lima2cli.nodes.stages import Stage, Turn
from lima2cli.plan.records import Kernel, Step
from lima2cli.spec import Array, Block, Files


class PartFailed(Exception):
    """One node of a kernel raised; the others are well."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.name, self.error = name, error


class BoundChain:
    """The maps of a kernel, bound; ``reducers`` are added, and taken out, by name. Raises `PartFailed`."""

    def __init__(self, kernel: Kernel, steps: Mapping[str, Step], files: Files) -> None:
        self.maps, self.makes = kernel.maps, bool(kernel.makes)
        self.reducers: dict[str, StripReducer] = {}
        parts, before = [_part(steps[name], files) for name in kernel.maps], steps[kernel.maps[0]].before
        self._chain = Chain(settle(parts, before.dtype, *before.shape), keeps=self.makes)

    def stage(self, block: Block, received_ns: int) -> tuple[Block | None, dict[str, Partial]]:
        """The frames, where anybody reads them whole, and what each reducer makes of them. Raises `PartFailed`."""
        readers = [_reader(name, reducer, len(block.frames)) for name, reducer in self.reducers.items()]
        frames = self._chain(block.frames, readers)
        partials = {}
        for name, reducer in self.reducers.items():
            try:
                partials[name] = reducer.end(block, received_ns)
            except Exception as error:
                raise PartFailed(name, error) from error
        return Block(frames, block.numbers, block.times, False) if self.makes else None, partials


def _part(step: Step, files: Files) -> Stage | Turn:
    node = step.node
    try:
        if isinstance(node, Expression):
            return node.stage(step.specs, files)
        return node.stage() if isinstance(node, RoiFlipRot) else cast(Pixelwise, node).stage(step.before, files)
    except Exception as error:
        raise PartFailed(step.name, error) from error


def _reader(name: str, reducer: StripReducer, frames: int) -> StripReader:
    reducer.begin(frames)

    def read(pixels: Array, which: slice, rows: slice) -> None:
        try:
            reducer.strip(pixels, which, rows)
        except Exception as error:
            raise PartFailed(name, error) from error

    return read
