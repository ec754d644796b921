"""Process variables of a run, as the clients of p4p and pvaPy read them."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lima2cli as l2

pytest.importorskip("p4p", reason="pip install 'lima2cli[pva]'")
from p4p.client.thread import Context

from lima2cli.pva import Publisher, show_newest
from tests.running import lima2

pytestmark = pytest.mark.interchange

LOCAL = {"EPICS_PVA_ADDR_LIST": "127.0.0.1", "EPICS_PVA_AUTO_ADDR_LIST": "NO"}

PIPELINE = """
lima2: 1
name: p
detector: {{remu: {{image: {{width: 64, height: 48}}, scene: {{counter: {{}}}}}}}}
acquisition: {{rate: 50 Hz, frames: {frames}}}
nodes:
  bright: {{input: data, expression: {{expr: data * 0.5}}}}
  roi: {{input: bright, roi_counters: {{rois: {{a: {{rect: {{x: 0, y: 0, width: 8, height: 8}}}}}}}}}}
  columns: {{input: data, roi_profiles: {{rois: {{b: {{x: 0, y: 0, width: 16, height: 4}}}}}}}}
  save: {{input: data, io_hdf5: {{}}}}
{more}
"""

SEES = """
import json, sys, time
import pvaccess
from pvapy.utility.adImageUtility import AdImageUtility

seen = []

def took(value):
    number, image, *_ = AdImageUtility.reshapeNtNdArray(value)
    seen.append([int(number), [int(n) for n in image.shape], str(image.dtype), int(image.sum(dtype="u8"))])

channel = pvaccess.Channel(sys.argv[1])
channel.subscribe("mine", took)
channel.startMonitor("field()")
print("ready", flush=True)
end = time.monotonic() + 60
while len(seen) < int(sys.argv[2]) and time.monotonic() < end:
    time.sleep(0.05)
channel.stopMonitor()
channel.unsubscribe("mine")
print(json.dumps(seen), flush=True)
"""


@contextmanager
def client() -> Iterator[Any]:
    with Context("pva", conf=LOCAL, useenv=False) as context:
        yield context


@contextmanager
def publisher(run: l2.Run) -> Iterator[Publisher]:
    """A publisher that shows one run after another from now on."""
    until = threading.Event()
    made = Publisher(f"T{os.getpid()}")
    showing = threading.Thread(target=show_newest, args=(made, lambda: run, until))
    showing.start()
    try:
        yield made
    finally:
        until.set()
        run.stop()
        showing.join(30)
        made.close()


def get(context: Any, name: str, timeout: float = 20.0) -> Any:
    """The value of a variable, which may come to be only now."""
    return context.get(f"T{os.getpid()}:{name}", timeout=timeout)


def wait_for(seen: Callable[[], bool], timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.05)


def pixels_of(run: l2.Run, number: int) -> Any:
    return run.frame("save", number)


def test_a_run_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of flows and nodes, saved or not, counters, profiles, counts and the state."""
    monkeypatch.chdir(tmp_path)
    run = l2.run(PIPELINE.format(frames=0, more=""), transport="inline")
    with publisher(l2.open(run.directory)), client() as context:
        raw, bright = get(context, "data:image"), get(context, "bright:image")
        assert get(context, "state") == "running"
        assert get(context, "directory") == str(run.directory)
        wait_for(lambda: get(context, "data:received") > 0)  # counts come after images
        assert get(context, "roi:a_sum").raw.value >= 0
        assert get(context, "columns:b_sum").shape == (16,)
        run.stop()
        run.wait(60)
        wait_for(lambda: get(context, "state") == "stopped")
        assert int(get(context, "data:received")) == run.wait(60).flows["data"].received
        assert float(get(context, "roi:a_sum")) == run.counters["roi"]["a_sum"][-1]
    assert (raw.dtype, raw.shape) == (np.uint16, (48, 64))
    assert np.array_equal(raw, pixels_of(run, raw.raw.uniqueId))
    assert np.array_equal(bright, pixels_of(run, bright.raw.uniqueId) * np.float32(0.5))
    stamp = raw.raw.dataTimeStamp
    assert abs(stamp.secondsPastEpoch - time.time()) < 600
    assert {item.name: item.value for item in raw.raw.attribute} == {"ColorMode": 0}


def test_pvapy_gets_all_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 50 Hz each of 200 frames that follow each other, decoded by pvaPy."""
    pytest.importorskip("pvaccess")
    monkeypatch.chdir(tmp_path)
    run = l2.run(PIPELINE.format(frames=0, more=""), transport="inline")
    with publisher(l2.open(run.directory)):
        done = subprocess.run(
            [sys.executable, "-c", SEES, f"T{os.getpid()}:data:image", "200"],
            env=os.environ | LOCAL, capture_output=True, text=True, timeout=90, check=True,
        )  # fmt: skip
        run.stop()
        run.wait(60)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) >= 200
    for number, shape, dtype, total in seen[:: len(seen) // 10]:
        assert (shape, dtype) == ([48, 64], "uint16")
        assert total == pixels_of(run, number).sum(dtype="u8")
    numbers = [number for number, *_ in seen]
    assert numbers == sorted(set(numbers))


def test_pipelines_that_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run brings its variables itself, in a process that ends with it."""
    monkeypatch.chdir(tmp_path)
    run = l2.run(PIPELINE.format(frames=0, more=f"output: {{pva: 'T{os.getpid()}'}}"), transport="inline")
    with client() as context:
        assert get(context, "data:image", 40).shape == (48, 64)
        run.stop()
        assert run.wait(60).state == "stopped"
        with pytest.raises(TimeoutError):
            get(context, "data:image", 1)


@pytest.mark.parametrize("prefix", ["", "a b", "x" * 61, "é"])
def test_prefixes(prefix: str, tmp_path: Path) -> None:
    done = lima2("view", "--no-browser", "--pva", prefix, cwd=tmp_path)
    assert done.returncode == 2
    assert "letters, digits" in done.stderr
