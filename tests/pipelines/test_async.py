"""Runs that programs of asyncio drive: the same as others, and no thread waits for what nothing waits for any more."""

import asyncio
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import lima2cli as l2
from tests import ROOT
from tests.pipelines.test_armed import ARMED, ENDLESS, STEPS


def waiting() -> list[str]:
    """The places where threads of asynchronous runs wait."""
    frames = sys._current_frames()
    threads = [one for one in threading.enumerate() if one.name.startswith("lima2-run") and one.ident in frames]
    stacks = [traceback.extract_stack(frames[one.ident]) for one in threads if one.ident is not None]
    return [f"{each.filename}:{each.lineno}" for stack in stacks for each in stack if "lima2cli" in each.filename]


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def scan() -> None:
        async with await l2.run_async(STEPS, armed=True, transport="inline") as run:
            assert await run.state() == "armed"
            await run.start(directory="point")
            assert run.run.directory == tmp_path / "point"
            progress, seen = run.progress(), []
            looking = asyncio.ensure_future(_first(run.tap("save", count=1)))
            for point in range(6):
                await run.trigger()
                async for event in progress:
                    if event["rows"]["save"] >= 2 * point + 2:
                        break
                seen.append((await run.frame("save"))[:10, :10].sum())
                assert (await run.rows("roi", 2 * point))["all_sum"].tolist() == seen[-1:]
            summary = await run.wait(60)
            assert summary.channels["save"].saved == 12
            assert (await run.last("save")).number == 11
            kinds = [event["type"] async for event in run.follow()]
            assert {"start", "progress", "done"} <= {*kinds}
            looking.cancel()
        assert await run.state() == "complete"

    asyncio.run(asyncio.wait_for(scan(), 120))
    assert waiting() == []


async def _first(items: Any) -> Any:
    return await anext(items)


def test_acquisitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def several() -> None:
        async with await l2.run_async(ENDLESS, transport="inline") as run:
            done = [asyncio.ensure_future(run.completed(await run.acquire(frames))) for frames in (5, 7)]
            assert [(await one)["frames"] for one in done] == [5, 7]
            with pytest.raises(l2.StateError, match="there is no node"):
                await run.set("nothing", "x", 1)
        with pytest.raises(l2.RunFailed, match="has ended"):
            await run.completed(3)

    asyncio.run(asyncio.wait_for(several(), 120))


WAITS: dict[str, Callable[[l2.AsyncRun], Awaitable[Any]]] = {
    "wait": lambda run: run.wait(),
    "wait with a time": lambda run: run.wait(3600),
    "completed": lambda run: run.completed(1),
    "acquire": lambda run: _twice(run),
    "progress": lambda run: _all(run.progress()),
    "follow": lambda run: _all(run.follow()),
    "tap": lambda run: _all(run.tap("save")),
}


async def _twice(run: l2.AsyncRun) -> None:
    run.run._started = 7
    await run.acquire()


async def _all(items: Any) -> None:
    async for _ in items:
        pass


def test_no_thread_waits_on_after_a_cancellation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than asyncio has threads for, at the same time; requests are answered meanwhile, and the run goes on."""
    monkeypatch.chdir(tmp_path)

    async def cancelled() -> None:
        async with await l2.run_async(ARMED, transport="inline") as run:
            tasks = [asyncio.ensure_future(wait(run)) for wait in WAITS.values() for _ in range(3)]
            await until(lambda: len([place for place in waiting() if "asynchronous" not in place]) >= len(tasks))
            assert await run.state() == "armed"
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(one).__name__ for one in ended] == ["CancelledError"] * len(tasks)
            await until(lambda: not waiting())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(run.wait(), 0.05)
            await until(lambda: not waiting())
            await run.start()
            assert (await run.wait(60)).state == "complete"

    asyncio.run(asyncio.wait_for(cancelled(), 120))


def test_a_start_that_is_cancelled_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[Any] = []
    popen = subprocess.Popen

    def kept(*args: Any, **named: Any) -> Any:
        started.append(popen(*args, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", kept)

    async def cancelled() -> None:
        task = asyncio.ensure_future(l2.run_async(ARMED, transport="inline"))
        await until(lambda: started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not waiting())

    asyncio.run(asyncio.wait_for(cancelled(), 60))
    assert started[0].wait(60) != 0
    assert not any((path / "control.json").exists() for path in tmp_path.glob("runs/k_*"))


def test_mistakes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def mistakes() -> None:
        with pytest.raises(l2.PipelineInvalid, match="flowz"):
            await l2.run_async(ARMED.replace("flows:", "flowz:"))
        with pytest.raises(l2.UnreadableInput):
            await l2.run_async("nothing.yaml")

    asyncio.run(mistakes())


def test_the_program_of_the_manual(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/python.md").read_text()
    pipeline = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    program = next(
        text for text in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "await" in text
    )
    (tmp_path / "scan.py").write_text(program)
    (tmp_path / "k.yaml").write_text(pipeline)
    done = subprocess.run(
        [sys.executable, "scan.py"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["2 of 6", "4 of 6", "6 of 6", "complete"]
