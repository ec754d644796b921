"""The calls of librashpa: as a listing in C, and made by the detector `rashpa` on a library that records them."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lima2cli.detectors.base import AcqParams, State, XferParams
from lima2cli.detectors.capability_record import write_record
from lima2cli.detectors.librashpa import load
from lima2cli.detectors.rashpa import Rashpa
from lima2cli.doctor import Bandwidths, machine
from lima2cli.errors import EnvironmentUnfit, FileProblem, NodeMisuse, RunFailed, StateError
from lima2cli.inputs.stacks import FileStore
from lima2cli.plan.rashpa_calls import c_listing, rashpa_calls
from tests.compiling import compiled, plan_of
from tests.golden import FOLDER, agrees
from tests.running import EXAMPLES, TRANSPORTS, lima2, run

MAZE = (EXAMPLES / "maze.yaml").read_text()

DECK = """
rashpaManagerCreateGDT(manager_pt, "FullDet1", "CTR1")
rashpaGDTSetSourceFullImage(GDT)
rashpaGDTSetAlignment(GDT, 256, 1, 0, 0)
rashpaGDTSetSourceSlices(GDT, 0, 12, 10)
rashpaGDTSetRules(GDT, 1, 0, RASHPA_CONCATENATE | RASHPA_CIRCULAR)
rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP)
rashpaManagerGetGDTBuffer(manager_pt, GDT, 16777216)
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "dataMSpace")
rashpaManagerCreateGDT(manager_pt, "FullDet2", "CTR2")
rashpaGDTSetSourceFullImage(GDT)
rashpaGDTSetAlignment(GDT, 256, 1, 0, 0)
rashpaGDTSetSourceSlices(GDT, 0, 22, 5)
rashpaGDTSetRules(GDT, 1, 0, RASHPA_CONCATENATE | RASHPA_CIRCULAR)
rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP)
rashpaManagerGetGDTBuffer(manager_pt, GDT, 16777216)
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "dataMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "dataMSpace")
rashpaManagerCreateGDT(manager_pt, "GhostRoom", "CTR1")
rashpaGDTSetSourceImage(GDT, 190, 125, 190, 78)
rashpaGDTSetAlignment(GDT, 1, 1, 0, 0)
rashpaGDTSetSourceSlices(GDT, 0, 22, 5)
rashpaGDTSetRules(GDT, 1, 0, RASHPA_CONCATENATE | RASHPA_CIRCULAR)
rashpaGDTSetEvents(GDT, 0, RASHPA_EV_ATEND)
rashpaManagerGetGDTBuffer(manager_pt, GDT, 10485760)
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "dataMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "dataMSpace")
rashpaManagerCreateGDT(manager_pt, "LeftCorridor", "CTR1")
rashpaGDTSetSourceImage(GDT, 35, 89, 204, 50)
rashpaGDTSetAlignment(GDT, 1, 1, 0, 0)
rashpaGDTSetSourceSlices(GDT, 0, 114, 1)
rashpaGDTSetRules(GDT, 4, 0, RASHPA_OVERWRITE | RASHPA_ONESHOT)
rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP | RASHPA_EV_ATEND)
rashpaManagerGetGDTBuffer(manager_pt, GDT, 10485760)
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "GPUMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "GPUMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver0_pt, "GPUMSpace")
rashpaBufferCreateLocalBufferInMemSpace(buffer, receiver1_pt, "GPUMSpace")
"""
"""The calls of the deck's four listings, with the buffer sizes of the example (the deck's 16 KiB hold no frame)."""


def calls_in(listing: str) -> list[str]:
    """The calls of a listing, with sizes in place of the variable."""
    sizes = iter(re.findall(r"lbuff_bytes = (.*);", listing))
    calls = re.findall(r"rashpa[A-Z]\w+\(.*?\)(?=;)", listing)
    return [re.sub("lbuff_bytes", lambda _: str(_product(next(sizes))), call) for call in calls]


def _product(text: str) -> int:
    return math.prod(map(int, re.findall(r"\d+", text)))


def test_the_listing_of_the_maze() -> None:
    listing = c_listing(plan_of(MAZE))
    agrees(FOLDER / "maze.c", re.sub(r"lima2 \d\S*", "lima2 VERSION", listing))
    assert calls_in(listing) == DECK.strip().splitlines()


def test_flows_without_end_and_names_that_are_no_identifiers() -> None:
    text = """
