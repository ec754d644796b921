"""A recipe, and the sums over regions of its result, as OpenCL C (version 1.2, with doubles).

The text is a pure function of the recipe: nothing of OpenCL is needed to write it. Results are those of `chain`: of
integers, and of arithmetic with ``+ - * /`` and square roots in floats, bit for bit, as fused multiply and add is off
and the device rounds quotients correctly (else within 2.5 ulp, OpenCL 1.2, 7.4); other functions are as accurate as the
device's (mostly 4 ulp). Sums of integers are exact, those of floats are in double, in an order of their own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.frames import Array
from lima2cli.kernels.chain import ChainStep, Recipe
from lima2cli.kernels.formula import Name, Scalar, Tree
from lima2cli.kernels.masked import Finder, Holes, gap_in
from lima2cli.kernels.statistics import RegionSums, Sums, of_nothing, stacked
from lima2cli.kernels.strips import Call
from lima2cli.view import View


class NotLowered(Exception):
    """It can't be computed on a device."""


TYPES = {
    "uint8": "uchar", "uint16": "ushort", "uint32": "uint", "uint64": "ulong", "int8": "char", "int16": "short",
    "int32": "int", "int64": "long", "float32": "float", "float64": "double", "bool": "uchar",
    "complex64": "float2", "complex128": "double2",
}  # fmt: skip
"""Types of OpenCL C by numpy's."""

_SIGNS = {"subtract": "-", "divide": "/", "add": "+", "multiply": "*"}

