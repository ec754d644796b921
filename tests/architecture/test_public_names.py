"""The names that `lima2cli` offers: exactly these, each imported when it is first asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lima2cli

_TEXT = """
    AcqParams Affine Anything Array AsyncRun AxisFacts Block BlockDropped Capabilities Channel Choice DatasetInfo
    Detector DetectorConfig DetectorInfo EarlyWriter Either EmulatedDetector EnvironmentUnfit Exchange Facts
    FileProblem FileReference Files Flag Formula FrameReader FrameSpec FunctionReference Inputs Integer Invalid
    Lima2Error ListOf Map MapOf Node NodeMisuse Number NumberOrNan Operations PartKey Partial PipelineInvalid
    PixelSource Pixelwise Plausible Quantity Receiver Rect Reduce Reducer Rows Rule Run RunFailed Select Sink
    SourceBlock SparseBlock SparsePixels SparseSpec StackInfo Stage State StateError StripFunction StripReducer
    Table TableSpec Task Text ThreadedWriter Transform Transformer Turn UnreadableInput UserCodeError View Worker
    WorkerPool Writer XferParams __version__ compile node open param run run_async serve validate
"""
NAMES = _TEXT.split()


def typed() -> dict[str, tuple[str, str]]:
    """Names that checkers of types see, the module of each, and its name there."""
    (block,) = (item for item in ast.parse(Path(lima2cli.__file__).read_text()).body if isinstance(item, ast.If))
    return {
        alias.asname or alias.name: (str(item.module), alias.name)
        for item in block.body
        if isinstance(item, ast.ImportFrom)
        for alias in item.names
    }


def test_these_names_are_public() -> None:
    assert list(lima2cli.__all__) == NAMES
    assert set(NAMES) <= set(dir(lima2cli))
    with pytest.raises(AttributeError, match="module 'lima2cli' has no attribute 'Nodes'"):
        _ = lima2cli.Nodes  # type: ignore[attr-defined]


def test_checkers_of_types_see_the_same_objects() -> None:
    found = typed()
    assert {*found, "__version__"} == set(NAMES)
    for name, (module, there) in found.items():
        assert getattr(lima2cli, name) is getattr(sys.modules[module], there)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    """Not even the modules of other names."""
    script = (
        "import sys, lima2cli; first = set(sys.modules); lima2cli.Number\n"
        "print([name for name in first if name.startswith(('lima2cli.', 'numpy', 'h5py'))],\n"
        "      sorted({'lima2cli.declare', 'lima2cli.frames', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[] ['lima2cli.declare']\n"


def test_a_rank_reads_no_pipelines() -> None:
    """Each run starts several: they import nothing that compiles, and no YAML."""
    ranks = "lima2cli.ranks.control, lima2cli.ranks.detector, lima2cli.ranks.receiver, lima2cli.runs.ending"
    script = (
        f"import sys, {ranks}, lima2cli.job.resources, lima2cli.detectors.remu, lima2cli.nodes.io_hdf5\n"
        "print([name for name in sys.modules if name.startswith(('yaml', 'lima2cli.document', 'lima2cli.language'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
