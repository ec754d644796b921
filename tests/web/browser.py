"""A browser without a window, driven by the Chrome DevTools Protocol."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.running import PATIENCE_S

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    "--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--window-size=1440,900",
)  # fmt: skip

FIND = "Bokeh.documents[0].get_model_by_name({!r})"


class Tab:
    """A page of the browser."""

    def __init__(self, runner: asyncio.Runner, connection: WebSocketClientConnection) -> None:
        self._runner, self._connection = runner, connection
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self.call("Network.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before are kept."""
        self._number += 1

        async def both() -> dict[str, Any]:
            await self._connection.write_message(
                json.dumps({"id": self._number, "method": method, "params": parameters})
            )
            while True:
                message = await asyncio.wait_for(self._connection.read_message(), PATIENCE_S)
                assert message is not None, "the browser has ended"
                answer: dict[str, Any] = json.loads(message)
                if answer.get("id") == self._number:
                    return answer
                self.events.append(answer)

        answer = self._runner.run(both())
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def go(self, url: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """Return the value of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> Any:
        """Wait until an expression is true; one that fails is not."""
        end = time.monotonic() + seconds
        while True:
            value = self.value(f"(() => {{ try {{ return {script} }} catch (error) {{ return null }} }})()")
            if value:
                return value
            assert time.monotonic() < end, (script, self.problems)
            time.sleep(0.05)

    def model(self, name: str) -> str:
        """Return the expression of a model of the page."""
        return FIND.format(name)

    def click(self, name: str) -> None:
        """Click a button of the page, by the name of its model."""
        self.value(f"Bokeh.index.find_one_by_id({self.model(name)}.id).el.shadowRoot.querySelector('button').click()")

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """Save what the page looks like."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    @property
    def requests(self) -> list[str]:
        """Addresses of all that was asked for so far."""
        self.call("Runtime.evaluate", expression="1")
        sent = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        return sent + [event["params"]["url"] for event in self.events if event["method"] == "Network.webSocketCreated"]

    @property
    def problems(self) -> list[str]:
        """Errors of the page so far."""
        thrown = [json.dumps(event["params"]) for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        return thrown + [
            event["params"]["entry"]["text"] + " " + event["params"]["entry"].get("url", "")
            for event in self.events
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"
        ]


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """Start a browser with its files in a folder, and end it."""
    assert CHROMIUM is not None
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, *root, f"--user-data-dir={folder / 'browser'}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening" in line)
        import http.client
        from urllib.parse import urlsplit

        port = urlsplit(address).port
        with asyncio.Runner() as runner:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/json/list")
            pages = json.loads(connection.getresponse().read())
            target = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            socket = runner.run(_connected(target))
            yield Tab(runner, socket)
            socket.close()
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


async def _connected(address: str) -> WebSocketClientConnection:
    return await websocket_connect(address, max_message_size=1 << 28)
