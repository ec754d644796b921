"""Node `azimuthal`: azimuthal integration, as pyFAI defines it (extra `azimuthal`: pyFAI and scipy).

    {input: clean, azimuthal: {poni: geometry.poni, bins: 1000, unit: q_nm^-1}}

Each pixel p is divided among the bins b that it overlaps, by pyFAI's splitting over bounding boxes, with weights w:

    signal    S_b = sum_p w_bp x_p                x: pixel values
    norm      N_b = sum_p w_bp n_p                n: solid angle (relative) times polarization
    variance  V_b = sum_p w_bp^2 max(1, x_p)      error_model: poisson
    intensity = S_b / N_b                         sigma = sqrt(V_b) / N_b, the standard error of the mean

That is what `AzimuthalIntegrator.integrate1d` and `integrate2d` give for the method ``("bbox", "csr", "cython")``: the
weights are pyFAI's matrix, made once before the start. Masked pixels count neither in S nor in N: those of the static
mask, of the mask of the detector that a PONI file names, and in single frames NaN and invalid values. A bin without any
pixel that counts is NaN (pyFAI: 0).

The geometry is that of a PONI file, or of `metadata` (`distance`, `beam_center`, `photon_energy`) and the detector's
`pixel_size`: a flat detector, perpendicular to the beam. It must be known when the pipeline is compiled: what a
detector says of it when it is armed is not used. It is that of the whole sensor, and frames that were cut, binned,
flipped or rotated are integrated where their pixels are. The wavelength of a PONI file goes before
`photon_energy`. Detectors whose pixels do not lie on a regular grid, or of another orientation than 3, can be neither
cut nor binned.

Without ``range`` bins reach over all pixels of the frames, masked or not; with two-dimensional ``bins`` and without
``azimuth_range`` around the whole circle. Azimuths are pyFAI's: degrees from the direction of growing x, to that of
growing y, which is down.

Columns of the table are ``intensity`` and ``sigma``, float32, a vector (frames, radial) or an image (frames, azimuthal,
radial) each, next to their axes ``q`` or ``two_theta``, and ``chi``. Over partial frames S, N and V are added up.

The matrix is applied to a few frames at once, some rows of them after another, so that pixels are read once, and sums
stay in cache; in float64.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.declare import Choice, Either, FileReference, Flag, Integer, ListOf, Number, Table, param
from lima2cli.errors import FileProblem, NodeMisuse
from lima2cli.frames import Array, Block, FrameSpec, TableAxis, TableSpec
from lima2cli.geometry import Rect
from lima2cli.kernels.masked import finder
from lima2cli.nodes.base import Inputs, Partial, Reduce, Reducer, node
from lima2cli.units import HC
from lima2cli.view import View

METHOD = ("bbox", "csr", "cython")
"""Splitting of pixels, form of the matrix, and implementation in pyFAI that makes it."""

UNITS: Mapping[str, tuple[str, str, str]] = {
    "q_nm^-1": ("q", "1/nm", "q (1/nm)"),
    "q_A^-1": ("q", "1/angstrom", "q (1/angstrom)"),
    "2th_deg": ("two_theta", "deg", "2 theta (deg)"),
}
"""Name, unit and label of the radial axis, by pyFAI's name of the unit."""

FRAMES, FEWEST = 8, 4
"""Frames that are multiplied together: a cache line of float64. Fewer than half of these are faster one by one."""

STRIP_PIXELS = 32768
"""Pixels of each of these frames: 2 MiB as float64, which stay in the cache of a core with the sums."""

RIGHT_ANGLE = 90.0

