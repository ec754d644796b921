"""One page of one browser: its parts, what its buttons do, and what it is sent, as often as it takes it."""

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.layouts import column, row
from bokeh.models import Button, Div, RadioButtonGroup, Select, Slider, Spinner, TextInput, Toggle
from bokeh.models.css import GlobalInlineStyleSheet
from bokeh.server.tornado import BokehTornado
from tornado.ioloop import IOLoop

from lima2cli.drive import LiveFrame, Run
from lima2cli.drive.pipelines import plain_value
from lima2cli.runs.directory import LATEST
from lima2cli.web.looker import Looker
from lima2cli.web.metrics import Rates
from lima2cli.web.page import text
from lima2cli.web.page.curves import Curves
from lima2cli.web.page.facts import Facts, gather
from lima2cli.web.page.image import Picture
from lima2cli.web.page.text import PAGE, TEMPLATE, TEXTS, WIDGETS, changed
from lima2cli.web.routes import Service
from lima2cli.web.server import LOOPBACK, SETTINGS, Guarded, patterns

Drive = Callable[[Callable[[Run], Any], Callable[[Any], None]], None]


class Changes:
    """Choice of a parameter, a field with its value, a button, and what the run answered.

    drive  calls a function with the run, and another with its result or its exception
    """

    def __init__(self, drive: Drive, width: int) -> None:
        style = {"stylesheets": [WIDGETS]}
        self._drive, self._values = drive, dict[str, Any]()
        self._chosen = Select(title="Change", options=[], width=150, name="parameter", **style)
        self._value = TextInput(title="to (YAML or JSON)", width=width - 260, name="value", **style)
        self._apply = Button(label="Apply", width=80, align="end", name="apply", **style)
        self._answer = Div(name="answer", visible=False, stylesheets=[TEXTS], width=width)
        self._chosen.on_change("value", lambda attr, old, new: self._offer())
        self._apply.on_click(self._ask)
        self.layout = column(row(self._chosen, self._value, self._apply, spacing=6), self._answer, visible=False)

    def show(self, changeable: Mapping[str, Mapping[str, Any]]) -> None:
        """Offer what can be changed now, by node and parameter, with the values of now."""
        values = {f"{node} {name}": value for node, own in changeable.items() for name, value in own.items()}
        if values == self._values:
            return
        before, self._values = self._values.get(self._chosen.value), values
        self._chosen.options = list(values)
        if self._chosen.value not in values:
            self._chosen.value = next(iter(values), "")  # which offers its value
            self._answer.visible = False
        elif self._values[self._chosen.value] != before:
            self._offer()
        self.layout.visible = bool(values)

    def _offer(self) -> None:
        value = self._values.get(self._chosen.value)
        self._value.value = "" if value is None else json.dumps(value, ensure_ascii=False)

    def _ask(self) -> None:
        if self._chosen.value not in self._values:
            return
        node, _, parameter = self._chosen.value.partition(" ")
        text = self._value.value
        self._apply.disabled = True
        self._drive(lambda run: run.set(node, parameter, plain_value(text)),
                    lambda result: self._answered(node, parameter, result))  # fmt: skip

    def _answered(self, node: str, parameter: str, result: Any) -> None:
        self._apply.disabled = False
        self._answer.update(text=changed(node, parameter, result), visible=True)


SIDE = 440
"""Width of the right side in pixels."""

TICK_MS = 100
"""Milliseconds from one turn of a page to the next."""

FRAME_S = 0.2
"""Least seconds from one frame that is sent to the next."""

FACTS_S = 0.5
"""Seconds from one look at a run to the next."""

ABSENT_S = 2.0
"""Seconds without an answer of the browser after which no frames are asked for: it is hidden, or has gone."""


RETRY_S = 10.0
"""Seconds without an answer after which a frame is sent all the same: the answer may have been lost."""


