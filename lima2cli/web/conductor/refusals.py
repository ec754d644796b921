"""Requests that are refused, as the client of the conductor reads them: each code becomes an exception there."""

from collections.abc import Mapping
from typing import Any

from lima2cli.drive import PipelineInvalid
from lima2cli.errors import EnvironmentUnfit, FileProblem, Lima2Error, RunFailed, StateError, UnreadableInput
from lima2cli.secret import hidden

NAMES = {
    20: "Lima2Conflict",
    30: "Lima2BadCommand",
    40: "Lima2BackendError",
    50: "Lima2NotFound",
    60: "Lima2LookupError",
    70: "Lima2ParamError",
    80: "Lima2ValueError",
}
"""The exception of each code."""

UNEXPECTED = -1
"""Code of an error that the client does not know: it raises `Lima2Error` with the trace."""

CODES: tuple[tuple[type[Lima2Error], int], ...] = (
    (StateError, 30),
    (FileProblem, 60),
    (UnreadableInput, 80),
    (EnvironmentUnfit, 40),
    (RunFailed, 40),
)


class Refused(Exception):
    """A request that is refused. ``payload``: what the exception of the client holds in addition to the message."""

    def __init__(self, code: int, message: str, **payload: Any) -> None:
        super().__init__(message)
        self.code, self.payload = code, payload


def wrong_parameter(message: str, where: str, path: str, schema: Mapping[str, Any] | None = None) -> Refused:
    """Return the refusal of a parameter. ``path``: JSON path; ``schema``: what is allowed there."""
    return Refused(70, message, where=where, path=path, schema=dict(schema or {}))


def json_path(steps: str) -> str:
    """Return the JSON path of a JSON pointer: ``$.a.b[0]`` of ``/a/b/0``."""
    return "$" + "".join(f"[{step}]" if step.isdecimal() else f".{step}" for step in steps.split("/")[1:])


def refused_by(error: Lima2Error) -> Refused:
    """Return the refusal that an error of a run becomes."""
    if isinstance(error, PipelineInvalid):
        found = [one for one in error.diagnostics if one["severity"] == "error"]
        first = found[0] if found else {"message": str(error), "path": ""}
        message = "; ".join(one["message"] for one in found) or str(error)
        return wrong_parameter(message, "the pipeline", json_path(first.get("path") or ""))
    return Refused(next((code for kind, code in CODES if isinstance(error, kind)), UNEXPECTED), str(error))


def body_of(refused: Refused) -> dict[str, Any]:
    """Return the body of a refusal; all its keys are required."""
    name = NAMES.get(refused.code, "RuntimeError")
    body = {
        "code": refused.code, "remote_type": name, "message": str(refused), "payload": refused.payload,
        "trace": [f"{name}: {refused}"],
    }  # fmt: skip
    return dict(hidden(body))
