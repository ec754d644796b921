"""The server and its routes: requests are let in, and answered; nothing that waits is done in the loop."""

import asyncio
import hmac
import logging
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, OutputTransform, RequestHandler, stream_request_body

from lima2cli.errors import EnvironmentUnfit, FileProblem, Lima2Error, RunFailed, StateError, UnreadableInput
from lima2cli.secret import hide
from lima2cli.web import data, runs
from lima2cli.web.library import Library
from lima2cli.web.metrics import Metrics
from lima2cli.web.routes import JSON, PROBLEM, Answer, Asked, Parameter, Problem, Route, Service, Stream, description

API = "/api/v1"
RUN = f"{API}/runs/{{name}}"

NO_RUN = {404: "there is no such run"}
REFUSED = NO_RUN | {409: "the state of the run does not allow it"}
WRONG = {400: "the body is wrong"}
INVALID = {400: "the request, or the pipeline, has mistakes", 404: "there is no such pipeline"}
LONG = INVALID | {504: "it took too long"}


def table(service: Service) -> Sequence[Route]:
    """Return the routes of a server."""
    routes: list[Route] = []

    async def described(service: Service, asked: Asked) -> Answer:
        return Answer(description(routes))

    routes += [
        Route("GET", f"{API}/openapi.json", "describe", described, "Describe this interface.", "OpenAPI 3.1"),
        Route("GET", f"{API}/pipelines", "list_pipelines", runs.pipelines,
              "List the pipelines that the server was started with.", "`pipelines`: name and file of each"),
        Route("POST", f"{API}/validate", "validate", runs.validate, "Check a pipeline.",
              "`diagnostics`, as `lima2 validate --format json` prints them; none where it is fine",
              body=runs.PipelineRequest, text=True, refuses=LONG),
        Route("POST", f"{API}/plan", "plan", runs.plan, "Compile a pipeline.",
              "the plan, as `lima2 plan --format json` prints it",
              body=runs.PipelineRequest, text=True, refuses=LONG),
        Route("GET", f"{API}/runs", "list_runs", runs.listed, "List all runs, the newest last.",
              "`runs`: name, state, whether it is live, and frames of each"),
        Route("POST", f"{API}/runs", "start_run", runs.begin, "Start a run.",
              "name, state and directory of the run, once it has started, or is ready to start",
              body=runs.StartRequest, text=True, status=201, limit_s=330.0,
              refuses=LONG | {409: "this machine cannot run it", 502: "the run failed before it was ready"}),
        Route("GET", RUN, "show_run", runs.shown, "Show a run.",
              "name and state; `status`, with `detail`, of a run that goes on, `summary` of one that has ended",
              refuses=REFUSED | {502: "the run does not answer"}),
        Route("POST", f"{RUN}/start", "start", runs.start, "Start the acquisition that is armed.",
              "the state", body=runs.AcquireRequest, refuses=REFUSED | WRONG),
        Route("POST", f"{RUN}/trigger", "trigger", runs.trigger, "Fire software triggers.", "the state",
              body=runs.TriggerRequest, refuses=REFUSED | WRONG),
        Route("POST", f"{RUN}/set", "set", runs.set_parameter, "Change a parameter of a node while the run goes on.",
              "`frame`, from which on it applies", body=runs.SetRequest, refuses=REFUSED | WRONG),
        Route("POST", f"{RUN}/stop", "stop", runs.stop, "Stop a run: frames in flight are saved.",
              "the state, before it has stopped", body=runs.StopRequest, status=202, refuses=REFUSED | WRONG),
        Route("GET", f"{RUN}/events", "watch_run", runs.Events(),
              "Watch a run: server-sent events, from `status` to `end`.",
              "events, named by the `type` that `lima2 run --progress json` prints; data are JSON",
              media=("text/event-stream",), refuses=NO_RUN, limit_s=None),
        Route("GET", f"{RUN}/frames/{{node}}", "frame", data.frame, "Give a frame of a flow or node.",
              "the frame; its number and time are in the headers Lima2-Frame-Number and Lima2-Time-Ns, too",
              media=(data.NPY, data.PNG, JSON),
              query=(Parameter("number", "The number of a saved frame, or its place from the end; -1: the last, and "
                               "while the run goes on the next of a flow or node, saved or not.", -1),
                     Parameter("as", "The form.", "npy", str, ("npy", "png", "json"))),
              refuses={400: "a parameter is wrong", 404: "there is no such run, node or frame (yet)"}),
        Route("GET", f"{RUN}/counters/{{node}}", "counters", data.counters, "Give the rows of a table.",
              "`columns`, by name, `rows`, and `since` for the next request; npy: a structured array",
              media=(JSON, data.NPY),
              query=(Parameter("since", "Only rows of frames with a greater number.", -1),
                     Parameter("as", "The form.", "json", str, ("json", "npy"))),
              refuses={400: "a parameter is wrong", 404: "there is no such run or table"}),
        Route("GET", "/metrics", "metrics", Metrics(service.library), "Give metrics of the runs.",
              "the text format of Prometheus", media=(CONTENT_TYPE_PLAIN_0_0_4,)),
    ]  # fmt: skip
    return routes


