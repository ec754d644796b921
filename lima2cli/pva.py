"""Runs as process variables of EPICS, by pvAccess: last frames and counters for viewers, archivers and IOCs.

PREFIX:NODE:image     NTNDArray 1.0, the last frame of a flow or node, saved or not
PREFIX:NODE:COLUMN    NTScalar, or NTScalarArray of a profile: the last row that is in files
PREFIX:FLOW:received  NTScalar, frames received so far;  PREFIX:FLOW:lost
PREFIX:state          NTScalar, such as `running`;  PREFIX:directory

A frame is taken from the run only while a client is connected to its variable, and no receiver waits for one. Programs
of this machine alone can connect, unless the environment says who else (EPICS_PVAS_INTF_ADDR_LIST): pvAccess has no
password. Nothing can be written. Extra `pva`.
"""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from os import environ
from typing import Any

import numpy as np
from numpy.typing import NDArray
from p4p import Value
from p4p.nt import NTNDArray, NTScalar
from p4p.server import Server, StaticProvider
from p4p.server.thread import SharedPV

from lima2cli.drive import LiveFrame, Run, open_run
from lima2cli.errors import Lima2Error
from lima2cli.runs.control_socket import HangUp

FRAME_S = 0.01
"""Least seconds from one frame of a variable to the next."""

ROWS_S = 0.1
"""Least seconds from one look at tables to the next."""

IMAGE = NTNDArray.buildType()

MEMBERS: Mapping[str, str] = {
    "int8": "byteValue", "int16": "shortValue", "int32": "intValue", "int64": "longValue",
    "uint8": "ubyteValue", "uint16": "ushortValue", "uint32": "uintValue", "uint64": "ulongValue",
    "float32": "floatValue", "float64": "doubleValue",
}  # fmt: skip
"""Members of the union of pixels, by numpy name."""

CODES: Mapping[str, str] = {
    "int8": "b", "int16": "h", "int32": "i", "int64": "l", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "L",
    "float32": "f", "float64": "d", "bool": "?",
}  # fmt: skip
"""Codes of pvData's scalars, by numpy name."""

ANYWHERE = "EPICS_PVAS_INTF_ADDR_LIST"

LOCAL: Mapping[str, str] = {
    ANYWHERE: "127.0.0.1",
    "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
    "EPICS_PVAS_BEACON_ADDR_LIST": "127.0.0.1",
}
"""Configuration of a server that other machines can't reach."""


