"""Restriction of runs on one machine to its loopback, so that no other machine can reach them.

MPI libraries and mpiexec are configured by their environment; variables that are set already stand. MPICH's mpiexec
(hydra) has no such option for the socket at which it waits for its processes: it binds it to all addresses. The
launcher therefore takes that socket itself (pidfd_getfd(2), Linux 5.6): at once it is held to the loopback device, and
once all ranks have joined, when no other process has to connect, it is bound to 127.0.0.1. Where the system does not
allow that it stays as mpiexec has made it.
"""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from lima2cli.job.resources import is_here
from lima2cli.plan.ir import Plan
from lima2cli.runs.processes import is_stopped

DEVICE = "lo"

VARIABLES = (
    "HYDRA_IFACE",  # MPICH's mpiexec, and
    "UCX_NET_DEVICES",  # its ranks, over UCX
    "FI_TCP_IFACE",  # or libfabric
    "FI_SOCKETS_IFACE",
    "I_MPI_HYDRA_IFACE",  # Intel MPI
    "OMPI_MCA_btl_tcp_if_include",  # Open MPI
    "OMPI_MCA_oob_tcp_if_include",
    "PMIX_MCA_ptl_tcp_if_include",
)

OPEN_MPI = {
    # ranks without work sleep, so that more of them than cores are fine, and none is held to one core: of version 5
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    # and of version 4
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_osc": "^ucx",  # over UCX, one-sided communication has no use for shared memory
    "OMPI_MCA_btl": "^tcp",  # which listens at all addresses, whatever the device
}
"""Settings of Open MPI for many ranks on one machine."""

SIOCGIFADDR = 0x8915

PIDFD_GETFD = 438
"""Number of the system call pidfd_getfd(2), on all architectures."""

START_S = 60.0
"""Seconds after which mpiexec will not listen any more; it listens within milliseconds, unless the machine is busy."""

LOOK_S = 0.001

STOP_S = 1.0
"""Seconds that a process may take to stop, on a busy machine."""

BACKLOG = 128


def is_alone(plan: Plan) -> bool:
    """Return whether all ranks run on this machine."""
    return all(is_here(plan.placement_of(role).host) for role in plan.ranks)


def local_variables() -> Mapping[str, str]:
    """Return the additional environment of a run on this machine alone.

    No device where the loopback is not up, as in a network namespace that was not set up.
    """
    settings = {name: value for name, value in OPEN_MPI.items() if name not in os.environ}
    try:
        with socket.socket() as probe:  # netdevice(7)
            fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", DEVICE.encode()))
    except OSError:
        return settings
    return settings | {name: DEVICE for name in VARIABLES if name not in os.environ}


class Confined:
    """Sockets at which an mpiexec that was just started listens, held to the loopback device."""

    def __init__(self, pid: int) -> None:
        self._pid, self._lock, self._held = pid, threading.Lock(), list[socket.socket]()
        self._over = False
        threading.Thread(target=self._hold, name="lima2-loopback", daemon=True).start()

    def _hold(self) -> None:
        end = time.monotonic() + START_S
        with suppress(OSError, AttributeError):  # it has ended, or this is not allowed here, or there is no such thing
            while time.monotonic() < end:
                with self._lock:
                    if self._over or self._take():
                        return
                time.sleep(LOOK_S)

    def _take(self) -> bool:
        """Hold the sockets that there are; return whether there were any.

        Raises:
            OSError: the system refuses.
        """
        process = os.pidfd_open(self._pid)
        try:
            for name in os.listdir(f"/proc/{self._pid}/fd"):
                taken = _listening(process, self._pid, name)
                if taken is not None:
                    self._held.append(taken)
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE.encode())
        finally:
            os.close(process)
        return bool(self._held)

    def settle(self) -> None:
        """Bind them to 127.0.0.1: all processes that have to connect have."""
        with self._lock:
            self._over = True
            for taken in self._held:
                with taken, suppress(OSError):
                    if taken.family == socket.AF_INET and not taken.getsockname()[0].startswith("127."):
                        self._bind(taken)
            self._held.clear()

    def _bind(self, taken: socket.socket) -> None:
        """Listen at the same port of 127.0.0.1; mpiexec is stopped meanwhile, for 0.2 ms, and does not notice."""
        port = taken.getsockname()[1]
        os.kill(self._pid, signal.SIGSTOP)
        try:
            if not _stops(self._pid):  # awake, it would find a socket that can't accept, and end
                return
            _unbind(taken)
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                taken.bind(("127.0.0.1", 0))
            taken.listen(BACKLOG)
        finally:
            os.kill(self._pid, signal.SIGCONT)


def _stops(pid: int) -> bool:
    """Return whether a process that was sent SIGSTOP has stopped: the signal reaches it a little later.

    Raises:
        OSError: it has ended.
    """
    end = time.monotonic() + STOP_S
    while not is_stopped(pid):
        if time.monotonic() > end:
            return False
        time.sleep(LOOK_S / 10)
    return True


def _listening(process: int, pid: int, name: str) -> socket.socket | None:
    """Return a descriptor of another process as a socket of this one, where it is one that listens for TCP."""
    try:
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            return None
    except FileNotFoundError:
        return None
    try:
        number = descriptor_of(process, int(name))
    except OSError as error:
        if error.errno == errno.EBADF:  # closed meanwhile
            return None
        raise
    try:
        taken = socket.socket(fileno=number)
    except OSError as error:
        os.close(number)
        if error.errno == errno.ENOTSOCK:  # closed meanwhile, and another file has its number
            return None
        raise
    if taken.family in (socket.AF_INET, socket.AF_INET6) and taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return taken
    taken.close()
    return None


def descriptor_of(process: int, number: int) -> int:
    """Return a descriptor of another process, known by its pidfd, as one of this: of the same open file.

    Raises:
        OSError: the system refuses.
    """
    return call_c("syscall", PIDFD_GETFD, process, number, 0)


def _unbind(taken: socket.socket) -> None:
    """Connect to nowhere (AF_UNSPEC), which ends listening and releases the address; connect(2)."""
    nowhere = struct.pack("H14x", socket.AF_UNSPEC)
    call_c("connect", taken.fileno(), nowhere, len(nowhere))


def call_c(name: str, *arguments: object) -> int:
    """Call a function of the C library that Python does not offer.

    Raises:
        OSError: it failed.
    """
    result: int = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
