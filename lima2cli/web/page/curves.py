"""The plot of a page: columns of a table by frame number, or the profiles of the last frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import BasicTickFormatter, ColumnDataSource, DataRange1d, HoverTool, MultiChoice, Select
from bokeh.plotting import figure
from numpy.typing import NDArray

from lima2cli.files.channel import TableChannel
from lima2cli.kernels.statistics import STATISTICS
from lima2cli.view import Outline
from lima2cli.web.page.image import region_colours
from lima2cli.web.page.text import COLOURS, TEXT, WIDGETS

MOST_AT_FIRST = 3
"""Columns that are plotted before somebody chooses."""


class Curves:
    """The plot, and the choice of table and columns."""

    def __init__(self) -> None:
        self.table = Select(title="Table", options=[], width=150, stylesheets=[WIDGETS], name="table")
        self.columns = MultiChoice(
            title="Columns", options=[], value=[], sizing_mode="stretch_width", stylesheets=[WIDGETS], name="columns"
        )
        self.source = ColumnDataSource({name: [] for name in ("xs", "ys", "colour", "label")}, name="curves")
        self._tables: Mapping[str, TableChannel] = {}
        self._colours: dict[str, str] = {}
        self._rows: Mapping[str, NDArray[Any]] = {}
        self._drawn: Any = None
        self.plot = self._plot()
        self.table.on_change("value", lambda name, old, new: self._choose())
        self.columns.on_change("value", lambda name, old, new: self._draw())

    def _plot(self) -> Any:
        plot = figure(
            height=240, sizing_mode="stretch_width", tools="pan,xwheel_zoom,box_zoom,reset", x_axis_label="frame",
            x_range=DataRange1d(range_padding=0.02), y_range=DataRange1d(range_padding=0.08), name="plot",
            toolbar_location="right",
        )  # fmt: skip
        plot.toolbar.logo = None
        plot.toolbar.autohide = True
        plot.outline_line_color = None
        plot.grid.grid_line_color = "#eef0f4"
        plot.axis.axis_line_color = plot.axis.major_tick_line_color = "#c5cad3"
        plot.axis.minor_tick_line_color = None
        plot.axis.major_label_text_color = plot.axis.axis_label_text_color = TEXT
        plot.axis.axis_label_text_font_style = "normal"
        plot.yaxis.formatter = BasicTickFormatter(power_limit_high=8)
        lines = plot.multi_line(
            "xs", "ys", source=self.source, line_color="colour", line_width=1.6, legend_field="label"
        )
        legend = plot.legend[0]
        legend.update(
            orientation="horizontal", border_line_color=None, label_text_font_size="11px", label_text_color=TEXT,
            padding=2, margin=0, glyph_width=14, ncols=4,
        )  # fmt: skip
        plot.add_layout(legend, "above")
        tips = [("", "@label"), ("", "$data_x{0}: $data_y")]
        plot.add_tools(HoverTool(renderers=[lines], tooltips=tips, line_policy="nearest"))
        return plot

    def offer(self, tables: Mapping[str, TableChannel], regions: Mapping[str, Mapping[str, Outline]]) -> None:
        """Offer the tables of a run; the choices stay where they can."""
        self._tables = tables
        drawn = region_colours(regions)
        self._colours = {
            f"{node} {region}_{statistic}": colour
            for (node, region), colour in drawn.items()
            for statistic in (*STATISTICS, "above")
        }
        plotted = [name for name, table in tables.items() if self._numeric(table)]
        self.table.options = plotted
        if self.table.value not in plotted:
            favourite = [name for name in plotted if name in regions]
            self.table.value = next(iter(favourite or plotted), "")
        self._choose()

    @staticmethod
    def _numeric(table: TableChannel) -> list[str]:
        return [name for name in table.columns if name != "frame_number"]

    def _choose(self) -> None:
        table = self._tables.get(self.table.value)
        names = [] if table is None else self._numeric(table)
        self.columns.options = names
        kept = [name for name in self.columns.value if name in names]
        alike = [] if table is None else [name for name in (table.default, *(table.others or ())) if name in names]
        self.columns.value = kept or alike[:MOST_AT_FIRST] or names[:1]
        self._rows = {}
        self._draw()

    def show(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Plot rows of the chosen table."""
        self._rows = rows
        self._draw()

    def _draw(self) -> None:
        rows = {name: self._rows[name] for name in self.columns.value if name in self._rows}
        numbers = self._rows.get("frame_number", np.zeros(0))
        drawn = (self.table.value, tuple(rows), len(numbers), int(numbers[-1]) if len(numbers) else -1)
        if drawn == self._drawn:
            return
        self._drawn = drawn
        flat = {name: values for name, values in rows.items() if values.ndim == 1}
        if flat or not rows:
            xs: Sequence[Any] = [numbers.astype(np.float64)] * len(flat)
            ys: Sequence[Any] = [values.astype(np.float64) for values in flat.values()]
        else:  # the profiles of the last frame
            flat = rows
            ys = [values[-1].astype(np.float64) if len(values) else np.zeros(0) for values in rows.values()]
            xs = [np.arange(len(values), dtype=np.float64) for values in ys]
            self.plot.xaxis.axis_label = f"pixel of the region, frame {drawn[-1]}"
        if not any(values.ndim > 1 for values in rows.values()):
            self.plot.xaxis.axis_label = "frame"
        self.source.data = {"xs": xs, "ys": ys, "colour": self._palette(flat), "label": list(flat)}

    def _palette(self, names: Mapping[str, Any]) -> list[str]:
        """Return the colours of lines: of the regions that they are about, but each once."""
        taken: list[str] = []
        for name in names:
            own = self._colours.get(f"{self.table.value} {name}")
            free = [colour for colour in COLOURS if colour not in taken]
            taken.append(own if own and own not in taken else (free or COLOURS)[0])
        return taken