lima2: 1
detector: {remu: {image: {width: 8, height: 8}, datasets: {d: {dtype: uint8}}}}
receivers: {node-a: {memspaces: {host: {host: {}}}}}
flows: {f: {dataset: d, buffers: {size: 640 B}}}
nodes: {s: {input: f, checkpoint: {}}}
"""
    calls = calls_in(c_listing(plan_of(text)))
    assert "rashpaGDTSetSourceSlices(GDT, 0, 0, 1)" in calls
    assert 'rashpaBufferCreateLocalBufferInMemSpace(buffer, node_a_pt, "host")' in calls
    assert "rashpaManagerGetGDTBuffer(manager_pt, GDT, 640)" in calls
    assert "rashpaGDTSetEvents(GDT, 1, RASHPA_EV_GRP | RASHPA_EV_ATEND)" in calls


def describe(tmp_path: Path) -> str:
    """The maze of a real detector, whose record lies beside it."""
    remu = plan_of(MAZE)
    can = remu.detector.retrieve(remu.info)
    (tmp_path / "smartpix.json").write_text(json.dumps(write_record(remu.info, can) | {"name": "smartpix"}))
    before, _, rest = MAZE.partition("detector:")
    return f"{before}detector: {{rashpa: {{file: smartpix.json}}}}\nacquisition:{rest.partition('acquisition:')[2]}"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that records calls, made by the system's C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("library") / "librashpa.so"
    source = Path(__file__).with_name("librashpa.c")
    subprocess.run([compiler, "-Wall", "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    return str(made)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that calls are recorded in."""
    path = tmp_path / "calls.txt"
    monkeypatch.setenv("RASHPA_CALLS", str(path))
    return path


def said(path: Path) -> list[str]:
    """The recorded calls without those that find receivers."""
    return [line for line in path.read_text().splitlines() if "GetReceiver" not in line]


def test_the_detector_makes_the_calls_of_the_deck_in_order(tmp_path: Path, library: str, recorded: Path) -> None:
    plan = plan_of(describe(tmp_path), tmp_path)
    detector = Rashpa(file="smartpix.json", library=library).open(plan.info, FileStore(tmp_path))
    assert detector.status() is State.IDLE
    assert not recorded.exists()
    detector.prepare(AcqParams(114, 1e-3), XferParams((), rashpa_calls(plan)))
    assert detector.status() is State.PREPARED
    made = ['rashpaManagerCreate("smartpix")', *DECK.strip().splitlines()]
    assert said(recorded) == made
    found = [line for line in recorded.read_text().splitlines() if "GetReceiver" in line]
    assert found == [f'rashpaManagerGetReceiver(manager_pt, "receiver{n}")' for n in (0, 1)]
    detector.start(time.time_ns() - 10**9)
    assert detector.nb_acq_frames() == 114
    with pytest.raises(StateError, match="write them to memory by themselves"):
        detector.get_frames(0, 0, range(1))
    detector.stop()
    detector.reset()
    assert said(recorded) == [*made, *(f"rashpaManager{it}(manager_pt)" for it in ("Start", "Stop", "Destroy"))]


def test_operations_that_its_state_refuses(tmp_path: Path, library: str, recorded: Path) -> None:
    plan = plan_of(describe(tmp_path), tmp_path)
    detector = Rashpa(file="smartpix.json", library=library).open(plan.info, FileStore(tmp_path))
    for refused in (detector.stop, lambda: detector.start(0), detector.trigger):
        with pytest.raises(StateError):
            refused()
    acquisition, transfer = AcqParams(None, None), XferParams((), ())
    detector.prepare(acquisition, transfer)
    with pytest.raises(StateError, match="prepared"):
        detector.prepare(acquisition, transfer)
    detector.start(time.time_ns())
    detector.reset()  # of a running one: it is stopped first
    assert detector.status() is State.IDLE
    made = [line.partition("(")[0].removeprefix("rashpaManager") for line in said(recorded)]
    assert made == ["Create", "Start", "Stop", "Destroy"]


