"""The roles of nodes, and what each promises.

A node is one file and one class, which `node` gives its kind: parameters, declared by `param`, and no state. State is
in what ``bind``, ``start`` and ``open`` return, one per receiver. All arrays that a node gets are read-only to it.

    @node("threshold")
    class Threshold(Map):
        '''Set pixels below a level to zero.'''

        below: float = param("Pixels below this value become 0.", Number(0))

        def apply(self, frames: Array) -> Array:
            return np.where(frames < self.below, 0, frames)

Map        a block of frames to a block of frames, pixel by pixel or geometry
Join       blocks of the same frames from several inputs to one block of frames, pixel by pixel
Transform  a block of frames to a block of perhaps other frames: with a state, or with code that may fail
Pick       a block of frames to a block of sparse frames: some of their pixels
Select     a block of frames to some of these frames, chosen by rows that others give of them
Reduce     a block of frames to at most one row per frame; partial results of several receivers merge
Gather     parts of frames, one at each of several receivers, to whole frames
Delegate   a block of frames to what other processes make of it
Sink       a block of frames to a file
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar, dataclass_transform, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import NodeMisuse, UserCodeError
from lima2cli.files.channel import Channel
from lima2cli.frames import Array, Block, Files, FrameSpec, SparseBlock, SparseSpec, Spec, TableSpec
from lima2cli.geometry import Rule
from lima2cli.kernels.masked import JoinedHoles, carried, finder
from lima2cli.kernels.strips import Stage, Turn
from lima2cli.nodes.user_function import FunctionOutput

Partial = dict[str, Array]
"""Partial results of a Reduce: arrays whose first axis is the row, at most one row per frame of the block.