LOOPBACK = "127.0.0.1"

PUBLIC = ("/static/", "/favicon.ico")
"""Beginnings of paths that need no token: files of libraries, which every page loads by plain links."""

BEARER = "Bearer "


class Guard:
    """Who is answered by one server. ``token``: the secret, None = none is asked for; ``port``: where it listens.

    The server listens on the loopback. Other users of the machine can reach it there, and so can any web page that the
    user's browser shows: by a name that leads to 127.0.0.1 (DNS rebinding), or by requests to another site. The first
    lack the token; of the others `Host`, `Origin` and `Sec-Fetch-Site` tell.
    """

    def __init__(self, token: str | None, port: int) -> None:
        self._token = None if token is None else token.encode()
        self._hosts = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}
        self._origins = {f"http://{host}" for host in self._hosts}

    def refusal(self, request: HTTPServerRequest) -> tuple[int, str] | None:
        """Return status and reason for which a request is refused; None where it is answered."""
        if request.host.lower() not in self._hosts:
            return 403, "the host of the request is not this server"
        if self._foreign(request.headers, request.method == "GET"):
            return 403, "requests of other sites are refused"
        if not request.path.startswith(PUBLIC) and not self._knows(request):
            return 401, "the token is missing or wrong"
        return None

    def _foreign(self, headers: Mapping[str, str], reads: bool) -> bool:
        """Return whether a page of another site asks. Links that a user follows are allowed: they need the token."""
        if "Origin" in headers and headers["Origin"].lower() not in self._origins:
            return True
        if headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none"):
            return False
        if self._token is None:
            return True
        follows = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        return not (reads and follows)

    def _knows(self, request: HTTPServerRequest) -> bool:
        if self._token is None:
            return True
        token = self._token
        given = list(request.query_arguments.get("token", []))
        words = request.headers.get("Authorization", "")
        if words.startswith(BEARER):
            given.append(words.removeprefix(BEARER).strip().encode())
        return any(hmac.compare_digest(one, token) for one in given)


LONGEST_BODY = 1 << 20
"""Maximal bytes of the body of a request."""

DRAINED = 8 * LONGEST_BODY
"""Bytes of a longer one that are read all the same, so that whoever sends them reads the answer."""

PATIENCE_S = 30.0
"""Seconds that a body may take to come."""

log = logging.getLogger(__name__)

STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (UnreadableInput, 404),
    (FileProblem, 404),
    (StateError, 409),
    (EnvironmentUnfit, 409),
    (RunFailed, 502),
    (TimeoutError, 504),
)
"""The status that an exception of a route becomes."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of all answers: pages load nothing from elsewhere and are in no frame, and the token is passed to no site."""


