"""The server of the conductor: requests of this machine, without a token, as its client sends them."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from lima2cli.errors import Lima2Error
from lima2cli.web.conductor import reduced
from lima2cli.web.conductor.refusals import UNEXPECTED, Refused, body_of, refused_by
from lima2cli.web.conductor.routes import CALLS, REDUCED, Call, Request
from lima2cli.web.conductor.system import System
from lima2cli.web.guard import Guard
from lima2cli.web.library import Library
from lima2cli.web.routes import Answer, Service
from lima2cli.web.server import SETTINGS, Guarded, Server

IDLE_S = 24 * 3600.0
"""Seconds that a connection may be idle: a client that finds it closed sends its request again."""

log = logging.getLogger(__name__)


class _Handler(RequestHandler):
    """Answers a request, 200 where something is read, 202 where something is done; refusals are 400."""

    SUPPORTED_METHODS = ("GET", "POST")

    def initialize(self, service: Service, system: System, calls: Mapping[str, Call] | None = None) -> None:
        """Take the calls of the path, by method."""
        self._service, self._system, self._calls = service, system, calls or {}

    def _refuse(self, error: Exception) -> None:
        if isinstance(error, Refused):
            refused = error
        elif isinstance(error, Lima2Error):
            refused = refused_by(error)
        else:
            log.exception("%s %s", self.request.method, self.request.path)
            refused = Refused(UNEXPECTED, f"this is a bug in lima2 ({type(error).__name__}: {error})")
        self.set_status(400)
        self._write(body_of(refused))

    def _write(self, content: Any) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(Answer(content).bytes)


class _CallHandler(_Handler):
    async def get(self, **path: str) -> None:
        """Answer."""
        await self._answer(path, 200)

    async def post(self, **path: str) -> None:
        """Answer."""
        await self._answer(path, 202)

    async def _answer(self, path: Mapping[str, str], status: int) -> None:
        call = self._calls.get(self.request.method or "")
        if call is None:
            self.set_status(405)
            self.set_header("Allow", ", ".join(self._calls))
            self._write({"detail": f"there is {' and '.join(self._calls)} here"})
            return
        try:
            content = await self._service.call(call.answer, self._system, Request(path, _body(self.request.body)))
        except Exception as error:  # noqa: BLE001  whatever it is, the client is told
            self._refuse(error)
            return
        self.set_status(status)
        self._write(content)


def _body(data: bytes) -> Any:
    try:
        return json.loads(data or b"null", parse_constant=_no_number)
    except ValueError as error:
        raise Refused(80, f"the body is not JSON: {error}") from error


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


class _ReducedHandler(_Handler):
    """Sends records as they come: each chunk holds whole ones."""

    async def get(self, uuid: str, name: str, index: str) -> None:
        """Answer."""
        try:
            acquisition = self._system.acquisition(uuid)
            if not index.isdecimal():
                raise Refused(80, f"{index}: the index of a region is needed")
            region = reduced.region(acquisition, name, int(index))
        except Refused as error:
            self._refuse(error)
            return
        self.set_header("Content-Type", "application/octet-stream")
        parts = reduced.stream(self._service, acquisition, region)
        try:
            await self.flush()  # the client waits for the headers
            async for part in parts:
                self.write(part)
                await self.flush()
        except StreamClosedError:
            return
        finally:
            await parts.aclose()  # type: ignore[attr-defined]
        await self.finish()


class _NotFound(_Handler):
    def initialize(self) -> None:  # type: ignore[override]
        """Take nothing."""

    def prepare(self) -> None:
        """Refuse."""
        self.set_status(404)
        self._write({"detail": f"there is nothing at {self.request.path}"})


class ConductorServer(Server):
    """A server of the conductor's interface on the loopback, for a system."""

    idle_s = IDLE_S

    def __init__(self, system: System, *, port: int) -> None:
        """Listen.

        Raises:
            EnvironmentUnfit: the port cannot be had.
        """
        super().__init__(Library([], "runs"), port=port, token="")
        self._system = system

    @property
    def url(self) -> str:
        """Its address."""
        return self.address

    @property
    def _guard(self) -> Guard:
        return Guard(None, self.port)

    def _application(self) -> tuple[Guarded, Callable[[], None]]:
        by_path: dict[str, dict[str, Call]] = {}
        for call in CALLS:
            by_path.setdefault(call.pattern, {})[call.method] = call
        given = {"service": self.service, "system": self._system}
        patterns: list[Any] = [(path, _CallHandler, given | {"calls": calls}) for path, calls in by_path.items()]
        patterns.append((REDUCED, _ReducedHandler, given))
        settings = SETTINGS | {"default_handler_class": _NotFound}
        return Guarded(patterns, **settings), self._system.close
