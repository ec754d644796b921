"""Pipelines checked and compiled on request, each in a process of its own: users' code does not meet the server."""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any, Literal

from lima2cli.dataclass import dataclass
from lima2cli.declare.plain import key
from lima2cli.errors import ExitCode, UnreadableInput
from lima2cli.web.routes import Answer, Asked, Problem, Service

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