NATIVE = (0, 3)
"""Orientations of detectors in pyFAI whose first pixel is at the origin."""


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Bins of both directions."""

    radial: int = param("Bins from the beam outwards.", Integer(1, 100_000), 1000)
    azimuthal: int = param("Bins around the beam.", Integer(1, 36_000), 360)


LIMITS = ListOf(Number(), 2)


@node("azimuthal")
class Azimuthal(Reduce):
    """Integrates frames around the beam, as pyFAI does."""

    parts: ClassVar[bool] = True
    threaded: ClassVar[bool] = True

    poni: str | None = param(
        "PONI file of pyFAI, of the whole sensor; default: `metadata` and the detector's `pixel_size`.",
        FileReference(),
        None,
    )
    bins: int | Bins = param(
        "Radial bins; or both, then the result is an image.", Either((Integer(1, 100_000), Table(Bins))), 1000
    )
    unit: str = param("Unit of the radial axis.", Choice(tuple(UNITS)), "q_nm^-1")
    range: tuple[float, ...] | None = param(
        "First and last value of the radial axis, in `unit`; default: all pixels.", LIMITS, None
    )
    azimuth_range: tuple[float, ...] | None = param(
        "First and last azimuth, in degrees; default: the whole circle.", LIMITS, None
    )
    polarization: float | None = param(
        "Polarization factor, -1 (vertical) to 1 (horizontal); default: no correction.", Number(-1, 1), None
    )
    solid_angle: bool = param("Divides by the solid angle of pixels, relative to one at the PONI.", Flag(), True)
    error_model: str = param("Poisson: the variance of a pixel is its value.", Choice(("none", "poisson")), "none")

    def infer(self, inputs: Inputs) -> TableSpec:
        """See `Node.infer`."""
        radial, azimuthal = self._ranges(inputs, _Geometry.of(self, inputs))
        name, unit, label = UNITS[self.unit]
        axes = [TableAxis(name, _centres(radial, self._radial), unit, label)]
        if isinstance(self.bins, Bins):
            axes.insert(0, TableAxis("chi", _centres(azimuthal, self.bins.azimuthal), "deg", "azimuth (deg)"))
        columns = ("intensity", *(["sigma"] if self.error_model == "poisson" else []))
        return TableSpec(
            dict.fromkeys(columns, "float32"),
            "intensity",
            lengths=dict.fromkeys(columns, math.prod(len(axis.values) for axis in axes)),
            axes=tuple(axes),
            errors="sigma" if self.error_model == "poisson" else None,
        )

    def bind(self, inputs: Inputs) -> Reducer:
        """See `Reduce.bind`."""
        return _Integration(self._matrix(inputs), inputs.spec, poisson=self.error_model == "poisson")

    def merge(self, one: Partial, other: Partial) -> Partial:
        """See `Reduce.merge`."""
        return {key: values if key == "frame_number" else values + other[key] for key, values in one.items()}

    def finish(self, partial: Partial) -> Mapping[str, NDArray[Any]]:
        """See `Reduce.finish`."""
        norm = partial["norm"]
        with np.errstate(all="ignore"):  # NaN without pixels; values beyond float32
            columns = {"frame_number": partial["frame_number"]}
            columns["intensity"] = (partial["signal"] / norm).astype(np.float32)
            if "variance" in partial:
                columns["sigma"] = (np.sqrt(partial["variance"]) / norm).astype(np.float32)
        return columns

    @property
    def _radial(self) -> int:
        return self.bins.radial if isinstance(self.bins, Bins) else self.bins

    def _ranges(self, inputs: Inputs, geometry: "_Geometry") -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the limits of the bins in both directions, in `unit` and degrees; azimuths grow.

        Raises:
            NodeMisuse: a range is empty, or has no pixel.
        """
        spec = inputs.spec
        radial, azimuthal = _limits(self.range, "range"), _limits(self.azimuth_range, "azimuth_range", 360.0)
        seen = geometry.radial_range(spec.of_sensor(spec.whole or spec.view), self.unit)
        if radial is None:
            return seen, azimuthal or (-180.0, 180.0)
        if radial[0] >= seen[1] or radial[1] <= seen[0]:
            message = f"no pixel of the frames is between {radial[0]:g} and {radial[1]:g}"
            help = f"they reach from {seen[0]:.6g} to {seen[1]:.6g} {self.unit}"
            raise NodeMisuse("range-empty", message, ("range",), help)
        return radial, azimuthal or (-180.0, 180.0)

    def _matrix(self, inputs: Inputs) -> "_Matrix":
        """Return the matrix for the frames that enter, which the threads of a process share."""
        spec = inputs.spec
        mask = None if spec.mask is None else spec.mask.tobytes()
        poni = None if self.poni is None else inputs.files.path(self.poni)
        key = (self, poni, spec.of_sensor(spec.view), spec.whole, spec.base, spec.experiment, mask)
        with _LOCK:
            made = _SHARED.get(key)
            if made is None:
                made = _SHARED[key] = self._made(inputs)
        return made

    def _made(self, inputs: Inputs) -> "_Matrix":
        spec = inputs.spec
        view, geometry = spec.of_sensor(spec.view), _Geometry.of(self, inputs)
        radial, azimuthal = self._ranges(inputs, geometry)
        bad = np.zeros(spec.shape, bool) if spec.mask is None else spec.mask
        bad = bad | geometry.masked(view)
        return geometry.seen(view).matrix(self, radial, azimuthal, bad)


