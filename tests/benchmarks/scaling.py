"""Growth of costs: of compiling with receivers, modules, flows, nodes; of a run with ranks and frames.

    python -m tests.benchmarks.scaling [compile | ranks | frames]...

CPU seconds, which other programs of the machine disturb less than the time that passes; least of three, or of one for
runs. `docs/explanation/scaling.md` has what was found.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lima2cli.check import check_text
from lima2cli.plan.ir import Plan
from lima2cli.runs.saved_plan import plan_contents

PIXELS = 16
"""Side of a module."""

DEFAULT = {"receivers": 4, "modules": 8, "flows": 4, "nodes": 16}

SIZES = {
    "receivers": (1, 2, 4, 8, 16, 32, 64),
    "modules": (1, 2, 4, 8, 16, 32, 64, 128),
    "flows": (1, 2, 4, 8, 16, 32, 50),
    "nodes": (8, 16, 32, 64, 128, 200),
}
"""Sizes of one thing, the rest being `DEFAULT`."""

FRAMES = (10**4, 10**5, 10**6)


def pipeline(receivers: int, modules: int, flows: int, nodes: int, frames: int = 1000, period: str = "1 ms") -> str:
    """A pipeline of that size: of each flow counters, a background, counters and files behind it, again and again."""
    columns = next(c for c in range(int(modules**0.5), 0, -1) if modules % c == 0)
    width, height = columns * PIXELS, modules // columns * PIXELS
    counters = "roi_counters: {rois: {a: {x: 0, y: 0, width: 4, height: 4}}}"
    lines = [
        "lima2: 1",
        "detector:",
        f"  remu: {{image: {{width: {width}, height: {height}}}, scene: {{counter: {{}}}},",
        f"    modules: {{columns: {columns}, rows: {modules // columns}, width: {PIXELS}, height: {PIXELS}}}}}",
        f"acquisition: {{frames: {frames}, period: {period}}}",
        "receivers:",
        *(f"  r{i}: {{}}" for i in range(receivers)),
        "flows:",
        *(f"  f{i}: {{dataset: data, source: {{x: {i % 8}, y: {i // 8}, width: 8, height: 8}}}}" for i in range(flows)),
        "nodes:",
    ]
    for i in range(nodes):
        turn, flow, before = i // flows % 4, f"f{i % flows}", i - i // flows % 4 * flows + flows
        kinds = (
            f"{{input: {flow}, {counters}}}",
            f"{{input: {flow}, background_sub: {{image: 3}}}}",
            f"{{input: n{before}, {counters}}}",
            f"{{input: n{before}, io_hdf5: {{}}}}",
        )
        lines.append(f"  n{i}: {kinds[turn]}")
    return "\n".join(lines) + "\n"


def compiled(text: str) -> Plan:
    checked = check_text(text, "scaling.yaml", Path(), cores=128, environment={})
    assert checked.plan is not None, [item.message for item in checked.findings]
    return checked.plan


def least(function: Callable[[], object]) -> float:
    """CPU seconds of a function of this process."""
    spent = []
    for _ in range(3):
        before = time.process_time()
        function()
        spent.append(time.process_time() - before)
    return min(spent)


def compiling() -> None:
    print(f"{'':12} {'':>4} {'compile':>9} {'plan.json':>10}")
    cases = [{**DEFAULT, name: size} for name, sizes in SIZES.items() for size in sizes]
    labels = [(name, size) for name, sizes in SIZES.items() for size in sizes]
    largest = {name: sizes[-1] for name, sizes in SIZES.items()}
    for (name, size), case in zip([*labels, ("all", 0)], [*cases, largest], strict=True):
        case["nodes"] = max(case["nodes"], case["flows"])
        text = pipeline(**case)
        spent, plan = least(lambda text=text: compiled(text)), compiled(text)  # type: ignore[misc]
        size_of = len(json.dumps(plan_contents(plan)))
        print(f"{name:12} {size or '':>4} {spent * 1e3:6.0f} ms {size_of >> 10:6d} KiB", flush=True)


def run(text: str, transport: str) -> tuple[float, float, dict[str, object]]:
    """Seconds, CPU seconds of all processes, and the summary of a run."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scaling.yaml").write_text(text)
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [sys.executable, "-m", "lima2cli", "run", "scaling.yaml", "--transport", transport]
        subprocess.run([*command, "--progress", "none"], cwd=folder, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        summary = json.loads((Path(folder) / "runs/latest/summary.json").read_text())
        return time.monotonic() - began, spent, summary


def ranks() -> None:
    """Ten frames to every receiver: it is the start and the end that cost."""
    print(f"{'receivers':>9} {'seconds':>8} {'CPU s':>7} {'CPU s a rank':>13}")
    for receivers in SIZES["receivers"]:
        seconds, spent, summary = run(pipeline(receivers, 1, 1, 4, frames=10 * receivers, period="20 ms"), "mpi")
        assert summary["state"] == "complete"
        print(f"{receivers:9} {seconds:8.1f} {spent:7.1f} {spent / (receivers + 2):13.2f}", flush=True)


def frames() -> None:
    """Frames of 8 x 8 pixels through one process, in groups of 64; then what comes after the last of them."""
    print(f"{'frames':>9} {'seconds':>8} {'after the last':>15} {'us a frame':>11}")
    for count in FRAMES:
        text = pipeline(1, 1, 1, 4, frames=count, period="1 us").replace(
            "source:", "rules: {blocks_per_group: 64}, source:"
        )
        seconds, _, summary = run(text, "inline")
        acquired = summary["seconds"]
        assert isinstance(acquired, float)
        after = seconds - acquired
        print(f"{count:9} {seconds:8.1f} {after:13.1f} s {acquired / count * 1e6:11.1f}", flush=True)


CASES = {"compile": compiling, "ranks": ranks, "frames": frames}

if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        CASES[name]()