class SafeHeaders(OutputTransform):
    """Gives all answers `HEADERS`."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Add them."""
        for name in [name for name in headers if name == "Server" or name.startswith("Access-Control-")]:
            del headers[name]
        for name, value in HEADERS.items():
            headers[name] = value
        return status_code, headers, chunk


class Guarded(Application):
    """An application that lets requests in by the rules of a `Guard`, whatever they ask for."""

    guard: Guard

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return what answers a request: the route that it asks for, or a refusal."""
        refusal = self.guard.refusal(request) or _too_long(request)
        if refusal is None:
            return super().find_handler(request, **kwargs)
        return self.get_handler_delegate(request, Refusal, {"status": refusal[0], "reason": refusal[1]})


def _too_long(request: HTTPServerRequest) -> tuple[int, str] | None:
    length = request.headers.get("Content-Length", "0")
    if length.isdecimal() and int(length) > LONGEST_BODY:
        return 413, f"the body has more than {LONGEST_BODY} bytes"
    return None


def write_problem(handler: RequestHandler, problem: Problem) -> None:
    """Write why a request was refused (RFC 9457)."""
    title = HTTPStatus(problem.status).phrase
    content = {"title": title, "status": problem.status, "detail": hide(problem.detail)} | problem.more
    handler.set_status(problem.status)
    handler.set_header("Content-Type", PROBLEM)
    if problem.status == 401:
        handler.set_header("WWW-Authenticate", "Bearer")
    handler.finish(Answer(content).bytes)


@stream_request_body
class Refusal(RequestHandler):
    """Refuses a request before its body is read, which is thrown away."""

    def initialize(self, status: int, reason: str) -> None:
        """Take status and reason."""
        self._problem = Problem(status, reason)

    def prepare(self) -> None:
        """Refuse."""
        write_problem(self, self._problem)

    def data_received(self, chunk: bytes) -> None:
        """Pass over the body."""


class RouteHandler(RequestHandler):
    """Answers the requests of one path by its routes, one for each method."""

    SUPPORTED_METHODS = ("GET", "POST")

    def initialize(self, service: Service, routes: Mapping[str, Route]) -> None:
        """Take the routes, by method."""
        self._service, self._routes = service, routes

    async def get(self, **path: str) -> None:
        """Answer."""
        await self._answer_or_end(path)

    async def post(self, **path: str) -> None:
        """Answer."""
        await self._answer_or_end(path)

    async def _answer_or_end(self, path: Mapping[str, str]) -> None:
        try:
            await self._answer(path)
        except StreamClosedError:  # whoever asked has gone
            return
        except asyncio.CancelledError:
            if not self._service.closing:
                raise

    async def _answer(self, path: Mapping[str, str]) -> None:
        route = self._routes.get(self.request.method)
        if route is None:
            self.set_header("Allow", ", ".join(self._routes))
            write_problem(self, Problem(405, f"there is {' and '.join(self._routes)} here"))
            return
        try:
            answer = await self._answered(route, path)
        except Problem as problem:
            write_problem(self, problem)
            return
        if isinstance(answer, Stream):
            await self._stream(answer)
            return
        self.set_status(answer.status)
        self.set_header("Content-Type", answer.media)
        for name, value in answer.headers.items():
            self.set_header(name, value)
        await self.finish(await self._service.call(lambda: answer.bytes))

    async def _answered(self, route: Route, path: Mapping[str, str]) -> Answer | Stream:
        """Return what a route answers. Raises `Problem`."""
        if len(self.request.body) > LONGEST_BODY:  # it came in chunks
            raise Problem(413, f"the body has more than {LONGEST_BODY} bytes")
        query = {one.name: one.read(self.get_query_argument(one.name, None)) for one in route.query}
        media = self.request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
        asked = Asked(path, query, self.request.body, media)
        try:
            return await asyncio.wait_for(route.answer(self._service, asked), route.limit_s)
        except Problem:
            raise
        except (Lima2Error, TimeoutError) as error:
            status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
            raise Problem(status, str(error) or "it took too long") from error
        except Exception as error:
            log.exception("%s %s", route.method, route.path)
            raise Problem(500, f"this is a bug in lima2 ({type(error).__name__}: {error})") from error

    async def _stream(self, answer: Stream) -> None:
        self.set_header("Content-Type", answer.media)
        try:
            async for part in answer.parts:
                self.write(part)
                await self.flush()  # waits for whoever reads
            await self.finish()
        finally:
            await answer.parts.aclose()


class NotFound(RequestHandler):
    """Answers what no route does."""

    def prepare(self) -> None:
        """Refuse."""
        write_problem(self, Problem(404, f"there is nothing at {self.request.path}"))


def patterns(service: Service) -> list[Any]:
    """Return the routes as tornado takes them."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in table(service):
        by_path.setdefault(route.pattern, {})[route.method] = route
    return [(path, RouteHandler, {"service": service, "routes": routes}) for path, routes in by_path.items()]


