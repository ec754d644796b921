"""The names that `lima2cli` offers: exactly these, each imported when it is first asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lima2cli

_TEXT = """
    AcqParams Anything Array Block BlockDropped Capabilities Channel Choice DatasetInfo Delegate Detector DetectorConfig
    DetectorInfo EarlyWriter Either EmulatedDetector FileProblem FileReference Files Flag FrameReader FrameSpec
    FunctionReference Gather Integer Invalid Join Lima2Error ListOf Map MapOf Node NodeMisuse Number NumberOrNan
    Operations PartKey Partial Pick PixelSource Plausible Quantity Receiver Rect Reduce Reducer Rows Rule Select Sink
    SourceBlock SparseBlock SparseSpec StackInfo State StateError StripReducer Table TableSpec Task Text ThreadedWriter
    Transform Transformer UserCodeError View Worker Writer XferParams __version__ node param serve
"""
NAMES = _TEXT.split()


def typed() -> dict[str, str]:
    """Names that checkers of types see, and the module of each."""
    (block,) = (item for item in ast.parse(Path(lima2cli.__file__).read_text()).body if isinstance(item, ast.If))
    return {
        alias.name: str(item.module) for item in block.body if isinstance(item, ast.ImportFrom) for alias in item.names
    }


def test_these_names_are_public() -> None:
    assert list(lima2cli.__all__) == NAMES
    assert set(NAMES) <= set(dir(lima2cli))
    with pytest.raises(AttributeError, match="module 'lima2cli' has no attribute 'Nodes'"):
        _ = lima2cli.Nodes  # type: ignore[attr-defined]


def test_checkers_of_types_see_the_same_objects() -> None:
    found = typed()
    assert {*found, "__version__"} == set(NAMES)
    for name, module in found.items():
        assert getattr(lima2cli, name) is getattr(sys.modules[module], name)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    """Not even the modules of other names."""
    script = (
        "import sys, lima2cli; first = set(sys.modules); lima2cli.Number\n"
        "print([name for name in first if name.startswith(('lima2cli.', 'numpy', 'h5py'))],\n"
        "      sorted({'lima2cli.declare', 'lima2cli.frames', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[] ['lima2cli.declare']\n"
