"""The picture of a page: pixels in colours, regions drawn over it, the value under the cursor."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from bokeh.events import MouseMove, Reset
from bokeh.models import (
    BoxZoomTool,
    ColorBar,
    ColumnDataSource,
    CustomJS,
    Div,
    LinearColorMapper,
    LogColorMapper,
    PanTool,
    Range1d,
    ResetTool,
    SaveTool,
    WheelZoomTool,
)
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.drive import LiveFrame
from lima2cli.files.picture import LIMITS, measured_pixels
from lima2cli.view import Outline, View
from lima2cli.web.page.facts import corners
from lima2cli.web.page.text import COLOURS, NOT_MEASURED, TEXT

MOST = 1200
"""Maximal pixels a side that are sent."""

MOST_RANKED = 1 << 17
"""Pixels, about, of which percentiles are taken; of more, every n-th is looked at."""

SHOWABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""dtypes that browsers show; others are sent as float64."""

Scale = Literal["linear", "log"]


@dataclass(frozen=True, eq=False)
class Window:
    """Pixels of a frame as they are sent.

    pixels   (rows, columns), true values: those of the frame at y, y + step, …; x, x + step, …
    masked   bool, of the same shape, True = no measurement in any frame; None = none
    x, y     of the first pixel;  step   from one to the next
    """

    pixels: NDArray[Any]
    masked: NDArray[np.bool_] | None
    x: int
    y: int
    step: int

    @property
    def place(self) -> tuple[float, float, float, float]:
        """Left edge, upper edge, width and height in pixels of the frame; pixel centres lie at whole coordinates."""
        height, width = self.pixels.shape
        return self.x - 0.5, self.y - 0.5, width * self.step, height * self.step


