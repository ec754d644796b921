"""``lima2 serve --conductor``: how parameters are mapped, and what is answered to plain requests."""

import dataclasses
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest

from tests.running import PATIENCE_S, lima2
from tests.web.conducting import BASE, conducting, counter_frames, request_of, roi
from tests.web.serving import Answered, Client, until

pytest.importorskip("tornado")

from lima2cli.web.conductor.acquisition import RECORD, records
from lima2cli.web.conductor.mapping import (
    Base,
    Defaults,
    Region,
    acquisition_schema,
    defaults,
    mapped,
    processing_schema,
)
from lima2cli.web.conductor.refusals import Refused, json_path

CORNER = {"x": 0, "y": 0}

PLAIN = Base("raw", "remu", False, Defaults(10, 1000, 0, ("internal", "software"), "internal", 1, "instrument", "remu"))


def values(asked: Any) -> dict[str, Any]:
    """The values that are set, by their keys."""
    pairs = [override.partition("=") for override in asked.overrides]
    return {key: json.loads(text) for key, _, text in pairs}


def test_times_frames_and_triggers_are_those_of_the_acquisition() -> None:
    acq = {
        "nb_frames": 7,
        "expo_time": 1500,
        "latency_time": 500,
        "trigger_mode": "software",
        "nb_frames_per_trigger": 2,
    }
    found = values(mapped(PLAIN, request_of(acq)))
    assert found["acquisition.frames"] == 7
    assert (found["acquisition.period"], found["acquisition.exposure"]) == ("2000 us", "1500 us")
    assert (found["acquisition.trigger"], found["acquisition.frames_per_trigger"]) == ("software", 2)
    of_rate = values(mapped(dataclasses.replace(PLAIN, rate=True), request_of(acq)))
    assert of_rate["acquisition.rate"] == 500
    assert "acquisition.period" not in of_rate


def test_the_processing_is_a_chain_of_nodes() -> None:
    image = {"enabled": True, "path": "a.h5::/x"}
    processing = {
        "background": image,
        "flatfield": image,
        "mask": image,
        "accumulation": {"enabled": True, "nb_frames": 4},
        "statistics": {"rect_rois": [roi(1, 2, 3, 4)], "arc_rois": [ARC]},
        "profiles": {"rois": [roi(0, 0, 5, 6), roi(1, 1, 7, 8)], "directions": ["vertical", "horizontal"]},
        "saving": {"compression": "zip", "nb_frames_per_file": 3, "filename_prefix": "x", "base_path": "/data/${A}{"},
    }
    asked = mapped(PLAIN, request_of({}, processing, {"sample": ARRAY}))
    found = values(asked)
    assert found["nodes.background"] == {"input": "raw", "background_sub": {"image": "a.h5::/x"}}
    assert found["nodes.flatfield"] == {"input": "background", "flatfield": {"image": "a.h5::/x"}}
    assert found["nodes.mask"] == {"input": "flatfield", "mask": {"image": "a.h5::/x"}}
    assert found["nodes.accumulated"] == {"input": "mask", "accumulate": {"frames": 4}}
    assert found["nodes.frame"] == {"input": "accumulated", "io_hdf5": {"compression": "gzip", "frames_per_file": 3}}
    arc = {"x": 5, "y": 6, "r1": 1, "r2": 2, "a1": 0, "a2": 90}
    rect = {"x": 1, "y": 2, "width": 3, "height": 4}
    assert found["nodes.roi_stats"]["roi_counters"] == {"rois": {"r0": {"rect": rect}, "r1": {"arc": arc}}}
    assert found["nodes.roi_profile_vertical"]["roi_profiles"]["direction"] == "vertical"
    assert [(one.roi, one.length) for one in asked.profiles] == [("p0", 6), ("p1", 7)]
    assert found["metadata.extra.masterfile_metadata"] == {"sample": [1, 2]}
    assert found["output.directory"] == "/data/$${{A}}{{/x", "neither a variable nor a field"
    assert (asked.processed, asked.counted, asked.plain) == ("accumulated", "frame", False)