_FUNCTIONS = {"abs": "fabs", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctan2": "atan2"}
_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==",
    "ne": "!=", "and": "&&", "or": "||", "xor": "!=",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ChainSource:
    """The computation of one pixel of a recipe's result.

    text    functions ``behind(x, y)``, the index of the raw pixel in its frame, and ``chain(frames, at, p, images…)``
    images  arrays that it reads, in the order of its arguments
    source, target  dtypes of raw pixels and of results;  shape  (height, width) of the result
    """

    text: str
    images: tuple[Array, ...]
    source: np.dtype[Any]
    target: np.dtype[Any]
    shape: tuple[int, int]

    @property
    def kernel(self) -> str:
        """Return the kernel ``make``, which writes whole frames (n, height, width)."""
        height, width = self.shape
        return f"""
__kernel void make(__global const {TYPES[self.source.name]} *frames, const ulong first, const ulong stride,
                   __global {TYPES[self.target.name]} *result{_declared(self.images)}) {{
    const int x = get_global_id(0), y = get_global_id(1), p = y * {width} + x;
    const size_t frame = get_global_id(2);
    {"" if width % ROW == 0 else f"if (x < {width}) "}result[frame * {height * width} + p] =
        chain(frames + first + frame * stride, behind(x, y), p{_given(self.images)});
}}
"""


def chain_source(recipe: Recipe, dtype: str, width: int) -> ChainSource:
    """Return the computation of a recipe for frames of a dtype and width, in pixels.

    Raises:
        NotLowered: a part of it has no such form.
    """
    writer = _Writer(math.prod(recipe.shape))
    body = writer.steps(recipe.steps, np.dtype(dtype))
    source, target = TYPES[dtype], TYPES[recipe.target.name]
    text = f"""
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#pragma OPENCL FP_CONTRACT OFF

int behind(const int x, const int y) {{
    return {_behind(recipe.view, width)};
}}

{target} chain(__global const {source} *frames, const int at, const int p{_declared(writer.images)}) {{
    const {source} v0 = frames[at];
{body}}}
"""
    return ChainSource(text, tuple(writer.images), np.dtype(dtype), recipe.target, recipe.shape)


def _declared(images: Sequence[Array]) -> str:
    return "".join(f", __global const {TYPES[image.dtype.name]} *image{i}" for i, image in enumerate(images))


def _given(images: Sequence[Array]) -> str:
    return "".join(f", image{i}" for i in range(len(images)))


def _behind(view: View, width: int) -> str:
    """Return the index of the raw pixel of a shown one (x, y): the inverse of `View.turn`."""
    height_shown, width_shown = view.shape
    x, y, across, down = "x", "y", width_shown, height_shown
    for _ in range((-view.rotation % 360) // 90):
        x, y, across, down = f"({down - 1} - {y})", x, down, across
    if view.mirrored:
        x = f"({across - 1} - {x})"
    return f"({view.area.y} + {y}) * {width} + ({view.area.x} + {x})"


class _Writer:
    """Writes the steps of a recipe, and collects the images that they read."""

    def __init__(self, pixels: int) -> None:
        self.images: list[Array] = []
        self._pixels = pixels

    def image(self, image: Array) -> str:
        """Return the pixel of an image, at ``p``."""
        return f"{self.argument(image)}[p]"

    def argument(self, image: Array) -> str:
        """Return the name of an image."""
        for i, known in enumerate(self.images):
            if known is image:
                return f"image{i}"
        self.images.append(np.ascontiguousarray(image))
        return f"image{len(self.images) - 1}"

    def steps(self, steps: Sequence[ChainStep], dtype: np.dtype[Any]) -> str:
        lines, before = list[str](), dtype
        for i, step in enumerate(steps):
            entered, result = f"v{i}", f"v{i + 1}"
            lines.append(f"{TYPES[step.target.name]} {result};")
            lines += self._computed(step, entered, result, before)
            if step.entering is not None:
                lines += self._put(step.entering, entered, before, result, step.target)
            for holes in step.holes:
                lines += self._put(holes, result, step.target, result, step.target)
            before = step.target
        return "".join(f"    {line}\n" for line in [*lines, f"return v{len(steps)};"])

    def _computed(self, step: ChainStep, entered: str, result: str, before: np.dtype[Any]) -> list[str]:
        compute = step.compute
        if compute is None:
            return [f"{result} = ({TYPES[step.target.name]}){entered};"]
        if isinstance(compute, Call):
            return self._called(compute, entered, result, step.target)
        work = TYPES[compute.work.name]
        lines = [f"{work} w = ({work}){entered};"] + [
            f"w = w {_sign(ufunc)} {self.image(operand) if operand.ndim else literal(operand)};"
            for ufunc, operand in compute.operands
        ]
        lines += [f"{result} = w;"] if compute.work == step.target else stored("w", compute.work, result, step.target)
        return ["{", *(f"    {line}" for line in lines), "}"]

    def _called(self, call: Call, entered: str, result: str, target: np.dtype[Any]) -> list[str]:
        if call.c is None:
            raise NotLowered
        text = call.c.text.replace("{raw}", entered).replace("{pixels}", str(self._pixels))
        for i, image in enumerate(call.images):
            text = text.replace(f"{{image{i}}}", self.argument(image))
        work = np.dtype(call.c.work)
        lines = [f"{TYPES[work.name]} w = {text};"]
        if target.kind != "f":
            lines.append(f"if (isnan(w)) w = {literal(work.type(call.c.gap))};")
        lines += stored("w", work, result, target)
        return ["{", *(f"    {line}" for line in lines), "}"]

    def _put(self, holes: Holes, entered: str, before: np.dtype[Any], result: str, target: np.dtype[Any]) -> list[str]:
        found = [] if holes.find is None else [finding(holes.find, entered, before)]
        if holes.mask is not None:
            found.insert(0, self.image(holes.mask.view(np.uint8)))
        if not found:
            return []
        if holes.value is not None:
            put = [f"{result} = {literal(target.type(holes.value))};"]
        else:
            put = _kept(entered, before, result, target, holes.gap)
        return [f"if ({' || '.join(found)}) {{", *(f"    {line}" for line in put), "}"]


def _sign(ufunc: np.ufunc) -> str:
    if ufunc.__name__ not in _SIGNS:
        raise NotLowered
    return _SIGNS[ufunc.__name__]


def literal(value: Any) -> str:
    """Return a number of numpy's as it stands in C, exactly."""
    number, dtype = value.item(), np.dtype(value.dtype)
    if dtype.kind != "f":
        suffix = {"u8": "UL", "u4": "U", "i8": "L"}.get(f"{dtype.kind}{dtype.itemsize}", "")
        if number == np.iinfo(np.int64).min:
            return "LONG_MIN"
        return f"({TYPES[dtype.name]})({number}{suffix})"
    name = TYPES[dtype.name]
    if math.isnan(number):
        return f"({name})NAN"
    if math.isinf(number):
        return f"({name}){'-' if number < 0 else ''}INFINITY"
    return f"({float(number).hex()}{'f' if name == 'float' else ''})"


def finding(find: Finder, name: str, dtype: np.dtype[Any]) -> str:
    """Return the condition that a pixel holds no measurement, see `Finder`."""
    found = [f"isnan({name})"] if find.nan else []
    found += [] if find.low is None else [f"{name} < {literal(dtype.type(find.low))}"]
    found += [] if find.high is None else [f"{name} > {literal(dtype.type(find.high))}"]
    found += [f"{name} == {literal(dtype.type(value))}" for value in find.values]
    return f"({' || '.join(found)})" if found else "0"


def stored(work: str, dtype: np.dtype[Any], result: str, target: np.dtype[Any]) -> list[str]:
    """Return what `strips.store` does: integers are rounded half to even, then clipped."""
    name = TYPES[target.name]
    if target.kind == "f" or dtype.kind != "f":
        return [f"{result} = ({name}){work};"]
    limits, number = np.iinfo(target), dtype.type
    low, high = number(limits.min), number(limits.max)
    lines = [f"{work} = rint({work});"]
    if int(high) == limits.max:
        return [*lines, f"{result} = ({name})clamp({work}, {literal(low)}, {literal(high)});"]
    below = np.nextafter(high, number(0))
    largest = literal(target.type(limits.max))
    fits = f"({name})clamp({work}, {literal(low)}, {literal(below)})"
    return [*lines, f"{result} = {work} >= {literal(high)} ? {largest} : {fits};"]


def _kept(entered: str, before: np.dtype[Any], result: str, target: np.dtype[Any], gap: float) -> list[str]:
    """Return what `masked.kept` does."""
    name = TYPES[target.name]
    if before == target or target.kind == "f":
        return [f"{result} = ({name}){entered};"]
    least, most = int(np.iinfo(target).min), int(np.iinfo(target).max)
    if before.kind == "f":
        kind = TYPES[before.name]
        low, high = before.type(least), before.type(most)
        high = before.type(np.nextafter(float(most), 0.0)) if target.itemsize == np.dtype(np.int64).itemsize else high
        largest, held = literal(target.type(most)), literal(target.type(gap_in(gap, target.name)))
        fits = f"({name})clamp(rint({entered}), {literal(low)}, {literal(high)})"
        over = f"rint({entered}) >= ({kind}){literal(before.type(most))}"
        return [f"{result} = isnan({entered}) ? {held} : {over} ? {largest} : {fits};"]
    own = np.iinfo(before)
    low, high = before.type(max(least, int(own.min))), before.type(min(most, int(own.max)))
    return [f"{result} = ({name})clamp({entered}, {literal(low)}, {literal(high)});"]


def formula_text(tree: Tree, work: np.dtype[Any]) -> str:
    """Return a formula of one input, whatever its names, as an expression of ``{raw}``, in the dtype ``work``."""
    if isinstance(tree, Name):
        return f"(({TYPES[work.name]}){{raw}})"
    if isinstance(tree, Scalar):
        with np.errstate(all="ignore"):
            return literal(work.type(tree.value))
    args = [formula_text(arg, work) for arg in tree.args]
    if tree.name in _BINARY:
        return f"({args[0]} {_BINARY[tree.name]} {args[1]})"
    if tree.name == "where":
        return f"({args[0]} ? {args[1]} : {args[2]})"
    if tree.name in ("neg", "not"):
        return f"({'-' if tree.name == 'neg' else '!'}{args[0]})"
    return f"{_FUNCTIONS.get(tree.name, tree.name)}({', '.join(args)})"


SLOTS = 3
"""Pieces of frames that are on their way through a device at the same time."""

PIECE_BYTES = 8 << 20
"""About how many bytes of raw frames are a piece: enough for a bus to be fast, few enough for a ring of them."""


def piece_frames(frame_bytes: int) -> int:
    """Return how many frames of so many bytes are a piece."""
    return max(1, PIECE_BYTES // frame_bytes)


ROW = 64
"""Work items of a group that makes frames: pixels of a row."""

GROUP = 128
"""Work items of a work group, which sums one tile."""

TILE = 4096
"""Most pixels of a tile of a region."""

TILE_WORDS = 10


@dataclass(frozen=True, eq=False)
class SumsSource:
    """The sums over the regions of one node, tile by tile.

    kernel  its name;  text  the kernel;  keys  what it gives, in the order of its arguments, with their dtypes
    tiles   int32 (tiles, `TILE_WORDS`): x, y, width, height, log2 of the work items in a row, first of the mask (-1 =
            none), width of the box, first of the places along x and y, free
    masks   uint8, pixels that count;  places  float64, coordinates
    """

    kernel: str
    text: str
    keys: Mapping[str, np.dtype[Any]]
    tiles: Array
    masks: Array
    places: Array
    regions: Sequence[RegionSums]
    of_region: Sequence[slice]

    def sums(self, frames: int, given: Mapping[str, Array]) -> list[Sums]:
        """Return the sums of each region, arrays (frames,), from those of the tiles (frames, tiles)."""
        found = []
        for region, some in zip(self.regions, self.of_region, strict=True):
            if some.start == some.stop:
                found.append(of_nothing((frames,), region.dtype, region.keys))
                continue
            parts = {key: values[:frames, some].T for key, values in given.items()}
            found.append(stacked(parts | {"sum": parts["sum"].astype(np.float64)}))
        return found


def sums_source(kernel: str, regions: Sequence[RegionSums], chain: ChainSource) -> SumsSource:
    """Return the sums over regions of the result of a chain; all of one node, with the same keys."""
    first, target = regions[0], chain.target
    tiles, masks, places, of_region = _tiles(regions)
    keys: dict[str, np.dtype[Any]] = {"count": np.dtype(np.int64), "sum": _accumulator(target)}
    for key in ("m2", "x", "y"):
        keys |= {key: np.dtype(np.float64)} if key in first.keys else {}
    for key in ("min", "max"):
        keys |= {key: target} if key in first.keys else {}
    keys |= {key: np.dtype(np.int64) for key in first.limits}
    text = _sums_text(kernel, keys, first, chain, len(tiles))
    return SumsSource(kernel, text, keys, tiles, masks, places, regions, of_region)


def _accumulator(target: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.int64 if target.kind != "f" and target.itemsize < 8 else np.float64)


def _tiles(regions: Sequence[RegionSums]) -> tuple[Array, Array, Array, list[slice]]:
    rows, masks, places, of_region = list[list[int]](), list[Array](), list[Array](), list[slice]()
    masked = placed = 0
    for region in regions:
        first, box = len(rows), region.region.box
        if region.region.count:
            mask, at_mask, at = region.region.pixels, -1, {}
            if mask is not None:
                at_mask, masked = masked, masked + mask.size
                masks.append(np.ascontiguousarray(mask, np.uint8).ravel())
            for key, axis in region.axes.items():
                line = axis.of(box).values
                at[key], placed = placed, placed + len(line)
                places.append(np.asarray(line, np.float64))
            items = 1 << min(GROUP.bit_length() - 1, (box.width - 1).bit_length())
            tall = TILE // items
            rows += [
                [
                    x, y, min(items, box.right - x), min(tall, box.bottom - y), items.bit_length() - 1,
                    -1 if mask is None else at_mask + (y - box.y) * box.width + x - box.x, box.width,
                    *(_first_place(region, key, at, x - box.x, y - box.y) for key in "xy"), 0,
                ]
                for y in range(box.y, box.bottom, tall)
                for x in range(box.x, box.right, items)
            ]  # fmt: skip
        of_region.append(slice(first, len(rows)))
    return (
        np.array(rows, np.int32).reshape(-1, TILE_WORDS),
        np.concatenate(masks) if masks else np.zeros(1, np.uint8),
        np.concatenate(places) if places else np.zeros(1),
        of_region,
    )


def _first_place(region: RegionSums, key: str, at: Mapping[str, int], right: int, down: int) -> int:
    """Return where the coordinates of a tile begin that lies so far to the right and down in its region's box."""
    return at[key] + (right if region.axes[key].across else down) if key in at else 0


def _sums_text(
    kernel: str, keys: Mapping[str, np.dtype[Any]], first: RegionSums, chain: ChainSource, tiles: int
) -> str:
    target = TYPES[chain.target.name]
    is_float = chain.target.kind == "f"
    low, high = _ends(chain.target)
    own = {"count": ("long", "0"), "sum": (TYPES[keys["sum"].name], "0")}
    own |= {"m2": ("double", "0"), "x": ("double", "0"), "y": ("double", "0")}
    own |= {"min": (target, high), "max": (target, low)}
    own |= dict.fromkeys(first.limits, ("long", "0"))
    about = "m2" in keys
    declared = {key: own[key] for key in keys} | ({"first": ("double", "0")} if about else {})
    skipped = ["isnan(v)"] if is_float else []
    skipped += [] if first.invalid is None else [finding(first.invalid, "v", chain.target)]
    taken = ["own_count += 1;", f"own_sum += ({own['sum'][0]})v;"]
    if about:
        taken += ["const double apart = (double)v - about;", "own_first += apart;", "own_m2 += apart * apart;"]
    taken += ["own_min = v < own_min ? v : own_min;"] if "min" in keys else []
    taken += ["own_max = v > own_max ? v : own_max;"] if "max" in keys else []
    for key, limit in first.limits.items():
        taken += [f"own_{key} += v >= {literal(chain.target.type(limit))};"] if limit is not None else []
    for key, axis in first.axes.items():
        at = f"tile[{7 if key == 'x' else 8}] + {'x' if axis.across else 'y'}"
        taken.append(f"own_{key} += (double)v * places[{at}];")
    joined = dict.fromkeys(declared, "a + b") | {"min": "b < a ? b : a", "max": "b > a ? b : a"}
    given = [f"__global {TYPES[dtype.name]} *{key}s" for key, dtype in keys.items()]
    lines = [
        f"__kernel __attribute__((reqd_work_group_size({GROUP}, 1, 1)))",
        f"void {kernel}(__global const {TYPES[chain.source.name]} *frames, const ulong first, const ulong stride,",
        "    __global const int *tiles, __global const uchar *masks, __global const double *places,",
        f"    {', '.join(given)}{_declared(chain.images)}) {{",
        f"    const size_t frame = get_group_id(1), o = frame * {tiles} + get_group_id(0);",
        f"    __global const int *tile = tiles + get_group_id(0) * {TILE_WORDS};",
        "    const int me = get_local_id(0), shift = tile[4];",
        f"    const int x = me & ((1 << shift) - 1), step = {GROUP} >> shift;",
        *(f"    {kind} own_{key} = {start};" for key, (kind, start) in declared.items()),
    ]
    pixel = (
        f"chain(frames + first + frame * stride, behind(tile[0] + {{x}}, tile[1] + {{y}}), "
        f"(tile[1] + {{y}}) * {chain.shape[1]} + tile[0] + {{x}}{_given(chain.images)})"
    )
    if about:
        corner = pixel.format(x="0", y="0")
        lines += [f"    double about = (double){corner};", "    about = isfinite(about) ? about : 0;"]
    lines += [
        "    if (x < tile[2]) for (int y = me >> shift; y < tile[3]; y += step) {",
        "        if (tile[5] >= 0 && !masks[tile[5] + y * tile[6] + x]) continue;",
        f"        const {target} v = {pixel.format(x='x', y='y')};",
        *([f"        if ({' || '.join(skipped)}) continue;"] if skipped else []),
        *(f"        {line}" for line in taken),
        "    }",
        *(f"    __local {kind} {key}_l[{GROUP}];" for key, (kind, _) in declared.items()),
        *(f"    {key}_l[me] = own_{key};" for key in declared),
        f"    for (int half_ = {GROUP // 2}; half_ > 0; half_ >>= 1) {{",
        "        barrier(CLK_LOCAL_MEM_FENCE);",
        "        if (me < half_) {",
        *(
            f"            {{ const {kind} a = {key}_l[me], b = {key}_l[me + half_]; {key}_l[me] = {joined[key]}; }}"
            for key, (kind, _) in declared.items()
        ),
        "        }",
        "    }",
        "    if (me == 0) {",
        *(f"        {key}s[o] = {_of_tile(key, chain.target)};" for key in keys),
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _ends(dtype: np.dtype[Any]) -> tuple[str, str]:
    """Return what the greatest, and the least, of no pixel begin with."""
    if dtype.kind == "f":
        return literal(dtype.type(-np.inf)), literal(dtype.type(np.inf))
    limits = np.iinfo(dtype)
    return literal(dtype.type(limits.min)), literal(dtype.type(limits.max))


def _of_tile(key: str, dtype: np.dtype[Any]) -> str:
    """Return what leaves a tile; of no pixel see `statistics.of_none`."""
    if key == "m2":
        apart = "m2_l[0] - first_l[0] * first_l[0] / count_l[0]"
        return f"count_l[0] && !({apart} < 0) ? {apart} : 0.0"  # NaN stays
    if key in ("min", "max") and dtype.kind == "f":
        return f"count_l[0] ? {key}_l[0] : ({TYPES[dtype.name]})NAN"
    return f"{key}_l[0]"