SETTINGS: dict[str, Any] = {
    "transforms": [SafeHeaders],
    "default_handler_class": NotFound,
    "log_function": lambda handler: None,  # addresses have the token
}
"""Settings of the application."""


class RestApplication(Guarded):
    """The application without a page."""

    def __init__(self, service: Service) -> None:
        super().__init__(patterns(service), **SETTINGS)


class Server:
    """A server on the loopback. ``port`` 0: any that is free; ``token`` None: a random one."""

    idle_s = PATIENCE_S
    """Seconds that a connection may be idle."""

    def __init__(self, library: Library, *, port: int = 0, token: str | None = None, page: bool = False) -> None:
        """Listen.

        Raises:
            EnvironmentUnfit: the port cannot be had.
        """
        self.token = secrets.token_urlsafe(32) if token is None else token
        try:
            self._sockets = bind_sockets(port, LOOPBACK)
        except (OSError, OverflowError) as error:
            raise EnvironmentUnfit(f"port {port} of {LOOPBACK} cannot be had: {error}") from error
        self.port = int(self._sockets[0].getsockname()[1])
        self.service = Service(library)
        self._page = page
        for name in ("tornado.general", "tornado.access"):
            logging.getLogger(name).setLevel(logging.ERROR)  # requests that are refused, with their addresses

    @property
    def address(self) -> str:
        """The beginning of all addresses."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """The address of its first page, with the token."""
        return f"{self.address}{'/' if self._page else '/api/v1/runs'}?token={quote(self.token)}"

    @property
    def _guard(self) -> Guard:
        """Who is answered."""
        return Guard(self.token, self.port)

    def _application(self) -> tuple[Guarded, Callable[[], None]]:
        """Return what answers, and what ends it."""
        if not self._page:
            return RestApplication(self.service), lambda: None
        from lima2cli.web.page.session import page_application

        return page_application(self.service, self.port)

    async def serve(self, ended: asyncio.Event, ready: Any = None) -> None:
        """Answer requests until ``ended`` is set; ``ready`` is called when that begins."""
        application, stop = self._application()
        application.guard = self._guard
        server = HTTPServer(
            application, max_body_size=DRAINED, max_header_size=1 << 16, body_timeout=PATIENCE_S,
            idle_connection_timeout=self.idle_s,
        )  # fmt: skip
        server.add_sockets(self._sockets)
        try:
            if ready is not None:
                ready()
            await ended.wait()
        finally:
            server.stop()
            stop()
            self.service.close()
            await server.close_all_connections()


async def serve_until_stopped(server: Server, ready: Any = None) -> None:
    """Answer requests until Ctrl-C or SIGTERM; the runs go on."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await server.serve(ended, ready)


__all__ = ["Library", "Server", "serve_until_stopped"]