def test_processed_frames_that_nothing_needs_are_computed_for_those_who_look_at_them() -> None:
    asked = mapped(PLAIN, request_of({}, {"saving": {"enabled": False}}))
    assert values(asked)["nodes.processed"] == {"input": "raw", "checkpoint": {}}
    assert (asked.counted, asked.saves) == ("processed", False)
    assert not any(key.startswith("output") for key in values(asked))


def test_parameters_without_effect_are_reported() -> None:
    asked = mapped(PLAIN, request_of({}, {"buffers": {"nb_frames_buffer": 7}}))
    assert asked.warnings == ("buffers.nb_frames_buffer has no effect: memory is that of the pipeline",)


@pytest.mark.parametrize(
    ("acq", "processing", "code", "path"),
    [
        ({"nb_frames": -1}, {}, 70, "$.acq.nb_frames"),
        ({"trigger_mode": "gate"}, {}, 70, "$.acq.trigger_mode"),
        ({"readout": 1}, {}, 70, "$.acq"),
        ({}, {"class_name": "LimaProcessingSmx"}, 70, "$.class_name"),
        ({}, {"statistics": {"rect_rois": [roi(0, 0, 2, 2), {"topleft": CORNER}]}}, 70, "$.statistics.rect_rois[1]"),
        ({}, {"profiles": {"rois": [roi(0, 0, 1, 1)]}}, 70, "$.profiles.directions"),
        ({}, {"mask": {"enabled": True}}, 70, "$.mask.path"),
        ({}, {"saving": {"nx_entry_name": "scan"}}, 70, "$.saving.nx_entry_name"),
        ({}, {"saving": {"file_exists_policy": "append"}}, 70, "$.saving.file_exists_policy"),
        ({}, {"saving": {"base_path": "/a:b"}}, 70, "$.saving.base_path"),
        ({}, {"saving": {"base_path": "/a", "filename_prefix": ".."}}, 70, "$.saving.filename_prefix"),
        ({}, {"max_countrate_protection": {"enabled": True}}, 80, None),
        ({}, {"statistics": {"rect_rois": [roi(0, 0, 1, 1)] * 3000}}, 80, None),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused(acq: Any, processing: Any, code: int, path: str | None) -> None:
    with pytest.raises(Refused) as caught:
        mapped(PLAIN, request_of(acq, processing))
    assert caught.value.code == code
    assert caught.value.payload.get("path") == path


def test_control_and_receivers_have_the_same_parameters() -> None:
    differing = request_of({}) | {"receiver": {"acq": {"nb_frames": 11}}}
    for request in (differing, {"control": {}}):
        with pytest.raises(Refused) as caught:
            mapped(PLAIN, request)
        assert caught.value.code == 80


def test_defaults_are_valid_and_complete() -> None:
    acq, processing = acquisition_schema(PLAIN.defaults), processing_schema(PLAIN.defaults)
    given = {"control": defaults(acq), "receiver": defaults(acq), "processing": defaults(processing)}
    assert mapped(PLAIN, given) == mapped(PLAIN, request_of({}))
    assert given["processing"]["saving"]["nx_detector_name"] == "remu"


def test_pointers_become_paths() -> None:
    assert json_path("/a/b/0/c") == "$.a.b[0].c"
    assert json_path("") == "$"


ARC = {"center": {"x": 5, "y": 6}, "r1": 1, "r2": 2, "a1": 0, "a2": 90}
ARRAY = {"type": "numpy.ndarray", "value": [1, 2], "dtype": "int64"}


def test_rows_of_lost_frames_are_nan_at_their_place() -> None:
    """So that row k belongs to frame k, whatever was lost; the records of a profile are vectors."""
    columns = {f"r0_{name}": np.array([1, 3], "u2") for name in RECORD.names or ()}
    made = records(columns, Region("roi_stats", "r0"), np.array([5, 7]), 4)
    assert np.array_equal(made["min"], [np.nan, 1, np.nan, 3], equal_nan=True)
    columns = {f"p0_{name}": np.array([[1.0, 2.0]]) for name in RECORD.names or ()}
    made = records(columns, Region("roi_profile", "p0", 2), np.array([1]), 0)
    assert np.array_equal(made["sum"], [[np.nan, np.nan], [1, 2]], equal_nan=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the server runs."""
    return tmp_path_factory.mktemp("conducted")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Client]:
    """A conductor."""
    with conducting(folder) as client:
        yield client


def get(server: Client, path: str) -> Any:
    """The answer to a request to read."""
    answer = server.ask("GET", path)
    assert answer.status == 200, answer.body
    return answer.json


def refused(answer: Answered) -> int:
    """The code of a refusal, whose body is complete."""
    assert answer.status == 400
    assert answer.json.keys() == {"code", "remote_type", "message", "payload", "trace"}
    return int(answer.json["code"])


def test_an_acquisition_by_plain_requests(server: Client, folder: Path) -> None:
    """Files are known before the start; rows come in order, with whole records in each chunk, and end with the run."""
    acq = {"nb_frames": 30, "expo_time": 8000, "latency_time": 2000}
    processing = {
        "statistics": {"rect_rois": [roi(3, 4, 20, 10)]},
        "saving": {"base_path": "data", "filename_prefix": "s1"},
    }
    request = request_of(acq, processing)
    assert refused(server.ask("POST", "/acquisition/start", {})) == 30
    prepared = server.ask("POST", "/acquisition/prepare", request)
    assert prepared.status == 202
    name = prepared.json
    assert get(server, "/state")["state"] == "PREPARED"
    again = server.ask("POST", "/acquisition/prepare", request)
    assert again.json == name, "a request that is sent again does nothing"
    path, dataset = get(server, "/pipeline/current/master_files")["frame"]
    assert Path(path).parent == folder / "data" / "s1"
    assert refused(server.ask("GET", "/pipeline/current/lookup/frame/0")) == 60
    records: list[bytes] = []
    reader = threading.Thread(
        target=lambda: records.extend(chunks(server, f"/pipeline/{name}/reduced_data/roi_stats/0"))
    )
    reader.start()
    assert server.ask("POST", "/acquisition/start", {}).json == {}
    assert get(server, "/acquisition/state") == {"name": "RUNNING", "value": 2}
    assert refused(server.ask("POST", "/acquisition/start", {})) == 30
    assert refused(server.ask("POST", "/acquisition/reset", {})) == 30
    assert refused(server.ask("POST", "/acquisition/prepare", request)) == 30
    until(lambda: not get(server, f"/pipeline/{name}/running"))
    reader.join(PATIENCE_S)
    frames = counter_frames(30)
    with h5py.File(path) as file:
        assert np.array_equal(file[dataset][()], frames)
    assert all(len(chunk) % RECORD.itemsize == 0 for chunk in records)
    found = np.frombuffer(b"".join(records), RECORD)
    part = frames[:, 4:14, 3:23].astype(np.float64)
    assert np.array_equal(found["sum"], part.sum((1, 2)))
    assert np.array_equal(found["min"], part.min((1, 2)))
    assert np.allclose(found["std"], part.std((1, 2)), rtol=1e-6)
    assert get(server, "/acquisition/result") == {"type": "success", "warnings": []}
    assert get(server, "/acquisition/nb_frames_acquired")["value"] == 30
    assert get(server, f"/pipeline/{name}/progress/frame") == 30
    assert name in get(server, "/pipeline/")
    assert refused(server.ask("POST", "/acquisition/prepare", request)) == 40, "the directory exists"
    assert get(server, "/state")["state"] == "IDLE"


def chunks(server: Client, path: str) -> Iterator[bytes]:
    """Yield the chunks of an answer as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["Transfer-Encoding"] == "chunked"
    while True:
        chunk = answer.read1(1 << 20)
        if not chunk:
            break
        yield chunk
    connection.close()


def test_an_armed_run_that_is_given_up_leaves_nothing(server: Client, folder: Path) -> None:
    saving = {"saving": {"base_path": "data", "filename_prefix": "given_up"}}
    for frames in (3, 4):  # the second in the same place
        assert server.ask("POST", "/acquisition/prepare", request_of({"nb_frames": frames}, saving)).status == 202
    assert (folder / "data" / "given_up").is_dir()
    assert server.ask("POST", "/acquisition/reset", {}).status == 202
    assert not (folder / "data" / "given_up").exists()
    assert refused(server.ask("GET", "/pipeline/current")) == 50
    assert get(server, "/acquisition/state") == {"name": "IDLE", "value": 1}


def test_the_end_of_the_server_ends_what_was_never_started(tmp_path: Path) -> None:
    with conducting(tmp_path, BASE.replace("rate: 100 Hz", "trigger: software, frames_per_trigger: 2")) as server:
        (default,) = {json.dumps(one) for one in get(server, "/acquisition/default_params").values()}
        assert json.loads(default)["acq"]["trigger_mode"] == "software"
        assert json.loads(default)["acq"]["nb_frames_per_trigger"] == 2
        assert server.ask("POST", "/acquisition/prepare", request_of({})).status == 202
        assert (tmp_path / "runs" / "det_0001").is_dir()
    assert not list((tmp_path / "runs").iterdir())


def test_mistakes_have_their_place_in_the_pipeline(server: Client) -> None:
    answer = server.ask(
        "POST", "/acquisition/prepare", request_of({}, {"statistics": {"rect_rois": [roi(60, 0, 9, 9)]}})
    )
    assert refused(answer) == 70
    assert answer.json["payload"]["path"] == "$.nodes.roi_stats.roi_counters.rois.r0.rect"
    assert "leaves the frames" in answer.json["message"]
    assert refused(server.ask("POST", "/acquisition/prepare", b"{")) == 80
    assert refused(server.ask("POST", "/acquisition/prepare", [])) == 80


def test_what_is_not_there(server: Client) -> None:
    assert server.ask("GET", "/nothing").status == 404
    assert server.ask("GET", "/acquisition/start").status == 405
    assert refused(server.ask("POST", "/detector/command", {"name": "x", "arg": None})) == 30
    assert refused(server.ask("GET", "/detector/attribute/x")) == 50
    assert refused(server.ask("GET", "/pipeline/class/LimaProcessingSmx")) == 50
    assert refused(server.ask("GET", "/pipeline/x/running")) == 50
    assert server.ask("POST", "/acquisition/trigger", {}).status == 202, "ignored where nothing runs"
    assert refused(server.ask("POST", "/acquisition/stop", {})) == 30


def test_only_programs_of_this_machine_are_answered(server: Client) -> None:
    """No token is asked for; pages of other sites, and names that lead here, are refused."""
    assert server.ask("GET", "/state").status == 200
    for headers in (
        {"Host": f"evil.example:{server.port}"},
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ):
        assert server.ask("GET", "/state", headers=headers).status == 403, headers
        assert server.ask("POST", "/acquisition/trigger", b"{}", headers=headers).status == 403, headers


def test_a_conductor_has_one_pipeline_and_no_token(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    for words in (
        ("--conductor",),
        ("--conductor", "base.yaml", "base.yaml"),
        ("--conductor", "base.yaml", "--token", "x" * 20),
        ("base.yaml", "--transport", "mpi"),
        ("base.yaml", "--token", "short"),
        ("--conductor", "none.yaml"),
    ):
        assert lima2("serve", *words, cwd=tmp_path).returncode == 2, words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("scene: {counter: {}}", "scene: {none: {}}"), "has mistakes"),
        (("nodes: {}", "nodes: {mask: {io_hdf5: {}, input: raw}}"), "nodes of clients have these names: mask"),
        (("{raw: {dtype: uint16}}", "{raw: {dtype: uint16}, b: {dtype: uint16}}"), "one data flow"),
        (("rate: 100 Hz", "repeat: 2"), "repeat"),
    ],
)
def test_a_base_that_cannot_be_one(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    from lima2cli.errors import UnreadableInput
    from lima2cli.web.conductor.system import BaseFile

    (tmp_path / "base.yaml").write_text(BASE.replace(*change))
    with pytest.raises(UnreadableInput, match=words):
        BaseFile(str(tmp_path / "base.yaml"))