_LOCK = threading.Lock()
_SHARED: WeakValueDictionary[Any, "_Matrix"] = WeakValueDictionary()
"""Matrices in use, by all that they are made of."""


def _limits(given: tuple[float, ...] | None, key: str, most: float = math.inf) -> tuple[float, float] | None:
    """Return two limits; those of angles, where ``most`` is 360, grow by a turn where they do not.

    Raises:
        NodeMisuse: they are not two, or nothing is between them.
    """
    if given is None:
        return None
    if len(given) != 2:
        raise NodeMisuse("range-empty", f"{len(given)} numbers, 2 are needed", (key,), "`[first, last]`")
    first, last = given
    if most == 360.0 and last < first:
        last += 360.0
    if not 0 < last - first <= most:
        raise NodeMisuse("range-empty", f"there is nothing from {first:g} to {last:g}", (key,), "`[first, last]`")
    return first, last


def _centres(limits: tuple[float, float], bins: int) -> tuple[float, ...]:
    width = (limits[1] - limits[0]) / bins
    return tuple((limits[0] + width * (0.5 + np.arange(bins))).tolist())


@dataclass(frozen=True, eq=False)
class _Geometry:
    """The geometry of the whole sensor.

    model   `AzimuthalIntegrator` of pyFAI
    sensor  (width, height);  regular  its pixels are a grid that can be cut and binned
    """

    model: Any
    sensor: tuple[int, int]
    regular: bool

    @classmethod
    def of(cls, node: Azimuthal, inputs: Inputs) -> "_Geometry":
        """Return the geometry that a node names.

        Raises:
            NodeMisuse: something is not known (``geometry-missing``), or of another detector (``geometry-other``), or
                pyFAI is not installed.
            FileProblem: the PONI file is missing or unfit.
        """
        try:
            import pyFAI.integrator.azimuthal  # noqa: F401
            import scipy.sparse  # noqa: F401
        except ImportError as error:
            help = "pip install 'lima2cli[azimuthal]'"
            raise NodeMisuse("environment-unfit", f"pyFAI is needed, and not installed: {error}", (), help) from error
        experiment = inputs.spec.experiment
        sensor = experiment.sensor or inputs.spec.detector
        model = _flat(inputs.spec, sensor) if node.poni is None else _from_poni(node.poni, inputs, sensor)
        model.auto_gc = False  # else each change of it collects garbage, a tenth of a second
        if model.wavelength is None and experiment.photon_energy is not None:
            model.wavelength = HC / experiment.photon_energy * 1e-10
        if model.wavelength is None and node.unit != "2th_deg":
            place = "`metadata.photon_energy`" if node.poni is None else "the PONI file, or `metadata.photon_energy`"
            message = f"{node.unit} needs the wavelength, which is not known"
            raise NodeMisuse("geometry-missing", message, ("unit",), f"give it in {place}; or unit: 2th_deg")
        detector = model.detector
        grid = bool(detector.uniform_pixel and detector.IS_FLAT) and int(detector.orientation) in NATIVE
        return cls(model, sensor, grid and getattr(model, "parallax", None) is None)

    def masked(self, view: View) -> NDArray[np.bool_]:
        """Return the pixels that pyFAI knows to be bad of this detector, as frames show them."""
        width, height = self.sensor
        mask = self.model.detector.mask
        if mask is None or mask.shape != (height, width):
            return np.zeros(view.shape, bool)
        return np.asarray(view.apply(mask != 0, "any"))

    def radial_range(self, view: View, unit: str) -> tuple[float, float]:
        """Return the least and the greatest value of the boxes about the pixels of frames. Raises as `seen`.

        Up to 90 degrees angles are equal on ellipses, and greater outside of them: of a grid both are on the edge, or
        the least is 0 where the beam is inside.
        """
        whole = self.seen(view)
        height, width = view.shape
        lines = [
            Rect(0, 0, width, 1),
            Rect(0, height - 1, width, 1),
            Rect(0, 0, 1, height),
            Rect(width - 1, 0, 1, height),
        ]
        edges = [self.seen(view.cut(line)) for line in lines] if self.regular else []
        if not edges or max(edge.radial_range("2th_deg")[1] for edge in edges) >= RIGHT_ANGLE:
            return whole.radial_range(unit)
        ranges = [edge.radial_range(unit) for edge in edges]
        first, last = min(least for least, _ in ranges), max(most for _, most in ranges)
        return 0.0 if whole.has_beam else first, last

    def seen(self, view: View) -> "_Seen":
        """Return the geometry of frames that show the sensor as ``view`` does.

        Raises:
            NodeMisuse: such a detector can't be cut or binned.
        """
        import pyFAI.detectors
        from pyFAI.integrator.azimuthal import AzimuthalIntegrator

        model, area, width_height = self.model, view.area, self.sensor
        if not self.regular:
            if (area.x, area.y, area.width, area.height, view.binning) != (0, 0, *width_height, (1, 1)):
                message = "a detector whose pixels do not lie on a regular grid can be neither cut nor binned"
                raise NodeMisuse("geometry-other", message, ("poni",))
            return _Seen(model, view)
        width, height = view.bins
        x, y = view.binning
        detector = model.detector
        shown = pyFAI.detectors.Detector(detector.pixel1 * y, detector.pixel2 * x, max_shape=(height, width))
        poni1, poni2 = model.poni1 - area.y * detector.pixel1, model.poni2 - area.x * detector.pixel2
        rotations = (model.rot1, model.rot2, model.rot3)
        return _Seen(
            AzimuthalIntegrator(model.dist, poni1, poni2, *rotations, detector=shown, wavelength=model.wavelength), view
        )


