"""lima2: declarative pipelines for 2D X-ray detectors that are faster than one computer.

Here are the names that authors need: of nodes (`node`, the roles, the shapes of parameters), of detectors
(`DetectorConfig`), and of programs that process frames themselves (`Receiver`, `serve`). Each is imported when it is
first asked for, so that ``import lima2cli`` costs nothing. Tests to inherit are in `lima2cli.testing`.
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
    from lima2cli.errors import FileProblem, Lima2Error, NodeMisuse, StateError, UserCodeError
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
        SparseSpec,
        StackInfo,
        TableSpec,
    )
    from lima2cli.geometry import Rect, Rule
    from lima2cli.nodes.base import (
        BlockDropped,
        Delegate,
        EarlyWriter,
        Gather,
        Join,
        Map,
        Node,
        Partial,
        Pick,
        Reduce,
        Reducer,
        Rows,
        Select,
        Sink,
        StripReducer,
        ThreadedWriter,
        Transform,
        Transformer,
        Writer,
        node,
    )
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
    "lima2cli.errors": "FileProblem Lima2Error NodeMisuse StateError UserCodeError",
    "lima2cli.files.channel": "Channel",
    "lima2cli.frames": """
        Array Block DatasetInfo DetectorInfo Files FrameReader FrameSpec Invalid SparseBlock SparseSpec StackInfo
        TableSpec
    """,
    "lima2cli.geometry": "Rect Rule",
    "lima2cli.nodes.base": """
        BlockDropped Delegate EarlyWriter Gather Join Map Node Partial Pick Reduce Reducer Rows Select Sink
        StripReducer ThreadedWriter Transform Transformer Writer node
    """,
    "lima2cli.processing": "Receiver SourceBlock",
    "lima2cli.view": "View",
    "lima2cli.worker": "Task Worker serve",
}
"""The public names, by the module in which each is."""

_PLACE = {name: module for module, names in _PLACES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name from the module in which it is."""
    if name not in _PLACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the module, those not yet imported among them."""
    return sorted({*globals(), *__all__})


__all__ = [
    "AcqParams", "Anything", "Array", "Block", "BlockDropped", "Capabilities", "Channel", "Choice", "DatasetInfo",
    "Delegate", "Detector", "DetectorConfig", "DetectorInfo", "EarlyWriter", "Either", "EmulatedDetector",
    "FileProblem", "FileReference", "Files", "Flag", "FrameReader", "FrameSpec", "FunctionReference", "Gather",
    "Integer", "Invalid", "Join", "Lima2Error", "ListOf", "Map", "MapOf", "Node", "NodeMisuse", "Number",
    "NumberOrNan", "Operations", "PartKey", "Partial", "Pick", "PixelSource", "Plausible", "Quantity", "Receiver",
    "Rect", "Reduce", "Reducer", "Rows", "Rule", "Select", "Sink", "SourceBlock", "SparseBlock", "SparseSpec",
    "StackInfo", "State", "StateError", "StripReducer", "Table", "TableSpec", "Task", "Text", "ThreadedWriter",
    "Transform", "Transformer", "UserCodeError", "View", "Worker", "Writer", "XferParams", "__version__", "node",
    "param", "serve",
]  # fmt: skip
