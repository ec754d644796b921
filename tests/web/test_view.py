"""``lima2 view`` in a browser: true pixels, regions in their place, plots that grow, buttons that act."""

import http.client
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import lima2cli as l2
from tests.web.browser import CHROMIUM, Tab, browser
from tests.web.serving import STEPS, Client, serving, until

pytestmark = pytest.mark.skipif(find_spec("bokeh") is None, reason="pip install 'lima2cli[view]'")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (apt-get install chromium)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the server runs."""
    return tmp_path_factory.mktemp("viewed")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Client]:
    """A server with its page."""
    with serving(folder, "view", "--no-browser", "-p", "steps.yaml", "-p", "endless.yaml") as client:
        yield client


@pytest.fixture(scope="module")
def tab(server: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A browser that shows the page."""
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        opened.go(server.url)
        opened.wait(f"{opened.model('head')}.text.length > 0")
        yield opened


def drawn(tab: Tab) -> tuple[int, Any]:
    """Number and pixels of the frame that the page shows."""
    data = f"{tab.model('frame')}.data"
    number, shape, values = tab.value(f"[{data}.number[0], {data}.image[0].shape, [...{data}.image[0]]]")
    return number, np.reshape(values, shape)


def box(tab: Tab, region: str) -> list[float]:
    """Left, top, right and bottom of a region that is drawn."""
    data = f"{tab.model('regions')}.data"
    found: list[float] = tab.wait(
        f"(() => {{ const i = [...{data}.label].indexOf({region!r}), x = {data}.xs[i], y = {data}.ys[i];"
        " return [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)] })()"
    )
    return found


def choose(tab: Tab, widget: str, value: str) -> None:
    """Choose a value of a widget."""
    tab.wait(f"JSON.stringify({tab.model(widget)}.options).includes({json.dumps(json.dumps(value))})")
    tab.value(f"{tab.model(widget)}.value = {value!r}")


@in_browser
def test_a_run_is_armed_started_triggered_and_seen(tab: Tab, folder: Path, tmp_path: Path) -> None:
    choose(tab, "pipeline", "steps")
    tab.click("arm")
    tab.wait(f"{tab.model('head')}.text.includes('armed') && !{tab.model('start')}.disabled")
    assert tab.value(f"{tab.model('trigger')}.disabled") is False
    tab.click("trigger")  # refused, as nothing has started
    tab.wait(f"{tab.model('message')}.text.includes('no triggers now')")
    choose(tab, "node", "save")
    tab.click("start")
    tab.wait(f"{tab.model('head')}.text.includes('waiting for trigger 1 of 6')")
    lengths = []
    for fired in (1, 2):
        tab.click("trigger")
        tab.wait(f"{tab.model('frame')}.data.number[0] == {2 * fired - 1}")
        tab.wait(f"{tab.model('curves')}.data.xs[0].length == {2 * fired}")
        lengths.append(tab.value(f"[...{tab.model('curves')}.data.ys[0]]"))
    number, pixels = drawn(tab)
    run = l2.open(folder / "runs" / tab.value(f"{tab.model('run')}.value"))
    frame = run.frame("save", number)
    for place in ((0, 0), (17, 40), (47, 63)):
        assert pixels[place] == frame[place], place
    assert np.array_equal(pixels, frame)
    left, top, right, bottom = box(tab, "spot")
    assert [left, top, right, bottom] == [13.5, 21.5, 21.5, 33.5]
    inside = frame[int(top + 0.5) : int(bottom + 0.5), int(left + 0.5) : int(right + 0.5)]
    assert inside.sum() == run.counters["roi"]["spot_sum"][-1] == lengths[1][-1]
    assert lengths[1][:2] == lengths[0]
    choose(tab, "node", "cut")
    tab.wait(f"{tab.model('regions')}.data.xs[0][0] < 3")
    assert box(tab, "spot") == [1.5, 5.5, 13.5, 13.5]
    choose(tab, "table", "lines")
    tab.wait(f"{tab.model('curves')}.data.xs[0].length == 32")
    assert np.array_equal(tab.value(f"[...{tab.model('curves')}.data.ys[0]]"), run.counters["lines"]["band_sum"][-1])
    choose(tab, "table", "roi")
    tab.value(f"{tab.model('count')}.value = 4")
    tab.click("trigger")
    tab.wait(f"{tab.model('head')}.text.includes('complete')")
    tab.wait(f"{tab.model('frames')}.visible && {tab.model('frames')}.end == 11")
    tab.wait(f"{tab.model('frame')}.data.number[0] == 11")
    tab.screenshot(tmp_path / "ended.png")
    tab.value(f"{tab.model('frames')}.value_throttled = {tab.model('frames')}.value = 5")
    tab.wait(f"{tab.model('frame')}.data.number[0] == 5")
    assert np.array_equal(drawn(tab)[1], run.frame("save", 5))
    assert tab.value(f"{tab.model('files')}.text.includes('steps_save_master.h5')")
    assert tab.value(f"{tab.model('stop')}.disabled")