class Page:
    """The page of one browser."""

    def __init__(self, service: Service, document: Document, name: str) -> None:
        self._service, self._document = service, document
        self.picture, self.curves = Picture(), Curves()
        self._facts = Facts([])
        self._looker: Looker | None = None
        self._rates = Rates()
        self._gathering = self._closed = self._open = False
        self._gathered_at = self._sent_at = self._taken_at = 0.0
        self._message = ""
        self._offered: tuple[str | None, int] = (None, 0)
        self._widgets(name)
        document.title, document.template = "lima2", TEMPLATE
        document.add_root(self._layout())
        document.on_event(DocumentReady, self._opened)
        document.on_session_destroyed(lambda context: self.close())
        document.add_periodic_callback(self._tick, TICK_MS)

    def _widgets(self, name: str) -> None:
        style = {"stylesheets": [WIDGETS]}
        self.runs = Select(title="Run", value=name, options=[(LATEST, "latest")], width=170, name="run", **style)
        self.node = Select(title="Image", options=[], width=150, name="node", **style)
        self.scale = RadioButtonGroup(labels=["linear", "log"], active=0, width=110, name="scale", **style)
        self.limits = Select(
            title="Colours", value="auto", options=[("auto", "1 to 99.9 %"), ("fixed", "fixed")], width=110,
            name="limits", **style,
        )  # fmt: skip
        self.low = Spinner(title="from", width=90, disabled=True, name="low", **style)
        self.high = Spinner(title="to", width=90, disabled=True, name="high", **style)
        self.pause = Toggle(label="Pause", width=80, name="pause", **style)
        self.step = Button(label="Step", width=60, disabled=True, name="step", **style)
        self.frames = Slider(
            title="Saved frame", start=0, end=1, value=0, step=1, visible=False, sizing_mode="stretch_width",
            name="frames", **style,
        )  # fmt: skip
        self.begin = Button(label="Start", width=80, button_type="primary", name="start", **style)
        self.count = Spinner(low=1, value=1, step=1, width=70, name="count", **style)
        self.trigger = Button(label="Trigger", width=80, name="trigger", **style)
        self.stop = Button(label="Stop", width=80, button_type="danger", name="stop", **style)
        known = list(self._service.library.pipelines)
        self.pipeline = Select(options=known, value=known[0] if known else "", width=150, name="pipeline", **style)
        self.changes = Changes(self._drive, SIDE)
        self.arm = Button(label="Arm", width=80, button_type="primary", name="arm", **style)
        words = {"stylesheets": [TEXTS], "width": SIDE}
        self.head = Div(name="head", **words)
        self.flows, self.warnings, self.files, self.message = (
            Div(name=name, visible=False, **words) for name in ("flows", "warnings", "files", "message")
        )
        self.about = Div(name="about", stylesheets=[TEXTS], width=400)
        self.picture.readout.update(stylesheets=[TEXTS], width=280)
        self.runs.on_change("value", lambda attr, old, new: self._chosen())
        self.node.on_change("value", lambda attr, old, new: self._look_again())
        self.scale.on_change("active", lambda attr, old, new: self._coloured())
        for each in (self.limits, self.low, self.high):
            each.on_change("value", lambda attr, old, new: self._coloured())
        self.pause.on_change("active", lambda attr, old, new: self._paused())
        self.frames.on_change("value_throttled", lambda attr, old, new: self._look_again())
        self.step.on_click(lambda: self._look(count=1))
        self.begin.on_click(lambda: self._drive(lambda run: run.start()))
        self.trigger.on_click(self._fire)
        self.stop.on_click(lambda: self._drive(lambda run: run.stop()))
        self.arm.on_click(lambda: self._arm())

    def _layout(self) -> Any:
        self.scale.align = "end"
        left = column(
            row(self.runs, self.node, self.limits, self.low, self.high, self.scale, spacing=8),
            self.picture.plot, row(self.pause, self.step, self.about, self.picture.readout, spacing=8), self.frames,
            sizing_mode="stretch_both", spacing=6,
        )  # fmt: skip
        start = [row(self.pipeline, self.arm, spacing=6)] if self._service.library.pipelines else []
        right = column(
            self.head, *start, row(self.begin, self.trigger, self.count, self.stop, spacing=6), self.message,
            self.changes.layout, self.warnings, self.flows,
            row(self.curves.table, self.curves.columns, sizing_mode="stretch_width", spacing=8),
            self.curves.plot, self.files, width=SIDE + 20, sizing_mode="stretch_height", spacing=10,
            styles={"overflow-y": "auto", "overflow-x": "hidden"},
        )  # fmt: skip
        sheets = [GlobalInlineStyleSheet(css=PAGE)]
        return row(left, right, sizing_mode="stretch_both", spacing=20, stylesheets=sheets, name="page")

    def _opened(self, event: Any) -> None:
        self._open = True
        self.picture.restart()

    def close(self) -> None:
        """Look at nothing any longer."""
        self._closed = True
        if self._looker is not None:
            self._looker.stop()

    def _in_thread(self, function: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Call a function in a thread, and another with its result, or its exception, in the page's turn."""

        async def both() -> None:
            try:
                result = await self._service.call(function)
            except Exception as error:  # noqa: BLE001  of any kind: the page shows it
                result = error
            if not self._closed:
                self._document.add_next_tick_callback(partial(then, result))

        self._spawn(both)

    @staticmethod
    def _spawn(work: Callable[[], Any]) -> None:
        IOLoop.current().add_callback(work)

    def _tick(self) -> None:
        now = time.monotonic()
        if not self._gathering and now - self._gathered_at > FACTS_S:
            self._gathering, self._gathered_at = True, now
            look = partial(gather, self._service.library, self.runs.value, self.curves.table.value, self._facts.layout)
            self._in_thread(look, self._gathered)
        if self._open:
            self._send(now)

    def _send(self, now: float) -> None:
        """Send the frame that has come, or another part of the last, once the browser has drawn what it was sent."""
        picture = self.picture
        if not picture.ready:
            if now - self._sent_at > ABSENT_S and self._looker is not None and self._live_view:
                self._looker.stop()
                self._looker = None
            if now - self._sent_at > RETRY_S:
                picture.restart()
            return
        if self._looker is None and self._live_view and not self.pause.active:
            self._look()
        if now - self._sent_at < FRAME_S or self._looker is None:
            if picture.moved and now - self._sent_at >= FRAME_S:
                self._sent_at = now
                picture.show()
            return
        frame = self._looker.take()
        if frame is not None or picture.moved:
            self._sent_at = now
            picture.show(frame)
            if self.limits.value == "auto":
                low, high = picture.shown_limits
                self.low.value, self.high.value = _rounded(low), _rounded(high)
        shown = text.about(picture.frame, "" if frame else self._looker.problem)
        if shown != self.about.text:
            self.about.text = shown

    @property
    def _live_view(self) -> bool:
        """Return whether frames are looked at as they come."""
        layout = self._facts.layout
        return self._facts.live and layout is not None and self.node.value in layout.live

    def _look(self, count: int | None = None) -> None:
        """Look at the flow or node that was chosen: as frames come, or at a saved one."""
        layout, node = self._facts.layout, self.node.value
        if self._looker is not None:
            self._looker.stop()
            self._looker = None
        if layout is None or not node:
            return
        if self._facts.live:
            if node in layout.live:
                self._looker = Looker(layout.run, node, FRAME_S, count=count)
        elif node in layout.saved:
            number = int(self.frames.value) - int(self.frames.end) - 1 if self.frames.visible else -1
            self._looker = Looker(layout.run, node, FRAME_S, number=number)

    def _look_again(self) -> None:
        layout = self._facts.layout
        if layout is not None:
            views = layout.live if self._facts.live else layout.saved
            self.picture.draw(self._facts.regions, views.get(self.node.value))
        self._offer_frames()
        self._look(count=1 if self.pause.active else None)

    def _offer_frames(self) -> None:
        """Offer the saved frames of a run that has ended."""
        summary = self._facts.summary
        channel = None if summary is None or self._facts.live else summary.channels.get(self.node.value)
        count = 0 if channel is None else channel.saved
        self.frames.visible = count > 1
        layout = self._facts.layout
        offered = (None if layout is None else layout.name, count)
        if count > 1 and offered != self._offered:
            self._offered = offered
            self.frames.update(end=count - 1, value=count - 1)

    def _chosen(self) -> None:
        self._gathered_at = 0.0

    def _paused(self) -> None:
        self.pause.label = "Resume" if self.pause.active else "Pause"
        self.step.disabled = not self.pause.active
        if self.pause.active and self._looker is not None and self._live_view:
            self._looker.stop()
        elif not self.pause.active:
            self._look()

    def _coloured(self) -> None:
        fixed = self.limits.value == "fixed"
        self.low.disabled = self.high.disabled = not fixed
        low, high = self.low.value, self.high.value
        values = (float(low), float(high)) if fixed and None not in (low, high) and low < high else None
        self.picture.recolour("log" if self.scale.active == 1 else "linear", values)

    def _gathered(self, found: Any) -> None:
        self._gathering = False
        if isinstance(found, Exception):
            self._message = str(found)
            self._say()
            return
        before, self._facts = self._facts, found
        names = [(LATEST, "latest"), *((name, name) for name in found.names)]
        if names != self.runs.options:
            self.runs.options = names
        if found.layout is not before.layout or found.live != before.live:
            self._change(before)
        elif found.layout is not None and found.live and found.regions != before.regions:
            self.picture.draw(found.regions, found.layout.live.get(self.node.value))
        self._show()
        self._show_last(before)

    def _show_last(self, before: Facts) -> None:
        """Show the last saved frame of a run that waits for a trigger: its frames came faster than they are shown."""
        facts, node, shown = self._facts, self.node.value, self.picture.frame
        if not facts.live or "waiting" not in facts.state or self.pause.active or facts.layout is None:
            return
        saved = facts.status["saved"].get(node)
        if saved and saved != before.status.get("saved", {}).get(node) and node in facts.layout.saved:
            self._in_thread(partial(facts.layout.run.saved, node), partial(self._came, shown))

    def _came(self, shown: Any, last: Any) -> None:
        """Show the last saved frame, where it is later than the one that is shown."""
        now = self.picture.frame
        if isinstance(last, LiveFrame) and (now is None or now is shown or last.number > now.number):
            self.picture.show(last)
            self.about.text = text.about(last, "")

    def _change(self, before: Facts) -> None:
        """Show another run, or the files of one that has ended."""
        layout = self._facts.layout
        if layout is None:
            self.picture.clear()
            self.node.options = []
            self.curves.offer({}, {})
            return
        if before.layout is None or before.layout.name != layout.name:
            self._rates = Rates()
            self.picture.clear()
            self.curves.offer(layout.tables, layout.regions)
        views = layout.live if self._facts.live else layout.saved
        self.node.options = list(views)
        chosen = self.node.value
        self.node.value = chosen if chosen in views else next(iter(views), "")
        self._look_again()

    def _show(self) -> None:
        facts = self._facts
        rates: dict[str, float] = {}
        if facts.live:
            rates = self._rates.of(facts.status["acquisition"], time.monotonic(), facts.status["detail"]["flows"])
        for div, words in (
            (self.head, text.head(facts)), (self.flows, text.flows(facts, rates)),
            (self.warnings, text.warnings(facts.warnings)), (self.files, text.files(facts)),
        ):  # fmt: skip
            if div.text != words:
                div.update(text=words, visible=bool(words))
        state = facts.state
        self.begin.disabled = state != "armed"
        self.trigger.disabled = self.count.disabled = not (facts.live and facts.takes_triggers)
        self.stop.disabled = not facts.live
        self.curves.show(facts.rows)
        self.changes.show(facts.status.get("changeable", {}))

    def _drive(self, request: Callable[[Any], Any], then: Callable[[Any], None] | None = None) -> None:
        """Ask the run for something; a refusal is shown, unless ``then`` takes it, or the result."""
        layout = self._facts.layout
        if layout is not None:
            self._in_thread(partial(request, layout.run), then or self._asked)

    def _fire(self) -> None:
        count = int(self.count.value or 1)
        self._drive(lambda run: run.trigger(count))

    def _asked(self, result: Any) -> None:
        self._message = str(result) if isinstance(result, Exception) else ""
        self._gathered_at = 0.0
        self._say()

    def _say(self) -> None:
        self.message.update(text=text.warnings([self._message]), visible=bool(self._message))

    def _arm(self) -> None:
        """Start the pipeline that was chosen, armed."""
        self.arm.disabled = True
        self._message = ""
        self._say()
        start = partial(
            self._service.library.start, self.pipeline.value, None, armed=True, transport="auto", overrides=()
        )
        self._in_thread(start, self._armed)

    def _armed(self, result: Any) -> None:
        self.arm.disabled = False
        self._asked(result)
        if not isinstance(result, Exception):
            self.runs.options = [*self.runs.options, (result.directory.name, result.directory.name)]
            self.runs.value = result.directory.name


def _rounded(value: float) -> float:
    """Return a number with six digits, as it is shown."""
    return float(f"{value:.6g}")


LONGEST_MESSAGE = 4 << 20
"""Maximal bytes of a message of a browser."""


class PageApplication(Guarded, BokehTornado):  # type: ignore[misc]  # of a library without types
    """An application of Bokeh that lets in whom the guard lets in."""


def page_application(service: Service, port: int) -> tuple[PageApplication, Callable[[], None]]:
    """Return the application, which has begun its work in the running loop, and what ends it."""

    def make(document: Document) -> None:
        request = document.session_context.request if document.session_context else None
        names = request.arguments.get("run", []) if request is not None else []
        Page(service, document, names[0].decode(errors="replace") if names else LATEST)

    logging.getLogger("bokeh").setLevel(logging.ERROR)
    applications: Any = {"/": Application(FunctionHandler(make))}
    application = PageApplication(
        applications,
        extra_patterns=patterns(service),
        extra_websocket_origins=[f"{name}:{port}" for name in (LOOPBACK, "localhost")],
        secret_key=secrets.token_bytes(32),
        sign_sessions=True,
        use_index=False,
        ico_path="none",
        include_headers=[],
        include_cookies=[],
        websocket_max_message_size_bytes=LONGEST_MESSAGE,
        **SETTINGS,
    )
    application.initialize(IOLoop.current())
    application.start()
    return application, application.stop
