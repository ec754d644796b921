"""Pipelines that Python programs check: by the path of a file, by their text, or as plain data."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lima2cli.check import Checked, check_text
from lima2cli.diagnostics import Diagnostic, Findings
from lima2cli.document import Profile, load
from lima2cli.errors import Lima2Error, UnreadableInput
from lima2cli.plan.ir import Plan

Pipeline = str | os.PathLike[str] | Mapping[str, Any]
"""A pipeline: the path of its file, its text (of several lines), or its content as plain data."""


class PipelineInvalid(Lima2Error):
    """A pipeline has mistakes: ``diagnostics`` lists them, as `lima2 validate --format json` does."""

    def __init__(self, diagnostics: Sequence[Any]) -> None:
        self.diagnostics = list(diagnostics)
        super().__init__("; ".join(message_of(one) for one in self.diagnostics if _is_error(one)))


def message_of(one: Any) -> str:
    """Return the message of a diagnostic, or of its event."""
    return str(one["message"] if isinstance(one, dict) else one.message)


def _is_error(one: Any) -> bool:
    return bool((one["severity"] if isinstance(one, dict) else one.severity) == "error")


def validate(
    pipeline: Pipeline, overrides: Sequence[str] = (), profiles: Sequence[str | os.PathLike[str]] = ()
) -> list[Diagnostic]:
    """Return every mistake of a pipeline, and the warnings.

    ``overrides`` are those of ``--set``, ``profiles`` the files of ``--profile``.

    Raises:
        UnreadableInput: a file can't be read.
    """
    return list(_checked(pipeline, overrides, profiles).findings)


def compile_pipeline(
    pipeline: Pipeline, overrides: Sequence[str] = (), profiles: Sequence[str | os.PathLike[str]] = ()
) -> Plan:
    """Return the plan of a pipeline: its GDTs, ranks, memory and kernels; see `validate`.

    Raises:
        UnreadableInput: a file can't be read.
        PipelineInvalid: it has mistakes.
    """
    checked = _checked(pipeline, overrides, profiles)
    if checked.plan is None:
        raise PipelineInvalid(list(checked.findings))
    return checked.plan


def _checked(pipeline: Pipeline, overrides: Sequence[str], profiles: Sequence[str | os.PathLike[str]]) -> Checked:
    text, file = text_of(pipeline)
    laid = [Profile(os.fspath(profile), _read(profile)) for profile in profiles]
    base = Path() if file == "-" else Path(file).parent
    cores = len(os.sched_getaffinity(0))
    return check_text(text, file, base, cores=cores, environment=os.environ, overrides=overrides, profiles=laid)


def plain_value(text: str) -> Any:
    """Return the value of a parameter that a user has written, as pipelines have it: YAML, and so JSON.

    Raises:
        UnreadableInput: it is neither.
    """
    findings = Findings()
    document = load(f"value: {text}\n", "-", findings, environment={})
    if document is None or findings.failed or not isinstance(document.data, dict):
        raise UnreadableInput(f"{text!r}: {'; '.join(one.message for one in findings)}")
    return document.data["value"]


def text_of(pipeline: Pipeline) -> tuple[str, str]:
    """Return the text of a pipeline, and the name of its file; ``-`` without one."""
    if isinstance(pipeline, Mapping):
        return json.dumps(pipeline), "-"  # which is YAML 1.2
    if isinstance(pipeline, str) and "\n" in pipeline:
        return pipeline, "-"
    return _read(pipeline), os.fspath(pipeline)


def _read(file: str | os.PathLike[str]) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"cannot read {file}: {error}") from error