def test_a_library_that_refuses(tmp_path: Path, library: str, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RASHPA_REFUSES", "GhostRoom")
    plan = plan_of(describe(tmp_path), tmp_path)
    detector = Rashpa(file="smartpix.json", library=library).open(plan.info, FileStore(tmp_path))
    with pytest.raises(RunFailed, match=r"rashpaManagerCreateGDT returned no pointer \(GhostRoom, CTR1\)"):
        detector.prepare(AcqParams(114, 1e-3), XferParams((), rashpa_calls(plan)))
    assert detector.status() is State.FAULT
    detector.reset()
    assert said(recorded)[-2:] == ['rashpaManagerCreateGDT(manager_pt, "GhostRoom", "CTR1")',
                                   "rashpaManagerDestroy(manager_pt)"]  # fmt: skip


def test_a_library_of_another_kind_is_told() -> None:
    with pytest.raises(EnvironmentUnfit, match=r"libm\.so\.6 is not .* it has no rashpaBufferCreateLocal.*, rashpaMan"):
        load("libm.so.6")


def test_without_cffi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cffi", None)
    with pytest.raises(EnvironmentUnfit, match=r"pip install 'lima2cli\[rashpa\]'"):
        load("librashpa.so")


def test_without_the_library_it_validates_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "maze.yaml").write_text(describe(tmp_path))
    library = ("--set", "detector.rashpa.library=librashpa-of-nobody.so")
    assert lima2("validate", "maze.yaml", *library, cwd=tmp_path).returncode == 0
    planned = lima2("plan", "maze.yaml", *library, "--format", "c", cwd=tmp_path)
    assert (planned.returncode, calls_in(planned.stdout)) == (0, DECK.strip().splitlines())
    done = lima2("run", "maze.yaml", *library, cwd=tmp_path)
    assert done.returncode == 12
    assert "librashpa-of-nobody.so: cannot open shared object file" in done.stderr
    assert "LD_LIBRARY_PATH" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_ends_and_tells_what_is_missing(tmp_path: Path, library: str, recorded: Path, transport: str) -> None:
    options = ("--set", f"detector.rashpa.library={library}", "--set", "acquisition.timeout=300 ms")
    ran = run(describe(tmp_path), tmp_path, transport, *options)
    assert ran.code == 10, ran.output
    summary = ran.summary
    assert summary["state"] == "failed"
    assert "does not receive what a RASHPA detector writes" in summary["reason"]
    for flow, frames in {"FullDet1": 12, "FullDet2": 22, "GhostRoom": 22, "LeftCorridor": 114}.items():
        account = summary["flows"][flow]
        assert (account["expected"], account["missing"], account["received"]) == (frames, frames, 0)
    assert summary["flows"]["FullDet1"]["missing_frames"] == [[0, 110, 10]]
    made = [line.partition("(")[0] for line in said(recorded)]
    assert made.count("rashpaManagerCreate") == 1, "by one rank"
    assert made[-3:] == ["rashpaManagerStart", "rashpaManagerStop", "rashpaManagerDestroy"]


def test_the_doctor_says_that_no_frame_would_come(tmp_path: Path, library: str) -> None:
    text = describe(tmp_path)
    for name, words in ((library, "receives no frame"), ("none.so", "none.so: cannot open")):
        plan = plan_of(text.replace("file: smartpix.json", f"file: smartpix.json, library: {name}"), tmp_path)
        checks = machine.pipeline_checks(plan, tmp_path, Bandwidths(1e10, 1e10), shared=False)
        (found,) = [check for check in checks if check.name == "detector smartpix"]
        assert found.status == "problem"
        assert words in found.message


