"""Runs on request: listed, started, driven, and their events."""

import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import key, to_plain
from lima2cli.drive import Run
from lima2cli.errors import RunFailed, StateError
from lima2cli.runs.directory import Run as Listed
from lima2cli.secret import hidden
from lima2cli.web.compiler import StartRequest, check, pipeline_asked
from lima2cli.web.feeds import Feeds
from lima2cli.web.routes import Answer, Asked, Service, Stream, finite


async def pipelines(service: Service, asked: Asked) -> Answer:
    """Answer with the pipelines that were named at the start."""
    known = service.library.pipelines
    return Answer({"pipelines": [{"name": name, "file": file} for name, file in known.items()]})


async def listed(service: Service, asked: Asked) -> Answer:
    """Answer with all runs, the newest last."""
    found = await service.call(service.library.listed)
    return Answer({"runs": [_short(one) for one in found]})


def _short(one: Listed) -> dict[str, Any]:
    """Return a run in short."""
    frames = one.answer.get("frames") if one.summary is None else one.summary.frames
    state = one.answer.get("state", one.state)
    return {"name": one.directory.name, "state": state, "live": one.state == "live", "frames": frames}


async def shown(service: Service, asked: Asked) -> Answer:
    """Answer with the status of a run that goes on, or the summary of one that has ended."""
    return Answer(await service.call(_shown, service, asked.path["name"]))


def _shown(service: Service, name: str) -> dict[str, Any]:
    one = service.library.look(name)
    status: dict[str, Any] = {}
    if one.state == "live":
        try:
            status = {"status": service.library.open(name).status(detail=True)}
        except (StateError, RunFailed):  # it has ended just now
            one = service.library.look(name)
    summary = {} if one.summary is None else {"summary": to_plain(one.summary)}
    return _short(one) | {"directory": str(one.directory.resolve())} | (summary or status)


async def begin(service: Service, asked: Asked) -> Answer:
    """Start a run; answer when it is ready."""
    wanted = pipeline_asked(asked, StartRequest)
    assert isinstance(wanted, StartRequest)
    await check(service, wanted)
    started = await service.call(
        service.library.start, wanted.pipeline or "", wanted.text,
        armed=wanted.armed or False, transport=wanted.transport or "auto", overrides=wanted.set or (),
    )  # fmt: skip
    name = started.directory.name
    return Answer(
        {"name": name, "state": started.state, "directory": str(started.directory)},
        201,
        headers={"Location": f"/api/v1/runs/{name}"},
    )


@dataclass(frozen=True)
class TriggerRequest:
    """Software triggers to fire."""

    count: int | None = key("How many; 1 where it is absent.", None, none="absent")


@dataclass(frozen=True)
class AcquireRequest:
    """An acquisition that is to be started."""

    frames: int | None = key("Frames; those of the pipeline where it is absent.", None, none="absent")
    period: float | None = key("Seconds from one to the next; that of the pipeline.", None, none="absent")
    directory: str | None = key(
        "Where its files go, new or empty; relative to the folder of the directory that was made ready.",
        None,
        none="absent",
    )


@dataclass(frozen=True)
class SetRequest:
    """A change of a parameter."""

    node: str = key("The node.")
    parameter: str = key("Its parameter.")
    value: Any = key("The new value, as pipelines have it.")


@dataclass(frozen=True)
class StopRequest:
    """The end of a run."""

    now: bool | None = key("Abort it: frames in flight are lost.", None, none="absent")


async def start(service: Service, asked: Asked) -> Answer:
    """Start an acquisition that is armed."""
    run, wanted = await _live(service, asked), asked.object(AcquireRequest)
    await service.call(_start, run, wanted)
    where = {} if wanted.directory is None else {"directory": str(run.directory)}
    return Answer({"state": await service.call(lambda: run.state)} | where)


def _start(run: Run, wanted: AcquireRequest) -> None:
    place = None
    if wanted.directory is not None:
        place = Path(run.status(detail=True)["detail"]["directory"]).parent / wanted.directory
    run.start(wanted.frames, wanted.period, directory=place)


async def trigger(service: Service, asked: Asked) -> Answer:
    """Fire software triggers."""
    run, count = await _live(service, asked), asked.object(TriggerRequest).count
    await service.call(run.trigger, 1 if count is None else count)
    return Answer({"state": await service.call(lambda: run.state)})


async def set_parameter(service: Service, asked: Asked) -> Answer:
    """Change a parameter of a node."""
    run, wanted = await _live(service, asked), asked.object(SetRequest)
    return Answer({"frame": await service.call(run.set, wanted.node, wanted.parameter, wanted.value)})


async def stop(service: Service, asked: Asked) -> Answer:
    """Ask a run to stop."""
    run, now = await _live(service, asked), asked.object(StopRequest).now
    await service.call(run.abort if now else run.stop)
    return Answer({"state": await service.call(lambda: run.state)}, 202)


async def _live(service: Service, asked: Asked) -> Run:
    """Return a run that goes on. Raises `StateError` where it has ended."""
    run = await service.call(service.library.open, asked.path["name"])
    if not run.live:
        raise StateError(f"the run {asked.path['name']} has ended")
    return run


class Events:
    """The route of events: all listeners to a run share what the run sends."""

    def __init__(self) -> None:
        self._feeds = Feeds()

    async def __call__(self, service: Service, asked: Asked) -> Stream:
        """Answer with the events of a run as they come (server-sent events, WHATWG HTML)."""
        run = await service.call(service.library.open, asked.path["name"])
        return Stream(self._parts(service, run), "text/event-stream")

    async def _parts(self, service: Service, run: Run) -> AsyncGenerator[bytes]:
        if run.live:
            with suppress(StateError, RunFailed):  # it ends right now
                yield _event("status", await service.call(run.status))
        async for event in self._feeds.of(run).listen():
            yield b": \n\n" if event is None else _event(event["type"], event)
        if not service.closing:  # else the server ends, not the run
            yield _event("end", await service.call(_end, run))


def _end(run: Run) -> dict[str, Any]:
    """Return state and reason of a run that has ended; its summary comes a little after its last event."""
    summary = run.summary_soon()
    return {"state": "aborted" if summary is None else summary.state, "reason": summary and summary.reason}


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(finite(hidden(data)), allow_nan=False)}\n\n".encode()
