"""Pipelines in text to plans, as every command does it."""

from pathlib import Path
from typing import Any

from lima2cli.diagnostics import Findings
from lima2cli.document import load
from lima2cli.inputs.stacks import FileStore
from lima2cli.language.pipeline import parse
from lima2cli.plan.compile import compile_plan
from lima2cli.plan.figures import plan_figures
from lima2cli.plan.ir import Plan


def compiled(text: str, base: Path = Path(), *, cores: int = 2) -> tuple[Plan | None, Findings]:
    """The plan of a pipeline, and what was found."""
    findings = Findings()
    document = load(text, "pipeline.yaml", findings, environment={}, overrides=())
    if document is None:
        return None, findings
    with FileStore(base) as files:
        pipeline = parse(document, findings, files)
        return compile_plan(pipeline, files, findings, cores=cores), findings


def plan_of(text: str, base: Path = Path(), *, cores: int = 2) -> Plan:
    """The plan of a pipeline without mistakes."""
    plan, findings = compiled(text, base, cores=cores)
    assert plan is not None, [(item.rule, item.at, item.message) for item in findings]
    return plan


def figures(plan: Plan) -> dict[str, Any]:
    """Return the output of ``plan --format json``."""
    return plan_figures(plan)
