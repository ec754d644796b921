"""Tests of pipelines, written as YAML: each is checked and run in this process, and compared with what is expected.

Mistakes in a file of tests, and expectations that are not met, are findings at their place in that file.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lima2cli.check import Checked, check_text
from lima2cli.dataclass import dataclass
from lima2cli.declare import Table
from lima2cli.declare.reading import Reading
from lima2cli.diagnostics import POISON, Diagnostic, Findings, KeyPath, attempt
from lima2cli.document import Document, Edit, Profile, Source, YamlNode, load, without_repeats
from lima2cli.document.render import pointer
from lima2cli.errors import EnvironmentUnfit, ExitCode, FileProblem, RunFailed
from lima2cli.frames import DetectorInfo
from lima2cli.inputs.stacks import FileStore
from lima2cli.job.run import run_plan
from lima2cli.language.records import FileMemspace
from lima2cli.language.resolved import as_written
from lima2cli.plan.ir import Plan
from lima2cli.runs.saved_plan import Origin
from lima2cli.simulate.simulation import emulator
from lima2cli.suite.comparison import FAILED, Comparison, unmet
from lima2cli.suite.records import DiagnosticCheck, Sketch, TestCase, TestTable

SHAPE = Table(TestTable)
"""Shape of a file of tests."""

SCHEMA_ID = "urn:lima2:schemas:test-1"

SOURCES = ("scene", "recorded", "frames")
"""Keys of a test that say what the detector sees; at most one of them."""

BY_SIGNAL = 128


@dataclass(frozen=True)
class Suite:
    """A file of tests. ``table`` is `POISON` where ``findings`` has errors; ``source`` shows them."""

    file: str
    source: Source
    findings: Findings
    table: TestTable

    @property
    def base(self) -> Path:
        """Return the folder that files of the tests are relative to."""
        return Path(self.file).parent


@dataclass(frozen=True)
class Outcome:
    """The result of a test, which has passed where ``findings``, shown in the file of tests, has no errors.

    checked  the pipeline where it has mistakes that are not expected
    """

    findings: Findings
    seconds: float
    checked: Checked | None = None
    inputs: Sequence[str] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Return True if all is as expected."""
        return not self.findings.failed


def load_suite(text: str, file: str, environment: Mapping[str, str]) -> Suite:
    """Read a file of tests; every mistake is in its findings."""
    findings = Findings()
    document = load(text, file, findings, environment=environment)
    if document is None:
        return Suite(file, Source(file, text), findings, POISON)
    table = SHAPE.read(document.data, (), Reading(findings, set(document.bad), whole="the file of tests"))
    attempt(lambda: _check(table, findings))
    left = without_repeats(document, findings)
    return Suite(file, document, left, POISON if left.failed else table)


def _check(table: TestTable, findings: Findings) -> None:
    for name, case in table.tests.items():
        at: KeyPath = ("tests", name)
        if case is POISON:
            continue
        if case.pipeline is None and table.pipeline is None:
            message, help = f"`{name}` has no pipeline to test", "add `pipeline: FILE`, here or for the whole file"
            findings.error("missing-key", message, at, on_key=True, help=help)
        given = [key for key in SOURCES if getattr(case, key) is not None]
        if len(given) > 1:
            message = f"`{given[0]}` and `{given[1]}` exclude each other: both say what the detector sees"
            findings.error("test-source", message, (*at, given[1]), on_key=True)


def run_case(suite: Suite, name: str, folder: Path, environment: Mapping[str, str]) -> Outcome:
    """Run a test of a file without mistakes, with all its files in a new folder."""
    started, findings = time.monotonic(), Findings()
    case = _Case(suite, name, folder, environment, findings)
    try:
        case.run()
    except FileProblem as problem:
        findings.error(problem.rule, str(problem), case.at, on_key=True, help=problem.help)
    return Outcome(findings, time.monotonic() - started, case.mistaken, case.inputs)


