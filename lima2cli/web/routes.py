"""A table of routes: what is asked for, what answers, and what the description of the interface says of it."""

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field, fields
from typing import Any, Literal, ParamSpec, TypeVar

from lima2cli import __version__
from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import Misshapen, from_plain, schema_of
from lima2cli.secret import hidden
from lima2cli.web.library import Library

P = ParamSpec("P")
T = TypeVar("T")
Schema = dict[str, Any]

THREADS = 16
"""Threads that wait for files and runs."""

JSON, PROBLEM = "application/json", "application/problem+json"


class Problem(Exception):
    """A request that is not answered: status, and why; ``more`` are further keys of the answer (RFC 9457)."""

    def __init__(self, status: int, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.more = status, detail, more


@dataclass
class Answer:
    """An answer: plain data as JSON, bytes of some media type, or parts that are sent as they come."""

    content: Any
    status: int = 200
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> bytes:
        """Return what is sent; secrets are hidden, and numbers that JSON does not have are null."""
        if isinstance(self.content, bytes):
            return self.content
        return json.dumps(finite(hidden(self.content)), allow_nan=False).encode() + b"\n"


@dataclass
class Stream:
    """An answer whose parts are sent as they come."""

    parts: AsyncGenerator[bytes]
    media: str


def finite(data: Any) -> Any:
    """Return plain data with None for NaN and infinities."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, list | tuple) else data


class Service:
    """The things that routes have at hand: the library, and threads for calls that wait.

    closing  the server ends
    """

    def __init__(self, library: Library) -> None:
        self.library, self.closing = library, False
        self._pool = ThreadPoolExecutor(THREADS, "lima2-web")

    async def call(self, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Call a function in a thread. Raises `asyncio.CancelledError` where the server ends."""
        if self.closing:
            raise asyncio.CancelledError
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **named))

    def close(self) -> None:
        """Watch nothing any longer, and take no more calls."""
        self.closing = True
        self.library.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Asked:
    """A request: values of the places in its path, of its query, and the body with its media type."""

    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: bytes = b""
    media: str = ""

    def object(self, kind: type[T]) -> T:
        """Return the body, a JSON object, as a dataclass; an empty body is one without keys.

        Raises:
            Problem: it is something else.
        """
        try:
            data = json.loads(self.body or b"{}")
            known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
            if isinstance(data, dict) and (unknown := sorted(data.keys() - known)):
                raise Misshapen(f"/{unknown[0]}: unknown; there are {', '.join(sorted(known))}")
            return from_plain(kind, data)
        except ValueError as error:
            raise Problem(400, f"the body is not what is asked for: {error}") from error


@dataclass(frozen=True)
class Parameter:
    """A parameter of a query: ``kind`` is int or str, ``choices`` all values that there are."""

    name: str
    doc: str
    default: Any
    kind: type[int] | type[str] = int
    choices: tuple[str, ...] = ()
    minimum: int | None = None

    def read(self, text: str | None) -> Any:
        """Return its value. Raises `Problem`."""
        if text is None:
            return self.default
        try:
            value = self.kind(text)
        except ValueError as error:
            raise Problem(400, f"{self.name}: a whole number is needed, not {text!r}") from error
        if self.choices and value not in self.choices:
            raise Problem(400, f"{self.name}: one of {', '.join(self.choices)}, not {text!r}")
        if self.minimum is not None and isinstance(value, int) and value < self.minimum:
            raise Problem(400, f"{self.name}: at least {self.minimum}, not {value}")
        return value

    @property
    def schema(self) -> Schema:
        """Return its JSON Schema."""
        own: Schema = {"type": "integer" if self.kind is int else "string", "default": self.default}
        own |= {"enum": list(self.choices)} if self.choices else {}
        return own | ({} if self.minimum is None else {"minimum": self.minimum})


Handler = Callable[[Service, Asked], Awaitable[Answer | Stream]]


@dataclass(frozen=True)
class Route:
    """One kind of request.

    path     with places such as ``{name}``;  answer  makes the answer
    doc      a sentence;  gives  what the answer is, in words
    media    types of answers;  query  parameters
    body     dataclass of the JSON object that is the body; ``text``: a pipeline may be the body itself
    refuses  statuses of problems, and when they come
    limit_s  seconds after which 504 is answered, None without end
    """

    method: Literal["GET", "POST"]
    path: str
    name: str
    answer: Handler
    doc: str
    gives: str
    media: tuple[str, ...] = (JSON,)
    query: Sequence[Parameter] = ()
    body: type[Any] | None = None
    text: bool = False
    status: int = 200
    refuses: Mapping[int, str] = field(default_factory=dict)
    limit_s: float | None = 60.0

    @property
    def pattern(self) -> str:
        """Return the regular expression of its path."""
        return self.path.replace("{", "(?P<").replace("}", ">[^/]+)")


REFUSED_BY_ALL = {401: "the token is missing or wrong", 403: "the request comes from another site"}
"""Refusals of every route."""


def description(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the description of all routes, as plain data."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lima2",
            "version": __version__,
            "description": "Runs of lima2 on this machine, watched and driven.",
        },
        "paths": paths,
        "security": [{"bearer": []}, {"token": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "token": {"type": "apiKey", "in": "query", "name": "token"},
            },
            "schemas": {"Problem": PROBLEM_SCHEMA},
        },
    }


PROBLEM_SCHEMA = {
    "description": "Why a request was refused (RFC 9457).",
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "diagnostics": {
            "description": "The mistakes of a pipeline, as `lima2 validate --format json` lists them.",
            "type": "array",
            "items": {"type": "object"},
        },
    },
    "required": ["title", "status", "detail"],
}


def _operation(route: Route) -> dict[str, Any]:
    places = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    query = [{"name": one.name, "in": "query", "description": one.doc, "schema": one.schema} for one in route.query]
    responses = {
        str(route.status): {
            "description": route.gives,
            "content": {media: {"schema": _schema(media)} for media in route.media},
        }
    }
    for status, why in sorted({**REFUSED_BY_ALL, **route.refuses}.items()):
        shown = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        responses[str(status)] = {"description": why, "content": shown}
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.doc, "responses": responses}
    if places or query:
        operation["parameters"] = places + query
    if route.body is not None:
        content: dict[str, Any] = {JSON: {"schema": schema_of(route.body)}}
        content |= {"application/yaml": {"schema": {"type": "string"}}} if route.text else {}
        operation["requestBody"] = {"content": content, "required": route.text}
    return operation


def _schema(media: str) -> dict[str, Any]:
    if media == JSON:
        return {"type": "object"}
    return {"type": "string"} if media.startswith("text/") else {}