@in_browser
def test_the_value_under_the_cursor_is_the_pixels(tab: Tab, server: Client) -> None:
    name = server.post("runs", {"text": STEPS, "transport": "inline"}).json["name"]
    server.post(f"runs/{name}/trigger", {"count": 6})
    choose(tab, "run", name)
    tab.wait(f"{tab.model('head')}.text.includes({name!r}) && {tab.model('head')}.text.includes('complete')")
    tab.wait(f"{tab.model('frame')}.data.number[0] == 11")
    left, top, width, height = tab.value(
        f"(() => {{ const b = Bokeh.index.find_one_by_id({tab.model('picture')}.id).el.getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height] })()"
    )
    tab.move(left + 0.4 * width, top + 0.5 * height)
    said = tab.wait(f"{tab.model('readout')}.text.includes('value') && {tab.model('readout')}.text")
    x, y, value = (float(part.partition("</b>")[0]) for part in said.split("<b>")[1:])
    assert drawn(tab)[1][int(y), int(x)] == value
    assert abs(x / 64 - 0.4) < 0.15
    assert abs(y / 48 - 0.5) < 0.15


@in_browser
def test_live_frames_follow_pause_and_step_until_the_run_is_stopped(tab: Tab, server: Client, tmp_path: Path) -> None:
    name = server.post("runs", {"pipeline": "endless", "transport": "inline"}).json["name"]
    choose(tab, "run", name)
    tab.wait(f"{tab.model('head')}.text.includes({name!r}) && {tab.model('head')}.text.includes('running')")
    number = f"{tab.model('frame')}.data.number[0]"
    first = tab.wait(f"{number} + 1")
    tab.wait(f"{number} > {first}")
    tab.screenshot(tmp_path / "live.png")
    tab.click("pause")
    tab.wait(f"!{tab.model('step')}.disabled")
    tab.value("new Promise(done => setTimeout(done, 500))")
    paused = tab.value(number)
    tab.value("new Promise(done => setTimeout(done, 1000))")
    assert tab.value(number) == paused
    tab.click("step")
    stepped = tab.wait(f"{number} > {paused} && {number}")
    tab.value("new Promise(done => setTimeout(done, 700))")
    assert tab.value(number) == stepped
    tab.click("pause")
    tab.wait(f"{number} > {stepped}")
    tab.value("window.requestAnimationFrame = () => 0")  # as in a page that is hidden: nothing is drawn
    tab.value("new Promise(done => setTimeout(done, 500))")
    hidden = tab.value(number)
    tab.value("new Promise(done => setTimeout(done, 1500))")
    assert tab.value(number) == hidden
    assert server.get(f"runs/{name}").json["live"]
    tab.click("stop")
    until(lambda: not server.get(f"runs/{name}").json["live"])
    assert server.get(f"runs/{name}").json["state"] == "stopped"