``frame_number`` (uint64, increasing) is always among them and says which frame a row is of. Partials of
consecutive blocks may be concatenated key by key. They own their arrays: nothing in them is a view of the block.
"""


@dataclass(frozen=True, kw_only=True)
class Node:
    """The base of all nodes. ``kind`` is the key that users write, ``wiring`` the one next to it that names the inputs.

    ``sparse``: it also takes sparse frames. ``parts``: it also takes parts of frames, each receiver its own; what a
    `Reduce` makes of them is then merged. ``turns``: its `stage_of` is a `Turn`, which moves pixels and computes none.
    """

    kind: ClassVar[str]
    wiring: ClassVar[Literal["input", "inputs"]] = "input"
    sparse: ClassVar[bool] = False
    parts: ClassVar[bool] = False
    turns: ClassVar[bool] = False

    def infer(self, spec: FrameSpec, files: Files) -> Spec:
        """Return what leaves the node when ``spec`` enters.

        A pure function, called when a pipeline is compiled: no frame exists yet.

        Raises:
            NodeMisuse: the parameters do not go with ``spec``.
            FileProblem: a file that a parameter names is missing or unfit.
        """
        raise NotImplementedError

    def warnings(self, spec: FrameSpec, files: Files) -> Sequence[NodeMisuse]:
        """Return what is allowed and probably not meant, each as a `NodeMisuse`, not raised; called after `infer`."""
        return ()

    def looked_at(self, spec: FrameSpec) -> int:
        """Return how many pixels, beyond those of the mask, `infer` and `warnings` look at; called before both.

        Raises:
            NodeMisuse: they are too many for one node.
        """
        return 0

    def in_strips(self, inputs: int) -> bool:
        """Return whether with so many inputs it has a `stage_of`, and so is computed strip by strip."""
        return False

    def stage_of(self, specs: Mapping[str, FrameSpec], files: Files) -> Stage | Turn:
        """Return what is done to each strip of frames; asked for where it is `in_strips`.

        ``specs`` are those of the inputs, by name, which all read the same frames. Raises as `infer` does.
        """
        raise NotImplementedError


N = TypeVar("N", bound=Node)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def node(kind: str) -> Callable[[type[N]], type[N]]:
    """Make a class a node of this kind: a frozen dataclass, whose fields are given by keyword."""

    def decorate(cls: type[N]) -> type[N]:
        cls.kind = kind
        return dataclass(frozen=True, kw_only=True)(cls)

    return decorate


class Map(Node):
    """Block of frames in, block of frames out.

    Masked pixels (`FrameSpec.mask`, and of single frames `FrameSpec.invalid`) are NaN in results of floats, in integers
    what they held: no value is made up for them.

    A map that computes each pixel in its place has `apply`, and an `infer` of its own where the dtype changes or the
    saturation does; all others have `infer` and `bind`.
    """

    def apply(self, frames: Array) -> Array:
        """Return the result for frames (n, h, w), which are read-only: as many, of the same shape.

        What it makes of masked pixels does not matter: these are put right behind it.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither `apply` nor `bind`")

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`: frames like those that enter; of floats, masked pixels are NaN."""
        if np.dtype(spec.dtype).kind != "f":
            return spec
        return replace(spec, invalid=carried(spec.invalid, spec.dtype, spec.dtype), holds=math.nan)

    def bind(self, spec: FrameSpec, files: Files) -> Callable[[Array], Array]:
        """Return the function (n, h, w) → (n, h', w') for frames of ``spec``.

        Its result stays valid until its next call only, so that it may keep one output array. Where there is nothing to
        do it returns the very array that it was given.

        Raises:
            NotImplementedError: there is no `apply`, or `infer` says that frames show something else.
        """
        after = self.infer(spec, files)
        if type(self).apply is Map.apply or (after.view, after.shape) != (spec.view, spec.shape):
            raise NotImplementedError(
                f"{type(self).__name__} lacks `bind`: `apply` is for pixels that stay in their place"
            )
        return _Applied(self.apply, spec, after)


class _Applied:
    """A function of frames, as `Map.apply` is one, and behind it what masked pixels get."""

    def __init__(self, apply: Callable[[Array], Array], before: FrameSpec, after: FrameSpec) -> None:
        self._apply, self._after = apply, after
        self._masks = before.mask is not None or finder(before.invalid, before.dtype) is not None
        self._holes = JoinedHoles({"": before}, after.dtype, frozenset())

    def __call__(self, frames: Array) -> Array:
        """Return the result for frames (n, h, w). Raises `UserCodeError` where it is not as inferred."""
        given = frames.view()
        given.flags.writeable = False
        out = self._apply(given)
        if out.shape != frames.shape or out.dtype != self._after.dtype:
            wanted = f"{self._after.dtype} {frames.shape}, as `infer` says"
            raise UserCodeError(f"`apply` has returned {out.dtype} {out.shape}, not {wanted}")
        if self._masks:
            out = out if out.flags.writeable else out.copy()
            self._holes.put({"": frames}, out, slice(None))
        return out


class Join(Node):
    """Frames of one or several inputs in, paired by their numbers; block of frames out.

    Inputs are named by the user, ``inputs: {a: …, b: …}``. All have frames of one numbering.
    """

    wiring: ClassVar[Literal["input", "inputs"]] = "inputs"

    def infer_all(self, specs: Mapping[str, FrameSpec], files: Files) -> FrameSpec:
        """Return what leaves the node when ``specs`` enter, by the names of the inputs.

        Raises:
            NodeMisuse: they do not go together; the key is ``("inputs", name)`` where one of them is at fault.
            FileProblem: see `Node.infer`.
        """
        raise NotImplementedError

    def warnings_all(self, specs: Mapping[str, FrameSpec], files: Files) -> Sequence[NodeMisuse]:
        """See `Node.warnings`."""
        return ()

    def bind_all(self, specs: Mapping[str, FrameSpec], files: Files) -> Callable[[Mapping[str, Array]], Array]:
        """Return the function of the same frames of each input, (n, h, w) by name, that gives (n, h', w').

        Its result stays valid until its next call only.
        """
        raise NotImplementedError


class Pick(Node):
    """Block of frames in, block of sparse frames out."""

    def infer(self, spec: FrameSpec, files: Files) -> SparseSpec:
        """See `Node.infer`."""
        raise NotImplementedError

    def bind(self, spec: FrameSpec, files: Files) -> Callable[[Block], SparseBlock]:
        """Return the function of blocks of frames of ``spec``. Its results own their arrays."""
        raise NotImplementedError


class BlockDropped(Exception):
    """A block that a transform gives up, for a reason that the user allowed (``on_error: drop``); reported once.

    ``instead`` goes on in its place (``on_error: pass``); None = nothing, and its frames count as dropped.
    """

    def __init__(self, why: str, instead: Block | None = None) -> None:
        super().__init__(why)
        self.instead = instead


class Transformer(Protocol):
    """A started Transform. It gets blocks that can't be overwritten, in frame order, each once."""

    def step(self, block: Block) -> Block | None:
        """Return the result for a block; None where none is ready yet. Its arrays stay valid until the next step.

        Raises:
            BlockDropped: the block is given up. Any other exception fails the node.
        """
        ...

    def finish(self) -> Block | None:
        """Return what is left at the end of an acquisition, and forget it.

        Another acquisition may follow, whose frames are numbered from 0 again.
        """
        ...

    def close(self) -> None:
        """Release what is held; called once, after a failure too."""
        ...


class Transform(Node):
    """Block of frames in, block of perhaps other frames out: with a state, or with code that may fail."""

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`."""
        raise NotImplementedError

    def numbering(self, rule: Rule, receivers: Sequence[int]) -> tuple[Rule, Sequence[int], int]:
        """Return numbers and places of the frames that leave, and how many that enter make one of them (0 = all).

        Both are given as the rule of a flow, with a receiver for each of its local buffers.

        Raises `NodeMisuse` where frames that belong together reach different receivers.
        """
        return rule, receivers, 1

    def start(self, spec: FrameSpec, files: Files, rule: Rule) -> Transformer:
        """Return a transformer of frames of ``spec``, numbered by ``rule``; called once per receiver."""
        raise NotImplementedError


class Reducer(Protocol):
    """A started Reduce: one for each thread of each receiver."""

    def step(self, block: Block, received_ns: int) -> Partial:
        """Return partial results of the frames of a block; ``received_ns`` is its arrival, ns since the epoch."""
        ...


class StripReducer(Reducer, Protocol):
    """A started Reduce that also takes frames in strips, while they are in cache: `begin`, each `strip`, `end`."""

    def begin(self, frames: int) -> None:
        """Begin a block of so many frames."""
        ...

    def strip(self, pixels: Array, frames: slice, rows: slice) -> None:
        """Take whole ``rows`` of some ``frames`` of the block, (n, rows, width); valid during the call only.

        Called under ``np.errstate(all="ignore")``.
        """
        ...

    def end(self, block: Block, received_ns: int) -> Partial:
        """Return what `Reducer.step` gives for the block; ``block.frames`` is not looked at."""
        ...


class Reduce(Node):
    """Block of frames in, at most one row per frame out.

    ``strips``: `start` returns a `StripReducer`; ``every``: of so many frames one has a row.
    """

    strips: ClassVar[bool] = False
    every: int = 1

    def infer(self, spec: FrameSpec, files: Files) -> TableSpec:
        """See `Node.infer`."""
        raise NotImplementedError

    def start(self, spec: FrameSpec, files: Files) -> Reducer:
        """Return a reducer of frames of ``spec``."""
        raise NotImplementedError

    def merge(self, one: Partial, other: Partial) -> Partial:
        """Merge partial results of the same rows (equal ``frame_number``) of receivers that hold different parts."""
        raise NotImplementedError

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """Return the columns of `infer`, and ``frame_number`` (uint64): a row for each of ``partial``, in its order."""
        raise NotImplementedError


Rows = Mapping[str, NDArray[Any]]
"""Columns of a table as `Reduce.finish` gives them, ``frame_number`` (uint64, increasing) among them."""


class Select(Node):
    """Frames in, some of these frames out, as they are, chosen by rows that Reduce nodes give of them.

    ``names_in`` is the parameter in which users name these nodes.
    """

    names_in: ClassVar[str] = "keep"

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the nodes whose rows it reads, each once. Raises `NodeMisuse` where they can't be read."""
        raise NotImplementedError

    def infer_rows(self, spec: FrameSpec, tables: Mapping[str, TableSpec], files: Files) -> FrameSpec:
        """Return ``spec``; ``tables`` are those of the nodes that it reads, by name. Raises `NodeMisuse`."""
        raise NotImplementedError

    def choose(self, numbers: NDArray[np.uint64], rule: Rule, rows: Mapping[str, Rows]) -> NDArray[np.bool_]:
        """Return which of these frames leave, bool (n,); a pure function of each frame by itself.

        ``numbers``, increasing, are selected by ``rule``; ``rows`` are all that there are of these frames, by the name
        of the node, and maybe rows of other frames.
        """
        raise NotImplementedError


