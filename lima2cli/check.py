"""The one compiler behind all commands: `run` never rejects, for a static reason, what `validate` accepts."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Findings
from lima2cli.document import Edit, Profile, Source, explain_kinds, load, without_repeats
from lima2cli.document.render import suppress
from lima2cli.document.substitute import Variables
from lima2cli.inputs.stacks import FileStore
from lima2cli.language.definitions import with_named_inputs
from lima2cli.language.expansion import check_graph_file, expand, is_graph_file
from lima2cli.language.pipeline import Pipeline, parse
from lima2cli.paths import is_file
from lima2cli.plan.compile import compile_plan
from lima2cli.plan.destinations import Inputs, check_destinations, commands
from lima2cli.plan.ir import Plan


@dataclass(frozen=True)
class Checked:
    """The result of checking a text.

    source    to show ``findings`` in: a `Document` where the text is YAML
    pipeline  None where the text is not YAML; holds `POISON` where something is wrong
    plan      None where anything is wrong, or where the text is a file of graphs
    texts     of files of graphs, by their names relative to the pipeline's file
    variables  that were put into them
    profiles   that were laid on the text
    """

    source: Source
    findings: Findings
    pipeline: Pipeline | None = None
    plan: Plan | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    variables: Variables = field(default_factory=lambda: Variables({}))
    profiles: Sequence[Profile] = ()


def compile_again(checked: Checked, pipeline: Pipeline, base: Path, *, cores: int, fuse: bool = True) -> Checked:
    """Compile the same text with another pipeline, made of the checked one; the findings are those of this one."""
    findings = Findings()
    with FileStore(base, checked.texts) as files:
        plan = compile_plan(pipeline, files, findings, cores=cores, fuse=fuse)
        if plan is not None:
            before = () if checked.plan is None else checked.plan.inputs
            plan = replace(plan, inputs=tuple(sorted({*before, *_paths(files.inputs())})))
    return replace(checked, findings=findings, pipeline=pipeline, plan=plan)


def check_text(
    text: str,
    file: str,
    base: Path,
    *,
    cores: int,
    environment: Mapping[str, str],
    overrides: Sequence[str] = (),
    profiles: Sequence[Profile] = (),
    edits: Sequence[Edit] = (),
    texts: Mapping[str, str] | None = None,
    fuse: bool = True,
    here: Path | None = Path(),
) -> Checked:
    """Load, parse and compile; every mistake is in the findings.

    file   name to show, ``-`` for standard input;  base   directory that files with data are relative to
    cores  of this machine, a bound on the number of detector ranks;  fuse   see `compile_plan`
    texts  of files of graphs, where they were kept: these are not read again
    here   directory that the output is relative to; None: the files that a run would write are not checked
    """
    findings, variables = Findings(), Variables.of(environment)
    document = load(text, file, findings, environment=variables, overrides=overrides, profiles=profiles, edits=edits)
    if document is None:
        return Checked(Source(file, text), findings, variables=variables, profiles=profiles)
    with FileStore(base, texts) as files:
        if is_graph_file(document):
            document = check_graph_file(document, findings, files.text, variables)
            left = suppress(document, without_repeats(document, findings))
            return Checked(document, left, texts=files.texts, variables=variables, profiles=profiles)
        document = with_named_inputs(expand(document, findings, files.text, variables))
        pipeline = parse(document, findings, files)
        plan = compile_plan(pipeline, files, findings, cores=cores, fuse=fuse)
        if here is not None:
            inputs = _inputs(pipeline, files, file, profiles)
            check_destinations(pipeline, document, inputs, base, here, findings)
            plan = None if plan is None or findings.failed else replace(plan, inputs=tuple(_paths(inputs)))
    if profiles:
        explain_kinds(document, findings)
    left = suppress(document, without_repeats(document, findings))
    return Checked(document, left, pipeline, plan, files.texts, variables, profiles)


def _inputs(pipeline: Pipeline, files: FileStore, file: str, profiles: Sequence[Profile]) -> Inputs:
    """Return all files that a run reads, by reference: those asked for, the pipeline, its profiles, of commands."""
    inputs = files.inputs()
    named = [] if file == "-" else [Path(file).name]
    named += [word for words in commands(pipeline) for word in words if word]
    for name in named:
        path = files.base / name
        if is_file(path):
            inputs.setdefault(name, frozenset((path.resolve(),)))
    for profile in profiles:
        if is_file(path := Path(profile.file)):
            inputs.setdefault(profile.file, frozenset((path.resolve(),)))
    return inputs


def _paths(inputs: Inputs) -> list[str]:
    return sorted({str(path) for paths in inputs.values() for path in paths})