@in_browser
def test_a_parameter_is_changed(tab: Tab, server: Client, folder: Path, tmp_path: Path) -> None:
    """The field has the value of now; the answer is the frame from which on the new one applies, or why not."""
    name = server.post("runs", {"pipeline": "endless", "transport": "inline"}).json["name"]
    choose(tab, "run", name)
    choose(tab, "parameter", "roi rois")
    value = f"{tab.model('value')}.value"
    spot = tab.wait(f"{value}.includes('spot') && {value}")
    assert json.loads(spot) == {"spot": {"x": 2, "y": 6, "width": 12, "height": 8}}
    tab.value(f"{value} = 'spot: {{x: 2, y: 6, width: 12}}'")
    tab.click("apply")
    tab.wait(f"{tab.model('answer')}.visible && !{tab.model('apply')}.disabled")
    assert "changed from" not in tab.value(f"{tab.model('answer')}.text")
    tab.value(f"{value} = '{{spot: {{x: 9, y: 6, width: 12, height: 8}}}}'")  # YAML
    tab.click("apply")
    said = tab.wait(f"{tab.model('answer')}.text.includes('is changed from frame') && {tab.model('answer')}.text")
    frame = int(said.split("<b>")[1].split("</b>")[0])
    tab.wait(f"{value}.includes('\"x\": 9')")
    tab.wait(f"[].concat(...{tab.model('regions')}.data.ys).includes(14.5)")
    assert box(tab, "spot") == [13.5, 14.5, 21.5, 26.5]  # turned: x of `cut` runs up in the image
    tab.screenshot(tmp_path / "changed.png")
    choose(tab, "parameter", "lines rois")
    tab.wait(f"{value}.includes('band')")
    with l2.open(folder / "runs" / name) as run:
        next(event for event in run.progress if event["rows"]["roi"] > frame + 2)
        cut = np.rot90(run.frame("save", frame)[4:36, 8:48], -1)
        assert run.counters["roi"]["spot_sum"][frame] == cut[6:14, 9:21].sum()
    tab.wait(f"!{tab.model('answer')}.visible && {tab.model('stop')}.disabled")


@in_browser
def test_nothing_leaves_this_machine_and_nothing_fails(tab: Tab, server: Client) -> None:
    asked = [url for url in tab.requests if not url.startswith(("data:", "blob:"))]
    assert {urlsplit(url).netloc for url in asked} == {f"127.0.0.1:{server.port}"}
    assert any(url.startswith("ws://") for url in asked)
    assert tab.problems == []


def test_the_page_names_nothing_outside(server: Client) -> None:
    page = server.ask("GET", f"/?token={server.token}")
    assert page.status == 200
    assert b"http://" not in page.body.replace(b"http://www.w3.org", b"")
    assert b"https://" not in page.body
    assert "connect-src 'self'" in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 401),
        ("/?token=x", {}, 401),
        ("/autoload.js", {}, 401),
        ("/metadata", {}, 401),
        ("/ws", {}, 401),
        ("/ws?token=TOKEN", {"Origin": "http://evil.example"}, 403),
        ("/ws?token=TOKEN", {"Origin": "http://127.0.0.1:1"}, 403),
        ("/?token=TOKEN", {"Host": "evil.example:PORT"}, 403),
        ("/static/js/bokeh.min.js", {"Host": "evil.example:PORT"}, 403),
        ("/static/js/bokeh.min.js", {}, 200),
        ("/static/js/../../../../views/ws.py", {}, 403),
    ],
)
def test_who_gets_the_page(path: str, headers: dict[str, str], status: int, server: Client) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "x" * 22 + "==",
               "Sec-WebSocket-Version": "13"} if path.startswith("/ws") else {}  # fmt: skip
    filled = {name: value.replace("PORT", str(server.port)) for name, value in headers.items()}
    try:
        answer = server.ask("GET", path.replace("TOKEN", server.token), headers=upgrade | filled)
    except http.client.HTTPException as error:
        pytest.fail(repr(error))
    assert answer.status == status
    assert "Access-Control-Allow-Origin" not in answer.headers