class Gather(Node):
    """Parts of frames in, which several receivers hold; whole frames out, each at one of these receivers in turn.

    The transfer is the runtime's; the node says what the frames are.
    """

    parts: ClassVar[bool] = True
    strategy: str

    def infer_parts(self, specs: Sequence[FrameSpec]) -> FrameSpec:
        """Return the whole frames that parts ``specs`` make, one for each receiver. Raises `NodeMisuse`."""
        raise NotImplementedError

    def filling(self, spec: FrameSpec) -> float:
        """Return the value of pixels of whole frames of ``spec`` that no receiver has."""
        raise NotImplementedError


class Delegate(Node):
    """Block of frames in; out what other processes reply, for the same frames or for fewer of them.

    Where ``reply`` is False the block itself leaves. The transfer is the runtime's; the node says what the processes
    are: ``ranks`` of them, which take blocks in turn. They run ``command``, or serve ``function`` (see
    `nodes.user_function`), with ``params``. ``on_error`` says what is done with a block without a reply: stop, drop or
    pass.
    """

    command: tuple[str, ...] | None
    function: str | None
    params: Mapping[str, Any]
    ranks: int
    reply: bool
    output: FunctionOutput
    on_error: str

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`."""
        raise NotImplementedError


class Writer(Protocol):
    """An open Sink. ``stage`` does the work that can be thrown away, ``commit`` makes it last."""

    def stage(self, block: Block) -> Any:
        """Prepare a block (compress it). Must not keep views of ``block.frames`` unless ``block.stable``."""
        ...

    def commit(self, staged: Any) -> int:
        """Write what was staged, and return the number of frames. Raises OSError where the disk refuses."""
        ...

    def flush(self) -> None:
        """Make what was committed readable by others, also after a kill."""
        ...

    def close(self) -> None:
        """End the files."""
        ...


@runtime_checkable
class EarlyWriter(Writer, Protocol):
    """A writer that can be opened before the start, so that the first frames need not wait for files to be made."""

    def start(self, start_ns: int) -> None:
        """Take the start of the acquisition, ns since the epoch; called before the first block."""
        ...


@runtime_checkable
class ThreadedWriter(Writer, Protocol):
    """A writer that may use several threads in `Writer.stage`; the runtime says how many before the first block."""

    threads: int


class Sink(Node):
    """Block of frames in, files out. ``early``: see `open`."""

    early: ClassVar[bool] = False

    def infer(self, spec: FrameSpec, files: Files) -> FrameSpec:
        """See `Node.infer`: a sink hands its input on unchanged."""
        return spec

    def channel(self, spec: FrameSpec, period_s: float | None) -> Mapping[str, Any]:
        """Return the storage fields of `Channel` (compression, frames_per_file, frames_per_chunk).

        ``period_s``: seconds from one frame to the next at each receiver, None where it is not known.
        """
        raise NotImplementedError

    def open(self, channel: Channel, directory: str, receiver: int, start_ns: int | None) -> Writer:
        """Open the writer of one receiver; ``directory`` is the run's, ``start_ns`` its start, ns since the epoch.

        Where the node is ``early`` it is opened before the start, with None; what it gives is an `EarlyWriter`.
        """
        raise NotImplementedError


__all__ = [
    "BlockDropped",
    "Delegate",
    "EarlyWriter",
    "Gather",
    "Join",
    "Map",
    "Node",
    "Partial",
    "Pick",
    "Reduce",
    "Reducer",
    "Rows",
    "Select",
    "Sink",
    "StripReducer",
    "ThreadedWriter",
    "Transform",
    "Transformer",
    "Writer",
    "node",
]  # fmt: skip