class _Case:
    """A test at work. ``mistaken``: the pipeline, where it has mistakes that are not expected."""

    def __init__(
        self, suite: Suite, name: str, folder: Path, environment: Mapping[str, str], findings: Findings
    ) -> None:
        assert isinstance(suite.source, Document)
        self.at: KeyPath = ("tests", name)
        self.mistaken: Checked | None = None
        self.inputs: list[str] = []
        self._suite, self._folder, self._environment, self._findings = suite, folder, environment, findings
        self._document, self._case = suite.source, suite.table.tests[name]
        self._cores = len(os.sched_getaffinity(0))

    def run(self) -> None:
        """Check the pipeline, run it, and report all that is not as expected."""
        own = self._case.pipeline is not None
        place: KeyPath = (*self.at, "pipeline") if own else ("pipeline",)
        file = os.path.normpath(self._suite.base / str(self._case.pipeline or self._suite.table.pipeline))
        text = self._read(file, place)
        profiles = self._profiles()
        if text is None or self._findings.failed:
            return
        edits = list(self._sets())
        if (source := next((key for key in SOURCES if getattr(self._case, key) is not None), None)) is not None:
            edits = [*self._frames(), *edits]
            seen = self._checked(text, file, profiles, edits)
            detector = attempt(lambda: self._seen(seen, source))
            edits += [] if detector is POISON else [detector]
        if self._findings.failed:
            return
        directory = str(self._folder.resolve()).replace("{", "{{").replace("}", "}}")
        edits.append(self._edit(("output", "directory"), f"{directory}/runs/{{run}}", self.at))
        checked = self._checked(text, file, profiles, edits)
        if checked.plan is not None and (moved := list(self._mapped(checked))):
            checked = self._checked(text, file, profiles, [*edits, *moved])
        self._diagnose(checked)
        if checked.plan is None or self._findings.failed or self._endless(checked.plan):
            return
        self._run(checked, replace(checked.plan, on_request=False, repeat=1), file)

    def _checked(self, text: str, file: str, profiles: Sequence[Profile], edits: Sequence[Edit]) -> Checked:
        return check_text(
            text, file, Path(file).parent, cores=self._cores, environment=self._environment, profiles=profiles,
            edits=edits,
        )  # fmt: skip

    def _read(self, file: str, at: KeyPath) -> str | None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._findings.error("file-unreadable", f"cannot read {file}: {reason}", at)
            return None
        self.inputs.append(str(Path(file).resolve()))
        return text

    def _profiles(self) -> list[Profile]:
        named = self._case.profile
        files = [named] if isinstance(named, str) else list(named)
        profiles = []
        for number, name in enumerate(files):
            at: KeyPath = (*self.at, "profile") if isinstance(named, str) else (*self.at, "profile", number)
            file = os.path.normpath(self._suite.base / name)
            if (text := self._read(file, at)) is not None:
                profiles.append(Profile(file, text))
        return profiles

    def _edit(self, steps: tuple[str, ...], content: Any, at: KeyPath) -> Edit:
        """Return a change whose value is plain data, with the place of something in the file of tests."""
        place = self._document.place(at, on_key=True)
        return Edit(steps, YamlNode.of(content, place), place, self._document, at)

    def _sets(self) -> Iterator[Edit]:
        for key in self._case.set:
            at: KeyPath = (*self.at, "set", key)
            yield Edit(
                tuple(key.split(".")), self._document.node(at), self._document.place(at, True), self._document, at
            )

    def _mapped(self, checked: Checked) -> Iterator[Edit]:
        """Yield a place in the folder of the test for each memspace that is a file: those stay after a run."""
        assert checked.pipeline is not None
        for receiver, table in checked.pipeline.receivers.items():
            for name, memspace in table.memspaces.items():
                if isinstance(memspace, FileMemspace):
                    (memory := self._folder.resolve() / "memory").mkdir(exist_ok=True)
                    path = str(memory / f"{receiver}_{name}")
                    yield self._edit(("receivers", receiver, "memspaces", name, "file", "path"), path, self.at)

    def _frames(self) -> Iterator[Edit]:
        """Yield the number of frames that are written in the test."""
        if self._case.frames is not None:
            yield self._edit(("acquisition", "frames"), len(self._case.frames), (*self.at, "frames"))

    def _seen(self, seen: Checked, source: str) -> Edit:
        """Return the emulator in the place of the detector, with the scene of the test.

        Raises: Poisoned where the detector is wrong, which the check reports.
        """
        assert seen.pipeline is not None
        assert isinstance(seen.source, Document)
        sensor = seen.pipeline.detector.sensor
        at: KeyPath = (*self.at, source)
        place = self._document.place(at, on_key=True)
        remu = _remu_of(seen.source) or YamlNode.of(as_written(emulator(seen.pipeline.config, sensor, None)[0]), place)
        assert isinstance(remu.content, dict)
        kept = {key: value for key, value in remu.content.items() if key != "scenes"}
        kept["scene"] = self._scene(source, sensor, at)
        return Edit(("detector",), YamlNode.of({"remu": replace(remu, content=kept)}, place), place, self._document, at)

    def _scene(self, source: str, sensor: DetectorInfo, at: KeyPath) -> YamlNode:
        if source == "scene":
            return self._document.node(at)
        if source == "recorded":
            file, colons, inner = str(self._case.recorded).partition("::")
            reference = os.path.abspath(self._suite.base / file) + colons + inner
        else:
            reference = str(self._folder / "frames.npy")
            np.save(reference, literal(self._case.frames or (), (sensor.height, sensor.width), at))
        return YamlNode.of({"frames": {"file": reference}}, self._document.place(at, on_key=True))

    def _fail(self, message: str, at: KeyPath, notes: Sequence[str] = (), help: str | None = None) -> None:
        self._findings.error(FAILED, message, (*self.at, *at), notes=notes, help=help, on_key=not at)

    def _diagnose(self, checked: Checked) -> None:
        """Compare the findings of the check with those that are expected."""
        expect, left = self._case.expect, list(checked.findings)
        for number, wanted in enumerate(expect.diagnostics):
            found = [item for item in left if _is(wanted, item, checked.source)]
            left = [item for item in left if item not in found]
            if not found:
                where = "" if wanted.at is None else f" at {wanted.at}"
                reported = [f"{item.rule} at {pointer(checked.source, item) or '/'}" for item in checked.findings]
                notes = [f"reported: {'; '.join(reported)}"] if reported else ["nothing is reported"]
                self._fail(
                    f"expected that `{wanted.rule}` is reported{where}", ("expect", "diagnostics", number), notes
                )
        unexpected = [item for item in left if item.severity == "error"]
        if unexpected:
            rules = ", ".join(dict.fromkeys(item.rule for item in unexpected))
            self._fail(f"the pipeline has mistakes that are not expected: {rules}", ())
            self.mistaken = replace(checked, findings=Findings(unexpected))
        elif checked.plan is None:
            for key in unmet(expect):
                self._fail("nothing is run, since the pipeline has the mistakes that are expected", ("expect", key))
            if expect.exit not in (None, ExitCode.PROBLEMS):
                self._fail(f"expected exit code {expect.exit}, got {ExitCode.PROBLEMS:d}", ("expect", "exit"))

    def _endless(self, plan: Plan) -> bool:
        """Return True, after reporting it, if a run would wait for something outside of it."""
        if plan.frames is None:
            message, help = "the run of this test has no end", "`set: {acquisition.frames: 10}`"
        elif plan.acquisition.trigger == "software":
            message, help = "the run of this test waits for triggers", "`set: {acquisition.trigger: internal}`"
        else:
            return False
        self._findings.error("test-endless", message, self.at, on_key=True, help=help)
        return True

    def _run(self, checked: Checked, plan: Plan, file: str) -> None:
        said: list[str] = []

        def emit(event: dict[str, Any]) -> None:
            if event["type"] == "error":
                said.append(str(event["message"]))

        origin = Origin(checked.source.text, file, Path(file).parent, cores=self._cores)
        summary, directory, state = None, Path(), None
        try:
            directory, summary, code = run_plan(plan, origin, emit, transport="inline", latest=False)
            state = summary.state
            said[:0] = [*([summary.reason] if summary.reason else []), *summary.losses]
        except (EnvironmentUnfit, RunFailed) as error:
            code = ExitCode.UNFIT if isinstance(error, EnvironmentUnfit) else ExitCode.FAILED
            said.append(str(error))
        if code > BY_SIGNAL:
            raise KeyboardInterrupt
        expect = self._case.expect
        notes = list(dict.fromkeys(said))[:5]
        if (wanted := expect.exit if expect.exit is not None or expect.state else 0) not in (None, code):
            at: KeyPath = () if expect.exit is None else ("expect", "exit")
            self._fail(f"expected exit code {wanted}, got {code:d}", at, notes)
        if expect.state not in (None, state):
            self._fail(f"expected that the run is {expect.state}, and it is {state or 'not started'}",
                       ("expect", "state"), notes)  # fmt: skip
        if expect.message is not None and not any(expect.message in one for one in said):
            self._fail(f"expected the message `{expect.message}`", ("expect", "message"), notes or ["it said nothing"])
        if summary is not None:
            at = (*self.at, "expect")
            with FileStore(self._suite.base) as files:
                Comparison(expect, at, directory, summary, plan.name, files, self._findings).compare()
        elif not self._findings.failed:
            for key in unmet(expect):
                self._fail("nothing is run on this machine", ("expect", key), notes)


