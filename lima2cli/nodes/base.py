"""The roles of nodes, and what each promises.

A node is one file and one class, which `node` gives its kind: parameters, declared by `param`, and no state. State is
in what ``bind`` and ``open`` return, one per receiver. All arrays that a node gets are read-only to it.

    @node("threshold")
    class Threshold(Map):
        '''Set pixels below a level to zero.'''

        below: float = param("Pixels below this value become 0.", Number(0))

        def apply(self, frames: Array) -> Array:
            return np.where(frames < self.below, 0, frames)

Whatever its role, ``infer`` says what leaves the node, and ``bind`` returns what works at one receiver. Both get
`Inputs`. The roles are:

Map        frames to frames, or to some of their pixels, one by one; of several inputs, the same frames of each
Transform  frames to perhaps other frames: with a state, or with code that may fail
Select     frames to some of these frames, chosen by rows that others give of them
Reduce     frames to at most one row per frame; partial results of several receivers merge
Exchange   frames to what several processes make of them together: other receivers, or workers
Sink       frames to a file
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    Self,
    TypeVar,
    dataclass_transform,
    runtime_checkable,
)

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.errors import NodeMisuse, UserCodeError
from lima2cli.files.channel import Channel
from lima2cli.frames import Array, Block, Files, FrameSpec, SparsePixels, Spec, TableSpec
from lima2cli.geometry import Rect, Rule
from lima2cli.kernels.masked import JoinedHoles, finder, joined_rule
from lima2cli.kernels.statistics import RegionSums, Sums
from lima2cli.kernels.strips import Stage, Turn
from lima2cli.nodes.user_function import FunctionOutput
from lima2cli.view import Outline

if TYPE_CHECKING:
    from lima2cli.files.common_writer import CommonWriter
    from lima2cli.transport.base import CollectiveGroup

Partial = dict[str, Array]
"""Partial results of a Reduce: arrays whose first axis is the row, at most one row per frame of the block.

``frame_number`` (uint64, increasing) is always among them and says which frame a row is of. Partials of
consecutive blocks may be concatenated key by key. They own their arrays: nothing in them is a view of the block.
"""


ALL_FRAMES = Rule(0, 1, None, blocks=1, buffers=1, slots=1, stride=1)
"""Every frame from number 0 on."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The frames that enter a node at one receiver, and all else that it may read.

    specs   frames that enter, by the names of the inputs, in the order in which they are written
    files   the files that parameters name
    rule    the numbers of the frames
    receiver  that it works on, numbered as they are written, from 0
    tables  of a `Select`: tables of the nodes that it reads, by name
    parts   of an `Exchange`: the frames that enter at each of the receivers
    """

    specs: Mapping[str, FrameSpec]
    files: Files
    rule: Rule = ALL_FRAMES
    tables: Mapping[str, TableSpec] = field(default_factory=dict)
    parts: Sequence[FrameSpec] = ()
    receiver: int = 0

    @classmethod
    def of(cls, spec: FrameSpec, files: Files, **more: Any) -> Self:
        """Return the inputs of a node that reads one source."""
        return cls({"input": spec}, files, **more)

    @property
    def spec(self) -> FrameSpec:
        """Return the frames of the only input, of several the first."""
        return next(iter(self.specs.values()))


@dataclass(frozen=True, kw_only=True)
class Node:
    """The base of all nodes. ``kind`` is the key that users write, ``wiring`` the one next to it that names the inputs.

    ``changeable``: parameters that users may change while a run goes on, where what leaves the node stays the same.

    ``role``: its role in a word, for lists. ``sparse``: it also takes sparse frames. ``parts``: it also takes parts of
    frames, each receiver its own; what a `Reduce` makes of them is then merged.
    """

    kind: ClassVar[str]
    role: ClassVar[str]
    changeable: ClassVar[tuple[str, ...]] = ()
    wiring: ClassVar[Literal["input", "inputs"]] = "input"
    sparse: ClassVar[bool] = False
    parts: ClassVar[bool] = False

    @property
    def calls(self) -> str | None:
        """Return the reference of a function of users' that it calls or has served; None without one."""
        return None

    def infer(self, inputs: Inputs) -> Spec:
        """Return what leaves the node when ``inputs`` enter.

        A pure function, called when a pipeline is compiled: no frame exists yet.

        Raises:
            NodeMisuse: the parameters do not go with the inputs; the key is ``("inputs", name)`` where one of several
                is at fault.
            FileProblem: a file that a parameter names is missing or unfit.
        """
        raise NotImplementedError

    def as_sent(self, inputs: Inputs) -> bool:
        """Return whether it takes frames as the detector has compressed them (`FrameSpec.packed`), and gives them so.

        Called after `infer`. Such a node gets a `PackedBlock`, whose pixels it asks for only where it has to.
        """
        return False

    def warnings(self, inputs: Inputs) -> Sequence[NodeMisuse]:
        """Return what is allowed and probably not meant, each as a `NodeMisuse`, not raised; called after `infer`."""
        return ()

    def looked_at(self, inputs: Inputs) -> int:
        """Return how many pixels, beyond those of the mask, `infer` and `warnings` look at; called before both.

        Raises:
            NodeMisuse: they are too many for one node.
        """
        return 0

    def outlines(self, spec: FrameSpec) -> Mapping[str, Outline]:
        """Return the regions of frames of ``spec``, its first input, that it looks at, by name, to be drawn on images.

        Called after `infer`.
        """
        return {}