def _flat(spec: FrameSpec, sensor: tuple[int, int]) -> Any:
    """Return the geometry of a flat detector, perpendicular to the beam. Raises `NodeMisuse`."""
    import pyFAI.detectors
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    known = spec.experiment
    wanted = {
        "metadata.distance": known.distance,
        "metadata.beam_center": known.beam_center,
        "pixel_size of the detector": known.pixel_size,
    }
    if missing := [name for name, value in wanted.items() if value is None]:
        message = f"the geometry is not known: {', '.join(missing)}"
        raise NodeMisuse("geometry-missing", message, (), "add what is missing, or name a `poni` file")
    assert known.distance is not None
    assert known.beam_center is not None
    assert known.pixel_size is not None
    (x, y), (pitch_x, pitch_y), (width, height) = known.beam_center, known.pixel_size, sensor
    detector = pyFAI.detectors.Detector(pitch_y, pitch_x, max_shape=(height, width))
    return AzimuthalIntegrator(known.distance, (y + 0.5) * pitch_y, (x + 0.5) * pitch_x, detector=detector)


def _from_poni(reference: str, inputs: Inputs, sensor: tuple[int, int]) -> Any:
    """Return the geometry of a PONI file. Raises `FileProblem`, `NodeMisuse`."""
    import pyFAI
    import pyFAI.detectors
    from pyFAI.io.ponifile import PoniFile

    path, (width, height), known = inputs.files.path(reference), sensor, inputs.spec.experiment
    try:
        content = PoniFile(path)
        if content.dist is None or content.poni1 is None or content.poni2 is None:
            raise ValueError("it has no Distance, Poni1 and Poni2")
        model = pyFAI.load(path)
    except Exception as error:
        raise FileProblem(f"{reference} cannot be read as a PONI file: {error}", "file-format") from error
    if model.detector.pixel1 is None or model.detector.pixel2 is None:
        if known.pixel_size is None:
            message = f"neither {reference} nor the detector has a `pixel_size`"
            raise NodeMisuse("geometry-missing", message, ("poni",), "add it to the detector")
        x, y = known.pixel_size
        model.detector = pyFAI.detectors.Detector(y, x, max_shape=(height, width))
    shape = model.detector.max_shape
    if shape is not None and tuple(shape) != (height, width):
        message = f"{reference} is of a detector of {shape[1]} x {shape[0]} pixels, this one has {width} x {height}"
        raise NodeMisuse("geometry-other", message, ("poni",))
    return model