def stamp_of(time_ns: int) -> dict[str, int]:
    """Return a time, ns since the epoch, as pvData has it."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    return {"secondsPastEpoch": seconds, "nanoseconds": nanoseconds}


def image_of(frame: LiveFrame) -> Value:
    """Return a frame as NTNDArray 1.0: its number is ``uniqueId``, its time ``dataTimeStamp``."""
    pixels = frame.pixels
    return Value(
        IMAGE,
        {
            "value": (MEMBERS[pixels.dtype.name], pixels.reshape(-1)),
            "compressedSize": pixels.nbytes,
            "uncompressedSize": pixels.nbytes,
            "uniqueId": frame.number & 0x7FFFFFFF,
            "dataTimeStamp": stamp_of(frame.time_ns or 0),
            "timeStamp": stamp_of(time.time_ns()),
            "dimension": [
                {"size": size, "offset": 0, "fullSize": size, "binning": 1, "reverse": False}
                for size in reversed(pixels.shape)
            ],
            "attribute": [{"name": "ColorMode", "value": ("i", 0), "descriptor": "grey", "sourceType": 0}],
        },
    )


class Publisher:
    """A server whose variables show one run after another."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._provider = StaticProvider("lima2")
        self._variables: dict[str, tuple[str, SharedPV]] = {}
        self._types = cache(NTScalar)  # of one type each: variables take no other
        self._server = Server(providers=[self._provider], conf={} if ANYWHERE in environ else dict(LOCAL))

    @property
    def configuration(self) -> Mapping[str, str]:
        """Return where the server listens, by the names of the variables of EPICS."""
        found: Mapping[str, str] = self._server.conf()
        return found

    def show(self, run: Run) -> None:
        """Show a run until its end; a run that has ended is left out."""
        hang_up = HangUp()
        looks: list[_Look] = []
        try:
            for node in run.status(detail=True)["visible"]:
                looks.append(_Look(run, node, hang_up))
                self._add(f"{node}:image", looks[-1].variable)
            rows = threading.Thread(target=self._show_rows, args=(run,), daemon=True)
            rows.start()
            self._show_events(run)
            rows.join()
        except Lima2Error:  # it ends right now
            pass
        finally:
            hang_up()
            for look in looks:
                look.end()
                self._remove(f"{look.node}:image")

    def _show_events(self, run: Run) -> None:
        for event in run.follow():
            if event["type"] == "progress":
                self._put("state", "s", str(event.get("state", "running")))
                for flow, counts in event["flows"].items():
                    self._put(f"{flow}:received", "l", counts["received"])
                    self._put(f"{flow}:lost", "l", counts["lost"])
            self._put("directory", "s", str(run.directory))
        summary = run.summary_soon()
        self._put("state", "s", "aborted" if summary is None else summary.state)
        for flow, account in ({} if summary is None else summary.flows).items():
            self._put(f"{flow}:received", "l", account.received)
            self._put(f"{flow}:lost", "l", account.lost)

    def _show_rows(self, run: Run) -> None:
        """Show the last rows of all tables as they come, and once more at the end."""
        known: dict[str, int] = {}
        directory = None
        while True:
            over = not run.live
            with suppress(Lima2Error, OSError):  # there is no file yet, or the directory is the next one's
                if run.directory != directory:
                    directory, known = run.directory, {}
                for table in run.tables:
                    columns = run.rows(table, known.get(table, -1))
                    if len(columns["frame_number"]):
                        known[table] = int(columns["frame_number"][-1])
                        self._put_row(table, {name: values[-1] for name, values in columns.items()})
            if over:
                return
            time.sleep(ROWS_S)

    def _put_row(self, table: str, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            array: NDArray[Any] = np.asarray(value)
            code = CODES[array.dtype.name]
            self._put(f"{table}:{name}", f"a{code}" if array.ndim else code, array if array.ndim else array.item())

    def _put(self, name: str, code: str, value: Any) -> None:
        """Give a variable a value; one of another type than before is another variable."""
        if name in self._variables and self._variables[name][0] != code:
            self._remove(name)
        wrapped = self._types(code).wrap(value, timestamp=time.time())
        if name in self._variables:
            self._variables[name][1].post(wrapped)
        else:
            self._add(name, SharedPV(initial=wrapped), code)

    def _add(self, name: str, variable: SharedPV, code: str = "") -> None:
        self._remove(name)
        self._variables[name] = code, variable
        self._provider.add(f"{self._prefix}:{name}", variable)

    def _remove(self, name: str) -> None:
        if name in self._variables:
            self._provider.remove(f"{self._prefix}:{name}")
            self._variables.pop(name)[1].close(destroy=True)

    def close(self) -> None:
        """End the server."""
        self._server.stop()
        for name in list(self._variables):
            self._remove(name)


class _Look:
    """The variable of the frames of one flow or node, of which some are taken while a client is connected."""

    def __init__(self, run: Run, node: str, hang_up: HangUp) -> None:
        self.node = node
        self._run, self._hang_up = run, hang_up
        self._wanted, self._over = threading.Event(), False
        self.variable = SharedPV(handler=self)
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def onFirstConnect(self, variable: SharedPV) -> None:  # noqa: N802  p4p's name
        """Take frames from now on."""
        self._wanted.set()

    def onLastDisconnect(self, variable: SharedPV) -> None:  # noqa: N802
        """Take no more frames."""
        self._wanted.clear()

    def _look(self) -> None:
        while self._wanted.wait() and not self._over:
            with suppress(Lima2Error):  # the run has ended
                for frame in self._run.tap(self.node, every=FRAME_S, hang_up=self._hang_up):
                    self._post(image_of(frame))
                    if not self._wanted.is_set():
                        break
                else:
                    return

    def _post(self, value: Value) -> None:
        if self.variable.isOpen():
            self.variable.post(value)
        else:
            self.variable.open(value)

    def end(self) -> None:
        """Take no more frames; the run has ended, or was left."""
        self._over = True
        self._wanted.set()


def show_newest(publisher: Publisher, newest: Callable[[], Run | None], until: threading.Event) -> None:
    """Show the newest run that goes on, then the next, ``until`` that is set."""
    shown: Run | None = None
    while not until.wait(0.2):
        with suppress(Lima2Error):
            run = newest()
            if run is not None and run is not shown and run.live:
                shown = run
                publisher.show(run)


def main(directory: str, prefix: str) -> None:
    """Show one run by its directory until its end: what `output.pva` starts."""
    publisher = Publisher(prefix)
    publisher.show(open_run(directory))
    time.sleep(LINGER_S)
    publisher.close()


LINGER_S = 0.5
"""Seconds that the last values of a run are there after its end."""

if __name__ == "__main__":
    main(*sys.argv[1:3])
