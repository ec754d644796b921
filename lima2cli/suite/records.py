"""The tables of a file of tests: pipelines, what they are given, and what is expected of them."""

from collections.abc import Mapping
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare import (
    Anything,
    Choice,
    Either,
    FileReference,
    Integer,
    ListOf,
    MapOf,
    Number,
    NumberOrNan,
    OneKind,
    Table,
    Text,
    param,
)
from lima2cli.detectors.experiments import SCENES
from lima2cli.diagnostics import TITLE

ROWS = ListOf(ListOf(NumberOrNan(), 1, 4096), 1, 4096)
"""Shape of an image: its rows."""

EACH = Either((NumberOrNan(), ListOf(NumberOrNan())))
"""Shape of figures: one that all have, or a list, one for each."""

KEY_PATH = r"^[^\n]+$"


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A pixel that differs from the others."""

    x: int = param("Column.", Integer(0))
    y: int = param("Row.", Integer(0))
    value: float = param("Its value.", NumberOrNan())


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A frame of one value, with some pixels of others."""

    fill: float = param("Value of all other pixels.", NumberOrNan(), 0)
    pixels: tuple[Spot, ...] = param("Pixels of another value.", ListOf(Table(Spot), maximum=65536), ())


@dataclass(frozen=True, kw_only=True)
class PixelCheck:
    """A pixel that is expected."""

    x: int = param("Column in the saved frame.", Integer(0))
    y: int = param("Row in the saved frame.", Integer(0))
    value: float = param("Its value; `nan`.", NumberOrNan())
    frame: int | None = param("Number of the frame; default: every one that is saved.", Integer(0), None)


TOLERANCE = "Allowed difference; default: 0 of whole numbers, else a millionth of the expected value."


@dataclass(frozen=True, kw_only=True)
class FramesCheck:
    """The frames that a node has saved; only what is written is compared."""

    saved: int | None = param("Number of frames that are saved.", Integer(0), None)
    vetoed: int | None = param("Number of frames that `filter` nodes left out.", Integer(0), None)
    dropped: int | None = param("Number of frames that were dropped.", Integer(0), None)
    lost: int | None = param("Number of frames that were lost.", Integer(0), None)
    numbers: tuple[int, ...] | None = param("Numbers of the saved frames, in order.", ListOf(Integer(0)), None)
    shape: tuple[int, ...] | None = param("[height, width] of a frame.", ListOf(Integer(1), 2, 2), None)
    dtype: str | None = param("Type of the pixels, such as `float32`.", Text(), None)
    masked: Any = param("Pixels of a frame without a measurement.", Either((Integer(0), ListOf(Integer(0)))), None)
    sum: Any = param("Sum of the pixels that hold a measurement, of each frame.", EACH, None)
    mean: Any = param("Their mean.", EACH, None)
    min: Any = param("Their minimum.", EACH, None)
    max: Any = param("Their maximum.", EACH, None)
    pixels: tuple[PixelCheck, ...] = param("Single pixels.", ListOf(Table(PixelCheck)), ())
    image: Any = param("All pixels, which every saved frame has: a list of rows.", ROWS, None)
    equals: str | None = param(
        "A file with the frames (n, height, width), or with the one that all are like, relative to this file.",
        FileReference(),
        None,
    )
    tolerance: float | None = param(TOLERANCE, Number(0), None)


VECTOR = ListOf(NumberOrNan())


@dataclass(frozen=True, kw_only=True)
class TableCheck:
    """The rows of a node, such as counters; only what is written is compared."""

    rows: int | None = param("Number of rows.", Integer(0), None)
    numbers: tuple[int, ...] | None = param("Numbers of their frames, in order.", ListOf(Integer(0)), None)
    columns: Mapping[str, Any] = param(
        "Columns by name: a value that all rows have, or a list, a value (or, of vectors, a list) for each.",
        MapOf(Either((NumberOrNan(), ListOf(Either((NumberOrNan(), VECTOR)))))),
        {},
    )
    tolerance: float | None = param(TOLERANCE, Number(0), None)


