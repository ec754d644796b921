"""The job that a launcher gives to the ranks, and the channel of events and stop orders between them."""

import json
import os
import pickle
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from lima2cli import __version__
from lima2cli.accounting.acquisitions import LiveAcquisition
from lima2cli.dataclass import dataclass
from lima2cli.errors import RunFailed
from lima2cli.files.nexus import MEASUREMENT, detector_path, master_file, table_file
from lima2cli.messages import Failure
from lima2cli.plan.ir import Plan
from lima2cli.runs.control_socket import same_user

LAUNCHED = "LIMA2_LAUNCHED"
"""Variable in the environment of a run's processes that the launcher has started."""

HAND_OVER_S = 30.0
"""Seconds that sending and receiving the job may take."""

BACKLOG_BYTES = 1 << 20
"""Maximal bytes of events that the launcher has not taken yet; beyond, reports of progress are left out."""

LAST_EVENTS_S = 5.0
"""Seconds that the last events may take."""

LENGTH = struct.Struct(">Q")


@dataclass(frozen=True)
class Job:
    """A plan, the folder that its file names are relative to, and the run directory (both absolute)."""

    plan: Plan
    base: str
    directory: str
    version: str = __version__


@dataclass(frozen=True)
class Stop:
    """An order to end a run in order: the state and the reason that its summary then has."""

    state: str
    reason: str


BY_USER = Stop("stopped", "stopped by the user")
NO_LAUNCHER = Stop("failed", "lima2 run, which had started the ranks, was killed: they ended in order")


