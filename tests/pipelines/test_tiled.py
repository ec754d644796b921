"""Runs by bluesky as tiled serves them, while they go on and afterwards: what its client reads is what files hold."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.nodes.test_io_stream import free_port
from tests.pipelines.test_bluesky import PIPELINE
from tests.running import counter

pytest.importorskip("bluesky_tiled_plugins", reason="pip install 'tiled[server]' bluesky-tiled-plugins")

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri

from lima2cli.bluesky import Lima2Detector

pytestmark = pytest.mark.interchange

KEY = "secret"
PATIENCE_S = 120


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of tiled that reads this folder."""
    monkeypatch.chdir(tmp_path)
    program = shutil.which("tiled", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program is not None
    where = f"http://127.0.0.1:{(port := free_port())}"
    command = [program, "serve", "catalog", "--temp", "--api-key", KEY, "--read", str(tmp_path), "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE_S
        while not answers(where):
            ready = server.poll() is None and time.monotonic() < end
            assert ready, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        yield where
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def answers(where: str) -> bool:
    try:
        urllib.request.urlopen(f"{where}/api/v1/", timeout=5).close()
    except OSError:
        return False
    return True


# tiled prefers `stack`, which refuses a file that has more rows than were announced
@pytest.mark.filterwarnings("ignore:Consolidator for application/x-hdf5:DeprecationWarning")
def test_frames_and_sums(address: str, tmp_path: Path) -> None:
    """After each point there are the frames so far, though the master grows; tables are there at the end."""
    (tmp_path / "b.yaml").write_text(PIPELINE)
    client = from_uri(address, api_key=KEY)
    detector, uids, seen = Lima2Detector("b.yaml", name="det"), [], []

    def note(name: str, document: dict[str, Any]) -> None:
        if name == "start":
            uids.append(document["uid"])

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def points() -> Any:
        for _ in range(3):
            yield from bps.trigger_and_read([detector])
            seen.append(client[uids[0]]["primary"]["det"].read())

    engine = RunEngine()
    engine.subscribe(TiledWriter(client, batch_size=1))
    engine.subscribe(note)
    engine(points())
    seen.append(client[uids[0]]["primary"]["det"].read())
    shown = counter(np.arange(3, dtype=np.uint64), Rect(0, 0, 64, 48), 64)
    for frames, count in zip(seen, (1, 2, 3, 3), strict=True):
        assert frames.shape == (count, 48, 64)
        assert np.array_equal(frames, shown[:count])
    sums = client[uids[0]]["primary"]["det-roi-spot_sum"].read()
    assert np.array_equal(np.ravel(sums), shown[:, 10:30, 10:30].sum(axis=(1, 2)))
