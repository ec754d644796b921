"""``lima2 serve``: real runs by REST, and who is refused."""

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import lima2cli as l2
from tests.web.serving import ENDLESS, STEPS, Answered, Client, serving, until

pytest.importorskip("tornado")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the server runs."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Client]:
    """A server that knows two pipelines."""
    with serving(folder, "serve", "steps.yaml", "endless.yaml") as client:
        yield client


@pytest.fixture(scope="module")
def done(server: Client) -> str:
    """The name of a run that has ended: six triggers of two frames."""
    name = str(server.post("runs", {"text": STEPS, "transport": "inline"}).json["name"])
    server.post(f"runs/{name}/trigger", {"count": 6})
    assert list(server.events(name))[-1] == ("end", {"state": "complete", "reason": None})
    return name


def listen(server: Client, run: str) -> None:
    """Listen to the events of a run until the server ends, which cuts them off."""
    with suppress(http.client.IncompleteRead, OSError):
        for kind, _ in server.events(run):
            assert kind != "end"


def npy(answer: Answered) -> Any:
    """The array of an answer."""
    assert answer.status == 200, answer.body
    return np.load(io.BytesIO(answer.body), allow_pickle=False)


def test_a_run_is_started_triggered_watched_and_read(server: Client, folder: Path) -> None:
    """Rows come once each, as triggers are fired; the live frame of a node that nothing saves is the one computed."""
    begun = server.post("runs", {"pipeline": "steps", "armed": True, "transport": "inline"})
    assert (begun.status, begun.json["state"]) == (201, "armed")
    name = begun.json["name"]
    assert begun.headers["Location"] == f"/api/v1/runs/{name}"
    seen: list[tuple[str, dict[str, Any]]] = []
    listener = threading.Thread(target=lambda: seen.extend(server.events(name)))
    listener.start()
    refused = server.post(f"runs/{name}/trigger", {"count": 1})
    assert (refused.status, refused.headers["Content-Type"]) == (409, "application/problem+json")
    assert server.get(f"runs/{name}").json["status"]["detail"]["flows"]["raw"]["received"] == 0
    assert server.post(f"runs/{name}/start").json["state"] == "armed, waiting for trigger 1 of 6"
    sums: list[float] = []
    live = 0
    since = -1
    for point in range(3):
        taken: list[Answered] = []
        looker = threading.Thread(target=lambda t=taken: t.append(server.get(f"runs/{name}/frames/cut")))
        looker.start()
        time.sleep(0.3)
        assert server.post(f"runs/{name}/trigger", {"count": 2}).status == 200
        until(lambda p=point: server.get(f"runs/{name}").json["status"]["rows"]["roi"] == 4 * p + 4)
        rows = server.get(f"runs/{name}/counters/roi?since={since}").json
        assert rows["columns"]["frame_number"] == list(range(4 * point, 4 * point + 4))
        sums += rows["columns"]["spot_sum"]
        since = rows["since"]
        looker.join()
        if taken[0].status == 200:  # else the frames had passed before it looked
            live += 1
            raw = npy(server.get(f"runs/{name}/frames/save?number={taken[0].headers['Lima2-Frame-Number']}"))
            assert np.array_equal(npy(taken[0]), np.rot90(raw[4:36, 8:48], -1))
    listener.join()
    assert live
    assert [kind for kind, _ in seen][:1] == ["status"]
    assert {"start", "progress"} <= {kind for kind, _ in seen}
    assert seen[-1] == ("end", {"state": "complete", "reason": None})
    run = l2.open(folder / "runs" / name)
    assert np.array_equal(run.counters["roi"]["spot_sum"], sums)
    assert server.get(f"runs/{name}").json["summary"]["channels"]["save"]["saved"] == 12
    assert server.post(f"runs/{name}/stop").status == 409


