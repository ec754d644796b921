"""``lima2 top``: flows, nodes and receivers of a run while it goes on."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lima2cli.cli.border import Debug, ExitCode, border, show_error
from lima2cli.cli.display import Window, how_far, rate
from lima2cli.cli.runs import RunName
from lima2cli.dataclass import dataclass
from lima2cli.units import ABSENT, count_text, rate_text, seconds_text, volume_text, which_text

if TYPE_CHECKING:
    from lima2cli.runs.directory import ListedRun

Figures = Mapping[str, Any]

ASKED = {"do": "status", "detail": True}
ENDING_S = 10.0
"""Seconds from the last answer of a run to its summary; where its ranks died, the launcher writes that."""

SILENT_S = 2.0
"""Seconds without a report of a receiver after which its figures are called old; idle ones report twice a second."""

SLOWEST = "slowest"


def top(
    run: RunName = "latest",
    once: Annotated[bool, typer.Option("--once", help="Print the figures once, as text.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds from one look to the next.")] = 1.0,
    debug: Debug = False,
) -> None:
    """Show how a live run does, while it does.

    Rates and losses of flows, the time of nodes, the load of receivers.

    A table that is drawn again on a terminal, else text at each look. Rates are those of the last 3 s, with --once
    those since the start. Waits for a run that is starting, and ends with the run. Exit code 0: shown, 1: no run is
    active there, 2: no run directory, 10: the run was aborted, or does not answer, 130: Ctrl-C.
    """
    with border(as_json=False, debug=debug):
        from lima2cli.runs.directory import find_run

        directory = find_run(run)
        answer = _ask(directory)
        while answer is None and not once and _state(directory) == "starting":
            time.sleep(interval)
            answer = _ask(directory)
        if answer is None:
            show_error("refused", _not_live(directory), as_json=False)
            raise typer.Exit(ExitCode.PROBLEMS)
        if once:
            print("\n".join(lines(answer)))
            return
        with _screen() as show:
            last = _watch(directory, answer, interval, show)
        print(_end(Path(last["detail"]["directory"])))


def _ask(directory: Path, patience_s: float = 0.0) -> dict[str, Any] | None:
    """Return the figures of a run, None where it does not go on (any more).

    patience_s  time that a run which does not answer has to show that it has ended

    Raises:
        RunFailed: it was aborted, or does not answer.
    """
    from lima2cli.errors import RunFailed
    from lima2cli.runs.control_socket import ask

    try:
        answer = ask(directory, ASKED)
    except RunFailed:
        if _ended(directory, patience_s) is None:
            raise
        return None  # it ended just now
    return answer if answer.get("ok") else None


def _watch(directory: Path, answer: dict[str, Any], interval: float, show: Callable[[list[str]], None]) -> Figures:
    """Show the figures of a run to its end; return the last.

    Where no receiver has reported since, rates stay those of the last report.
    """
    window, last, before, heard = Window(), answer, None, -1.0
    following: dict[str, Any] | None = answer
    while following is not None:
        last = following
        if _clock(last) != heard:
            heard, before = _clock(last), window.before(last)
        show(lines(last, before))
        time.sleep(interval)
        following = _ask(directory, ENDING_S)
    return last


@contextmanager
def _screen() -> Iterator[Callable[[list[str]], None]]:
    """Give what shows lines in the place of those before, on a terminal that can; else after them."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield _print
        return
    with Live(console=console, auto_refresh=False) as live:

        def show(some: list[str]) -> None:
            text = Text(no_wrap=True, overflow="ellipsis")
            for line in some:
                text.append(line + "\n", _style(line))
            live.update(text, refresh=True)

        yield show


def _style(line: str) -> str:
    if line.endswith(SLOWEST):
        return "yellow"
    return "bold" if line.startswith(("  flow ", "  nodes ", "  receiver ")) else ""


def _print(some: list[str]) -> None:
    print("\n".join([*some, ""]))
    sys.stdout.flush()