N = TypeVar("N", bound=Node)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def node(kind: str) -> Callable[[type[N]], type[N]]:
    """Make a class a node of this kind: a frozen dataclass, whose fields are given by keyword."""

    def decorate(cls: type[N]) -> type[N]:
        cls.kind = kind
        return dataclass(frozen=True, kw_only=True)(cls)

    return decorate


def joined(specs: Mapping[str, FrameSpec]) -> FrameSpec:
    """Return the first of the frames that enter, masked where any is; of several, without saturation level.

    Raises:
        NodeMisuse: they do not show the same part of the detector the same way.
    """
    (first, spec), *others = specs.items()
    whole = replace(spec, saturation=None) if others else spec
    for name, other in others:
        if other.shape != spec.shape:
            message = f"`{first}` is {spec}, but `{name}` is {other}"
            raise NodeMisuse("edge-mismatch", message, ("inputs", name), "joined frames must have the same shape")
        if (other.view, other.detector) != (spec.view, spec.detector):
            message = f"`{first}` and `{name}` do not show the same part of the detector the same way"
            raise NodeMisuse("edge-mismatch", message, ("inputs", name), "cut, bin and rotate both in the same way")
        whole = whole.masked(other.mask)
    return whole


class Map(Node):
    """Block of frames in, block of frames out. Inputs, of which users name several where ``wiring`` is ``inputs``, give
    the same frames.

    Masked pixels (`FrameSpec.mask`, and of single frames `FrameSpec.invalid`) are NaN in results of floats, in integers
    what they held: no value is made up for them.

    A map that computes each pixel in its place has `apply`, and an `infer` of its own where the dtype changes or the
    saturation does; all others have `infer` and `bind`. Where `infer` gives a `SparseSpec`, the function that `bind`
    returns gives `SparsePixels`.

    A map that is computed strip by strip also has `stage_of`, see `nodes.pixelwise`: it is then fused with its
    neighbours. ``turns``: `stage_of` is a `Turn`, which moves pixels and computes none.
    """

    role: ClassVar[str] = "map"
    turns: ClassVar[bool] = False

    def apply(self, *args: Any, **kwargs: Any) -> Array:
        """Return the result for frames (n, h, w), an argument for each input: as many, of the same shape.

        They are read-only. What it makes of masked pixels does not matter: these are put right behind it.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither `apply` nor `bind`")

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`: frames like those that enter; of floats, masked pixels are NaN."""
        spec = joined(inputs.specs)
        if np.dtype(spec.dtype).kind == "f":
            return replace(spec, invalid=joined_rule(inputs.specs, spec.dtype), holds=math.nan)
        return spec if len(inputs.specs) == 1 else replace(spec, invalid=joined_rule(inputs.specs, spec.dtype))

    def bind(self, inputs: Inputs) -> Callable[..., Array | SparsePixels]:
        """Return the function of the same frames (n, h, w) of each input, in their order, that gives (n, h', w').

        Its result stays valid until its next call only, so that it may keep one output array. Where there is nothing to
        do it returns the very array that it was given.

        Raises:
            NotImplementedError: there is no `apply`, or `infer` says that frames show something else.
        """
        before, after = inputs.spec, self.infer(inputs)
        if type(self).apply is Map.apply or (after.view, after.shape) != (before.view, before.shape):
            raise NotImplementedError(
                f"{type(self).__name__} lacks `bind`: `apply` is for pixels that stay in their place"
            )
        return _Applied(self.apply, inputs.specs, after)

    def in_strips(self, inputs: int) -> bool:
        """Return whether with so many inputs it has a `stage_of`, and so is computed strip by strip."""
        return False

    def stage_of(self, inputs: Inputs) -> Stage | Turn:
        """Return what is done to each strip of frames; asked for where it is `in_strips`.

        All inputs read the same frames. Raises as `infer` does.
        """
        raise NotImplementedError


