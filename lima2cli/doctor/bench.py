"""The limits of this machine, and what lima2 reaches on the same work in the same minutes.

Each case does work twice: as little as the machine can do of it, and as lima2 does all of it. Repetitions are
interleaved, so that other load meets both; what counts is the median of their ratios.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from lima2cli import __version__
from lima2cli.check import check_text
from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit
from lima2cli.files.appending import load_libraries
from lima2cli.files.compression import encoder
from lima2cli.files.frame_writer import FrameWriter
from lima2cli.frames import Array, Block
from lima2cli.graph.fused import BoundChain
from lima2cli.graph.protocol import Arrival
from lima2cli.inputs.stacks import FileStore
from lima2cli.job.launch import RANK_VARIABLES, find_mpiexec
from lima2cli.job.loopback import local_variables
from lima2cli.job.resources import cores
from lima2cli.job.run import run_plan
from lima2cli.nodes.base import Reduce
from lima2cli.plan.ir import Plan
from lima2cli.runs.saved_plan import Origin

VERSION = 1

REPEAT = 5
"""Repetitions of a case in one process; of transfers, which start processes, `TRANSFERS`."""

TRANSFERS = 3

SIDES = {64: 60_000, 256: 30_000, 1024: 1500, 2048: 400}
"""Sides, in pixels, of the frames that are moved, and how many a run has."""

BARE_S = 60.0
"""Seconds after which the bare loop has hung."""

FRAMES_BYTES = 64 << 20
"""Bytes of the frames of a case: more than caches hold."""

PASSES = 4
"""Times that these are saved: making a file is then a small part of it."""


@dataclass(frozen=True)
class Case:
    """Work that is done twice. Both give bytes of raw frames per second.

    limit  as little as the machine can do of it;  ours  all of it, by lima2
    """

    name: str
    work: str
    limit: Callable[[], float]
    ours: Callable[[], float]


@dataclass(frozen=True)
class Ratio:
    """Medians of a case: bytes per second, and of the ratio of neighbours in time."""

    name: str
    work: str
    limit: float
    ours: float
    ratio: float


def measure(folder: Path) -> Iterator[Ratio]:
    """Yield what each case gives; files are written to ``folder`` and removed. Takes about a minute.

    Raises:
        OSError: the disk refuses.
        EnvironmentUnfit: ranks can't be started.
    """
    load_libraries()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".lima2-bench-") as made:
        base = Path(made)
        yield from (compared(case, REPEAT) for case in kernel_cases(base))
        yield from (compared(case, REPEAT) for case in saving_cases(base))
        if find_mpiexec() is not None and cores() > 1:
            yield from transfers(base, TRANSFERS)


def compared(case: Case, repeat: int) -> Ratio:
    """Return the medians of a case; what is done first warms up."""
    case.limit(), case.ours()
    return _median(case.name, case.work, [(case.limit(), case.ours()) for _ in range(repeat)])


def _median(name: str, work: str, pairs: Sequence[tuple[float, float]]) -> Ratio:
    limit, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
    return Ratio(name, work, limit, ours, statistics.median(mine / bare for bare, mine in pairs))


def _rate(work: Callable[[], object], size: int) -> float:
    begin = time.perf_counter()
    work()
    return size / (time.perf_counter() - begin)


def plan(nodes: str, base: Path, *, side: int = 1024, frames: int = 1, more: str = "") -> Plan:
    """Return the plan of nodes on frames of uint16 of that side; ``D`` is the flow."""
    image = f"{{width: {side}, height: {side}}}"
    text = (
        f"lima2: 1\ndetector: {{remu: {{image: {image}, datasets: {{D: {{dtype: uint16}}}}}}}}\n"
        f"acquisition: {{frames: {frames}}}\n{more}nodes:\n{nodes}"
    )
    checked = check_text(text, "bench", base, cores=cores(), environment={}, here=None)
    assert checked.plan is not None, [finding.message for finding in checked.findings]
    return checked.plan


CORRECTED = """
  dark: {input: D, background_sub: {image: dark.npy}}
  flat: {input: dark, flatfield: {image: flat.npy}}
  good: {input: flat, mask: {image: bad.npy}}