def window(
    pixels: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> Window:
    """Return what a browser is sent of a frame (height, width) that shows these ranges of x and y.

    Steps are whole numbers, from the frame's first pixel on: the same pixels are shown wherever the range begins.
    """
    height, width = pixels.shape
    left, right = _span(x_range, width)
    top, bottom = _span(y_range, height)
    step = max(1, math.ceil((right - left) / MOST), math.ceil((bottom - top) / MOST))
    left, top = left // step * step, top // step * step
    part = (slice(top, bottom, step), slice(left, right, step))
    shown = np.ascontiguousarray(pixels[part])
    if shown.dtype.name not in SHOWABLE:
        shown = shown.astype(np.float64)
    return Window(shown.astype(shown.dtype.newbyteorder("="), copy=False),
                  None if mask is None else np.ascontiguousarray(mask[part]), left, top, step)  # fmt: skip


def _span(limits: tuple[float, float], size: int) -> tuple[int, int]:
    """Return first and last pixel, which is not included, of those that a range shows; all where it shows none."""
    low, high = sorted(limits)
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0, size
    first, last = max(0, math.floor(low + 0.5)), min(size, math.ceil(high + 0.5))
    return (first, last) if first < last else (0, size)


def limits(shown: Window, scale: Scale) -> tuple[float, float]:
    """Return the values at the ends of the colours: percentiles of measured pixels, for ``log`` of those above 0."""
    values = shown.pixels[measured_pixels(shown.pixels, shown.masked)]
    if scale == "log":
        values = values[values > 0]
    if not values.size:
        return (0.0, 1.0) if scale == "linear" else (1.0, 10.0)
    some = values[:: max(1, values.size // MOST_RANKED)].astype(np.float64)
    low, high = (float(value) for value in np.percentile(some, LIMITS))
    if high > low:
        return low, high
    return (low, low + 1) if scale == "linear" else (low, low * 10)


def fit(shape: tuple[int, int], across: float, down: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ranges of x and y that show all of a frame (height, width) on ``across`` x ``down``, pixels square."""
    height, width = shape
    scale = max(width / max(1.0, across), height / max(1.0, down))
    x, y = (width - 1) / 2, (height - 1) / 2
    half = across * scale / 2, down * scale / 2
    return (x - half[0], x + half[0]), (y - half[1], y + half[1])


CURSOR = """
const d = source.data
const at = event == null ? readout._at : {x: event.x, y: event.y}
readout._at = at
let text = "&nbsp;"
if (at != null && d.image.length > 0) {
  const [rows, columns] = d.image[0].shape
  const column = Math.floor((at.x - d.x[0]) / d.dw[0] * columns)
  const row = Math.floor((at.y - d.y[0]) / d.dh[0] * rows)
  if (column >= 0 && column < columns && row >= 0 && row < rows) {
    const i = row * columns + column
    const x = d.first_x[0] + column * d.step[0]
    const y = d.first_y[0] + row * d.step[0]
    const masked = mask.data.image.length > 0 && mask.data.image[0][i] != 0
    text = `x <b>${x}</b> &ensp; y <b>${y}</b> &ensp; value <b>${masked ? "masked" : d.image[0][i]}</b>`
  }
}
readout.setv({text}, {sync: false})
"""
"""Shows the value under the cursor; nothing goes to the server."""

SHOWN = """
const serial = readout.tags[0]
requestAnimationFrame(() => { source.tags = [serial] })
"""
"""Reports a frame that the browser has drawn: one that is hidden draws none, and a slow one late."""


class Picture:
    """The picture. `show` sends a frame; `ready` says whether the browser has drawn the last one."""

    def __init__(self) -> None:
        self.frame: LiveFrame | None = None
        self.scale: Scale = "linear"
        self.fixed: tuple[float, float] | None = None
        self._serial = self._sent = 0
        self._shape: tuple[int, int] | None = None
        self._fitted = True
        self._mask_key: Any = None
        self._moved = False
        empty: dict[str, Any] = {
            name: [] for name in ("image", "x", "y", "dw", "dh", "first_x", "first_y", "step", "number")
        }
        self.source = ColumnDataSource(empty, name="frame")
        self._mask = ColumnDataSource({name: [] for name in ("image", "x", "y", "dw", "dh")})
        self.regions = ColumnDataSource({name: [] for name in ("xs", "ys", "colour", "label")}, name="regions")
        self._labels = ColumnDataSource({name: [] for name in ("x", "y", "colour", "label")})
        self.readout = Div(text="&nbsp;", css_classes=["readout"], name="readout")
        self._mappers: dict[Scale, Any] = {
            "linear": LinearColorMapper(Viridis256, low=0, high=1, nan_color=NOT_MEASURED),
            "log": LogColorMapper(Viridis256, low=1, high=10, nan_color=NOT_MEASURED),
        }
        self.plot = self._plot()

    def _plot(self) -> Any:
        wheel, pan = WheelZoomTool(zoom_on_axis=False), PanTool()
        plot = figure(
            x_range=Range1d(-0.5, 1, name="x"), y_range=Range1d(1, -0.5, name="y"),
            tools=[pan, wheel, BoxZoomTool(match_aspect=True), ResetTool(), SaveTool()],
            active_drag=pan, active_scroll=wheel, sizing_mode="stretch_both", min_height=420, name="picture",
            toolbar_location="right", background_fill_color="#f4f5f7", output_backend="canvas",
        )  # fmt: skip
        plot.toolbar.logo = None
        plot.grid.visible = False
        plot.axis.axis_line_color = plot.axis.minor_tick_line_color = None
        plot.axis.major_tick_line_color, plot.axis.major_label_text_color = "#c5cad3", TEXT
        plot.outline_line_color = None
        place = {"x": "x", "y": "y", "dw": "dw", "dh": "dh"}
        self._image = plot.image(image="image", source=self.source, color_mapper=self._mappers["linear"], **place)
        clear = LinearColorMapper(["#00000000", NOT_MEASURED], low=0, high=1)
        plot.image(image="image", source=self._mask, color_mapper=clear, **place)
        plot.multi_line("xs", "ys", source=self.regions, line_color="white", line_width=3, line_alpha=0.55)
        plot.multi_line("xs", "ys", source=self.regions, line_color="colour", line_width=1.6)
        plot.text(
            "x", "y", "label", source=self._labels, text_color="colour", text_font_size="11px", y_offset=-4,
            text_font_style="bold", background_fill_color="white", background_fill_alpha=0.8, padding=2,
        )  # fmt: skip
        self._bar = ColorBar(
            color_mapper=self._mappers["linear"], width=12, padding=6, major_label_text_color=TEXT,
            bar_line_color=None, major_tick_line_color=None, background_fill_color=None,
        )  # fmt: skip
        plot.add_layout(self._bar, "right")
        look = {"source": self.source, "mask": self._mask, "readout": self.readout}
        plot.js_on_event(MouseMove, CustomJS(args=look, code=f"const event = cb_obj\n{CURSOR}"))
        self.source.js_on_change(
            "data", CustomJS(args=look, code=f"const event = null\n{CURSOR}"),
            CustomJS(args=look, code=SHOWN),
        )  # fmt: skip
        for name in ("inner_width", "inner_height"):
            plot.on_change(name, self._resized)
        for each in (plot.x_range, plot.y_range):
            each.on_change("start", self._ranged)
            each.on_change("end", self._ranged)
        plot.on_event(Reset, self._reset)
        return plot

    @property
    def ready(self) -> bool:
        """Return whether the browser has drawn all that it was sent."""
        return self._serial == 0 or self.source.tags == [self._serial]

    def restart(self) -> None:
        """Wait for no answer to what was sent so far: a browser has just come, or its answer was lost."""
        self._serial = 0

    @property
    def moved(self) -> bool:
        """Return whether another part of the last frame is to be shown."""
        return self._moved and self.frame is not None

    def clear(self) -> None:
        """Show no frame."""
        self.frame = None
        self._begin()
        self.source.data = {name: [] for name in self.source.data}
        self._mask.data = {name: [] for name in self._mask.data}
        self._mask_key = None

    def show(self, frame: LiveFrame | None = None) -> None:
        """Show a frame; without one the last again, as it is looked at now."""
        frame = frame or self.frame
        if frame is None:
            return
        self.frame = frame
        if frame.pixels.shape != self._shape:
            self._shape = frame.pixels.shape
            self._fit()
        self._moved = False
        x, y = self.plot.x_range, self.plot.y_range
        shown = window(frame.pixels, frame.mask, (x.start, x.end), (y.start, y.end))
        self._colour(shown)
        left, top, width, height = shown.place
        place = {"x": [left], "y": [top], "dw": [width], "dh": [height]}
        self._show_mask(frame, shown, place)
        self._begin()
        self.source.data = place | {
            "image": [shown.pixels], "first_x": [shown.x], "first_y": [shown.y], "step": [shown.step],
            "number": [frame.number],
        }  # fmt: skip

    def _begin(self) -> None:
        """Number what is sent next: the browser reports that it has drawn it."""
        self._sent += 1
        self._serial = self._sent
        self.readout.tags = [self._serial]

    def _show_mask(self, frame: LiveFrame, shown: Window, place: Mapping[str, Any]) -> None:
        """Show the pixels that are masked in all frames, where these are others than before."""
        key = (id(frame.mask), shown.place) if shown.masked is not None else None
        if key == self._mask_key:
            return
        self._mask_key = key
        if shown.masked is None:
            self._mask.data = {name: [] for name in self._mask.data}
        else:
            self._mask.data = {"image": [shown.masked.astype(np.uint8)], **place}

    def _colour(self, shown: Window) -> None:
        low, high = self.fixed or limits(shown, self.scale)
        if self.scale == "log":
            low, high = (low if low > 0 else 1e-3), (high if high > 0 else 1.0)
        mapper = self._mappers[self.scale]
        if self._image.glyph.color_mapper is not mapper:
            self._image.glyph.color_mapper = self._bar.color_mapper = mapper
        if (mapper.low, mapper.high) != (low, high):
            mapper.update(low=low, high=max(high, math.nextafter(low, math.inf)))

    @property
    def shown_limits(self) -> tuple[float, float]:
        """Return the values at the ends of the colours."""
        mapper = self._mappers[self.scale]
        return mapper.low, mapper.high

    def recolour(self, scale: Scale, fixed: tuple[float, float] | None) -> None:
        """Have frames shown in other colours: by ``scale``, between two values, or between percentiles (None)."""
        self._moved |= (scale, fixed) != (self.scale, self.fixed)
        self.scale, self.fixed = scale, fixed

    def draw(self, regions: Mapping[str, Mapping[str, Outline]], view: View | None) -> None:
        """Draw regions over frames that show the detector by ``view``."""
        colours = region_colours(regions)
        shown = [] if view is None else [
            (name, colours[node, name], corners(outline, view))
            for node, outlines in regions.items()
            for name, outline in outlines.items()
        ]  # fmt: skip
        lines = [(name, colour, line) for name, colour, outline in shown for line in outline]
        self.regions.data = {
            "xs": [[x for x, _ in line] for _, _, line in lines],
            "ys": [[y for _, y in line] for _, _, line in lines],
            "colour": [colour for _, colour, _ in lines],
            "label": [name for name, _, _ in lines],
        }
        tops = [min(outline[0], key=lambda corner: (corner[1], corner[0])) for _, _, outline in shown]
        self._labels.data = {
            "x": [x for x, _ in tops], "y": [y for _, y in tops], "colour": [colour for _, colour, _ in shown],
            "label": [name for name, _, _ in shown],
        }  # fmt: skip

    def _fit(self) -> None:
        if self._shape is None:
            return
        plot = self.plot
        x, y = fit(self._shape, plot.inner_width or 700, plot.inner_height or 560)
        plot.x_range.update(start=x[0], end=x[1], reset_start=x[0], reset_end=x[1])
        plot.y_range.update(start=y[1], end=y[0], reset_start=y[1], reset_end=y[0])
        self._fitted = True

    def _resized(self, name: str, old: int, new: int) -> None:
        if self._fitted:
            self._fit()
            self._moved = True

    def _ranged(self, name: str, old: float, new: float) -> None:
        self._moved = True
        x, y = self.plot.x_range, self.plot.y_range
        self._fitted = (x.start, x.end, y.start, y.end) == (x.reset_start, x.reset_end, y.reset_start, y.reset_end)

    def _reset(self, event: Any) -> None:
        self._fit()
        self._moved = True


def region_colours(regions: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[tuple[str, str], str]:
    """Return the colour of each region, by node and name: that of its lines in plots, too."""
    keys = [(node, name) for node, outlines in regions.items() for name in outlines]
    return {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(keys)}