def _remu_of(document: Document) -> YamlNode | None:
    """Return the parameters of the emulator, where that is the detector."""
    detector = document.root.child("detector")
    return None if detector is None else detector.child("remu")


def _is(wanted: DiagnosticCheck, item: Diagnostic, source: Source) -> bool:
    return item.rule == wanted.rule and wanted.at in (None, pointer(source, item))


def literal(frames: Sequence[Any], shape: tuple[int, int], at: KeyPath) -> "np.ndarray[Any, Any]":
    """Return frames that are written in a test, (n, height, width), of the smallest dtype that holds their values.

    Raises:
        FileProblem: one is not of the detector's ``shape``.
    """
    made = []
    for number, frame in enumerate(frames):
        if isinstance(frame, Sketch):
            pixels = np.full(shape, frame.fill)
            for spot in frame.pixels:
                if spot.x >= shape[1] or spot.y >= shape[0]:
                    where = f"({spot.x}, {spot.y})"
                    raise FileProblem(
                        f"frame {number}: there is no pixel {where} in {shape[1]} x {shape[0]}", "test-frames"
                    )
                pixels = pixels.astype(np.result_type(pixels, np.min_scalar_type(spot.value)))
                pixels[spot.y, spot.x] = spot.value
        elif isinstance(frame, tuple):
            if {len(row) for row in frame} != {shape[1]} or len(frame) != shape[0]:
                wide = max(map(len, frame))
                message = f"frame {number} has {wide} x {len(frame)} pixels, and the detector {shape[1]} x {shape[0]}"
                raise FileProblem(message, "test-frames")
            pixels = np.array(frame)
        else:
            pixels = np.full(shape, frame)
        made.append(pixels)
    stack = np.stack(made)
    if stack.dtype.kind in "iu":
        stack = stack.astype(np.result_type(np.min_scalar_type(stack.min()), np.min_scalar_type(stack.max())))
    return stack.astype("f4") if stack.dtype.kind == "f" and _is_single(stack) else stack


def _is_single(values: "np.ndarray[Any, Any]") -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype("f4").astype("f8"), values, equal_nan=True))


def suite_schema() -> str:
    """Return the JSON Schema (draft 2020-12) of files of tests, as it is published."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "lima2 tests of pipelines, version 1",
    }
    return json.dumps(head | SHAPE.schema(), indent=1, ensure_ascii=False) + "\n"


__all__ = ["Outcome", "Suite", "TestCase", "TestTable", "load_suite", "run_case", "suite_schema"]
