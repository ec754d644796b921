"""lima2: declarative pipelines for 2D X-ray detectors that are faster than one computer.

Here are the names that programs need which start and drive runs (`run`, `open`, `validate`), and those that authors
need: of nodes (`node`, the roles, the shapes of parameters), of detectors (`DetectorConfig`), and of programs that
process frames themselves (`Receiver`, `serve`). Each is imported when it is first asked for, so that ``import
lima2cli`` costs nothing. Tests to inherit are in `lima2cli.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lima2cli.declare import (
        Anything,
        Choice,
        Either,
        FileReference,
        Flag,
        FunctionReference,
        Integer,
        ListOf,
        MapOf,
        Number,
        NumberOrNan,
        Plausible,
        Quantity,
        Table,
        Text,
        param,
    )
    from lima2cli.detectors.base import (
        AcqParams,
        Capabilities,
        Detector,
        DetectorConfig,
        Operations,
        State,
        XferParams,
    )
    from lima2cli.detectors.emulated import EmulatedDetector, PartKey
    from lima2cli.detectors.sources import PixelSource
    from lima2cli.drive import PipelineInvalid, Run, run, validate
    from lima2cli.drive import compile_pipeline as compile
    from lima2cli.drive import open_run as open
    from lima2cli.drive.asynchronous import AsyncRun, run_async
    from lima2cli.errors import (
        EnvironmentUnfit,
        FileProblem,
        Lima2Error,
        NodeMisuse,
        RunFailed,
        StateError,
        UnreadableInput,
        UserCodeError,
    )
    from lima2cli.facts import AxisFacts, Facts
    from lima2cli.files.channel import Channel
    from lima2cli.frames import (
        Array,
        Block,
        DatasetInfo,
        DetectorInfo,
        Files,
        FrameReader,
        FrameSpec,
        Invalid,
        SparseBlock,
        SparsePixels,
        SparseSpec,
        StackInfo,
        TableSpec,
    )
    from lima2cli.geometry import Rect, Rule
    from lima2cli.kernels.strips import Affine, Formula, Stage, StripFunction, Turn
    from lima2cli.nodes.base import (
        BlockDropped,
        EarlyWriter,
        Exchange,
        Inputs,
        Map,
        Node,
        Partial,
        Reduce,
        Reducer,
        Rows,
        Select,
        Sink,
        StripReducer,
        ThreadedWriter,
        Transform,
        Transformer,
        WorkerPool,
        Writer,
        node,
    )
    from lima2cli.nodes.pixelwise import Pixelwise
    from lima2cli.processing import Receiver, SourceBlock
    from lima2cli.view import View
    from lima2cli.worker import Task, Worker, serve

__version__ = "0.1.0"

_PLACES = {
    "lima2cli.declare": """
        Anything Choice Either FileReference Flag FunctionReference Integer ListOf MapOf Number NumberOrNan
        Plausible Quantity Table Text param
    """,
    "lima2cli.detectors.base": "AcqParams Capabilities Detector DetectorConfig Operations State XferParams",
    "lima2cli.detectors.emulated": "EmulatedDetector PartKey",
    "lima2cli.detectors.sources": "PixelSource",
    "lima2cli.drive": "PipelineInvalid Run compile open run validate",
    "lima2cli.drive.asynchronous": "AsyncRun run_async",
    "lima2cli.errors": """
        EnvironmentUnfit FileProblem Lima2Error NodeMisuse RunFailed StateError UnreadableInput UserCodeError
    """,
    "lima2cli.facts": "AxisFacts Facts",
    "lima2cli.files.channel": "Channel",
    "lima2cli.frames": """
        Array Block DatasetInfo DetectorInfo Files FrameReader FrameSpec Invalid SparseBlock SparsePixels SparseSpec
        StackInfo TableSpec
    """,
    "lima2cli.geometry": "Rect Rule",
    "lima2cli.kernels.strips": "Affine Formula Stage StripFunction Turn",
    "lima2cli.nodes.base": """
        BlockDropped EarlyWriter Exchange Inputs Map Node Partial Reduce Reducer Rows Select Sink StripReducer
        ThreadedWriter Transform Transformer WorkerPool Writer node
    """,
    "lima2cli.nodes.pixelwise": "Pixelwise",
    "lima2cli.processing": "Receiver SourceBlock",
    "lima2cli.view": "View",
    "lima2cli.worker": "Task Worker serve",
}
"""The public names, by the module in which each is."""

_OTHERWISE = {"compile": "compile_pipeline", "open": "open_run"}
"""Public names that are other ones there: they are Python's own, too."""

_PLACE = {name: module for module, names in _PLACES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name from the module in which it is."""
    if name not in _PLACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACE[name]), _OTHERWISE.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the module, those not yet imported among them."""
    return sorted({*globals(), *__all__})


__all__ = [
    "AcqParams", "Affine", "Anything", "Array", "AsyncRun", "AxisFacts", "Block", "BlockDropped", "Capabilities",
    "Channel", "Choice", "DatasetInfo", "Detector", "DetectorConfig", "DetectorInfo", "EarlyWriter", "Either",
    "EmulatedDetector", "EnvironmentUnfit", "Exchange", "Facts", "FileProblem", "FileReference", "Files", "Flag",
    "Formula", "FrameReader", "FrameSpec", "FunctionReference", "Inputs", "Integer", "Invalid", "Lima2Error",
    "ListOf", "Map", "MapOf", "Node", "NodeMisuse", "Number", "NumberOrNan", "Operations", "PartKey", "Partial",
    "PipelineInvalid", "PixelSource", "Pixelwise", "Plausible", "Quantity", "Receiver", "Rect", "Reduce", "Reducer",
    "Rows", "Rule", "Run", "RunFailed", "Select", "Sink", "SourceBlock", "SparseBlock", "SparsePixels",
    "SparseSpec", "StackInfo", "Stage", "State", "StateError", "StripFunction", "StripReducer", "Table",
    "TableSpec", "Task", "Text", "ThreadedWriter", "Transform", "Transformer", "Turn", "UnreadableInput",
    "UserCodeError", "View", "Worker", "WorkerPool", "Writer", "XferParams", "__version__", "compile", "node",
    "open", "param", "run", "run_async", "serve", "validate",
]  # fmt: skip