def test_frames_are_those_of_the_files(server: Client, folder: Path, done: str) -> None:
    from PIL import Image

    with h5py.File(folder / "runs" / done / "steps_save_master.h5") as file:
        frames = file["entry_0000/measurement/data"][()]
    for number, row in ((0, 0), (7, 7), (-1, 11), (-3, 9)):
        answer = server.get(f"runs/{done}/frames/save?number={number}")
        assert np.array_equal(npy(answer), frames[row])
        assert answer.headers["Lima2-Frame-Number"] == str(row)
        assert int(answer.headers["Lima2-Time-Ns"]) > 1e18
    plain = server.get(f"runs/{done}/frames/save?number=3&as=json").json
    assert plain["pixels"] == frames[3].tolist()
    assert (plain["dtype"], plain["shape"], plain["frame_number"]) == ("uint16", [48, 64], 3)
    picture = Image.open(io.BytesIO(server.get(f"runs/{done}/frames/save?as=png").body))
    assert picture.size == (64, 48)
    for path in ("save?number=12", "save?number=-13", "nothing", "roi", "raw"):
        assert server.get(f"runs/{done}/frames/{path}").status == 404, path
    for query in ("number=x", "as=tiff"):
        assert server.get(f"runs/{done}/frames/save?{query}").status == 400


def test_counters_are_those_of_the_files(server: Client, folder: Path, done: str) -> None:
    columns = l2.open(folder / "runs" / done).counters
    for node in ("roi", "lines"):
        table = npy(server.get(f"runs/{done}/counters/{node}?as=npy"))
        assert set(table.dtype.names) == set(columns[node])
        for name, values in columns[node].items():
            assert table[name].dtype == values.dtype
            assert np.array_equal(table[name], values)
    later = server.get(f"runs/{done}/counters/roi?since=8").json
    assert (later["rows"], later["since"], later["columns"]["frame_number"]) == (3, 11, [9, 10, 11])
    assert server.get(f"runs/{done}/counters/roi?since=11").json["rows"] == 0
    assert server.get(f"runs/{done}/counters/save").status == 404
    assert server.get(f"runs/{done}/counters/roi?since=").status == 400


def test_pipelines_are_checked_and_planned(server: Client) -> None:
    assert [one["name"] for one in server.get("pipelines").json["pipelines"]] == ["steps", "endless"]
    assert server.post("validate", {"pipeline": "steps"}).json == {"version": 1, "diagnostics": []}
    yaml = {"Content-Type": "application/yaml"}
    wrong = STEPS.replace("io_hdf5", "io_hdf6").encode()
    (found,) = server.post("validate", wrong, **yaml).json["diagnostics"]
    assert (found["severity"], found["line"], found["path"]) == ("error", 6, "/nodes/save/io_hdf6")
    for path in ("plan", "runs"):
        refused = server.post(path, wrong, **yaml)
        assert (refused.status, refused.json["diagnostics"]) == (400, [found])
    plan = server.post("plan", {"text": STEPS, "set": ["acquisition.frames=6"]}).json
    assert (plan["frames"], list(plan["visible"])) == (6, ["raw", "save", "cut"])
    assert server.post("validate", b"steps.yaml", **yaml).json["diagnostics"]  # a text, not a file


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("validate", {"pipeline": "other"}, 404),
        ("validate", {"pipeline": "../steps"}, 404),
        ("validate", {}, 400),
        ("validate", {"pipeline": "steps", "text": STEPS}, 400),
        ("validate", {"pipeline": "steps", "strict": True}, 400),
        ("validate", ["steps"], 400),
        ("runs", {"pipeline": "steps", "transport": "rdma"}, 400),
        ("runs", {"pipeline": "steps", "armed": "yes"}, 400),
        ("runs/none/stop", None, 404),
        ("runs/none/start", None, 404),
        ("pipelines", {}, 405),
        ("nothing", {}, 404),
    ],
)
def test_wrong_requests_are_refused(path: str, body: Any, status: int, server: Client) -> None:
    refused = server.post(path, body)
    assert (refused.status, refused.json["status"]) == (status, status)
    assert refused.json["detail"]


