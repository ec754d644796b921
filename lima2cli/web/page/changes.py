"""The part of the page by which parameters of nodes are changed while a run goes on."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from bokeh.layouts import column, row
from bokeh.models import Button, Div, Select, TextInput

from lima2cli.drive import Run
from lima2cli.drive.pipelines import plain_value
from lima2cli.web.page.style import TEXTS, WIDGETS
from lima2cli.web.page.text import changed

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