def _ended(directory: Path, within: float) -> "ListedRun | None":
    """Return a run that has a summary, or gets one in time; None where it has none."""
    from lima2cli.runs.directory import read_run

    end = time.monotonic() + within
    while (found := read_run(directory)).summary is None and time.monotonic() < end:
        time.sleep(0.05)
    return None if found.summary is None else found


def _end(directory: Path) -> str:
    """Return how a run that was watched has ended.

    Raises:
        RunFailed: it was aborted.
    """
    from lima2cli.errors import RunFailed

    found = _ended(directory, ENDING_S)
    if found is None or found.summary is None:
        raise RunFailed(f"the run in {directory} was aborted: lima2 recover {directory}")
    reason = f": {found.summary.reason}" if found.summary.reason else ""
    return f"{directory.name}: {found.state}{reason}"


def _state(directory: Path) -> str:
    from lima2cli.runs.directory import read_run

    return read_run(directory).state


def _not_live(directory: Path) -> str:
    """Return why there is nothing to watch."""
    state = _state(directory)
    if state == "starting":
        return f"not yet: the run in {directory} is starting"
    return f"no run is active in {directory}: it has ended ({state}); lima2 runs show {directory}"


@dataclass
class _Kernel:
    """Cost of a kernel at all receivers: frames, of them in a second, seconds, and the share of the busy time."""

    frames: int = 0
    hertz: float = 0.0
    seconds: float = 0.0
    share: float = 0.0


def lines(now: Figures, before: Figures | None = None) -> list[str]:
    """Return the figures of a run as lines of text.

    now, before  answers to status with ``detail``; rates are from one to the other, or from the start
    """
    from lima2cli.cli.display import table

    detail, earlier = now["detail"], {"flows": {}, "receivers": {}} if before is None else before["detail"]
    receivers = detail["receivers"]
    seconds = _clock(now) - (0.0 if before is None else _clock(before))
    which = "" if now["of"] == 1 else f"acquisition {which_text(now['acquisition'], now['of'])}"
    took, far = seconds_text(round(now["seconds"], 1)), how_far(detail["flows"], earlier["flows"], seconds)
    head = [now["state"], which, took, *far]
    shared = any(its["pid"] == detail["pid"] for its in receivers.values())
    return [
        f"{Path(detail['directory']).name}: " + ", ".join(word for word in head if word),
        "",
        *table(list(_flows(detail["flows"], earlier["flows"], seconds))),
        "",
        *table(list(_nodes(now, _kernels(receivers, earlier["receivers"])))),
        "",
        *table(list(_receivers(now, earlier["receivers"]))),
        *(["  all ranks are in one process, whose CPU and memory these are"] if shared else []),
    ]


class NodeTable:
    """Rows of the nodes of a run, as `lima2 top` shows them, for the display of the run itself.

    It looks once a second, and never waits for long: a run that does not answer soon has the rows of before.
    """

    def __init__(self) -> None:
        self._window, self._rows, self._due = Window(), list[str](), 0.0

    def __call__(self, directory: Path) -> list[str]:
        """Return the rows of now, a line each, names of columns first; nothing where there are no nodes."""
        from lima2cli.cli.display import table
        from lima2cli.errors import Lima2Error
        from lima2cli.runs.control_socket import ask

        if time.monotonic() < self._due:
            return self._rows
        try:
            now = ask(directory, ASKED, SOON_S)
        except Lima2Error:
            now = {"ok": False}
        if now["ok"]:
            before = self._window.before(now)
            earlier = {} if before is None else before["detail"]["receivers"]
            head, *rows = list(_nodes(now, _kernels(now["detail"]["receivers"], earlier)))
            self._rows = table([head, *rows]) if rows else []
        self._due = time.monotonic() + TABLE_S
        return self._rows


TABLE_S = 1.0
"""Seconds from one look at the nodes of a run, for its own display, to the next."""

