"""A server of lima2 as a process, and a client that asks it."""

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from tests.running import PATIENCE_S

DETECTOR = """
lima2: 1
name: NAME
detector: {remu: {image: {width: 64, height: 48}, datasets: {raw: {dtype: uint16}}, scene: {counter: {}}}}
nodes:
  save: {io_hdf5: {}, input: raw}
  cut: {roi_flip_rot: {roi: {x: 8, y: 4, width: 40, height: 32}, rotation: 90}, input: raw}
  roi: {roi_counters: {rois: {spot: {x: 2, y: 6, width: 12, height: 8}}}, input: cut}
  lines: {roi_profiles: {rois: {band: {x: 0, y: 0, width: 32, height: 4}}}, input: cut}
"""
STEPS = DETECTOR.replace("NAME", "steps") + (
    "acquisition: {frames: 12, period: 5 ms, trigger: software, frames_per_trigger: 2}\n"
)
ENDLESS = DETECTOR.replace("NAME", "endless") + "acquisition: {period: 20 ms}\n"


@dataclass(frozen=True)
class Answered:
    """An answer of a server."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as plain data."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """A client of a server whose address was printed as ``url``."""

    url: str
    process: "subprocess.Popen[str]"

    @property
    def port(self) -> int:
        """Port of the server."""
        return urlsplit(self.url).port or 0

    @property
    def token(self) -> str:
        """Token of the server."""
        return parse_qs(urlsplit(self.url).query)["token"][0]

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answered:
        """Send a request as it is. A body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            more = dict(headers or {})
            if body is not None and not isinstance(body, bytes | Iterator):
                body, more = json.dumps(body).encode(), {"Content-Type": "application/json"} | more
            connection.request(method, path, body, more)
            answer = connection.getresponse()
            return Answered(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answered:
        """Get what is at a path of the interface."""
        return self.ask("GET", f"/api/v1/{path}", headers={"Authorization": f"Bearer {self.token}"})

    def post(self, path: str, body: Any = None, **headers: str) -> Answered:
        """Post to a path of the interface."""
        return self.ask("POST", f"/api/v1/{path}", body, {"Authorization": f"Bearer {self.token}"} | headers)

    def events(self, run: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events of a run to its end, each with its name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("GET", f"/api/v1/runs/{run}/events?token={quote(self.token)}")
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "text/event-stream"
        name = ""
        for line in answer:
            key, _, value = line.decode().rstrip("\n").partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)
        connection.close()


@contextmanager
def serving(folder: Path, command: str, *arguments: str) -> Iterator[Client]:
    """Run ``lima2 serve`` or ``lima2 view`` in a folder with two pipelines, and end it by Ctrl-C."""
    for name, text in {"steps": STEPS, "endless": ENDLESS}.items():
        (folder / f"{name}.yaml").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", "-m", "lima2cli", command, *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, process.communicate()
        yield Client(url, process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # shows where its threads are
            _, errors = process.communicate()
    assert (process.returncode, errors) == (0, ""), errors


def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)
