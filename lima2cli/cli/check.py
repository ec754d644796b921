"""``lima2 validate``, ``schema``, ``plan`` and ``doctor``: what can be known before a run."""

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, ExitCode, Format, LimitsFile, NoFuse, Overrides, Profiles, Strict, border
from lima2cli.errors import UnreadableInput

if TYPE_CHECKING:
    from lima2cli.doctor import Check, Diagnosis


def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE... | -", help="Pipelines; - for standard input.")],
    format: Annotated[Format, typer.Option("--format", help="Format of the diagnostics.")] = Format.TEXT,
    overrides: Overrides = None,
    profiles: Profiles = None,
    strict: Strict = False,
    debug: Debug = False,
) -> None:
    """Check pipelines before anything runs.

    All that can be known is checked: syntax, structure, names, shapes, sizes, files.

    Exit code 0: fine, 1: there are problems, 2: a file cannot be read.
    """
    with border(as_json=format is Format.JSON, debug=debug):
        from lima2cli.cli.reading import Changes, check_file, show_all, unreadable
        from lima2cli.cli.suites import SUFFIX, check_suite

        changes, checked, code = Changes.of(overrides, profiles), [], ExitCode.FINE
        for file in files:
            try:
                one = check_suite(file) if file.endswith(SUFFIX) else check_file(file, changes)
            except UnreadableInput as error:
                one, code = unreadable(file, error), ExitCode.USAGE
            checked.append(one)
        print(show_all(checked, format), end="", flush=True)
        severities = {item.severity for one in checked for item in one.findings}
        failed = "error" in severities or (strict and "warning" in severities)
        raise typer.Exit(code or (ExitCode.PROBLEMS if failed else ExitCode.FINE))


class Schemas(StrEnum):
    """Files of which there is a schema."""

    PIPELINE = "pipeline"
    TEST = "test"


