"""Conformance tests of nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.errors import NodeMisuse
from lima2cli.files.channel import Channel
from lima2cli.frames import (
    Array,
    Block,
    DatasetInfo,
    DetectorInfo,
    Files,
    FrameSpec,
    SparsePixels,
    SparseSpec,
    Spec,
    TableSpec,
)
from lima2cli.geometry import Rect, Rule
from lima2cli.kernels import strips
from lima2cli.kernels.chain import Chain, settle
from lima2cli.kernels.strips import Turn, demanded
from lima2cli.nodes.base import (
    Exchange,
    Inputs,
    Map,
    Node,
    Partial,
    Reduce,
    Rows,
    Select,
    Sink,
    StripReducer,
    Transform,
)
from lima2cli.testing.inputs import (
    COUNT,
    FIRST,
    SPLITS,
    STEP,
    NoFiles,
    blocks,
    check_declaration,
    frame_block,
    leave_out,
    padded,
    parts_of,
    random_frames,
    random_rows,
    same_spec,
)

NS = 1_700_000_000_000_000_000
RULE = Rule(FIRST, STEP, COUNT, blocks=1, buffers=1, slots=COUNT, stride=1)


ROLES: tuple[tuple[type[Node], str], ...] = (
    (Map, "test_map_"),
    (Transform, "test_transform_"),
    (Select, "test_select_"),
    (Reduce, "test_table_"),
    (Sink, "test_sink_"),
    (Exchange, "test_exchange_"),
)


Outcome = tuple[Array, ...]


def _outcome(result: Array | SparsePixels) -> Outcome:
    """Return copies of what a map gives, which can be concatenated: of sparse frames pixels per frame come first."""
    if isinstance(result, SparsePixels):
        background = () if result.background is None else (result.background.copy(),)
        return np.diff(result.frame_ptr), result.frames.copy(), result.index.copy(), *background
    return (result.copy(),)


def check_same(one: Sequence[Array], other: Sequence[Array]) -> None:
    """Assert that arrays are equal, one by one."""
    for mine, yours in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, yours)


class NodeTests:
    """Subclass it as ``Test…``; give ``node`` and ``specs``.

    node    the node, with parameters
    specs   frames that go into it, at least one; of an exchange that gathers: the whole frames, of which it gets parts
    inputs  of a map of several inputs: their names, each of which gets frames of one spec
    tables  of a selection: the tables that it reads, by the names of their nodes
    files   the fixture `files`, where parameters name files
    """

    node: ClassVar[Node]
    inputs: ClassVar[Sequence[str]] = ("a", "b")
    tables: ClassVar[Mapping[str, TableSpec]] = {}
    specs: ClassVar[Sequence[FrameSpec]]

    def __init_subclass__(cls) -> None:
        """Leave out the tests of other roles."""
        if hasattr(cls, "node"):
            leave_out(cls, [prefix for role, prefix in ROLES if not isinstance(cls.node, role)])

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test with each spec, and with each way to cut frames into blocks."""
        if "spec" in metafunc.fixturenames:
            metafunc.parametrize("spec", self.specs, ids=str)
        if "cuts" in metafunc.fixturenames:
            metafunc.parametrize("cuts", SPLITS, ids=lambda cuts: f"{len(cuts) + 1}-blocks")

    @pytest.fixture
    def files(self) -> Files:
        """Return the files that parameters name; override it."""
        return NoFiles()

    def read_back(self, directory: Path) -> Array | None:
        """Return the frames that a sink has saved, (n, height, width); None: not looked at. Override it."""
        return None

    def test_it_is_declared(self) -> None:
        check_declaration(self.node)

    def test_infer_is_pure(self, spec: FrameSpec, files: Files) -> None:
        before = replace(spec, mask=None if spec.mask is None else spec.mask.copy())
        one, other = self._infer(spec, files), self._infer(spec, files)
        assert same_spec(one, other)
        assert same_spec(spec, before)
        assert list(map(str, self._warnings(spec, files))) == list(map(str, self._warnings(spec, files)))

    def _given(self, spec: FrameSpec, files: Files) -> Inputs:
        """Return what enters the node: several inputs, parts of frames, or tables where its role has them."""
        if isinstance(self.node, Exchange) and self.node.parts:
            parts = parts_of(spec)
            return Inputs.of(parts[0], files, parts=parts)
        names = self.inputs if self.node.wiring == "inputs" else ("input",)
        return Inputs(dict.fromkeys(names, spec), files, RULE, self.tables, (spec,))

    def _infer(self, spec: FrameSpec, files: Files) -> Spec:
        return self.node.infer(self._given(spec, files))

    def _warnings(self, spec: FrameSpec, files: Files) -> Sequence[NodeMisuse]:
        return self.node.warnings(self._given(spec, files))

    def test_infer_gives_what_its_role_promises(self, spec: FrameSpec, files: Files) -> None:
        after = self._infer(spec, files)
        if isinstance(self.node, Sink | Select):
            assert same_spec(after, spec)
        elif isinstance(self.node, Reduce):
            assert isinstance(after, TableSpec)
            assert after.columns
            assert "frame_number" not in after.columns, "it is there anyway"
            assert after.default is None or after.default in after.columns
            assert set(after.units) <= set(after.columns)
            assert set(after.lengths) <= set(after.columns)
            assert all(np.dtype(dtype).name == dtype for dtype in after.columns.values())
        else:
            assert isinstance(after, FrameSpec)
            assert np.dtype(after.dtype).name == after.dtype
            assert after.mask is None or (after.mask.shape == after.shape and after.mask.dtype == bool)

    # Maps

    def _arrays(self, spec: FrameSpec) -> list[Array]:
        """Return the same frames of each input, with other pixels."""
        return [random_frames(spec, COUNT, seed) for seed, _ in enumerate(self._given(spec, NoFiles()).specs, 1)]

    def _mapped(self, spec: FrameSpec, files: Files, given: Sequence[Array], cuts: Sequence[int] = ()) -> Outcome:
        """Return what a map makes of frames of each input, cut into blocks."""
        function = cast(Map, self.node).bind(self._given(spec, files))
        parts = zip(*(np.split(frames, cuts) for frames in given), strict=True)
        made = [_outcome(function(*part)) for part in parts]
        return tuple(np.concatenate(column) for column in zip(*made, strict=True))

    def test_map_gives_frames_as_inferred(self, spec: FrameSpec, files: Files) -> None:
        after = cast(FrameSpec, self._infer(spec, files))
        out = cast(Map, self.node).bind(self._given(spec, files))(*self._arrays(spec))
        assert isinstance(out, SparsePixels) == isinstance(after, SparseSpec)
        if not isinstance(out, SparsePixels):
            assert (out.shape, out.dtype.name) == ((COUNT, *after.shape), after.dtype)
            return
        frames, index, frame_ptr = out.frames, out.index, out.frame_ptr
        assert (frames.dtype.name, index.dtype.name, frame_ptr.dtype.name) == (after.dtype, "uint32", "uint64")
        assert frame_ptr.shape == (COUNT + 1,)
        assert frame_ptr[0] == 0
        assert frame_ptr[-1] == len(index) == len(frames)
        assert (out.background is not None) == cast(SparseSpec, after).background
        if out.background is not None:
            assert (out.background.dtype.name, out.background.shape[:2]) == ("float32", (COUNT, 2))

    def test_map_gives_pixels_of_the_detector_that_count(self, spec: FrameSpec, files: Files) -> None:
        if not isinstance(self._infer(spec, files), SparseSpec):
            return
        _, intensity, index, *_ = self._mapped(spec, files, self._arrays(spec))
        width, height = spec.detector
        assert not len(index) or index.max() < width * height
        if spec.mask is not None:
            good, area = np.zeros((height, width), bool), spec.view.area
            good[area.y : area.bottom, area.x : area.right] = spec.view.turn_back(~spec.mask)
            assert good.ravel()[index].all(), "masked pixels are left out"
        assert not np.isnan(intensity).any(), "NaN pixels are left out"

    def test_map_does_not_depend_on_blocks(self, spec: FrameSpec, files: Files, cuts: Sequence[int]) -> None:
        given = self._arrays(spec)
        whole = self._mapped(spec, files, given)
        check_same(self._mapped(spec, files, given, cuts), whole)
        check_same(self._mapped(spec, files, [padded(frames) for frames in given], cuts), whole)

    def test_map_strips_give_the_same(self, spec: FrameSpec, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        node, inputs = cast(Map, self.node), self._given(spec, files)
        if not node.in_strips(len(inputs.specs)):
            return
        given, flip = self._arrays(spec)[0], Turn(lambda view: view.flipped("horizontal"))
        (whole,) = self._mapped(spec, files, [given])
        stage = node.stage_of(inputs)
        assert isinstance(stage, Turn) == node.turns
        monkeypatch.setattr(strips, "TILE_PIXELS", 3 * spec.shape[1])
        for frames in (given, padded(given)):
            np.testing.assert_array_equal(Chain(settle([stage], spec.dtype, *spec.shape))(frames), whole)
            flipped = Chain(settle([stage, flip], spec.dtype, *spec.shape))(frames)
            np.testing.assert_array_equal(flipped, whole[:, :, ::-1])

    def test_map_leaves_its_input_alone(self, spec: FrameSpec, files: Files) -> None:
        given = [frames.copy() for frames in self._arrays(spec)]  # writable: a node may write through a view
        before = [frames.copy() for frames in given]
        self._mapped(spec, files, given)
        check_same(given, before)

    # Transforms

    def _transformed(self, spec: FrameSpec, files: Files, given: Sequence[Block]) -> tuple[Array, Array, Array]:
        """Return frames, numbers and times of all that comes out."""
        after = self._infer(spec, files)
        assert isinstance(after, FrameSpec)
        transformer = cast(Transform, self.node).bind(self._given(spec, files))
        found = [(np.empty((0, *after.shape), after.dtype), np.empty(0, np.uint64), np.empty(0, np.uint64))]

        def keep(out: Block | None) -> None:
            """Copy a result, which is valid until the next step only."""
            if out is not None:
                found.append((out.frames.copy(), out.numbers.copy(), out.times.copy()))

        try:
            for block in given:
                keep(transformer.step(block))
            keep(transformer.finish())
        finally:
            transformer.close()
        for frames, numbers, times in found:
            assert (frames.shape[1:], frames.dtype.name) == (after.shape, after.dtype)
            assert numbers.dtype == times.dtype == np.uint64
            assert len(frames) == len(numbers) == len(times)
        frames, numbers, times = (np.concatenate(column) for column in zip(*found, strict=True))
        return frames, numbers, times

    def test_transform_gives_frames_as_inferred_and_numbered(self, spec: FrameSpec, files: Files) -> None:
        _, numbers, _ = self._transformed(spec, files, [frame_block(random_frames(spec, COUNT))])
        rule, receivers = cast(Transform, self.node).numbering(RULE, (0,))[:2]
        assert len(receivers) == rule.buffers
        promised = range(rule.start, rule.start + rule.step * (COUNT if rule.count is None else rule.count), rule.step)
        assert set(numbers.tolist()) <= set(promised)
        assert (np.diff(numbers.astype(np.int64)) > 0).all()

    def test_transform_does_not_depend_on_blocks(self, spec: FrameSpec, files: Files, cuts: Sequence[int]) -> None:
        frames = random_frames(spec, COUNT)
        whole = self._transformed(spec, files, [frame_block(frames)])
        for one, other in zip(self._transformed(spec, files, blocks(padded(frames), cuts)), whole, strict=True):
            np.testing.assert_array_equal(one, other)

    # Selections

    def _chosen(self, numbers: NDArray[np.uint64], rows: Mapping[str, Rows]) -> NDArray[np.bool_]:
        chosen = cast(Select, self.node).choose(numbers, RULE, rows)
        assert chosen.dtype == np.bool_
        assert chosen.shape == numbers.shape
        return chosen

    def _given_rows(self, numbers: NDArray[np.uint64]) -> dict[str, Rows]:
        return {
            name: random_rows(table, numbers, seed)
            for seed, name in enumerate(self.tables)
            for table in [self.tables[name]]
        }

    def test_select_names_the_nodes_whose_rows_it_reads(self) -> None:
        named = cast(Select, self.node).tables
        assert sorted(named) == sorted(self.tables), "give all of them, and no others, in `tables` of the test"

    def test_select_does_not_depend_on_blocks(self, spec: FrameSpec, files: Files, cuts: Sequence[int]) -> None:
        numbers = frame_block(random_frames(spec, COUNT)).numbers
        numbers.flags.writeable = False
        rows = self._given_rows(numbers)
        whole = self._chosen(numbers, rows)
        parts = [slice(begin, end) for begin, end in pairwise([0, *cuts, COUNT])]
        np.testing.assert_array_equal(np.concatenate([self._chosen(numbers[part], rows) for part in parts]), whole)
        cut = [{node: {name: them[name][part] for name in them} for node, them in rows.items()} for part in parts]
        chosen = [self._chosen(numbers[part], some) for part, some in zip(parts, cut, strict=True)]
        np.testing.assert_array_equal(np.concatenate(chosen), whole)

    def test_select_takes_frames_without_rows(self, spec: FrameSpec, files: Files) -> None:
        numbers = frame_block(random_frames(spec, COUNT)).numbers
        none = {
            name: {column: them[:0] for column, them in rows.items()}
            for name, rows in self._given_rows(numbers).items()
        }
        self._chosen(numbers, none)
        self._chosen(numbers[:0], none)

    # Exchanges

    def test_exchange_gives_the_whole_frames(self, spec: FrameSpec, files: Files) -> None:
        node, (upper, lower) = cast(Exchange, self.node), parts_of(spec)
        if not node.gathers:
            return
        for parts in ((upper, lower), (lower, upper)):
            for part in parts:
                after = node.infer(Inputs.of(part, files, parts=parts))
                assert same_spec(after, spec), "it depends on no receiver, and not on the order of parts"

    def test_exchange_masks_pixels_that_no_part_covers(self, spec: FrameSpec, files: Files) -> None:
        node, (upper, _) = cast(Exchange, self.node), parts_of(spec)
        if not node.gathers:
            return
        after = node.infer(Inputs.of(upper, files, parts=(upper,)))
        assert after.shape == spec.shape
        covered = np.zeros(spec.shape, bool)
        covered[upper.place] = True if upper.mask is None else ~upper.mask
        assert after.mask is not None
        np.testing.assert_array_equal(after.mask, ~covered)

    def test_exchange_says_what_its_processes_are(self, spec: FrameSpec, files: Files) -> None:
        workers = cast(Exchange, self.node).workers
        if workers is None:
            return
        assert not cast(Exchange, self.node).gathers, "workers, or receivers that give each other parts"
        assert (workers.command is None) != (workers.function is None), "either of them"
        assert workers.ranks >= 1
        assert workers.on_error in ("stop", "drop", "pass")
        if not workers.reply:
            assert same_spec(self._infer(spec, files), spec), "what is not replied to flows on as it is"

    # Tables

    def _partials(self, spec: FrameSpec, files: Files, given: Sequence[Block]) -> list[Partial]:
        reducer = cast(Reduce, self.node).bind(self._given(spec, files))
        return [reducer.step(block, NS) for block in given]

    def _rows(self, partials: Sequence[Partial]) -> Mapping[str, Array]:
        joined = {key: np.concatenate([one[key] for one in partials]) for key in partials[0]}
        return cast(Reduce, self.node).finish(joined)

    def test_table_has_columns_as_inferred(self, spec: FrameSpec, files: Files) -> None:
        table = cast(TableSpec, self._infer(spec, files))
        given = frame_block(random_frames(spec, COUNT))
        partials = self._partials(spec, files, [given])
        assert partials[0]["frame_number"].dtype == np.uint64
        rows = self._rows(partials)
        dtypes = {name: values.dtype.name for name, values in rows.items() if name != "frame_number"}
        assert dtypes == dict(table.columns)
        numbers = rows["frame_number"].tolist()
        assert numbers == sorted(set(numbers)), "at most one row per frame, in their order"
        assert set(numbers) <= set(given.numbers.tolist())
        for name, values in rows.items():
            more = (table.lengths[name],) if name in table.lengths else ()
            assert values.shape == (len(numbers), *more), name

    def test_table_does_not_depend_on_blocks(self, spec: FrameSpec, files: Files, cuts: Sequence[int]) -> None:
        frames = random_frames(spec, COUNT)
        whole = self._rows(self._partials(spec, files, [frame_block(frames)]))
        for given in (frames, padded(frames)):
            cut = self._rows(self._partials(spec, files, blocks(given, cuts)))
            for name in whole:
                np.testing.assert_array_equal(cut[name], whole[name])

    def test_table_keeps_nothing_of_the_block(self, spec: FrameSpec, files: Files) -> None:
        frames = random_frames(spec, COUNT)
        given = frame_block(frames.copy())
        partials = self._partials(spec, files, [given])
        np.testing.assert_array_equal(given.frames, frames)
        before = {name: values.copy() for name, values in self._rows(partials).items()}
        given.frames[...], given.numbers[...], given.times[...] = 0, 0, 0
        for name, values in self._rows(partials).items():
            np.testing.assert_array_equal(values, before[name])

    def test_table_merges_parts_in_any_grouping(self, spec: FrameSpec, files: Files) -> None:
        if not self.node.parts:
            return
        given = [frame_block(random_frames(spec, COUNT, seed)) for seed in (1, 2, 3)]
        one, two, three = (self._partials(spec, files, [block])[0] for block in given)
        merge = cast(Reduce, self.node).merge
        before = {key: values.copy() for key, values in one.items()}
        left, right = self._rows([merge(merge(one, two), three)]), self._rows([merge(one, merge(two, three))])
        for name in left:
            np.testing.assert_allclose(left[name], right[name], rtol=1e-5)
        np.testing.assert_array_equal(left["frame_number"], self._rows([one])["frame_number"])
        for key, values in one.items():
            np.testing.assert_array_equal(values, before[key], "merge writes to its arguments")

    def test_table_strips_give_the_same(self, spec: FrameSpec, files: Files) -> None:
        node = cast(Reduce, self.node)
        if not node.strips:
            return
        given = frame_block(random_frames(spec, COUNT))
        whole = self._rows(self._partials(spec, files, [given]))
        parts = demanded(spec.shape, [node.reads(spec)])
        for windows in ((Rect(0, 0, spec.shape[1], spec.shape[0]),), parts):
            cut = self._in_strips(spec, files, given, windows)
            for name in whole:
                np.testing.assert_allclose(cut[name], whole[name], rtol=1e-6)

    def _in_strips(
        self, spec: FrameSpec, files: Files, given: Block, windows: Sequence[Rect]
    ) -> Mapping[str, NDArray[Any]]:
        """Return the rows of a reduction that gets strips of some parts of frames; of others it sees nothing."""
        reducer = cast(StripReducer, cast(Reduce, self.node).bind(self._given(spec, files)))
        reducer.begin(COUNT)
        for window in windows:
            columns = slice(window.x, window.right)
            for frames in (slice(0, 3), slice(3, COUNT)):
                for top in range(window.y, window.bottom, 5):
                    rows = slice(top, min(top + 5, window.bottom))
                    reducer.strip(given.frames[frames, rows, columns], frames, rows, columns)
        return self._rows([reducer.end(given, NS)])

    # Sinks

    def _channel(self, spec: FrameSpec) -> Channel:
        height, width = spec.shape
        dataset = DatasetInfo("data", 0, spec.dtype, 8 * np.dtype(spec.dtype).itemsize)
        detector = DetectorInfo("test", "test", *spec.detector, (Rect(0, 0, *spec.detector),), (dataset,))
        storage = cast(Sink, self.node).channel(spec, None)
        return Channel(
            name="test",
            node="save",
            flow="data",
            dtype=spec.dtype,
            height=height,
            width=width,
            rule=RULE,
            selected=COUNT,
            receivers=(0,),
            view=spec.view,
            detector=detector,
            mask=spec.mask,
            **storage,
        )

    def test_sink_saves_every_frame(self, spec: FrameSpec, files: Files, cuts: Sequence[int], tmp_path: Path) -> None:
        frames = random_frames(spec, COUNT)
        writer = cast(Sink, self.node).open(self._channel(spec), str(tmp_path), 0, NS)
        try:
            for block in blocks(frames, cuts):
                memory = padded(block.frames)
                staged = writer.stage(Block(memory, block.numbers, block.times, False))
                cast(Array, memory.base)[...] = 0  # what was staged must not use it any more
                assert writer.commit(staged) == len(block.numbers)
                writer.flush()
        finally:
            writer.close()
        assert any(tmp_path.iterdir())
        saved = self.read_back(tmp_path)
        if saved is not None:
            np.testing.assert_array_equal(saved, frames)

    def test_sink_forgets_what_was_not_committed(self, spec: FrameSpec, files: Files, tmp_path: Path) -> None:
        frames = random_frames(spec, COUNT)
        writer = cast(Sink, self.node).open(self._channel(spec), str(tmp_path), 0, NS)
        try:
            writer.stage(frame_block(frames, 0, 2))
            assert writer.commit(writer.stage(frame_block(frames, 2))) == COUNT - 2
        finally:
            writer.close()
        saved = self.read_back(tmp_path)
        if saved is not None:
            np.testing.assert_array_equal(saved, frames[2:])


__all__ = ["NodeTests"]