def test_a_run_is_stopped_and_a_request_that_waits_holds_up_no_other(server: Client) -> None:
    name = server.post("runs", {"text": ENDLESS, "armed": True, "transport": "inline"}).json["name"]
    waiting = [threading.Thread(target=server.get, args=(f"runs/{name}/frames/raw",)) for _ in range(3)]
    for one in waiting:
        one.start()
    began = time.monotonic()
    assert server.get("runs").json["runs"][-1] == {"name": name, "state": "armed", "live": True, "frames": None}
    assert server.get("runs/latest").json["name"] == name
    assert time.monotonic() - began < 4, "it waited for frames that others wait for"
    server.post(f"runs/{name}/start")
    for one in waiting:
        one.join()
    numbers = [int(server.get(f"runs/{name}/frames/raw").headers["Lima2-Frame-Number"]) for _ in range(2)]
    assert numbers[0] < numbers[1]
    assert server.post(f"runs/{name}/stop").status == 202
    assert list(server.events(name))[-1][1]["state"] == "stopped"


def test_acquisitions_have_the_frames_that_are_asked_for(server: Client) -> None:
    text = ENDLESS.replace("{period: 20 ms}", "{frames: 50, period: 20 ms, start: request, repeat: 0}")
    name = server.post("runs", {"text": text, "transport": "inline"}).json["name"]
    assert server.post(f"runs/{name}/start", {"frames": 0}).status == 409
    assert server.post(f"runs/{name}/start", {"frames": "3"}).status == 400
    assert server.post(f"runs/{name}/start", {"frames": 3, "period": 0.02}).status == 200
    until(lambda: server.get(f"runs/{name}").json.get("summary") is not None)
    assert server.get(f"runs/{name}").json["summary"]["channels"]["save"]["saved"] == 3
    until(lambda: server.get("runs/latest").json["state"] == "armed")
    assert server.post("runs/latest/stop", {"now": True}).status == 202
    until(lambda: not any(run["live"] for run in server.get("runs").json["runs"]))


def test_a_parameter_is_changed(server: Client, folder: Path) -> None:
    name = server.post("runs", {"pipeline": "endless", "transport": "inline"}).json["name"]
    status = server.get(f"runs/{name}").json["status"]
    spot = {"x": 2, "y": 6, "width": 12, "height": 8}
    assert status["changeable"]["roi"] == {"rois": {"spot": spot}}
    assert set(status["changeable"]) == {"roi", "lines"}
    until(lambda: server.get(f"runs/{name}").json["status"]["rows"]["roi"] > 2)
    new = {"spot": spot | {"x": 9}}
    changed = server.post(f"runs/{name}/set", {"node": "roi", "parameter": "rois", "value": new})
    assert changed.status == 200
    frame = changed.json["frame"]
    assert server.get(f"runs/{name}").json["status"]["changeable"]["roi"] == {"rois": new}
    for body, status_, why in (
        ({"node": "roi", "parameter": "rois", "value": {"other": spot}}, 409, "would not be the same"),
        ({"node": "roi", "parameter": "coordinates", "value": "detector"}, 409, "rois can"),
        ({"node": "save", "parameter": "layout", "value": "common"}, 409, "none of its parameters can"),
        ({"node": "nothing", "parameter": "rois", "value": 1}, 409, "there is no node"),
        ({"node": "roi", "parameter": "rois"}, 400, "value"),
        ({"node": 3, "parameter": "rois", "value": 1}, 400, "node"),
    ):
        refused = server.post(f"runs/{name}/set", body)
        assert (refused.status, why in refused.json["detail"]) == (status_, True), refused.json
    until(lambda: server.get(f"runs/{name}").json["status"]["rows"]["roi"] > frame + 2)
    run = l2.open(folder / "runs" / name)
    sums = run.counters["roi"]["spot_sum"]
    for number, x in ((frame - 1, 2), (frame, 9)):
        cut = np.rot90(run.frame("save", number)[4:36, 8:48], -1)
        assert sums[number] == cut[6:14, x : x + 12].sum()
    run.leave()
    assert server.post(f"runs/{name}/stop").status == 202
    assert list(server.events(name))[-1][1]["state"] == "stopped"
    assert server.post(f"runs/{name}/set", {"node": "roi", "parameter": "rois", "value": new}).status == 409