def test_a_run_whose_set_up_fails(
    tmp_path: Path, library: str, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RASHPA_REFUSES", "FullDet2")
    ran = run(describe(tmp_path), tmp_path, "inline", "--set", f"detector.rashpa.library={library}")
    assert ran.code == 10
    assert "rashpaManagerCreateGDT returned no pointer (FullDet2, CTR2)" in ran.summary["reason"]
    assert said(recorded)[-1] == "rashpaManagerDestroy(manager_pt)"


@pytest.mark.parametrize("flows", ["events: {group: 0, end: true}", "events: {group: 1}"])
def test_a_run_without_end_ends(tmp_path: Path, library: str, recorded: Path, flows: str) -> None:
    describe(tmp_path)
    text = f"""
lima2: 1
detector: {{rashpa: {{file: smartpix.json, library: {library}}}}}
acquisition: {{timeout: 200 ms}}
flows: {{f: {{dataset: CTR1, overrun: continue, buffers: {{frames: 4}}, {flows}}}}}
nodes: {{s: {{input: f, checkpoint: {{}}}}}}
"""
    ran = run(text, tmp_path, "inline")
    assert ran.code == 10, ran.output
    assert ran.summary["flows"]["f"]["expected"] == 0  # how many were taken is not known
    assert "rashpaManagerStop" in recorded.read_text()


def rejected(tmp_path: Path, data: Any) -> NodeMisuse | FileProblem:
    (tmp_path / "it.json").write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises((NodeMisuse, FileProblem)) as caught:
        Rashpa(file="it.json").describe(FileStore(tmp_path))
    return caught.value


def test_records_that_are_unfit_are_told_at_the_file(tmp_path: Path) -> None:
    assert "is not a capability record in JSON" in str(rejected(tmp_path, "{"))
    record = {"version": 1, "name": "x", "image": {"width": 8, "height": 8}, "datasets": {"d": {"dtype": "uint8"}}}
    wrong = rejected(tmp_path, record | {"datasets": {"d": {"dtype": "uint8", "bits": 9}}})
    assert isinstance(wrong, NodeMisuse)
    assert (wrong.rule, wrong.key) == ("dataset-bits", ("file",))
    assert "it.json" in wrong.message
    assert "/datasets/d/bits" in wrong.message
    assert "it.json" in str(rejected(tmp_path, record | {"imag": 1}))
    (tmp_path / "it.json").write_text(json.dumps(record | {"can_wait": True}))
    config = Rashpa(file="it.json", name="mine")
    info = config.describe(FileStore(tmp_path))
    assert (info.kind, info.name, info.can_wait, info.width) == ("rashpa", "mine", False, 8)
    assert config.retrieve(info).can_wait is False


def test_what_no_known_call_sets_is_refused(tmp_path: Path) -> None:
    text = describe(tmp_path)
    record = json.loads((tmp_path / "smartpix.json").read_text())
    record |= {"operations": ["binning"], "shutter": True, "triggers": ["software", "external"]}
    (tmp_path / "smartpix.json").write_text(json.dumps(record))
    asked = "acquisition:\n  binning: {x: 2, y: 2}\n  trigger: software\n  shutter: open\n"
    plan, findings = compiled(text.replace("acquisition:\n", asked), tmp_path)
    assert plan is None
    errors = {item.rule for item in findings if item.severity == "error"}
    assert errors == {"cannot-operate", "cannot-trigger", "cannot-shutter"}
    assert plan_of(text.replace("acquisition:\n", "acquisition:\n  trigger: external\n"), tmp_path)


def test_hardware_does_not_wait(tmp_path: Path) -> None:
    text = describe(tmp_path).replace("    dataset: CTR2\n", "    dataset: CTR2\n    overrun: wait\n")
    plan, findings = compiled(text, tmp_path)
    assert plan is None
    assert [item.rule for item in findings if item.severity == "error"] == ["cannot-wait"]