class _Applied:
    """A function of frames, as `Map.apply` is one, and behind it what masked pixels get."""

    def __init__(self, apply: Callable[..., Array], before: Mapping[str, FrameSpec], after: FrameSpec) -> None:
        self._apply, self._after = apply, after
        self._masks = any(it.mask is not None or finder(it.invalid, it.dtype) is not None for it in before.values())
        self._holes = JoinedHoles(list(before.values()), after.dtype)

    def __call__(self, *frames: Array) -> Array:
        """Return the result for frames (n, h, w) of each input. Raises `UserCodeError` where it is not as inferred."""
        given = [each.view() for each in frames]
        for each in given:
            each.flags.writeable = False
        out = self._apply(*given)
        if out.shape != frames[0].shape or out.dtype != self._after.dtype:
            wanted = f"{self._after.dtype} {frames[0].shape}, as `infer` declares"
            raise UserCodeError(f"`apply` has returned {out.dtype} {out.shape}, not {wanted}")
        if self._masks:
            out = out if out.flags.writeable else out.copy()
            self._holes.put(frames, out, slice(None))
        return out


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


@runtime_checkable
class WarningTransformer(Transformer, Protocol):
    """A transformer that has something to say at the end of an acquisition."""

    def warnings(self) -> Sequence[str]:
        """Return what users should know of the acquisition that has ended; called after `Transformer.finish`."""
        ...


@runtime_checkable
class GrowingTransformer(Transformer, Protocol):
    """A transformer of a result that can be looked at before it is whole."""

    def so_far(self) -> Array | None:
        """Return the result of the blocks so far (height, width), an array of its own; None where there is none yet."""
        ...


@runtime_checkable
class JoinedTransformer(Transformer, Protocol):
    """A transformer of a node whose users may name several inputs (``wiring``)."""

    def join(self, blocks: Mapping[str, Block]) -> Block:
        """Return the block that leaves; `step` is for a single input.

        ``blocks``, by the names of the inputs, have the same frames: those that are in all of them.
        """
        ...