@dataclass(frozen=True, eq=False)
class _Seen:
    """The geometry of the pixels that frames show: ``model`` of the bins of ``view`` before they are turned."""

    model: Any
    view: View

    @property
    def _shape(self) -> tuple[int, int]:
        width, height = self.view.bins
        return height, width

    @property
    def has_beam(self) -> bool:
        """Return whether the direct beam hits the frames."""
        beam, (height, width) = self.model.getFit2D(), self._shape
        return bool(0 <= beam["centerX"] <= width and 0 <= beam["centerY"] <= height)

    def radial_range(self, unit: str) -> tuple[float, float]:
        """Return the least and the greatest value of the boxes about the pixels, looking at all of them."""
        centre = self.model.center_array(self._shape, unit=unit)
        delta = self.model.delta_array(self._shape, unit=unit, scale=True)
        return max(0.0, float((centre - delta).min())), float((centre + delta).max())

    def matrix(
        self, node: Azimuthal, radial: tuple[float, float], azimuthal: tuple[float, float], bad: NDArray[np.bool_]
    ) -> "_Matrix":
        """Return pyFAI's matrix, without ``bad`` pixels (height, width), which are as frames show them."""
        given: dict[str, Any] = {
            "mask": np.ascontiguousarray(self.view.turn_back(bad)).astype(np.int8),
            "radial_range": radial,
            "azimuth_range": azimuthal if node.azimuth_range is not None or isinstance(node.bins, Bins) else None,
            "polarization_factor": node.polarization,
            "correctSolidAngle": node.solid_angle,
            "method": METHOD,
            "unit": node.unit,
        }
        nothing = np.zeros(self._shape, np.float32)
        if isinstance(node.bins, Bins):
            made = self.model.integrate2d_ng(nothing, node.bins.radial, node.bins.azimuthal, **given)
        else:
            made = self.model.integrate1d_ng(nothing, node.bins, **given)
        engine = self.model.engines[made.method].engine
        norm = np.ones(self._shape)
        if node.solid_angle:
            norm *= self.model.solidAngleArray(self._shape)
        if node.polarization is not None:
            norm *= self.model.polarization(self._shape, node.polarization)
        place = self.view.turn(np.arange(norm.size).reshape(self._shape)).ravel()
        shape = (node.bins.radial, node.bins.azimuthal) if isinstance(node.bins, Bins) else (node.bins,)
        csr, poisson = (engine.data, engine.indices, engine.indptr), node.error_model == "poisson"
        return _Matrix(csr, shape, place, norm.ravel()[place], self.view.shape, poisson=poisson)