@dataclass(frozen=True, kw_only=True)
class FlowCheck:
    """The frames of a flow; only what is written is compared."""

    expected: int | None = param("Number of frames that it selects.", Integer(0), None)
    received: int | None = param("Number of frames that were used.", Integer(0), None)
    lost: int | None = param("Number of frames that were overwritten.", Integer(0), None)
    dropped: int | None = param("Number of frames that found a full buffer.", Integer(0), None)
    missing: int | None = param("Number of frames that never came.", Integer(0), None)
    missing_frames: tuple[int, ...] | None = param(
        "Numbers of the frames that were not received.", ListOf(Integer(0)), None
    )


@dataclass(frozen=True, kw_only=True)
class DiagnosticCheck:
    """A finding of `lima2 validate` that is expected."""

    rule: str = param("Its rule, such as `roi-outside`.", Text())
    at: str | None = param("Its path, such as `/nodes/save/input`; default: any.", Text(), None)


STATES = ("complete", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class Expect:
    """All that is expected; without `exit`, `state` and `diagnostics` a run that is complete."""

    exit: int | None = param("Exit code of `lima2 run`.", Integer(0, 255), None)
    state: str | None = param("State in which the run ends.", Choice(STATES), None)
    message: str | None = param("Part of the reason that the run, or its refusal, gives.", Text(), None)
    diagnostics: tuple[DiagnosticCheck, ...] = param(
        "Findings of the check; with an error among them nothing is run.", ListOf(Table(DiagnosticCheck)), ()
    )
    flows: Mapping[str, FlowCheck] = param("Flows, by name.", MapOf(Table(FlowCheck)), {})
    frames: Mapping[str, FramesCheck] = param("Nodes that save frames, by name.", MapOf(Table(FramesCheck)), {})
    tables: Mapping[str, TableCheck] = param("Nodes that save rows, by name.", MapOf(Table(TableCheck)), {})
    files: tuple[str, ...] = param("Files of the run directory, patterns such as `*_master.h5`.", ListOf(Text()), ())


PROFILES = Either((FileReference(), ListOf(FileReference())))


@dataclass(frozen=True, kw_only=True)
class TestCase:
    """One test: what the pipeline is given, and what is expected. At most one of `scene`, `recorded` and `frames`."""

    __test__ = False  # not one of pytest's

    description: str | None = param("Description, for readers.", Text(), None)
    pipeline: str | None = param("Its pipeline, instead of that of the file.", FileReference(), None)
    profile: Any = param("Profiles that are laid on it, relative to this file.", PROFILES, ())
    set: Mapping[str, Any] = param("Values that are set, by the path of their key.", MapOf(Anything(), KEY_PATH), {})
    scene: Any = param("What the emulator sees.", OneKind("scene", lambda: SCENES), None)
    recorded: str | None = param(
        "Recorded frames, of the detector's size, relative to this file.", FileReference(), None
    )
    frames: tuple[Any, ...] | None = param(
        "The frames themselves, of the detector's size, their number becoming that of the acquisition: each a value "
        "that all pixels have, `{fill, pixels}`, or a list of rows.",
        ListOf(Either((NumberOrNan(), Table(Sketch), ROWS)), 1),
        None,
    )
    expect: Expect = param("What is expected.", Table(Expect), Expect())


@dataclass(frozen=True, kw_only=True)
class TestTable:
    """Tests of pipelines."""

    __test__ = False

    lima2: int = param("Version of the language.", Choice((1,)))
    description: str | None = param("Description, for readers.", Text(), None)
    pipeline: str | None = param("The pipeline, relative to this file.", FileReference(), None)
    tests: Mapping[str, TestCase] = param("The tests, by name.", MapOf(Table(TestCase), TITLE, minimum=1))
