"""Compare a run with what is expected of it: each difference is a finding at the expectation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.accounting.summary import Summary
from lima2cli.declare import params
from lima2cli.diagnostics import Findings, KeyPath, did_you_mean
from lima2cli.errors import FileProblem
from lima2cli.files import live
from lima2cli.files.picture import measured_pixels
from lima2cli.inputs.stacks import FileStore
from lima2cli.suite.records import Expect, FlowCheck, FramesCheck, TableCheck

FAILED = "test-failed"
"""Rule of all findings about expectations that are not met."""

MOST = 5
"""Most differences of one kind that are listed."""

RELATIVE = 1e-6
"""Relative tolerance of numbers that are not whole, where none is given."""

STATISTICS = ("sum", "mean", "min", "max")


class Comparison:
    """A finished run and its expectations. ``at``: path of these; ``files`` reads files named next to the test."""

    def __init__(
        self, expect: Expect, at: KeyPath, directory: Path, summary: Summary, name: str, files: FileStore,
        findings: Findings,
    ) -> None:  # fmt: skip
        self._expect, self._at, self._findings, self._files = expect, at, findings, files
        self._directory, self._summary, self._name = directory, summary, name

    def compare(self) -> None:
        """Report all differences but those of exit code and state."""
        for name, flow in self._expect.flows.items():
            self._flow(name, flow)
        for name, frames in self._expect.frames.items():
            self._frames(name, frames)
        for name, table in self._expect.tables.items():
            self._table(name, table)
        for number, pattern in enumerate(self._expect.files):
            if not any(self._directory.glob(pattern)):
                there = sorted(path.name for path in self._directory.iterdir())
                self._fail(f"the run made no file `{pattern}`", ("files", number), [f"it made {', '.join(there)}"])

    def _fail(self, message: str, at: KeyPath, notes: Sequence[str] = (), help: str | None = None) -> None:
        self._findings.error(FAILED, message, (*self._at, *at), notes=notes, help=help)

    def _known(self, what: str, name: str, known: Mapping[str, Any], at: KeyPath) -> bool:
        if name not in known:
            self._findings.error(
                FAILED, f"there is no {what} `{name}`", (*self._at, *at), on_key=True, help=did_you_mean(name, known)
            )
        return name in known

    def _counts(self, check: Any, found: Any, keys: Sequence[str], at: KeyPath) -> None:
        for key in keys:
            wanted, got = getattr(check, key), getattr(found, key)
            if wanted is not None and wanted != got:
                self._fail(f"expected {wanted} {_spaced(key)}, got {got}", (*at, key))

    def _flow(self, name: str, check: FlowCheck) -> None:
        at: KeyPath = ("flows", name)
        if not self._known("flow", name, self._summary.flows, at):
            return
        found = self._summary.flows[name]
        self._counts(check, found, ("expected", "received", "lost", "dropped", "missing"), at)
        if check.missing_frames is not None:
            got = [n for first, last, step in found.missing_frames or () for n in range(first, last + 1, step)]
            if sorted(got) != sorted(check.missing_frames):
                self._fail(f"expected that frames {_list(check.missing_frames)} are not received, got {_list(got)}",
                           (*at, "missing_frames"))  # fmt: skip

    def _frames(self, name: str, check: FramesCheck) -> None:
        at: KeyPath = ("frames", name)
        if not self._known("node that saves frames", name, self._summary.channels, at):
            return
        self._counts(check, self._summary.channels[name], ("saved", "vetoed", "dropped", "lost"), at)
        written = {key for key in params(FramesCheck) if getattr(check, key) not in (None, ())}
        if written <= {"saved", "vetoed", "dropped", "lost", "tolerance"}:
            return
        try:
            numbers, frames, mask = self._saved(name)
        except FileProblem as problem:
            self._fail(str(problem), at)
            return
        if check.numbers is not None and list(check.numbers) != numbers:
            self._fail(f"expected the frames {_list(check.numbers)}, got {_list(numbers)}", (*at, "numbers"))
        if frames is None:
            self._fail("no frame is saved", at)
            return
        if check.shape is not None and tuple(check.shape) != frames.shape[1:]:
            self._fail(f"expected frames of shape {list(check.shape)}, got {list(frames.shape[1:])}", (*at, "shape"))
        if check.dtype is not None and check.dtype != str(frames.dtype):
            self._fail(f"expected {check.dtype}, got {frames.dtype}", (*at, "dtype"))
        measured = np.stack([measured_pixels(frame, mask) for frame in frames])
        self._figures(check, numbers, frames, measured, at)
        self._pixels(check, numbers, frames, at)
        for key, wanted in (("image", check.image), ("equals", self._file(check.equals, (*at, "equals")))):
            if wanted is not None:
                self._whole(np.asarray(wanted), numbers, frames, check.tolerance, (*at, key))

    def _saved(self, node: str) -> tuple[list[int], NDArray[Any] | None, NDArray[np.bool_] | None]:
        """Return numbers, frames (n, height, width) and mask of what is saved; no frames where there are none."""
        data = live.open_master(self._directory, self._name, node)
        with data.file:
            detector = data.parent
            saved = np.flatnonzero(detector["frame_status"][()] == 0)
            numbers = detector["frame_number"][()][saved].tolist()
        kept = [live.saved_frame(self._directory, self._name, node, number) for number in numbers]
        return numbers, (np.stack([one.pixels for one in kept]) if kept else None), kept[0].mask if kept else None

    def _figures(
        self, check: FramesCheck, numbers: list[int], frames: NDArray[Any], measured: NDArray[np.bool_], at: KeyPath
    ) -> None:
        if check.masked is not None:
            masked = [int((~one).sum()) for one in measured]
            self._each("masked pixels", check.masked, numbers, masked, 0, (*at, "masked"))
        for key in STATISTICS:
            wanted = getattr(check, key)
            if wanted is not None:
                got = [_statistic(key, frame[where]) for frame, where in zip(frames, measured, strict=True)]
                self._each(key, wanted, numbers, got, check.tolerance, (*at, key))

    def _each(
        self, what: str, wanted: Any, numbers: list[int], got: Sequence[Any], tolerance: float | None, at: KeyPath
    ) -> None:
        """Compare one figure of each frame, or row, with one expected value, or with a list of them."""
        listed = isinstance(wanted, tuple | list)
        if listed and len(wanted) != len(got):
            self._fail(f"{what}: expected {len(wanted)} values, got {len(got)}", at, [f"they are {_list(got)}"])
            return
        pairs = zip(wanted if listed else [wanted] * len(got), got, numbers, strict=True)
        wrong = [(i, *pair) for i, pair in enumerate(pairs) if not _alike(pair[0], pair[1], tolerance)]
        for i, expected, found, number in wrong[:MOST]:
            message = f"{what} of frame {number}: expected {_short(expected)}, got {_short(found)}"
            self._fail(message, (*at, i) if listed else at)
        if len(wrong) > MOST:
            self._fail(f"{what}: {len(wrong) - MOST} more of {len(got)} values differ", at)

    def _pixels(self, check: FramesCheck, numbers: list[int], frames: NDArray[Any], at: KeyPath) -> None:
        height, width = frames.shape[1:]
        for index, pixel in enumerate(check.pixels):
            where: KeyPath = (*at, "pixels", index)
            if pixel.x >= width or pixel.y >= height:
                self._fail(f"pixel ({pixel.x}, {pixel.y}) is outside of {width} x {height}", where)
                continue
            if pixel.frame is not None and pixel.frame not in numbers:
                self._fail(f"frame {pixel.frame} is not saved", (*where, "frame"), [f"saved are {_list(numbers)}"])
                continue
            chosen = [i for i, number in enumerate(numbers) if pixel.frame in (None, number)]
            got = [frames[i, pixel.y, pixel.x].item() for i in chosen]
            name = f"pixel ({pixel.x}, {pixel.y})"
            self._each(name, pixel.value, [numbers[i] for i in chosen], got, check.tolerance, (*where, "value"))

    def _file(self, reference: str | None, at: KeyPath) -> NDArray[Any] | None:
        if reference is None:
            return None
        try:
            image: NDArray[Any] = self._files.image(reference)
        except FileProblem as problem:
            self._fail(str(problem), at)
            return None
        return image

    def _whole(
        self, wanted: NDArray[Any], numbers: list[int], frames: NDArray[Any], tolerance: float | None, at: KeyPath
    ) -> None:
        """Compare all pixels of all frames."""
        if wanted.shape not in (frames.shape, frames.shape[1:]):
            self._fail(f"expected the shape {list(wanted.shape)}, got {list(frames.shape[1:])}", at)
            return
        expected = np.broadcast_to(wanted, frames.shape)
        wrong = np.argwhere(~_close(expected, frames, tolerance))
        for i, y, x in wrong[:MOST].tolist():
            wanted_value, got = _short(expected[i, y, x].item()), _short(frames[i, y, x].item())
            self._fail(f"pixel ({x}, {y}) of frame {numbers[i]}: expected {wanted_value}, got {got}", at)
        if len(wrong) > MOST:
            self._fail(f"{len(wrong) - MOST} more of {frames.size} pixels differ", at)

    def _table(self, name: str, check: TableCheck) -> None:
        at: KeyPath = ("tables", name)
        if not self._known("node that saves rows", name, self._summary.tables, at):
            return
        self._counts(check, self._summary.tables[name], ("rows",), at)
        if check.numbers is None and not check.columns:
            return
        try:
            columns = live.columns(self._directory, self._name, name)
        except FileProblem as problem:
            self._fail(str(problem), at)
            return
        numbers = columns["frame_number"].tolist()
        if check.numbers is not None and list(check.numbers) != numbers:
            self._fail(f"expected rows of the frames {_list(check.numbers)}, got {_list(numbers)}", (*at, "numbers"))
        for key, wanted in check.columns.items():
            if self._known(f"column of {name} named", key, columns, (*at, "columns", key)):
                self._each(key, wanted, numbers, columns[key].tolist(), check.tolerance, (*at, "columns", key))


def _statistic(key: str, values: NDArray[Any]) -> float:
    """Return a statistic of the pixels that are measured; NaN where there are none and it needs some."""
    if key == "sum":
        return float(values.sum(dtype="f8")) if values.dtype.kind == "f" else int(values.sum())
    if not values.size:
        return math.nan
    made: float = (values.mean(dtype="f8") if key == "mean" else getattr(values, key)()).item()
    return made


def _alike(wanted: Any, got: Any, tolerance: float | None) -> bool:
    if isinstance(got, list) or isinstance(wanted, tuple):
        return np.shape(wanted) in ((), np.shape(got)) and bool(
            _close(np.asarray(wanted), np.asarray(got), tolerance).all()
        )
    return bool(_close(np.asarray(wanted), np.asarray(got), tolerance).all())


def _close(wanted: NDArray[Any], got: NDArray[Any], tolerance: float | None) -> NDArray[np.bool_]:
    """Return which values are as expected; NaN is like NaN."""
    whole = wanted.dtype.kind in "iu" and got.dtype.kind in "iub"
    if whole and not tolerance:
        return np.asarray(wanted == got)
    allowed = {"rtol": RELATIVE, "atol": 0.0} if tolerance is None else {"rtol": 0.0, "atol": tolerance}
    close: NDArray[np.bool_] = np.isclose(got.astype("f8"), wanted.astype("f8"), **allowed, equal_nan=True)
    return close


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return _list(value)
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _list(values: Sequence[Any]) -> str:
    shown = [_short(value) for value in values[: 2 * MOST]]
    return f"[{', '.join([*shown, *(['…'] if len(values) > len(shown) else [])])}]"


def _spaced(key: str) -> str:
    return key if key == "rows" else f"{key} frames"


def unmet(expect: Expect) -> Iterator[str]:
    """Yield the keys of an expectation that only a run can meet."""
    yield from (key for key in ("flows", "frames", "tables", "files", "state") if getattr(expect, key))