def schema(
    of: Annotated[
        Schemas, typer.Argument(metavar="[pipeline | test]", help="The files that it is of.")
    ] = Schemas.PIPELINE,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of pipelines, or of files of tests.

    It has all kinds that are installed.
    """
    with border(as_json=False, debug=debug):
        if of is Schemas.TEST:
            from lima2cli.suite import suite_schema

            print(suite_schema(), end="", flush=True)
            return
        from lima2cli.language.schema import complete_shape, schema_text

        shape, problems = complete_shape()
        for problem in problems:
            print(f"warning[{problem.rule}]: {problem}", file=sys.stderr)
        print(schema_text(shape), end="", flush=True)


class PlanFormat(StrEnum):
    """Formats of a plan."""

    TEXT = "text"
    JSON = "json"
    C = "c"
    SLURM = "slurm"


def plan(
    file: Annotated[str, typer.Argument(metavar="FILE | -", help="A pipeline; - for standard input.")],
    format: Annotated[
        PlanFormat, typer.Option("--format", help="Format of the output; c: calls of librashpa; slurm: a job script.")
    ] = PlanFormat.TEXT,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write the output to this file.")] = None,
    diff: Annotated[
        str | None, typer.Option("--diff", metavar="OLD", help="Show the differences from a saved plan instead.")
    ] = None,
    limits: LimitsFile = None,
    overrides: Overrides = None,
    profiles: Profiles = None,
    strict: Strict = False,
    no_fuse: NoFuse = False,
    debug: Debug = False,
) -> None:
    """Show what a pipeline compiles to.

    Data flows, ranks, memory, rates, nodes. Nothing is run.

    Exit code 0: fine, 1: there are problems, 2: the file cannot be read.
    """
    with border(as_json=format is PlanFormat.JSON, debug=debug):
        from lima2cli.cli.border import Format
        from lima2cli.cli.plan_text import show_plan, show_prediction
        from lima2cli.cli.reading import Changes, check_pipeline, origin_of, read_limits, show_all
        from lima2cli.job.resources import cores, free
        from lima2cli.plan.prediction import predict, prediction_figures
        from lima2cli.plan.rashpa_calls import c_listing
        from lima2cli.plan.slurm import job_script
        from lima2cli.runs.saved_plan import plan_contents
        from lima2cli.secret import hide

        if limits is not None and (diff is not None or format in (PlanFormat.C, PlanFormat.SLURM)):
            raise UnreadableInput("--limits goes with a plan as text or JSON")
        known = None if limits is None else read_limits(limits)
        changes = Changes.of(overrides, profiles)
        checked = check_pipeline(file, changes, fuse=not no_fuse)
        warnings = [item for item in checked.findings if item.severity == "warning"]
        if checked.plan is None or (strict and warnings):
            as_json = format is PlanFormat.JSON
            print(
                show_all([checked], Format.JSON if as_json else Format.TEXT),
                end="",
                file=None if as_json else sys.stderr,
            )
            raise typer.Exit(ExitCode.PROBLEMS)
        made = checked.plan
        prediction = None if known is None else predict(made, known, cores())
        if diff is not None:
            text = _differences(diff, plan_contents(checked.plan), as_json=format is PlanFormat.JSON)
        elif format is PlanFormat.JSON:
            contents = plan_contents(checked.plan, warnings)
            predicted = {} if prediction is None else {"predicted": prediction_figures(prediction)}
            source = origin_of(checked, file, changes).source()
            text = json.dumps({**contents, **predicted, "source": source}, indent=2) + "\n"
        else:
            if warnings:
                print(show_all([checked], Format.TEXT), file=sys.stderr)
            text = {
                PlanFormat.C: lambda: c_listing(made),
                PlanFormat.SLURM: lambda: job_script(made, file),
            }.get(format, lambda: show_plan(made) + free(made))()
            if prediction is not None and known is not None and limits is not None:
                text += "\n" + show_prediction(prediction, known, limits)
        text = hide(text)
        if output is None:
            print(text, end="", flush=True)
        else:
            from lima2cli.cli.border import write_output

            write_output(output, text, checked.plan.inputs)
        raise typer.Exit(ExitCode.FINE)


def _differences(old: str, contents: dict[str, Any], *, as_json: bool) -> str:
    """Return how a plan differs from a saved one."""
    from lima2cli.runs.saved_plan import compare, read_plan

    differences = compare(read_plan(old)[1], contents)
    if as_json:
        listed = [{"path": difference.path, "old": difference.old, "new": difference.new} for difference in differences]
        return json.dumps({"version": 1, "differences": listed}, indent=2) + "\n"
    return "".join(f"{difference}\n" for difference in differences) or f"the same plan as {old}\n"


class DoctorFormat(StrEnum):
    """Formats of the findings."""

    TEXT = "text"
    JSON = "json"


def doctor(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE | -]", help="A pipeline that is to run on this machine.")
    ] = None,
    format: Annotated[DoctorFormat, typer.Option("--format", help="Format of the output.")] = DoctorFormat.TEXT,
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure the limits of this machine, and what lima2 reaches of them.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="With --bench: write the figures to this JSON file, too.")
    ] = None,
    overrides: Overrides = None,
    profiles: Profiles = None,
    debug: Debug = False,
) -> None:
    """Check this machine, and whether it can run FILE.

    Packages, MPI, memory, disk, filters, limits.

    Two MPI ranks are started and a file is written and removed to measure bandwidths. Exit code 0: it can,
    1: the file has problems, 2: it cannot be read, 12: this machine cannot run it.
    """
    as_json = format is DoctorFormat.JSON
    with border(as_json=as_json, debug=debug):
        from pathlib import Path

        if bench and file is not None:
            raise UnreadableInput("--bench measures the machine, and takes no FILE")
        if output is not None and not bench:
            raise UnreadableInput("-o goes with --bench")
        if bench:
            _bench(output, as_json=as_json)
            raise typer.Exit(ExitCode.FINE)

        from lima2cli.doctor import as_plain
        from lima2cli.doctor.machine import examine

        if file is None:
            diagnosis = examine()
        else:
            from lima2cli.cli.border import Format
            from lima2cli.cli.reading import Changes, check_pipeline, show_all

            checked = check_pipeline(file, Changes.of(overrides, profiles))
            if checked.plan is None:
                text = show_all([checked], Format.JSON if as_json else Format.TEXT)
                print(text, end="", file=None if as_json else sys.stderr)
                raise typer.Exit(ExitCode.PROBLEMS)
            diagnosis = examine(checked.plan, Path(".") if file == "-" else Path(file).parent)
        text = json.dumps(as_plain(diagnosis), indent=2) + "\n" if as_json else _as_text(diagnosis, file)
        print(text, end="", flush=True)
        raise typer.Exit(ExitCode.FINE if diagnosis.fit else ExitCode.UNFIT)


def _bench(output: str | None, *, as_json: bool) -> None:
    """Measure, and print each line as soon as it is known."""
    from pathlib import Path

    from lima2cli.cli.border import check_output, write_output
    from lima2cli.doctor.bench import as_plain, measure

    if output is not None:
        check_output(output, ())
    found = []
    if not as_json:
        print(f"{'':16}{'limit':>10}{'lima2':>12}   share", flush=True)
    for one in measure(Path(".")):
        found.append(one)
        if not as_json:
            rates = f"{one.limit / 1e9:>5.2f} GB/s{one.ours / 1e9:>7.2f} GB/s"
            print(f"{one.name:16}{rates}  {one.ratio:6.2f}  {one.work}", flush=True)
    text = json.dumps(as_plain(found), indent=2) + "\n"
    if as_json:
        print(text, end="", flush=True)
    if output is not None:
        write_output(output, text, ())


def _as_text(found: "Diagnosis", file: str | None) -> str:
    parts = ["this machine", *_lines(found, "machine")]
    if file is not None:
        parts += ["", file, *_lines(found, "pipeline")]
    problems, warnings = found.count("problem"), found.count("warning")
    counts = ", ".join(
        f"{count} {word}{'s' * (count != 1)}" for count, word in ((problems, "problem"), (warnings, "warning")) if count
    )
    verdict = ("fit" if found.fit else "not fit") + (f" for {file}" if file is not None else "")
    return "\n".join([*parts, "", f"{verdict}: {counts}" if counts else verdict]) + "\n"


def _lines(found: "Diagnosis", part: str) -> list[str]:
    checks = [check for check in found.checks if check.part == part]
    width = max((len(check.name) for check in checks), default=0)
    return [line for check in checks for line in _line(check, width)]


def _line(check: "Check", width: int) -> list[str]:
    line = f"  {check.status:<7}  {check.name:<{width}}  {check.message}"
    return [line] if check.help is None else [line, f"{'':<{width + 13}}help: {check.help}"]