class Transform(Node):
    """Block of frames in, block of perhaps other frames out: with a state, or with code that may fail."""

    role: ClassVar[str] = "transform"

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`."""
        raise NotImplementedError

    def numbering(self, rule: Rule, receivers: Sequence[int]) -> tuple[Rule, Sequence[int], int]:
        """Return numbers and places of the frames that leave, and how many that enter make one of them (0 = all).

        Both are given as the rule of a flow, with a receiver for each of its local buffers.

        Raises `NodeMisuse` where frames that belong together reach different receivers.
        """
        return rule, receivers, 1

    def bind(self, inputs: Inputs) -> Transformer:
        """Return a transformer of the frames; called once per receiver."""
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

    def strip(self, pixels: Array, frames: slice, rows: slice, columns: slice) -> None:
        """Take some ``rows`` of some ``frames`` of the block, (n, rows, columns); valid during the call only.

        ``columns`` are all, or those of a part of the frames that holds some of what `Reduce.reads` names, whole.
        Called under ``np.errstate(all="ignore")``.
        """
        ...

    def end(self, block: Block, received_ns: int) -> Partial:
        """Return what `Reducer.step` gives for the block; ``block.frames`` is not used."""
        ...


@runtime_checkable
class RegionReducer(Protocol):
    """A started Reduce that makes its rows of sums over regions, which may be computed elsewhere: on a device."""

    regions: Sequence[RegionSums]

    def of_sums(self, block: Block, sums: Sequence[Sums]) -> Partial:
        """Return what `Reducer.step` gives for the block, from the sums of each region; its frames are not used."""
        ...


class Reduce(Node):
    """Block of frames in, at most one row per frame out.

    ``strips``: `bind` returns a `StripReducer`; ``threaded``: several threads may do the frames of a block, as they do
    where it takes strips; ``every``: of so many frames one has a row; ``summed``: `bind` returns a `RegionReducer`.
    """

    role: ClassVar[str] = "table"
    strips: ClassVar[bool] = False
    summed: ClassVar[bool] = False
    threaded: ClassVar[bool] = False
    every: int = 1

    def infer(self, inputs: Inputs) -> TableSpec:
        """See `Node.infer`."""
        raise NotImplementedError

    def reads(self, spec: FrameSpec) -> Sequence[Rect] | None:
        """Return rectangles of frames of ``spec``, its input, outside which it reads no pixel; None = it may read all.

        Where it takes strips, other pixels need not be computed for it. Called after `infer`.
        """
        return None

    def costs_as(self, spec: FrameSpec) -> str | None:
        """Return the work of ``doctor --bench`` that costs as much for a pixel of ``spec`` that it reads; None = none.

        Called after `infer`, by predictions.
        """
        return None

    def bind(self, inputs: Inputs) -> Reducer:
        """Return a reducer of the frames; called once for each thread of each receiver."""
        raise NotImplementedError

    def merge(self, one: Partial, other: Partial) -> Partial:
        """Merge partial results of the same rows (equal ``frame_number``) of receivers that hold different parts.

        Not asked of a node that takes no ``parts``.
        """
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

    role: ClassVar[str] = "select"
    names_in: ClassVar[str] = "keep"

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the nodes whose rows it reads, each once. Raises `NodeMisuse` where they can't be read."""
        raise NotImplementedError

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`: the frames that enter. Raises `NodeMisuse` where it can't read ``inputs.tables``."""
        return inputs.spec

    def as_sent(self, inputs: Inputs) -> bool:
        """See `Node.as_sent`: it looks at rows, not at pixels."""
        return True

    def choose(self, numbers: NDArray[np.uint64], rule: Rule, rows: Mapping[str, Rows]) -> NDArray[np.bool_]:
        """Return which of these frames leave, bool (n,); a pure function of each frame by itself.

        ``numbers``, increasing, are selected by ``rule``; ``rows`` are all that there are of these frames, by the name
        of the node, and maybe rows of other frames.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class WorkerPool:
    """Processes that take blocks in turn: ``ranks`` of them, which run ``command``, or serve ``function``.

    Where ``reply`` is False the block itself leaves the node. ``output`` is what they reply, see `nodes.user_function`;
    ``on_error`` says what is done with a block without a reply: stop, drop or pass.
    """

    command: tuple[str, ...] | None
    function: str | None
    params: Mapping[str, Any]
    ranks: int
    reply: bool
    output: FunctionOutput
    on_error: str


class Exchange(Node):
    """Block of frames in; out what several processes of the run make of it together. The transfer is the runtime's.

    It has ``workers``, of its own, which get blocks and reply; or it ``gathers``: receivers that hold parts of the same
    frames give them to one of them in turn, which then has whole frames. With neither, frames stay where they are.
    """

    role: ClassVar[str] = "exchange"

    @property
    def workers(self) -> WorkerPool | None:
        """Return its processes; None without."""
        return None

    @property
    def gathers(self) -> bool:
        """Return whether whole frames leave, each at one of the receivers; `infer` is the same for all of them."""
        return False

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`."""
        raise NotImplementedError

    def filling(self, spec: FrameSpec) -> float:
        """Return the value of pixels that no receiver has of whole frames of ``spec``, where it gathers."""
        return spec.hole


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

    role: ClassVar[str] = "sink"
    early: ClassVar[bool] = False

    @property
    def together(self) -> bool:
        """Return whether all receivers write one file: it is then opened by `open_together`."""
        return False

    @property
    def assembles(self) -> bool:
        """Return whether it saves ``parts`` of frames as they are, for its master to show them as whole ones."""
        return False

    def infer(self, inputs: Inputs) -> FrameSpec:
        """See `Node.infer`: a sink hands its input on unchanged."""
        return inputs.spec

    def check(self, channel: Channel) -> NodeMisuse | None:
        """Return what keeps frames from being saved in a channel; None where nothing does."""
        return None

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

    def open_together(
        self, channel: Channel, directory: str, receiver: int, start_ns: int, collective: "CollectiveGroup"
    ) -> "CommonWriter":
        """Open the part of one receiver in the file of all of them, which are the members of ``collective``."""
        raise NotImplementedError


__all__ = [
    "BlockDropped",
    "EarlyWriter",
    "Exchange",
    "Inputs",
    "Map",
    "Node",
    "Partial",
    "Reduce",
    "Reducer",
    "Rows",
    "Select",
    "Sink",
    "StripReducer",
    "ThreadedWriter",
    "Transform",
    "Transformer",
    "WorkerPool",
    "Writer",
    "node",
]  # fmt: skip