"""


def kernel_cases(base: Path, side: int = 2048) -> Iterator[Case]:
    """Yield arithmetic on frames in memory, in one thread, in blocks of 8 frames."""
    random = np.random.default_rng(1)
    count = max(1, FRAMES_BYTES // (2 * side * side))
    frames = random.poisson(1000, (count, side, side)).astype(np.uint16)
    for name, low, high in (("dark", 90, 110), ("flat", 0.9, 1.1)):
        np.save(base / f"{name}.npy", random.uniform(low, high, (side, side)).astype(np.float32))
    np.save(base / "bad.npy", (random.uniform(size=(side, side)) < 0.002).astype(np.uint8))
    whole = f"all: {{x: 0, y: 0, width: {side}, height: {side}}}"
    edge = side // 6
    spots = ", ".join(
        f"r{i}: {{x: {i * side // 3}, y: {i * side // 3}, width: {edge}, height: {edge}}}" for i in range(3)
    )

    def counting(source: str, rois: str, statistics: str = "avg, std, min, max, sum") -> str:
        return f"  counters: {{input: {source}, roi_counters: {{rois: {{{rois}}}, statistics: [{statistics}]}}}}\n"

    converted = np.empty((64, side), np.float32)

    def convert() -> None:
        for frame in frames:
            for top in range(0, side, len(converted)):
                strip = frame[top : top + len(converted)]
                np.copyto(converted[: len(strip)], strip)

    def add_up() -> None:
        for frame in frames:
            np.add.reduce(frame, axis=1, dtype=np.uint32)

    yield Case(
        "sum", "sum of whole frames", lambda: _rate(add_up, frames.nbytes),
        _kernel(plan(counting("D", whole, "sum"), base, side=side), base, frames),
    )  # fmt: skip
    yield Case(
        "statistics", "five statistics of whole frames; limit: their sum", lambda: _rate(add_up, frames.nbytes),
        _kernel(plan(counting("D", whole), base, side=side), base, frames),
    )  # fmt: skip
    yield Case(
        "correct", "dark, flat, mask and five statistics of whole frames; limit: uint16 to float32",
        lambda: _rate(convert, frames.nbytes),
        _kernel(plan(CORRECTED + counting("good", whole), base, side=side), base, frames),
    )  # fmt: skip
    made = np.empty((8, side, side), np.float32)

    def convert_whole() -> None:
        for first in range(0, len(frames), len(made)):
            some = frames[first : first + len(made)]
            np.copyto(made[: len(some)], some)

    yield Case(
        "make", "dark, flat and mask of frames that are made; limit: uint16 to float32, made",
        lambda: _rate(convert_whole, frames.nbytes),
        _kernel(plan(CORRECTED + "  save: {input: good, io_hdf5: {}}\n", base, side=side), base, frames),
    )  # fmt: skip
    yield Case(
        "regions", "`correct` of three regions, a twelfth of the pixels; limit: the statistics alone",
        _kernel(plan(counting("D", spots), base, side=side), base, frames),
        _kernel(plan(CORRECTED + counting("good", spots), base, side=side), base, frames),
    )  # fmt: skip


def _kernel(compiled: Plan, base: Path, frames: Array) -> Callable[[], float]:
    """Return what computes the first kernel of a plan, as a receiver does, and gives its rate."""
    steps = {step.name: step for step in compiled.steps}
    kernel = compiled.kernels[0]
    blocks = [_block(frames[first : first + 8]) for first in range(0, len(frames), 8)]
    with FileStore(base) as files:
        reductions = {name: cast(Reduce, steps[name].node) for name in kernel.ends}
        reducers: dict[str, Any] = {name: node.bind(steps[name].given(files)) for name, node in reductions.items()}
        if not kernel.maps:
            return lambda: _rate(lambda: [each.step(b, 0) for b in blocks for each in reducers.values()], frames.nbytes)
        chain = BoundChain(kernel, steps, files)
    for name, node in reductions.items():
        chain.add(name, [reducers[name]], reads=node.reads(steps[name].before))
    return lambda: _rate(lambda: [chain.push(Arrival("D", 0, block)) for block in blocks], frames.nbytes)


def _block(frames: Array) -> Block:
    numbers = np.arange(len(frames), dtype=np.uint64)
    return Block(frames, numbers, numbers)


def saving_cases(base: Path, side: int = 1024) -> Iterator[Case]:
    """Yield saving of frames of noise by one receiver, in one thread."""
    count = max(1, FRAMES_BYTES // (2 * side * side))
    random = np.random.default_rng(2)
    counts = random.poisson(10, (count, side, side)).astype(np.uint16)
    flat = random.uniform(0.9, 1.1, (side, side)).astype(np.float32)
    corrected = counts[: count // 2] / flat  # twice the bytes of each
    np.save(base / "even.npy", flat)

    def compressing(frames: Array) -> Callable[[], float]:
        encode = encoder("bslz4", frames.dtype.name, (1, side, side))

        def compress() -> None:
            for i in range(PASSES * len(frames)):
                encode(frames[i % len(frames) : i % len(frames) + 1])

        return lambda: _rate(compress, PASSES * frames.nbytes)

    def writing(frames: Array) -> Callable[[], float]:
        def write() -> None:
            with tempfile.TemporaryFile(dir=base, buffering=0) as file:
                for _ in range(PASSES):
                    for frame in frames:
                        file.write(frame)

        return lambda: _rate(write, PASSES * frames.nbytes)

    flat_first = "  flat: {input: D, flatfield: {image: even.npy}}\n"
    for name, nodes, frames, limit, work in (
        (
            "bslz4",
            "{input: D, io_hdf5: {compression: bslz4}}",
            counts,
            compressing,
            "saved with bslz4; limit: bitshuffle-LZ4 alone",
        ),
        (
            "float32",
            "{input: flat, io_hdf5: {compression: bslz4}}",
            corrected,
            compressing,
            "the same of corrected frames, float32",
        ),
        (
            "none",
            "{input: D, io_hdf5: {compression: none}}",
            counts,
            writing,
            "saved uncompressed; limit: a plain file",
        ),
    ):
        before = flat_first if frames is corrected else ""
        compiled = plan(f"{before}  save: {nodes}\n", base, side=side)
        yield Case(f"save {name}", work, limit(frames), _saving(compiled, base, frames))


def _saving(compiled: Plan, base: Path, frames: Array) -> Callable[[], float]:
    return lambda: _rate(lambda: _save(compiled, base, frames), PASSES * frames.nbytes)


def _save(compiled: Plan, base: Path, frames: Array) -> None:
    """Save frames as a receiver does, in blocks of 4 MiB."""
    with tempfile.TemporaryDirectory(dir=base) as folder:
        writer = FrameWriter(compiled.channels["save"], folder, 0, 0)
        together = max(1, (4 << 20) // frames[0].nbytes)
        for first in range(0, PASSES * len(frames), together):
            some = frames[first % len(frames) : first % len(frames) + together]
            numbers = np.arange(first, first + len(some), dtype=np.uint64)
            writer.commit(writer.stage(Block(some, numbers, numbers)))
        writer.flush()
        writer.close()


def transfers(base: Path, repeat: int) -> Iterator[Ratio]:
    """Yield runs of one module and one receiver that only looks at the times, against bare loops of Put and flush.

    Raises:
        EnvironmentUnfit: ranks can't be started, or hang.
    """
    pairs: dict[int, list[tuple[float, float]]] = {side: [] for side in SIDES}
    bare: list[dict[str, Any]] = []
    for _ in range(repeat):
        bare.append(bare_rates())
        for side, frames in SIDES.items():
            pairs[side].append((bare[-1][str(side)]["contiguous"], run_rate(base, side, frames)))
    for side in SIDES:
        size = f"{side} x {side}"
        yield _median(f"transfer {side}", f"frames of {size} moved; limit: Put and flush", pairs[side])
    for side in SIDES:
        both = [(each[str(side)]["contiguous"], each[str(side)]["rectangle"]) for each in bare]
        work = f"bare Put of {side} x {side} into rows twice as long; limit: in one piece"
        yield _median(f"rectangle {side}", work, both)


def bare_rates() -> dict[str, Any]:
    """Return the bytes per second of bare loops, by side and form. Raises `EnvironmentUnfit`."""
    mpiexec = find_mpiexec()
    assert mpiexec is not None
    environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    environment.update(local_variables())
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py", "-m", "lima2cli.doctor.bare_put", *map(str, SIDES)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=BARE_S, check=True, env=environment)
        return dict(json.loads(ran.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EnvironmentUnfit(f"two MPI ranks could not be measured: {error}") from error


def run_rate(base: Path, side: int, frames: int) -> float:
    """Return the bytes per second that a run by MPI moves. Raises `EnvironmentUnfit`."""
    with tempfile.TemporaryDirectory(dir=base) as folder:
        more = f"flows: {{F: {{dataset: D, buffers: {{size: 64 MiB}}}}}}\noutput: {{directory: '{folder}/run'}}\n"
        compiled = plan("  times: {input: F, checkpoint: {}}\n", base, side=side, frames=frames, more=more)
        origin = Origin("", "bench", base)
        _, summary, code = run_plan(compiled, origin, lambda event: None, transport="mpi", latest=False)
        hz = None if summary.rates is None else summary.rates.achieved_hz
        if code or hz is None:
            raise EnvironmentUnfit(f"a run could not be measured: {'; '.join(summary.problems) or summary.state}")
        return hz * 2 * side * side


def as_plain(ratios: Sequence[Ratio]) -> dict[str, Any]:
    """Return what ``doctor --bench`` writes: rates in bytes of raw frames per second."""
    return {
        "version": VERSION,
        "lima2": __version__,
        "machine": {"processor": processor(), "cores": cores(), "python": platform.python_version()},
        "cases": [
            {
                "name": each.name,
                "work": each.work,
                "limit_bytes_per_s": each.limit,
                "lima2_bytes_per_s": each.ours,
                "ratio": each.ratio,
            }
            for each in ratios
        ],
    }


def processor() -> str:
    """Return the name of the processor, as the system has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
