"""Checks of a machine: Python, MPI, memory, filters, limits, short measurements; and whether one pipeline fits it."""

import importlib.util
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lima2cli import __version__
from lima2cli.dataclass import dataclass
from lima2cli.detectors.librashpa import LIBRARY, load
from lima2cli.doctor import Bandwidths, Check, CheckStatus, Diagnosis
from lima2cli.errors import EnvironmentUnfit
from lima2cli.job.launch import RANK_VARIABLES, find_mpiexec, job_rank
from lima2cli.job.loopback import Confined, local_variables
from lima2cli.job.resources import (
    SHARED_MEMORY,
    available_memory,
    check_devices,
    check_disk,
    check_files,
    check_memory,
    check_placement,
    cores,
    elsewhere,
    output_folder,
    without_placement,
)
from lima2cli.plan.figures import link_figures, volumes
from lima2cli.plan.ir import Plan
from lima2cli.units import rate_text, seconds_text, size_text

START_S = 30.0
"""Seconds after which two ranks that have not ended hang."""

DISK_S = 0.5
DISK_BYTES = 256 << 20
PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class PutRate:
    """Report of two ranks: bytes per second, the MPI library, and the seconds from start to end."""

    bytes_per_s: float
    library: str
    seconds: float


def measure_put(mpiexec: str, timeout_s: float = START_S) -> PutRate:
    """Start two ranks that write to each other's memory, and return their report.

    Raises:
        EnvironmentUnfit: they fail or hang.
    """
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py", "-m", "lima2cli.doctor.put_probe"]
    environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    begin = time.monotonic()
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", env={**environment, **local_variables()}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise EnvironmentUnfit(f"cannot start {mpiexec}: {error}") from error
    Confined(process.pid)
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise EnvironmentUnfit(f"two MPI ranks have not ended after {seconds_text(timeout_s)}") from None
        raise
    return _put_rate(process.returncode, output, errors, time.monotonic() - begin)


def _put_rate(code: int, output: str, errors: str, seconds: float) -> PutRate:
    for line in output.splitlines():
        with suppress(ValueError, TypeError, KeyError):
            report = json.loads(line)
            if code == 0:
                return PutRate(float(report["bytes_per_s"]), str(report["library"]), seconds)
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "no output")
    raise EnvironmentUnfit(f"two MPI ranks failed (exit code {code}): {last}")


