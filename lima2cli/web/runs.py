"""Pipelines and runs on request: checked, compiled, listed, started, driven, and the events of runs."""

import asyncio
import json
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import key, to_plain
from lima2cli.drive import Run
from lima2cli.errors import ExitCode, RunFailed, StateError, UnreadableInput
from lima2cli.runs.directory import ListedRun
from lima2cli.secret import hidden
from lima2cli.web.routes import Answer, Asked, Problem, Service, Stream, finite

Event = dict[str, Any]

MOST_KEPT = 200
"""Events, other than of progress, that a listener gets who comes later."""

MOST_WAITING = 100
"""Events that a listener has not taken yet; beyond, reports of progress are left out for it."""

QUIET_S = 10.0
"""Seconds without an event after which a listener is given None: whoever has gone is noticed then."""


class Feed:
    """The events of one run: a thread takes them, the loop hands them on."""

    def __init__(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        self.over = False
        self._run, self._loop = run, loop
        self._past: deque[Event] = deque(maxlen=MOST_KEPT)
        self._progress: Event | None = None
        self._queues: set[asyncio.Queue[Event | None]] = set()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for event in self._run.follow():
            self._post(event)
        self._post(None)

    def _post(self, event: Event | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._give, event)

    def _give(self, event: Event | None) -> None:
        if event is None:
            self.over = True
        elif event["type"] == "progress":
            self._progress = event
        else:
            self._past.append(event)
        for queue in self._queues:
            if event is None or event["type"] != "progress" or queue.qsize() < MOST_WAITING:
                queue.put_nowait(event)

    async def listen(self) -> AsyncIterator[Event | None]:
        """Yield events to the end of the run, the past ones first; None where there is none for a while."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        for event in (*self._past, *([] if self._progress is None else [self._progress])):
            queue.put_nowait(event)
        if self.over:
            queue.put_nowait(None)
        self._queues.add(queue)
        try:
            while True:
                try:
                    async with asyncio.timeout(QUIET_S):
                        news = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if news is None:
                    return
                yield news
        finally:
            self._queues.discard(queue)


class Feeds:
    """The feeds of all runs that somebody listens to."""

    def __init__(self) -> None:
        self._feeds: dict[int, Feed] = {}

    def of(self, run: Run) -> Feed:
        """Return the feed of a run. To be called in the loop."""
        self._feeds = {key: feed for key, feed in self._feeds.items() if not feed.over}
        if id(run) not in self._feeds:
            self._feeds[id(run)] = Feed(run, asyncio.get_running_loop())
        return self._feeds[id(run)]


YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain")
"""Media types of a body that is a pipeline itself."""

LIMIT_S = 30.0
"""Seconds that a pipeline may take to be compiled."""


@dataclass(frozen=True)
class PipelineRequest:
    """A pipeline, by its name or as a text."""

    pipeline: str | None = key("The name of a pipeline that the server knows.", None, none="absent")
    text: str | None = key("The text of a pipeline, YAML.", None, none="absent")
    set: tuple[str, ...] | None = key("Values to replace, KEY.PATH=VALUE.", None, none="absent")


@dataclass(frozen=True)
class StartRequest(PipelineRequest):
    """A run to be started."""

    armed: bool | None = key("Get ready, and wait for a request to start.", None, none="absent")
    transport: Literal["auto", "mpi", "inline"] | None = key(
        "MPI ranks (auto: where MPI is installed), or all ranks in one process.", None, none="absent"
    )


def pipeline_asked(asked: Asked, kind: type[PipelineRequest] = PipelineRequest) -> PipelineRequest:
    """Return the pipeline that a request names or holds. Raises `Problem`."""
    if asked.media in YAML:
        try:
            return kind(text=asked.body.decode())
        except ValueError as error:
            raise Problem(400, f"the text is not UTF-8: {error}") from error
    wanted = asked.object(kind)
    if (wanted.pipeline is None) == (wanted.text is None):
        raise Problem(400, "either `pipeline` or `text` is needed")
    return wanted


async def validate(service: Service, asked: Asked) -> Answer:
    """Answer with the diagnostics of a pipeline."""
    _, output = await _compiled(service, "validate", pipeline_asked(asked))
    return Answer(output)


async def plan(service: Service, asked: Asked) -> Answer:
    """Answer with the plan of a pipeline."""
    code, output = await _compiled(service, "plan", pipeline_asked(asked))
    if code != ExitCode.FINE:
        raise Problem(400, "the pipeline has mistakes", diagnostics=output["diagnostics"])
    return Answer(output)


async def check(service: Service, wanted: PipelineRequest) -> None:
    """Check a pipeline. Raises `Problem` with its diagnostics where it has mistakes."""
    code, output = await _compiled(service, "validate", wanted)
    if code != ExitCode.FINE:
        raise Problem(400, "the pipeline has mistakes", diagnostics=output["diagnostics"])


async def _compiled(service: Service, command: str, wanted: PipelineRequest) -> tuple[int, dict[str, Any]]:
    """Return exit code and output of a command of the compiler."""
    try:
        file = "-" if wanted.pipeline is None else service.library.file(wanted.pipeline)
    except UnreadableInput as error:
        raise Problem(404, str(error)) from error
    values = [word for value in wanted.set or () for word in ("--set", value)]
    return await _lima2([command, "--format", "json", *values, "--", file], wanted.text or "")


async def _lima2(arguments: Sequence[str], text: str) -> tuple[int, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "lima2cli", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = await asyncio.wait_for(process.communicate(text.encode()), LIMIT_S)
    except TimeoutError as error:
        raise Problem(504, f"the pipeline was not compiled in {LIMIT_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    code = process.returncode or 0
    try:
        found: dict[str, Any] = json.loads(output)
    except ValueError as error:  # a wrong value of --set is shown as text
        raise Problem(400, errors.decode(errors="replace").strip() or "no answer of the compiler") from error
    if code == ExitCode.BUG:
        raise Problem(500, found["diagnostics"][0]["message"])
    return code, found


async def pipelines(service: Service, asked: Asked) -> Answer:
    """Answer with the pipelines that were named at the start."""
    known = service.library.pipelines
    return Answer({"pipelines": [{"name": name, "file": file} for name, file in known.items()]})


async def listed(service: Service, asked: Asked) -> Answer:
    """Answer with all runs, the newest last."""
    found = await service.call(service.library.listed)
    return Answer({"runs": [_short(one) for one in found]})


def _short(one: ListedRun) -> dict[str, Any]:
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