class Lines:
    """Bytes as they arrive, cut into lines."""

    def __init__(self, longest: int = 1 << 20) -> None:
        self._rest, self._longest = b"", longest

    def feed(self, more: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends; a longer one than ``longest`` bytes is cut."""
        *whole, self._rest = (self._rest + more).split(b"\n")
        if len(self._rest) > self._longest:
            whole, self._rest = [*whole, self._rest], b""
        return whole

    def end(self) -> list[bytes]:
        """Return the last line, if its end never arrived."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


class JobServer:
    """The launcher's end. ``ended``: the control rank has closed the channel, or has died."""

    def __init__(self, job: Job) -> None:
        self.name = f"lima2-{os.urandom(16).hex()}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"\0{self.name}")
        self.listener.listen(1)
        self.connection: socket.socket | None = None
        self.ended = False
        self._job, self._stops, self._lines = job, list[Stop](), Lines()

    def accept(self) -> socket.socket | None:
        """Take the control rank's call and hand the job over; return None where the caller was another process."""
        caller, _ = self.listener.accept()
        if self.connection is not None or not same_user(caller):
            caller.close()
            return None
        self.connection = caller
        data = pickle.dumps(self._job)
        caller.settimeout(HAND_OVER_S)
        try:
            caller.sendall(LENGTH.pack(len(data)) + data)
        except OSError:
            self.ended = True
        for order in self._stops:
            self._send(order)
        return caller

    def stop(self, order: Stop) -> None:
        """Ask the control rank to end the run; the order is sent as soon as it has called."""
        self._stops.append(order)
        self._send(order)

    def _send(self, order: Stop) -> None:
        if self.connection is None or self.ended:
            return
        try:
            self.connection.sendall(json.dumps(asdict(order)).encode() + b"\n")
        except OSError:  # it has ended already, as its end of the channel shows
            return

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events that have come; to be asked where there is something to read."""
        assert self.connection is not None
        try:
            more = self.connection.recv(1 << 16)
        except OSError:
            more = b""
        self.ended = not more
        for line in self._lines.feed(more):
            yield json.loads(line)

    def close(self) -> None:
        """Close the channel: no call is taken any more."""
        self.listener.close()
        if self.connection is not None:
            self.connection.close()


class Launcher:
    """The control rank's end: ``job`` is what it was handed.

    Raises:
        RunFailed: the caller is not the launcher's.
    """

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(HAND_OVER_S)
        try:
            self._socket.connect(f"\0{name}")
            if not same_user(self._socket):
                raise RunFailed("what calls itself the launcher belongs to another user")
            (length,) = LENGTH.unpack(self._receive(LENGTH.size))
            job = pickle.loads(self._receive(length))  # noqa: S301  of a process of the same user, under a secret name
        except OSError as error:
            raise RunFailed(f"the launcher did not hand over the job: {error}") from error
        if not isinstance(job, Job) or job.version != __version__:
            raise RunFailed("launcher and ranks are of different versions of lima2")
        self.job = job
        self._socket.setblocking(False)
        self._backlog, self._orders = bytearray(), Lines()
        self._order: Stop | None = None
        self._gone = False

    def _receive(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            more = self._socket.recv(min(count - len(parts), 1 << 20))
            if not more:
                raise ConnectionError("it has ended")
            parts += more
        return bytes(parts)

    def emit(self, event: dict[str, Any]) -> None:
        """Send an event, without waiting: a launcher that takes none must not hold the run up."""
        if len(self._backlog) > BACKLOG_BYTES and event["type"] == "progress":
            return
        self._backlog += json.dumps(event).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        while self._backlog and not self._gone:
            try:
                sent = self._socket.send(self._backlog)
            except BlockingIOError:
                return
            except OSError:
                self._gone = True
                return
            del self._backlog[:sent]

    def order(self) -> Stop | None:
        """Return the order to stop that the launcher has given, or has left by its death; does not wait."""
        self._flush()
        try:
            more = b"" if self._gone else self._socket.recv(1 << 12)
        except BlockingIOError:
            return self._order
        except OSError:
            more = b""
        self._gone = not more
        for line in self._orders.feed(more):
            self._order = self._order or Stop(**json.loads(line))
        if self._gone:
            self._order = self._order or NO_LAUNCHER
        return self._order

    def close(self) -> None:
        """Close the channel after the last event, which is waited for a little."""
        deadline = time.monotonic() + LAST_EVENTS_S
        while self._backlog and not self._gone and time.monotonic() < deadline:
            self._flush()
            time.sleep(1e-3)
        self._socket.close()


Event = dict[str, Any]


def started(acquisition: LiveAcquisition) -> Event:
    """Return the event that an acquisition begins."""
    plan = acquisition.plan
    number, directory = acquisition.outcome.number + 1, acquisition.directory
    return {"type": "start", "name": plan.name, "frames": plan.frames, "directory": directory,
            "acquisition": number, "of": plan.repeat, "files": files(plan)}  # fmt: skip


def armed(acquisition: LiveAcquisition) -> Event:
    """Return the event that an acquisition is ready and waits for a request to start."""
    plan = acquisition.plan
    message = f"{plan.name}: armed, `lima2 start` starts it"
    number = acquisition.outcome.number + 1
    return message_event("armed", message) | {
        "acquisition": number, "directory": acquisition.directory, "files": files(plan)
    }  # fmt: skip


def files(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return what the nodes that save will leave in the run directory, by node.

    Of frames file, dataset, shape, dtype and chunk shape of the master, and whether it is there from now on and grows
    (``live``) or made at the end; of rows the file and the dtypes of its columns.
    """
    channels: dict[str, dict[str, Any]] = {
        node: {
            "file": master_file(plan.name, node),
            "dataset": f"{detector_path(channel)}/data",
            "shape": [channel.selected, channel.height, channel.width],
            "dtype": channel.dtype,
            "chunk": [channel.frames_per_chunk, channel.height, channel.width],
            "live": channel.live,
        }
        for node, channel in plan.channels.items()
    }
    tables = {
        node: {"file": table_file(plan.name, node), "dataset": f"/{MEASUREMENT}", "columns": dict(table.columns)}
        for node, table in plan.tables.items()
    }
    return channels | tables


def completed(acquisition: LiveAcquisition) -> Event:
    """Return the event that one of several acquisitions has ended, and its files are written."""
    outcome, plan = acquisition.outcome, acquisition.plan
    return {"type": "acquisition", "number": outcome.number + 1, "of": plan.repeat, "state": outcome.verdict[0],
            "directory": acquisition.directory, "frames": outcome.frames, "dead_time_s": outcome.dead_s}  # fmt: skip


def failed(failure: Failure) -> Event:
    """Return the event that something went wrong on a rank."""
    return {"type": "error", "message": failure.message, "rank": failure.rank, "node": failure.node,
            "frame": failure.frame, "detail": failure.detail}  # fmt: skip


def message_event(event: str, message: str) -> Event:
    """Return the event of a message for users."""
    return {"type": "event", "event": event, "message": message}