class _Matrix:
    """Weights of pixels in bins, by strips of rows.

    csr     data, indices of pixels, and pointers of bins, of the image before it was turned
    bins    (radial,) or (radial, azimuthal), the shape of what pointers are of
    place   flat index there of each pixel of the frames (pixels,);  norm  of each, float64
    shape   (height, width) of the frames
    """

    def __init__(
        self,
        csr: tuple[Array, Array, Array],
        bins: tuple[int, ...],
        place: NDArray[np.intp],
        norm: NDArray[np.float64],
        shape: tuple[int, int],
        *,
        poisson: bool,
    ) -> None:
        from scipy.sparse import csr_array

        height, width = shape
        rows = np.arange(math.prod(bins)).reshape(bins).T.ravel()  # azimuthal, radial: images as they are saved
        by_bin = csr_array(tuple(map(np.asarray, csr)), shape=(len(rows), len(place)), dtype=np.float64)
        by_bin = by_bin[rows] if len(bins) > 1 else by_bin
        by_pixel = by_bin.T.tocsr()
        by_pixel = by_pixel if (np.diff(place) == 1).all() else by_pixel[place]
        self.counts = np.diff(by_pixel.indptr).reshape(shape) > 0
        self.bins, self.norm = len(rows), norm
        self.tall = max(1, STRIP_PIXELS // width)
        self.strips = [
            _Strip(slice(top, min(top + self.tall, height)), by_pixel, norm, width, poisson=poisson)
            for top in range(0, height, self.tall)
        ]


class _Strip:
    """Weights of the pixels of some rows, in the bins that they are in.

    bins     these bins (m,);  weights  (m, pixels), compressed by pixel;  squares  of these, None where not asked for
    base     norm of the bins (m,) where all pixels count;  norm  of the pixels (pixels, 1)
    """

    def __init__(self, rows: slice, by_pixel: Any, norm: NDArray[np.float64], width: int, *, poisson: bool) -> None:
        from scipy.sparse import csc_array

        own = by_pixel[rows.start * width : rows.stop * width]
        self.rows = rows
        self.bins, index = np.unique(own.indices, return_inverse=True)
        shape = (len(self.bins), own.shape[0])
        self.weights = csc_array((own.data, index.astype(np.int32), own.indptr), shape=shape)
        squares = (np.square(own.data), self.weights.indices, own.indptr) if poisson else None
        self.squares: Any = None if squares is None else csc_array(squares, shape=shape)
        self.norm = norm[rows.start * width : rows.stop * width, np.newaxis]
        self.base = self.weights @ self.norm


def _together(count: int) -> Iterator[slice]:
    """Yield the frames of a block that are multiplied together."""
    first = 0
    while first < count:
        step = min(FRAMES, count - first)
        step = step if step >= FEWEST else 1
        yield slice(first, first + step)
        first += step


class _Integration:
    """See `Reducer`."""

    def __init__(self, matrix: _Matrix, spec: FrameSpec, *, poisson: bool) -> None:
        self._matrix, self._poisson, self._width = matrix, poisson, spec.shape[1]
        self._invalid = finder(spec.invalid, spec.dtype)
        self._memory = np.empty(matrix.tall * self._width * FRAMES)

    def step(self, block: Block, received_ns: int) -> Partial:
        """Partial: ``signal``, ``norm`` and ``variance``, float64 (n, bins), and ``frame_number``."""
        count = len(block.numbers)
        keys = ("signal", "norm", "variance") if self._poisson else ("signal", "norm")
        partial: Partial = {"frame_number": block.numbers.copy()}
        partial |= {key: np.empty((count, self._matrix.bins)) for key in keys}
        with np.errstate(all="ignore"):  # inf - inf
            for own in _together(count):
                frames = block.frames[own]
                sums = {key: np.zeros((self._matrix.bins, len(frames))) for key in keys}
                for strip in self._matrix.strips:
                    self._add(strip, frames[:, strip.rows], sums)
                for key in keys:
                    partial[key][own] = sums[key].T
        return partial

    def _add(self, strip: _Strip, pixels: Array, sums: dict[str, NDArray[np.float64]]) -> None:
        """Add the sums over the pixels (n, rows, width) of a strip to those of all, (bins, n)."""
        count, rows, width = pixels.shape
        values = self._memory[: pixels.size].reshape(rows * width, count)
        image = values.reshape(rows, width, count).transpose(2, 0, 1)
        np.copyto(image, pixels)
        norm = strip.base
        bad = None if self._invalid is None else self._invalid(pixels)
        if bad is not None:
            bad &= self._matrix.counts[strip.rows]
            if bad.any():
                np.copyto(image, 0.0, where=bad)
                same = bad[:1] if (bad == bad[0]).all() else bad
                norm = strip.weights @ (strip.norm * ~same.reshape(len(same), -1).T)
            else:
                bad = None
        sums["signal"][strip.bins] += strip.weights @ values
        sums["norm"][strip.bins] += norm
        if self._poisson:
            np.maximum(values, 1.0, out=values)
            if bad is not None:
                np.copyto(image, 0.0, where=bad)
            sums["variance"][strip.bins] += strip.squares @ values


__all__ = ["Azimuthal", "Bins"]
