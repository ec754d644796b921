"""Maps that have `apply`: what is asked of it, and what masked pixels get behind it."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from lima2cli import Array, Choice, FrameSpec, Inputs, Invalid, Map, NodeMisuse, Number, UserCodeError, node, param
from lima2cli.testing import NodeTests, NoFiles, frame_spec

HOLE = np.array([[False, True, False], [False, False, False]])


@node("plus")
class Plus(Map):
    """Add a number to pixels that are not 0."""

    more: float = param("The number.", Number())
    dtype: str = param("Pixels of the result.", Choice(("keep", "float32")), "keep")

    def apply(self, frames: Array) -> Array:
        out = np.where(frames == 0, frames, frames + np.asarray(self.more, frames.dtype))
        return out if self.dtype == "keep" else out.astype(self.dtype)

    def infer(self, inputs: Inputs) -> FrameSpec:
        spec = inputs.spec if self.dtype == "keep" else replace(inputs.spec, dtype=self.dtype)
        return super().infer(Inputs.of(spec, inputs.files))


@node("wrong")
class Wrong(Map):
    """Do what no map may do."""

    how: str = param("What.", Choice(("dtype", "shape", "writes", "moves", "nothing")))

    def apply(self, frames: Array) -> Array:
        if self.how == "writes":
            frames[:] = 0
        return {"dtype": frames / 2, "shape": frames[:, :1], "nothing": frames}.get(self.how, frames)

    def infer(self, inputs: Inputs) -> FrameSpec:
        spec = inputs.spec
        return replace(spec, view=spec.view.flipped("horizontal")) if self.how == "moves" else spec


@node("empty")
class Empty(Map):
    """Lack a function."""


class TestPlus(NodeTests):
    node = Plus(more=2)
    specs = (
        frame_spec("uint16", 2, 3),
        frame_spec("int8", 2, 3, mask=HOLE, invalid=Invalid((-1,), above=100)),
        frame_spec("float32", 2, 3, mask=HOLE, invalid=Invalid((-1,))),
    )


@node("larger")
class Larger(Map):
    """Take the larger pixel of two inputs."""

    wiring = "inputs"

    def apply(self, one: Array, other: Array) -> Array:
        return np.maximum(one, other)


class TestLarger(NodeTests):
    node = Larger()
    specs = (
        frame_spec("uint16", 2, 3),
        frame_spec("int8", 2, 3, mask=HOLE, invalid=Invalid((-1,), above=100)),
        frame_spec("float32", 2, 3, mask=HOLE, saturation=9.0),
    )


def test_a_pixel_is_masked_where_it_is_in_any_input() -> None:
    one, other = frame_spec("int16", 1, 3, invalid=Invalid((-1,))), frame_spec("int16", 1, 3, mask=HOLE[:1])
    inputs = Inputs({"a": one, "b": other}, NoFiles())
    after = Larger().infer(inputs)
    assert (after.mask is not None and after.mask.tolist(), after.invalid) == (HOLE[:1].tolist(), Invalid((-1,)))
    made = Larger().bind(inputs)(np.array([[[5, -1, 7]]], np.int16), np.array([[[6, 6, 9]]], np.int16))
    assert made.tolist() == [[[6, -1, 9]]], "of two, that of the first that is masked there"
    with pytest.raises(NodeMisuse, match="`a` is int16 3 x 1, but `b` is int16 4 x 1"):
        Larger().infer(Inputs({"a": one, "b": frame_spec("int16", 1, 4)}, NoFiles()))


class TestPlusInFloats(NodeTests):
    node = Plus(more=2, dtype="float32")
    specs = (frame_spec("int32", 2, 3, mask=HOLE, invalid=Invalid((-1,))),)


def test_a_node_is_a_frozen_dataclass_of_its_kind() -> None:
    made = Plus(more=1)
    assert (Plus.kind, made.more, made.dtype, made == Plus(more=1)) == ("plus", 1, "keep", True)
    with pytest.raises(FrozenInstanceError):
        made.more = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Plus(1)  # type: ignore[misc]


def test_frames_leave_as_they_enter_unless_infer_says_so() -> None:
    spec = frame_spec("uint16", 2, 3, mask=HOLE, saturation=9.0, invalid=Invalid((7,)))
    assert Plus(more=1).infer(Inputs.of(spec, NoFiles())) is spec


def test_masked_pixels_of_integers_keep_what_they_held() -> None:
    spec = frame_spec("int16", 2, 3, mask=HOLE, invalid=Invalid((-1,), above=100))
    frames = np.array([[[1, 2, 0], [-1, 100, 101]]], np.int16)
    made = Plus(more=10).bind(Inputs.of(spec, NoFiles()))(frames)
    assert made.tolist() == [[[11, 2, 0], [-1, 110, 101]]]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_masked_pixels_of_floats_are_nan(dtype: str) -> None:
    spec = frame_spec(dtype, 2, 3, mask=HOLE, invalid=Invalid((-1,)))
    frames = np.array([[[1, 2, 0], [-1, 100, 101]]], dtype)
    made = Plus(more=10, dtype="float32").bind(Inputs.of(spec, NoFiles()))(frames)
    np.testing.assert_array_equal(made, np.array([[[11, np.nan, 0], [np.nan, 110, 111]]], np.float32))


def test_frames_that_are_handed_on_cost_no_copy_and_masked_ones_are_not_written_to() -> None:
    frames = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    same = Wrong(how="nothing")
    whole = frames.astype(np.uint8)
    assert np.shares_memory(same.bind(Inputs.of(frame_spec("uint8", 2, 3), NoFiles()))(whole), whole)
    made = same.bind(Inputs.of(frame_spec("float32", 2, 3, mask=HOLE), NoFiles()))(frames)
    assert np.isnan(made[0]).tolist() == HOLE.tolist()
    assert frames.ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_results_that_are_not_as_inferred_are_refused() -> None:
    frames = np.ones((4, 2, 3), np.uint8)

    def apply(how: str) -> Array:
        return Wrong(how=how).bind(Inputs.of(frame_spec("uint8", 2, 3), NoFiles()))(frames)

    with pytest.raises(
        UserCodeError, match=r"returned float64 \(4, 2, 3\), not uint8 \(4, 2, 3\), as `infer` declares"
    ):
        apply("dtype")
    with pytest.raises(UserCodeError, match=r"returned uint8 \(4, 1, 3\), not uint8"):
        apply("shape")
    with pytest.raises(ValueError, match="read-only"):
        apply("writes")
    with pytest.raises(NotImplementedError, match="Wrong lacks `bind`"):
        apply("moves")
    with pytest.raises(NotImplementedError, match="Empty lacks `bind`"):
        Empty().bind(Inputs.of(frame_spec("uint8", 2, 3), NoFiles()))