SOON_S = 0.2
"""Seconds that the run has to answer then."""


def _clock(figures: Figures) -> float:
    """Return when receivers counted, on average, in seconds from the start."""
    times = [its["seconds"] for its in figures["detail"]["receivers"].values()]
    return sum(times) / len(times) if times else float(figures["seconds"])


def _flows(flows: Figures, before: Figures, seconds: float) -> Iterator[tuple[str, ...]]:
    yield ("flow", "received", "of", "frames/s", "data", "lost", "buffers", "p50", "p99", "")
    for name, flow in flows.items():
        was = before.get(name, {})
        p50, p99 = flow["latency_s"] or (None, None)
        yield (
            name,
            count_text(flow["received"]),
            ABSENT if flow["total"] is None else count_text(flow["total"]),
            count_text(round(rate(flow["received"], was.get("received", 0), seconds))),
            rate_text(rate(flow["bytes"], was.get("bytes", 0), seconds)),
            count_text(flow["lost"]),
            f"{round(100 * flow['fill'])} %",
            seconds_text(p50),
            seconds_text(p99),
            "",
        )


def _kernels(receivers: Figures, before: Figures) -> dict[tuple[str, ...], _Kernel]:
    """Return the costs of kernels at all receivers together, by their nodes."""
    kernels: dict[tuple[str, ...], _Kernel] = {}
    busy = sum(its["busy_s"] - before.get(name, {}).get("busy_s", 0.0) for name, its in receivers.items())
    for name, its in receivers.items():
        was = before.get(name, {"seconds": 0.0, "kernels": []})
        earlier = {tuple(kernel["nodes"]): kernel for kernel in was["kernels"]}
        for kernel in its["kernels"]:
            nodes = tuple(kernel["nodes"])
            old = earlier.get(nodes, {"frames": 0, "seconds": 0.0})
            frames, cost = kernel["frames"] - old["frames"], kernel["seconds"] - old["seconds"]
            hertz = rate(kernel["frames"], old["frames"], its["seconds"] - was["seconds"])
            one = kernels.setdefault(nodes, _Kernel())
            one.hertz = max(one.hertz, hertz) if kernel["parts"] else one.hertz + hertz
            one.frames, one.seconds = one.frames + frames, one.seconds + cost
            one.share += cost / busy if busy > 0 else 0.0
    return kernels


def _nodes(now: Figures, kernels: Mapping[tuple[str, ...], _Kernel]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of nodes; those that are computed together have one."""
    yield ("nodes", "frames/s", "per frame", "busy time", "saved", "")
    most = max((one.share for one in kernels.values()), default=0.0)
    for nodes, one in kernels.items():
        saved = [count_text(now["saved"][node]) for node in nodes if node in now["saved"]]
        yield (
            " + ".join(nodes),
            count_text(round(one.hertz)),
            seconds_text(one.seconds / one.frames) if one.frames else ABSENT,
            f"{round(100 * one.share)} %",
            " + ".join(saved) or ABSENT,
            SLOWEST if one.share == most > 0 else "",
        )


def _receivers(now: Figures, before: Figures) -> Iterator[tuple[str, ...]]:
    """Yield the rows of receivers, with a word on those that have been silent."""
    yield ("receiver", "CPU", "busy", "peak memory", "")
    for name, its in now["detail"]["receivers"].items():
        was = before.get(name, {"seconds": 0.0, "cpu_s": 0.0, "busy_s": 0.0})
        seconds = its["seconds"] - was["seconds"]
        shares = (rate(its[key], was[key], seconds) for key in ("cpu_s", "busy_s"))
        silent_s = now["seconds"] - its["seconds"]
        silent = f"no report for {seconds_text(silent_s, 2)}" if silent_s > SILENT_S else ""
        yield (name, *(f"{round(100 * share)} %" for share in shares), volume_text(its["rss_bytes"]), silent)
