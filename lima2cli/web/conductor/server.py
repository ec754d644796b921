"""The server of the conductor: requests of this machine, without a token, and their answers."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from lima2cli.dataclass import dataclass
from lima2cli.errors import Lima2Error
from lima2cli.web.conductor.acquisition import SOURCES, AcquisitionRun, channels, region, stream
from lima2cli.web.conductor.mapping import CLASS, FRAME, defaults
from lima2cli.web.conductor.refusals import UNEXPECTED, Refused, body_of, refused_by
from lima2cli.web.conductor.system import RUN_STATES, VERSION, System
from lima2cli.web.library import Library
from lima2cli.web.routes import Answer, Service
from lima2cli.web.server import SETTINGS, Guard, Guarded, Server

CLIENT_VERSION = "4.3.2"
"""The version of the interface: clients of the same major version, and no greater minor one, are served."""

Path = Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """A request: the places in its path, and its body, plain data."""

    path: Path
    body: Any


Answerer = Callable[[System, Request], Any]


@dataclass(frozen=True)
class Call:
    """A kind of request: ``answer`` waits for files and runs, and is called in a thread."""

    method: Literal["GET", "POST"]
    path: str
    answer: Answerer

    @property
    def pattern(self) -> str:
        """The regular expression of its path."""
        return re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path)


def _one(system: System, request: Request) -> AcquisitionRun:
    return system.acquisition(request.path["uuid"])


def _prepare(system: System, request: Request) -> str:
    if not isinstance(request.body, dict):
        raise Refused(80, "the body is not an object")
    return system.prepare(request.body)


def _command(command: Callable[[System], None]) -> Answerer:
    def answer(system: System, request: Request) -> dict[str, Any]:
        command(system)
        return {}

    return answer


def _state(system: System, request: Request) -> dict[str, Any]:
    name, value = RUN_STATES[system.acquisition_state]
    return {"name": name, "value": value}


def _counter(name: str, value: int, source: str) -> dict[str, Any]:
    return {"name": name, "value": value, "source": source}


def _acquired(system: System, request: Request) -> dict[str, Any]:
    taken = system.of_current(lambda one: one.received + one.lost, 0)
    return _counter("nb_frames_acquired", taken, "control")


def _summed(name: str, value: int) -> dict[str, Any]:
    """Return a counter of all receivers together."""
    return {
        "name": name, "sum": value, "avg": float(value), "min": value, "max": value,
        "counters": [_counter(name, value, "receivers")],
    }  # fmt: skip


def _transferred(system: System, request: Request) -> dict[str, Any]:
    return _summed("nb_frames_xferred", system.of_current(lambda one: one.received, 0))


def _counters(one: AcquisitionRun) -> dict[str, Any]:
    counts = {"source": one.received, "input": one.received, "processed": one.progress(FRAME)}
    if one.asked.saves:
        counts["saved"] = one.progress(FRAME)
    return {f"nb_frames_{name}": _summed(f"nb_frames_{name}", value) for name, value in counts.items()}


def _schemas(system: System, request: Request) -> dict[str, Any]:
    schema = system.base.base.acquisition_schema
    return {"control": schema, "receiver": schema}


def _defaults(system: System, request: Request) -> dict[str, Any]:
    schema = system.base.base.acquisition_schema
    return {"control": defaults(schema), "receiver": defaults(schema)}


def _class(system: System, request: Request) -> dict[str, Any]:
    if request.path["name"] != CLASS:
        raise Refused(50, f"there is no processing {request.path['name']}; there is {CLASS}")
    schema = system.base.base.processing_schema
    return {
        "tango_class": CLASS, "frame_sources": list(SOURCES), "reduced_data_sources": [], "params_schema": schema,
        "default_params": defaults(schema),
    }  # fmt: skip


def _pipeline(system: System, request: Request) -> dict[str, Any]:
    one = _one(system, request)
    return {
        "uuid": one.uuid, "type": CLASS, "running": one.state == "running", "progress_counters": _counters(one),
        "reduced_data": channels(one),
    }  # fmt: skip


def _index(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise Refused(80, f"{text}: the index of a frame is needed") from error


def _lookup(system: System, request: Request) -> dict[str, Any]:
    place = _one(system, request).place(request.path["source"], _index(request.path["index"]))
    return {"tango": None, "hdf5": place}


def _receiver(system: System, request: Request) -> Any:
    raise Refused(60, "frames are in files, not in receivers: ask for a frame of a source")


def _detector_command(system: System, request: Request) -> Any:
    raise Refused(30, "the detector takes no commands")


def _attribute(system: System, request: Request) -> Any:
    raise Refused(50, f"the detector has no attribute {request.path['name']}")


ONE = "/pipeline/{uuid}"

CALLS: Sequence[Call] = (
    Call("GET", "/version/conductor", lambda system, request: CLIENT_VERSION),
    Call("GET", "/version/detector_plugin", lambda system, request: VERSION),
    Call("GET", "/state", lambda system, request: system.state),
    Call("POST", "/acquisition/prepare", _prepare),
    Call("POST", "/acquisition/start", _command(System.start)),
    Call("POST", "/acquisition/trigger", _command(System.trigger)),
    Call("POST", "/acquisition/stop", _command(System.stop)),
    Call("POST", "/acquisition/reset", _command(System.reset)),
    Call("GET", "/acquisition/state", _state),
    Call("GET", "/acquisition/running", lambda system, request: system.acquisition_state == "running"),
    Call("GET", "/acquisition/failed", lambda system, request: system.acquisition_state == "failed"),
    Call("GET", "/acquisition/result", lambda system, request: system.result),
    Call("GET", "/acquisition/errors", lambda system, request: system.of_current(AcquisitionRun.errors, [])),
    Call("GET", "/acquisition/default_params", _defaults),
    Call("GET", "/acquisition/params_schema", _schemas),
    Call("GET", "/acquisition/nb_frames_acquired", _acquired),
    Call("GET", "/acquisition/nb_frames_xferred", _transferred),
    Call("GET", "/detector/info", lambda system, request: system.base.info),
    Call("GET", "/detector/status", lambda system, request: {"state": system.state["state"]}),
    Call("GET", "/detector/capabilities", lambda system, request: system.base.capabilities),
    Call("POST", "/detector/command", _detector_command),
    Call("GET", "/detector/attribute/{name}", _attribute),
    Call("POST", "/detector/attribute/{name}", _attribute),
    Call("GET", "/pipeline/", lambda system, request: system.names),
    Call("GET", "/pipeline/class", lambda system, request: [CLASS]),
    Call("GET", "/pipeline/class/{name}", _class),
    Call("GET", "/pipeline/class/{name}/schema", lambda system, request: _class(system, request)["params_schema"]),
    Call("GET", "/pipeline/class/{name}/version", lambda system, request: _class(system, request) and VERSION),
    Call("POST", "/pipeline/clear", lambda system, request: {"cleared": system.clear()}),
    Call("GET", ONE, _pipeline),
    Call("GET", f"{ONE}/running", lambda system, request: _one(system, request).state == "running"),
    Call("GET", f"{ONE}/errors", lambda system, request: _one(system, request).errors()),
    Call("GET", f"{ONE}/progress", lambda system, request: _one(system, request).progress(FRAME)),
    Call("GET", f"{ONE}/progress_counters", lambda system, request: _counters(_one(system, request))),
    Call("GET", f"{ONE}/progress/{{source}}",
         lambda system, request: _one(system, request).progress(request.path["source"])),
    Call("GET", f"{ONE}/frames", lambda system, request: _one(system, request).frames()),
    Call("GET", f"{ONE}/master_files", lambda system, request: _one(system, request).masters()),
    Call("GET", f"{ONE}/reduced_data", lambda system, request: channels(_one(system, request))),
    Call("GET", f"{ONE}/lookup/{{source}}/{{index}}", _lookup),
    Call("GET", f"{ONE}/lookup/{{index}}", _receiver),
)  # fmt: skip
"""All requests but that of reduced data, which is answered as it comes."""

REDUCED = Call("GET", f"{ONE}/reduced_data/{{name}}/{{index}}", lambda system, request: None).pattern


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
            asked = region(acquisition, name, int(index))
        except Refused as error:
            self._refuse(error)
            return
        self.set_header("Content-Type", "application/octet-stream")
        parts = stream(self._service, acquisition, asked)
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