def test_an_acquisition_goes_where_it_is_asked_for(server: Client, folder: Path) -> None:
    """Relative to the folder of the runs; it keeps its name, by which it goes on to be driven."""
    text = STEPS.replace("acquisition: {", "acquisition: {start: request, ")
    name = server.post("runs", {"text": text, "transport": "inline"}).json["name"]
    for directory, why in (
        ("../steps.yaml", "not a directory"),
        (str(folder / "runs" / name / "x"), "lies in the run"),
    ):
        refused = server.post(f"runs/{name}/start", {"directory": directory})
        assert (refused.status, why in refused.json["detail"]) == (409, True)
    begun = server.post(f"runs/{name}/start", {"directory": "mine/point"})
    assert (begun.status, begun.json["directory"]) == (200, str((folder / "runs/mine/point").resolve()))
    assert server.post(f"runs/{name}/trigger", {"count": 6}).status == 200
    assert list(server.events(name))[-1][1]["state"] == "complete"
    shown = server.get(f"runs/{name}").json
    assert (shown["name"], shown["directory"]) == (name, begun.json["directory"])
    assert npy(server.get(f"runs/{name}/frames/save")).shape == (48, 64)
    name = server.post("runs", {"text": text, "transport": "inline"}).json["name"]
    assert server.post(f"runs/{name}/start", {"directory": "beside"}).status == 200
    assert server.post(f"runs/{name}/stop").status == 202
    assert list(server.events(name))[-1][1]["state"] == "stopped"
    assert server.get(f"runs/{name}").json["name"] == "beside"
    assert [run["name"] for run in server.get("runs").json["runs"]][-1] == "beside"


def test_metrics_are_read_by_prometheus(server: Client, done: str) -> None:
    name = server.post("runs", {"text": ENDLESS, "transport": "inline"}).json["name"]
    samples: dict[str, dict[str, float]] = {}

    def scrape() -> float:
        answer = server.ask("GET", "/metrics", headers={"Authorization": f"Bearer {server.token}"})
        families = text_string_to_metric_families(answer.body.decode())
        samples.clear()
        for sample in (sample for family in families for sample in family.samples):
            labels = dict(sample.labels)
            if labels.pop("run") == name:
                samples.setdefault(sample.name, {})[",".join(labels.values())] = sample.value
        return samples["lima2_flow_received_frames_total"]["raw"] if samples.get("lima2_run_live") == {"": 1} else 0

    until(lambda: scrape() > 5)
    assert samples["lima2_flow_lost_frames_total"] == {"raw": 0}
    assert samples["lima2_flow_received_bytes_total"]["raw"] >= 6 * 64 * 48 * 2
    assert 0 <= samples["lima2_flow_fill_ratio"]["raw"] <= 1
    assert samples["lima2_flow_frames_per_second"]["raw"] > 1
    assert set(samples["lima2_node_saved_frames_total"]) == {"save", "roi", "lines"}
    assert set(samples["lima2_receiver_cpu_seconds_total"]) == {"receiver0"}
    server.post(f"runs/{name}/stop")
    assert list(server.events(name))[-1][1]["state"] == "stopped"
    scrape()
    assert samples["lima2_run_live"] == {"": 0}
    assert samples["lima2_flow_received_frames_total"]["raw"] == samples["lima2_node_saved_frames_total"]["save"]


def test_the_interface_is_described(server: Client) -> None:
    from openapi_spec_validator import validate

    described = server.get("openapi.json").json
    validate(described)
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            place = path.replace("{name}", "none").replace("{node}", "none")
            headers = {"Authorization": f"Bearer {server.token}"}
            status = server.ask(method.upper(), place, b"[]" if method == "post" else None, headers).status
            assert str(status) in operation["responses"], (method, path)
    names = [one["operationId"] for each in described["paths"].values() for one in each.values()]
    assert len(names) == len(set(names)) >= 14


LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
"""Headers where a user follows a link of another page."""


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "", 401),
        ({"Authorization": "Bearer wrong"}, "", 401),
        ({"Authorization": "Basic TOKEN"}, "", 401),
        ({}, "token=wrong", 401),
        ({}, "token=", 401),
        ({}, "token=TOKEN", 200),
        ({"Authorization": "Bearer TOKEN"}, "", 200),
        ({"Host": "evil.example:PORT"}, "token=TOKEN", 403),
        ({"Host": "127.0.0.1"}, "token=TOKEN", 403),
        ({"Host": "localhost:PORT"}, "token=TOKEN", 200),
        ({"Origin": "http://evil.example"}, "token=TOKEN", 403),
        ({"Origin": "null"}, "token=TOKEN", 403),
        ({"Origin": "http://127.0.0.1:1"}, "token=TOKEN", 403),
        ({"Origin": "http://127.0.0.1:PORT"}, "token=TOKEN", 200),
        ({"Sec-Fetch-Site": "cross-site"}, "token=TOKEN", 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, "token=TOKEN", 403),
        ({"Sec-Fetch-Site": "same-origin"}, "token=TOKEN", 200),
        (LINK | {"Sec-Fetch-Dest": "iframe"}, "token=TOKEN", 403),
        (LINK, "", 401),
        (LINK, "token=TOKEN", 200),
    ],
)  # fmt: skip
def test_who_is_answered(headers: dict[str, str], query: str, status: int, server: Client) -> None:
    def filled(text: str) -> str:
        return text.replace("TOKEN", server.token).replace("PORT", str(server.port))

    given = {name: filled(value) for name, value in headers.items()}
    answer = server.ask("GET", f"/api/v1/pipelines?{filled(query)}", headers=given)
    assert answer.status == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert status == 200 or b"steps" not in answer.body


@pytest.mark.parametrize("name", ["..", ".", "%2e%2e", "..%2f..%2fprivate", "%2fetc", "latest%00", "private", "~"])
def test_runs_outside_of_the_folder_are_not_there(name: str, server: Client, folder: Path) -> None:
    private = folder / "private"
    private.mkdir(exist_ok=True)
    (private / "plan.json").write_text("{}")
    (folder / "plan.json").write_text("{}")
    for path in (f"runs/{name}", f"runs/{name}/counters/roi", f"runs/{name}/frames/save"):
        assert server.get(path).status in (400, 404), path


def test_bodies_that_are_too_long_are_refused(server: Client) -> None:
    megabyte = b"#" * (1 << 20)
    assert server.post("validate", megabyte[:1000], **{"Content-Type": "application/yaml"}).status == 200

    def answer(body: Callable[[], Any]) -> int:
        """The answer to a body; the server closes when it has refused, maybe before all has been sent."""
        for _ in range(20):
            with suppress(BrokenPipeError, ConnectionResetError):
                return server.post("validate", body()).status
        raise AssertionError("no answer could be read")

    assert answer(lambda: 2 * megabyte) == 413
    assert answer(lambda: iter([megabyte, megabyte])) == 413
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as caller:
        head = f"POST /api/v1/validate?token={server.token} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        caller.sendall(head.encode() + b"Content-Length: 99999999999\r\n\r\n")
        assert b" 413 " in caller.makefile("rb").readline()
    assert server.get("pipelines").status == 200


def test_the_server_ends_and_its_runs_go_on(tmp_path: Path) -> None:
    with serving(tmp_path, "serve", "endless.yaml", "--token", "a token with spaces & more") as server:
        assert server.token == "a token with spaces & more"
        name = server.post("runs", {"pipeline": "endless", "transport": "inline"}).json["name"]
        listener = threading.Thread(target=listen, args=(server, name))
        listener.start()
    listener.join()
    run = l2.open(tmp_path / "runs" / name)
    assert run.live
    before = run.status()["flows"]["raw"][0]
    until(lambda: run.status()["flows"]["raw"][0] > before + 5)
    run.stop()
    assert run.wait(60).state == "stopped"
    assert json.loads((run.directory / "summary.json").read_text())["channels"]["save"]["lost"] == 0