def measure_disk(folder: Path, seconds: float = DISK_S, limit: int = DISK_BYTES) -> float:
    """Return the bytes per second written to a file of a folder until they are on the disk; the file is removed.

    It ends after ``seconds`` or ``limit`` bytes, and what the disk then takes to hold them.

    Raises:
        OSError: the disk refuses.
    """
    piece = os.urandom(PIECE_BYTES // 4) * 4  # no file system can compress it
    with tempfile.TemporaryFile(dir=folder, prefix=".lima2-doctor-", buffering=0) as file:
        begin, written = time.perf_counter(), 0
        while written < limit and time.perf_counter() - begin < seconds:
            written += file.write(piece)
            os.fdatasync(file.fileno())
        return written / (time.perf_counter() - begin)


PACKAGES = ("numpy", "numexpr", "h5py", "hdf5plugin", "xxhash")
OPTIONAL = {
    "mpi4py": "mpi",
    "fabio": "images",
    "cffi": "rashpa",
    "pyzmq": "stream",
    "cbor2": "stream",
    "ophyd-async": "bluesky",
    "tornado": "serve",
    "bokeh": "view",
    "p4p": "pva",
}
"""Packages of the extras, by name."""

FILES = 1024
"""Number of open files that a process should be allowed: masters of long runs open many."""

SLOW_START_S = 10.0

RECEIVE_BUFFER = Path("/proc/sys/net/core/rmem_max")
GPUS = Path("/proc/driver/nvidia/gpus")


def _check(name: str, status: CheckStatus, message: str, help: str | None = None) -> Check:
    return Check("machine", name, status, message, help)


def machine_checks() -> Iterator[Check]:
    """Yield all checks but MPI, which takes seconds; see `mpi_check`."""
    yield _packages()
    yield _memory()
    yield _shared_memory()
    yield _check("CPUs", "ok", f"this process may use {cores()}")
    yield _open_files()
    yield from _filters()
    yield _gpu()
    yield _rashpa()
    yield receive_buffer(None)


def _packages() -> Check:
    versions = {name: _version(name) for name in (*PACKAGES, *OPTIONAL)}
    versions_text = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    message = f"lima2 {__version__}, Python {platform.python_version()}, {versions_text}"
    if absent := [name for name in PACKAGES if not versions[name]]:
        return _check("packages", "problem", f"{message}; missing: {', '.join(absent)}", "pip install lima2cli")
    return _check("packages", "ok", message)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # it takes as long to import as much of lima2

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def mpi_check() -> tuple[Check, float | None]:
    """Start two ranks for a moment; return the check, and the bytes per second that one wrote to the other's memory."""
    install = "pip install 'lima2cli[mpi]'"
    if importlib.util.find_spec("mpi4py") is None:
        return _check("MPI", "warning", "mpi4py is not installed: runs go in one process, on one core", install), None
    mpiexec = find_mpiexec()
    if mpiexec is None:
        absent = "mpi4py is installed, but there is no mpiexec next to Python or on the path"
        return _check("MPI", "problem", absent, install), None
    if job_rank() is not None:
        return _check("MPI", "warning", "this is a rank of an MPI job: no ranks can be started from it"), None
    try:
        measured = measure_put(mpiexec)
    except EnvironmentUnfit as error:
        cure = f"{mpiexec} must belong to the MPI that mpi4py uses; {install} brings both"
        return _check("MPI", "problem", str(error), cure), None
    rate = rate_text(measured.bytes_per_s)
    message = f"{measured.library}, {mpiexec}; two ranks took {seconds_text(measured.seconds)}; one-sided writes {rate}"
    if measured.seconds > SLOW_START_S:
        cure = "is the host's own name resolved slowly, or Python read from a slow disk?"
        return _check("MPI", "warning", message, cure), measured.bytes_per_s
    return _check("MPI", "ok", message), measured.bytes_per_s


def _memory() -> Check:
    available = available_memory()
    if available is None:
        return _check("memory", "warning", "the system does not report how much there is")
    return _check("memory", "ok", f"{size_text(available)} available")


def _shared_memory() -> Check:
    if not SHARED_MEMORY.is_dir():
        return _check("/dev/shm", "warning", "there is none: MPI may move frames slowly", "mount a tmpfs there")
    usage = shutil.disk_usage(SHARED_MEMORY)
    message = f"{size_text(usage.free)} of {size_text(usage.total)} free, for memspaces"
    small = usage.total < 1 << 30
    help = "mount -o remount,size=… /dev/shm; in a container --shm-size" if small else None
    return _check("/dev/shm", "warning" if small else "ok", message, help)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = "any number of" if soft == resource.RLIM_INFINITY else str(soft)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        limit = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        return _check("open files", "warning", f"{allowed} per process", f"ulimit -n {limit}")
    return _check("open files", "ok", f"{allowed} per process")


def _filters() -> Iterator[Check]:
    from lima2cli.files.compression import filter_problems, hdf5_versions

    try:
        versions, problems = hdf5_versions(), filter_problems()
    except ImportError as error:
        yield _check("HDF5", "problem", f"h5py cannot be imported: {error}", "pip install lima2cli")
        return
    good = ", ".join(name for name, problem in problems.items() if problem is None)
    yield _check("HDF5", "ok", f"{versions}; written and read: {good or 'nothing'}")
    for name, problem in problems.items():
        if problem is not None:
            yield _check(f"HDF5 {name}", "problem", problem, "pip install --force-reinstall hdf5plugin h5py")


def _gpu() -> Check:
    from lima2cli.gpu.devices import INSTALL, devices  # the extra `gpu`

    count = len(list(GPUS.iterdir())) if GPUS.is_dir() else 0
    fallback = "gpu memspaces are in host memory where they have `fallback: host`"
    try:
        found = devices()
    except EnvironmentUnfit as error:
        if count:
            return _check("GPU", "warning", f"{count} found, but {error}", INSTALL)
        return _check("GPU", "ok", f"none found, and none needed ({error}): {fallback}")
    if found:
        return _check("GPU", "ok", f"by OpenCL: {', '.join(f'{i}: {name}' for i, name in enumerate(found))}")
    if count:
        message = f"{count} found, but OpenCL does not see them: {fallback}"
        return _check("GPU", "warning", message, "the driver of the GPU brings its OpenCL; clinfo lists what there is")
    return _check("GPU", "ok", f"OpenCL has none here, and none is needed: {fallback}")


def _rashpa() -> Check:
    """Return the check of librashpa, which only a pipeline with such a detector needs."""
    try:
        load(LIBRARY)
    except EnvironmentUnfit as error:
        reason = str(error).partition(";")[0]
        return _check("librashpa", "ok", f"not usable, which matters to RASHPA detectors only: {reason}")
    return _check("librashpa", "ok", f"{LIBRARY} has all functions that lima2 assumes; their behaviour is not checked")


def receive_buffer(needed: int | None) -> Check:
    """Return the check of the kernel's buffer for packets, against what a detector asks for (bytes)."""
    try:
        limit = int(RECEIVE_BUFFER.read_text())
    except (OSError, ValueError):
        return _check("UDP buffer", "ok" if needed is None else "warning", "the system does not report its limit")
    message = f"net.core.rmem_max is {limit} bytes"
    asked = "" if needed is None else f", the detector's packets need {needed}"
    if needed is None:
        return _check("UDP buffer", "ok", f"{message}; detectors that send packets need more than a default one")
    if limit < needed:
        help = f"sysctl -w net.core.rmem_max={needed}"
        return Check("pipeline", "UDP buffer", "warning", message + asked, help)
    return Check("pipeline", "UDP buffer", "ok", message + asked)


def _fits(name: str, status: CheckStatus, message: str, help: str | None = None) -> Check:
    return Check("pipeline", name, status, message, help)


def pipeline_checks(plan: Plan, base: Path, measured: Bandwidths, *, shared: bool) -> Iterator[Check]:
    """Yield all checks of a plan. ``base`` resolves its file names, ``shared``: memspaces are in /dev/shm."""
    placed = plan if shared else without_placement(plan)
    yield _ranks(plan)
    yield _unless("memory", lambda: check_memory(placed, shared=shared), _memory_text(placed, shared))
    if any(region.path is not None for region in plan.regions):
        yield _mapped(placed, base)
    if any(placement.requested for placement in plan.placements):
        yield _placement(plan, shared)
    if any(region.device is not None for region in plan.regions):
        yield _devices(placed)
    yield _detector(plan)
    if (packets := plan.record.get("detector", {}).get("jungfrau")) is not None:
        yield receive_buffer(int(packets.get("buffer", 4 << 20)))
    yield _transfer_rate(plan, measured.put)
    if plan.channels:
        yield _disk_rate(plan, measured.disk)
        yield disk_room(plan)


def _devices(plan: Plan) -> Check:
    """Return whether the devices of memspaces are there; what the host may stand in for is a warning."""
    finding = _unless("devices", lambda: check_devices(plan), "those of gpu memspaces are there")
    if finding.status != "ok":
        return finding
    strict = replace(plan, regions=tuple(replace(region, fallback=False) for region in plan.regions))
    finding = _unless("devices", lambda: check_devices(strict), finding.message)
    return finding if finding.status == "ok" else _fits("devices", "warning", f"{finding.message}: in host memory")


def _mapped(plan: Plan, base: Path) -> Check:
    def check() -> None:
        check_files(plan, base)
        check_disk(replace(plan, channels={}), base)

    return _unless("mapped memspaces", check, "there is room for them")


def _unless(name: str, check: Callable[[], None], fine: str) -> Check:
    """Return the finding of a check of the run itself."""
    try:
        check()
    except EnvironmentUnfit as error:
        return _fits(name, "problem", str(error))
    return _fits(name, "ok", fine)


def _detector(plan: Plan) -> Check:
    finding = _unless(f"detector {plan.info.name}", plan.detector.check_machine, "has what it needs")
    if finding.status == "ok" and plan.detector.writes_itself:
        message = "can be set up, but this version of lima2 receives no frame from such a detector"
        return _fits(finding.name, "problem", message, "put the detector `remu` in its place to try the pipeline")
    return finding


def _ranks(plan: Plan) -> Check:
    ranks, available = len(plan.ranks), cores()
    working = sum(role.role != "control" for role in plan.ranks)
    message = f"{ranks} ranks, of which {working} move or process frames, on {available} CPUs"
    if working > available:
        return _fits("CPUs", "warning", f"{message}: they take turns, so that rates are lower than with a CPU each")
    return _fits("CPUs", "ok", message)


def _placement(plan: Plan, by_mpi: bool) -> Check:
    name = "placement"
    if not by_mpi:
        return _fits(name, "warning", "all ranks run in one process: `host`, `cpus` and `numa` have no effect")
    away = [plan.receivers[index] for index in sorted(elsewhere(plan))]
    finding = _unless(name, lambda: check_placement(plan), "the CPUs and NUMA nodes of receivers are there")
    if finding.status == "ok" and away:
        return _fits(name, "warning", f"on other machines, where nothing was checked: {', '.join(away)}")
    return finding


def _memory_text(plan: Plan, shared: bool) -> str:
    away = elsewhere(plan)
    windows = sum(region.size for region in plan.regions if region.path is None and region.receiver not in away)
    message = f"memspaces need {size_text(windows)}"
    if shared and SHARED_MEMORY.is_dir():
        message += f", /dev/shm has {size_text(shutil.disk_usage(SHARED_MEMORY).free)} free"
    available = available_memory()
    return message if available is None else f"{message}; {size_text(available)} of memory are available"


def _transfer_rate(plan: Plan, measured: float | None) -> Check:
    """Return the transfer rate of all modules together: on one machine they share the memory."""
    name = "transfers"
    if plan.period_s is None:
        return _fits(name, "ok", "no rate is asked for: as fast as the slowest part allows")
    needed = sum(rate for rate in link_figures(plan)["modules"].values())
    if measured is None:
        return _fits(name, "warning", f"{rate_text(needed)} are needed; the available rate was not measured")
    message = f"{rate_text(needed)} are needed, {rate_text(measured)} were measured"
    if needed <= measured:
        return _fits(name, "ok", message)
    return _too_slow(plan, name, message, "a longer period, a smaller source, or fewer frames (slices)")


def _too_slow(plan: Plan, name: str, message: str, help: str) -> Check:
    """Return a problem where data would be lost, a warning where the source waits."""
    if all(gdt.waits for gdt in plan.gdts):
        return _fits(name, "warning", f"{message}: the run will be slower than asked", help)
    return _fits(name, "problem", f"{message}: data would be lost", help)


def _disk_rate(plan: Plan, measured: float | None) -> Check:
    name = "saving rate"
    if plan.period_s is None:
        return _fits(name, "ok", "no rate is asked for: as fast as the slowest part allows")
    sizes = {channel.node: channel.frame_bytes for channel in volumes(plan)}
    needed = sum(sizes[name] / (plan.period_s * channel.rule.step) for name, channel in plan.channels.items())
    if measured is None:
        return _fits(name, "warning", f"{rate_text(needed)} are to be saved; the rate of the disk was not measured")
    message = f"{rate_text(needed)} are to be saved{_compressed(plan)}, {rate_text(measured)} were measured"
    if needed <= measured:
        return _fits(name, "ok", message)
    if _compressed(plan):
        return _fits(name, "warning", message, "whether it is enough depends on how well frames can be compressed")
    return _too_slow(plan, name, message, "another disk, compression, or fewer frames")


def disk_room(plan: Plan) -> Check:
    """Return the check of the size of the data against the free disk space; compression may make it less."""
    folder, saved = output_folder(plan.output_directory).resolve(), volumes(plan)
    name, free = "disk", shutil.disk_usage(folder).free
    listed = ", ".join(map(str, saved))
    if any(volume.bytes is None for volume in saved):
        return _fits(name, "ok", f"{folder} has {size_text(free)} free; the run has no end: {listed}")
    needed, sure = (sum(volume.bytes or 0 for volume in saved if not (volume.less and less)) for less in (False, True))
    message = f"{size_text(needed)} are to be saved{_compressed(plan)}, {folder} has {size_text(free)} free: {listed}"
    if needed <= free:
        return _fits(name, "ok", message)
    return _fits(name, "problem" if sure > free else "warning", message, "another output.directory")


def _compressed(plan: Plan) -> str:
    """Return a remark about sizes that compression and sparse frames make smaller; empty where nothing does."""
    smaller = [channel for channel in plan.channels.values() if channel.sparse or channel.compression != "none"]
    return " (before compression)" if smaller else ""


DIRECTORY = "runs/{name}"
"""Folder of runs if no pipeline has one."""


def examine(plan: Plan | None = None, base: Path = Path()) -> Diagnosis:
    """Return all checks of the machine, then those of a plan, in a few seconds.

    base  resolves file names of the plan
    """
    mpi, put = mpi_check()
    folder = output_folder(DIRECTORY if plan is None else plan.output_directory)
    disk, rate = _disk(folder)
    measured = Bandwidths(put, rate)
    checks = [mpi, *machine_checks(), disk]
    if plan is not None:
        checks += pipeline_checks(plan, base, measured, shared=mpi.status != "problem" and put is not None)
    return Diagnosis(tuple(checks), measured)


def _disk(folder: Path) -> tuple[Check, float | None]:
    try:
        rate = measure_disk(folder)
    except OSError as error:
        where = folder.resolve()
        message = f"no file can be written in {where}: {error.strerror}"
        return Check("machine", "disk", "problem", message, "choose another output.directory"), None
    return Check("machine", "disk", "ok", f"{rate_text(rate)} written in {folder.resolve()}"), rate
