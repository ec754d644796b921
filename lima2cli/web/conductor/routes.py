"""The table of requests of the conductor: what is asked for, and what is answered."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lima2cli.dataclass import dataclass
from lima2cli.web.conductor.acquisition import SOURCES, AcquisitionRun
from lima2cli.web.conductor.base import VERSION
from lima2cli.web.conductor.mapping import FRAME
from lima2cli.web.conductor.parameters import CLASS, defaults
from lima2cli.web.conductor.reduced import channels
from lima2cli.web.conductor.refusals import Refused
from lima2cli.web.conductor.system import RUN_STATES, System

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
