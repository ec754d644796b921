"""``lima2 test``: tests of pipelines in files ``*.test.yaml``."""

import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lima2cli.cli.border import Debug, ExitCode, border
from lima2cli.dataclass import dataclass
from lima2cli.errors import UnreadableInput
from lima2cli.units import counted_text, seconds_text

if TYPE_CHECKING:
    from lima2cli.check import Checked
    from lima2cli.suite import Outcome, Suite

SUFFIX = ".test.yaml"


def run_tests(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE | DIRECTORY]...", help=f"Files of tests, or folders with files `*{SUFFIX}`."),
    ] = None,
    select: Annotated[
        str | None, typer.Option("-k", metavar="TEXT", help="Only tests in whose name, after the file's, TEXT is.")
    ] = None,
    junit: Annotated[
        str | None, typer.Option("--junit", metavar="FILE", help="Write the results to this file, as JUnit XML.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Test pipelines with given frames.

    Each is run in this process, and what it saves is compared with what is expected.

    By default all files `*.test.yaml` below this folder. Runs are made in a temporary folder, which is removed. Exit
    code 0: all tests pass, 1: one fails, or a file of tests has mistakes, 2: there are no tests, or a file cannot be
    read.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.cli.border import check_output, write_output

        files = _files(paths or ["."])
        if junit is not None:
            check_output(junit, [str(Path(file).resolve()) for file in files])
        gc.enable()
        started = time.monotonic()
        results = list(_results(files, select))
        if not results:
            raise UnreadableInput(f"no test is selected by -k {select}")
        for result in results:
            print(result.details(), end="")
        print(_counts(results, time.monotonic() - started), flush=True)
        if junit is not None:
            inputs = {path for result in results for path in result.inputs}
            write_output(junit, _junit(results), [*inputs, *(str(Path(file).resolve()) for file in files)])
        raise typer.Exit(ExitCode.FINE if all(result.passed for result in results) else ExitCode.PROBLEMS)


def check_suite(file: str) -> "Checked":
    """Check a file of tests, without running them.

    Raises:
        UnreadableInput: it can't be read.
    """
    from lima2cli.check import Checked
    from lima2cli.cli.reading import read
    from lima2cli.suite import load_suite

    suite = load_suite(read(file), file, os.environ)
    return Checked(suite.source, suite.findings)


def _files(paths: Sequence[str]) -> list[str]:
    """Return the files of tests, each once, those of folders sorted.

    Raises:
        UnreadableInput: there are none.
    """
    found: dict[str, None] = {}
    for path in paths:
        if Path(path).is_dir():
            below = sorted(Path(path).rglob(f"*{SUFFIX}"))
            if not below:
                raise UnreadableInput(f"there is no file *{SUFFIX} in {path}")
            found |= dict.fromkeys(map(str, below))
        elif Path(path).exists():
            found[path] = None
        else:
            raise UnreadableInput(f"there is no file {path}")
    return list(found)


@dataclass(frozen=True)
class _Result:
    """A test, or a file that cannot be read as tests: then ``name`` is empty, and ``outcome`` None."""

    suite: "Suite"
    name: str
    outcome: "Outcome | None"

    @property
    def label(self) -> str:
        return f"{self.suite.file}::{self.name}" if self.name else self.suite.file

    @property
    def passed(self) -> bool:
        return self.outcome is not None and self.outcome.passed

    @property
    def seconds(self) -> float:
        return 0.0 if self.outcome is None else self.outcome.seconds

    @property
    def inputs(self) -> Sequence[str]:
        return () if self.outcome is None else self.outcome.inputs

    def messages(self) -> list[str]:
        """Return what is not as expected, a line each."""
        findings = self.suite.findings if self.outcome is None else self.outcome.findings
        return [item.message for item in findings]

    def text(self, *, color: bool = False) -> str:
        """Return what is not as expected, at its place; empty where all is."""
        from lima2cli.document.render import show_text
        from lima2cli.secret import hide

        findings = self.suite.findings if self.outcome is None else self.outcome.findings
        text = show_text(self.suite.source, findings, color)
        if self.outcome is not None and self.outcome.checked is not None:
            checked = self.outcome.checked
            text += "\n" + show_text(checked.source, checked.findings, color)
        return hide(text)

    def details(self) -> str:
        """Return the differences of a test that has failed, below its name."""
        if self.passed:
            return ""
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        return f"\n--- {self.label}\n\n{self.text(color=color)}"


def _results(files: Sequence[str], select: str | None) -> Iterator[_Result]:
    """Run all tests; each is printed as soon as it has ended."""
    from tempfile import TemporaryDirectory

    from lima2cli.cli.reading import read
    from lima2cli.suite import load_suite, run_case

    for file in files:
        suite = load_suite(read(file), file, os.environ)
        if suite.findings.failed:
            result = _Result(suite, "", None)
            print(f"{result.label}  MISTAKES", flush=True)
            yield result
            continue
        for name in suite.table.tests:
            if select is not None and select not in name:
                continue
            with TemporaryDirectory(prefix="lima2-test-") as folder:
                result = _Result(suite, name, run_case(suite, name, Path(folder), os.environ))
            word = "passed" if result.passed else "FAILED"
            print(f"{result.label}  {word}  {seconds_text(result.seconds)}", flush=True)
            yield result


def _counts(results: Sequence[_Result], seconds: float) -> str:
    passed = sum(result.passed for result in results)
    broken = sum(result.outcome is None for result in results)
    failed = len(results) - passed - broken
    counts = [f"{failed} failed"] * bool(failed) + [f"{counted_text(broken, 'file')} with mistakes"] * bool(broken)
    blank = "\n" if failed or broken else ""
    return f"{blank}{', '.join([*counts, f'{passed} passed'])} in {seconds_text(seconds)}"


def _junit(results: Sequence[_Result]) -> str:
    """Return the results as JUnit XML, a suite for each file."""
    from xml.sax.saxutils import quoteattr

    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<testsuites>"]
    for file in dict.fromkeys(result.suite.file for result in results):
        own = [result for result in results if result.suite.file == file]
        errors, failures = sum(one.outcome is None for one in own), sum(not one.passed for one in own)
        numbers = {"tests": len(own), "failures": failures - errors, "errors": errors, "skipped": 0}
        counted = " ".join(f'{key}="{value}"' for key, value in numbers.items())
        lines.append(f'  <testsuite name={quoteattr(file)} {counted} time="{sum(one.seconds for one in own):.3f}">')
        for one in own:
            name = f"classname={quoteattr(file)} name={quoteattr(one.name or 'file')}"
            case = f'    <testcase {name} time="{one.seconds:.3f}"'
            if one.passed:
                lines.append(f"{case}/>")
                continue
            tag = "error" if one.outcome is None else "failure"
            message = quoteattr(_xml("; ".join(one.messages())))
            lines += [f"{case}>", f"      <{tag} message={message}>{_escaped(one.text())}</{tag}>", "    </testcase>"]
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


def _escaped(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape(_xml(text))


def _xml(text: str) -> str:
    """Return a text without the characters that XML has not."""
    return "".join(char if char in "\t\n" or char >= " " else "\N{REPLACEMENT CHARACTER}" for char in text)
