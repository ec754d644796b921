"""Runs that people watch: `lima2 top`, the figures behind it, and the progress in a line."""

import json
from pathlib import Path
from typing import Any

import pytest

import lima2cli as l2
from lima2cli.cli.display import WINDOW_S, Window, progress_line
from lima2cli.cli.top import lines
from lima2cli.runs.control_socket import ask
from tests.running import PATIENCE_S, TRANSPORTS, Copy, lima2, needs_mpi, run

PIPELINE = """
lima2: 1
name: k
detector: {remu: {image: {width: 64, height: 48}, datasets: {raw: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 12, period: 1 ms, trigger: software, frames_per_trigger: 2}
receivers: {a: {memspaces: {m: {host: {size: 1 MiB}}}}, b: {memspaces: {m: {host: {size: 1 MiB}}}}}
flows: {data: {dataset: raw, buffers: {size: 512 KiB, at: [a.m, b.m]}}}
nodes:
  save: {io_hdf5: {}, input: data}
  roi: {roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 10, height: 10}}}}, input: data}
"""


def _rows(text: str) -> dict[str, list[str]]:
    """The cells of the rows of a table, by the first."""
    cells = [[cell for cell in line.split("  ") if cell.strip()] for line in text.splitlines() if line.strip()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_top_shows_is_so(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.yaml").write_text(PIPELINE)
    live = l2.run("k.yaml", transport=transport)
    progress = live.progress
    live.trigger(3)
    event = next(event for event in progress if min(event["rows"].values()) == 6)
    assert event["flows"] == {"data": {"received": 6, "lost": 0, "total": 12, "bytes": 6 * 64 * 48 * 2, "fill": 0.0}}
    assert "detail" not in live.status()

    answer = ask(live.directory, {"do": "status", "detail": True})
    receivers = answer["detail"]["receivers"]
    assert list(receivers) == ["a", "b"]
    for its in receivers.values():
        assert its["rss_bytes"] > 1 << 20
        assert 0 < its["busy_s"] < its["seconds"]
        assert its["cpu_s"] >= 0
        assert {tuple(kernel["nodes"]): kernel["frames"] for kernel in its["kernels"]}[("roi",)] == 3
    assert len({its["pid"] for its in receivers.values()}) == (2 if transport == "mpi" else 1)

    shown = lima2("top", "--once", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("k_0001: armed, waiting for trigger 4 of 6, ")
    rows = _rows(shown.stdout)
    assert rows["data"][:2] == ["6", "12"]
    assert rows["data"][4:6] == ["0", "0 %"]
    assert rows["roi"][3] == str(answer["saved"]["roi"]) == "6"
    assert rows["save"][3] == "6"
    assert [name for name in ("a", "b") if name in rows] == ["a", "b"]
    assert ("all ranks are in one process" in shown.stdout) == (transport == "inline")

    watching = Copy(["top", "--interval", "0.1"], tmp_path)
    assert watching.stdout.readline().startswith("k_0001: armed")
    live.trigger(3)
    assert live.wait(60).state == "complete"
    printed, _ = watching.communicate(timeout=PATIENCE_S)
    assert (watching.returncode, printed.splitlines()[-1]) == (0, "k_0001: complete")

    for words in (["top", "--once"], ["top"]):
        done = lima2(*words, cwd=tmp_path)
        assert done.returncode == 1
        assert "it has ended (complete)" in done.stdout + done.stderr
    assert lima2("top", "k_0002", cwd=tmp_path).returncode == 2


@pytest.mark.mpi
@needs_mpi
def test_the_fill_of_buffers_is_that_of_now(tmp_path: Path) -> None:
    """They fill up while a node is slow, and are empty at the end."""
    (tmp_path / "slow.py").write_text(
        "import time\n\n\ndef f(frames, numbers):\n    time.sleep(0.02 * len(frames))\n    return frames\n"
    )
    text = PIPELINE.replace(", trigger: software, frames_per_trigger: 2", "").replace("frames: 12", "frames: 60")
    text = text.replace("size: 512 KiB", "frames: 8") + '  slow: {python: {function: "slow.py:f"}, input: data}\n'
    ran = run(text, tmp_path, "mpi", "--progress", "json", name="k")
    assert ran.code == 0, ran.output
    events = [json.loads(line) for line in ran.output.splitlines() if line.startswith('{"type": "progress"')]
    fills = [event["flows"]["data"]["fill"] for event in events]
    assert max(fills) >= 0.5
    assert fills[-1] == 0
    assert events[-1]["flows"]["data"]["received"] == 60


def _event(seconds: float, saved: dict[str, int] | None = None, **flows: tuple[int, int, int | None]) -> dict[str, Any]:
    figures = {
        name: {"received": received, "lost": lost, "total": total, "bytes": received * 100_000, "fill": 0.123}
        for name, (received, lost, total) in flows.items()
    }
    return {"acquisition": 1, "seconds": seconds, "flows": figures, "saved": saved or {}}


LINES = [
    (
        _event(10.0, {"save": 4200}, data=(4200, 0, 10_000)), None, None,
        "    10 s  42 %  14 s left  data 4200, 420/s  42.0 MB/s  buffers 12 %  4200 saved",
    ),
    (
        _event(13.0, {"save": 4200, "roi": 7}, data=(5000, 300, 10_000)), _event(10.0, data=(4400, 0, 10_000)), None,
        "    13 s  53 %  16 s left  data 5000, 200/s  20.0 MB/s  300 lost  buffers 12 %  7 to 4200 saved",
    ),
    (_event(130.0, data=(12_345, 0, None)), None, None, "2 min 10 s  data 12 345, 95/s  9.5 MB/s  buffers 12 %"),
    (_event(5.0, data=(10, 0, 10)), _event(2.0, data=(10, 0, 10)), None,
     "     5 s  100 %  data 10, 0/s  0.0 MB/s  buffers 12 %"),
    (_event(5.0, data=(10, 0, 20)), _event(2.0, data=(10, 0, 20)), None,
     "     5 s  50 %  data 10, 0/s  0.0 MB/s  buffers 12 %"),
    (_event(0.0, data=(0, 0, 20)), None, None, "     0 s  0 %  data 0, 0/s  0.0 MB/s  buffers 12 %"),
    (
        _event(10.0, {"save": 10}, one=(10, 0, 20), two=(10, 0, 20), three=(19, 0, 20)), None, 70,
        "    10 s  50 %  10 s left  one 10, 1/s  + 2 flows  0.4 MB/s",
    ),
    (
        _event(10.0, {}, one=(10, 0, 20), two=(10, 0, 20), three=(19, 0, 20)), None, 80,
        "    10 s  50 %  10 s left  one 10, 1/s  + 2 flows  0.4 MB/s  buffers 12 %",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("now", "before", "width", "text"), LINES)
def test_progress_in_a_line(now: dict[str, Any], before: dict[str, Any] | None, width: int | None, text: str) -> None:
    assert progress_line(now, before, width) == text
    assert width is None or len(text) <= width


def test_rates_are_those_of_the_last_seconds() -> None:
    window = Window()
    events = [_event(tenth / 10, data=(tenth, 0, 1000)) for tenth in range(200)]
    before = [window.before(event) for event in events]
    assert before[0] is None
    assert before[1] is events[0]
    assert before[-1] is not None
    assert events[-1]["seconds"] - before[-1]["seconds"] == pytest.approx(WINDOW_S)
    assert window.before(_event(0.1, data=(1, 0, 1000)) | {"acquisition": 2}) is None


def test_the_rates_of_nodes() -> None:
    """Two receivers have frames of their own; where they hold parts these are the same frames."""

    def answer(seconds: float, frames: int) -> dict[str, Any]:
        kernels = [
            {"nodes": ["dark", "flat"], "frames": frames, "seconds": frames * 1e-3, "parts": False},
            {"nodes": ["whole"], "frames": frames, "seconds": frames * 3e-3, "parts": True},
        ]
        its = {"seconds": seconds, "busy_s": frames * 5e-3, "cpu_s": seconds / 2, "rss_bytes": 3 << 20, "pid": 7}
        flow = {"received": 2 * frames, "lost": 1, "total": 1000, "bytes": 2 * frames * 1000, "fill": 0.25}
        return {
            "acquisition": 2, "of": 3, "state": "running", "seconds": seconds, "saved": {"flat": 5},
            "detail": {
                "directory": "/data/runs/k_0002", "pid": 1, "flows": {"data": flow | {"latency_s": [1e-3, 2e-2]}},
                "receivers": {"a": its | {"kernels": kernels}, "b": its | {"kernels": kernels, "pid": 8}},
            },
        }  # fmt: skip

    assert "  a         50 %  25 %        3 MiB  no report for 2.5 s" in lines(answer(4.0, 200) | {"seconds": 6.5})
    shown = lines(answer(4.0, 200), answer(2.0, 100))
    assert shown[0] == "k_0002: running, acquisition 2 of 3, 4 s, 40 %, 6 s left"
    assert _rows("\n".join(shown)) == {
        shown[0]: [],
        "flow": ["received", "of", "frames/s", "data", "lost", "buffers", "p50", "p99"],
        "data": ["400", "1000", "100", "0.1 MB/s", "1", "25 %", "1 ms", "20 ms"],
        "nodes": ["frames/s", "per frame", "busy time", "saved"],
        "dark + flat": ["100", "1 ms", "20 %", "5"],
        "whole": ["50", "3 ms", "60 %", "-", "slowest"],
        "receiver": ["CPU", "busy", "peak memory"],
        "a": ["50 %", "25 %", "3 MiB"],
        "b": ["50 %", "25 %", "3 MiB"],
    }
