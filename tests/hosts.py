"""Hosts for tests: network namespaces of this machine, each with an address and a name of its own.

Frames between them go through TCP and virtual links, and through no memory: MPI is told to use nothing else. They need
the rights of root, and what iproute2 and util-linux bring; tests are skipped where these are absent.
"""

import os
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running import PATIENCE_S

NETWORK = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}
"""Environment in which MPICH (ch4:ucx) moves everything by TCP; else it sees that all hosts share a memory."""


def ip(*words: str) -> None:
    """Run `ip`; raises CalledProcessError."""
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


class Hosts:
    """Some hosts with a common network: ``names``, the first of which starts the runs.

    local  a directory that each of the others has on a disk of its own, empty at first
    """

    def __init__(self, names: list[str], folder: Path) -> None:
        self.names = names
        self.local: Path | None = None
        self._launcher = folder / "launch"
        self._write_launcher()

    def _write_launcher(self) -> None:
        mount = "" if self.local is None else f"mount -t tmpfs tmpfs {shlex.quote(str(self.local))}; "
        enter = "unshare -u" if self.local is None else "unshare -um"
        self._launcher.write_text(
            "#!/bin/sh\n# in place of ssh: launch [-x] HOST COMMAND...\n"
            'while [ "${1#-}" != "$1" ]; do shift; done\n'
            f'host=$1; shift\nexec ip netns exec $host {enter} sh -c "hostname $host; {mount}$*"\n'
        )
        self._launcher.chmod(0o755)

    def keep_apart(self, directory: Path) -> None:
        """Let the other hosts have their own disk in place of a directory, which exists."""
        self.local = directory
        self._write_launcher()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of runs."""
        return {**os.environ, **NETWORK, "HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": str(self._launcher)}

    def start(self, *command: str, cwd: Path) -> "subprocess.Popen[str]":
        """Start a program on the first host."""
        here = self.names[0]
        words = f"hostname {here}; exec {shlex.join(command)}"
        return subprocess.Popen(
            ["ip", "netns", "exec", here, "unshare", "-u", "sh", "-c", words],
            cwd=cwd, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *command: str, cwd: Path) -> tuple[int, str]:
        """Run a program on the first host; return its code and what it printed."""
        process = self.start(*command, cwd=cwd)
        try:
            printed, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
        return process.returncode, printed

    def processes(self, name: str) -> list[int]:
        """Return the processes of a host."""
        done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, timeout=30, check=True)
        return [int(word) for word in done.stdout.split()]

    def received(self, name: str) -> int:
        """Return the bytes that a host has received."""
        return int(Path(f"/sys/class/net/v{name}/statistics/tx_bytes").read_text())

    def unplug(self, name: str) -> None:
        """Cut a host off from the network."""
        ip("link", "set", f"v{name}", "down")


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[Hosts]:
    """Make hosts, and remove them with all their processes."""
    mark = uuid.uuid4().hex[:4]
    names, bridge = [f"lima{mark}{number}" for number in range(count)], f"lima{mark}br"
    addresses = [f"10.77.{int(mark[:2], 16)}.{number + 2}" for number in range(count)]
    made = Hosts(names, folder)
    etc = [Path("/etc/netns") / name for name in names]
    try:
        try:
            ip("link", "add", bridge, "type", "bridge")
            ip("link", "set", bridge, "up")
            for name, address, own in zip(names, addresses, etc, strict=True):
                ip("netns", "add", name)
                ip("link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
                ip("link", "set", f"v{name}", "master", bridge, "up")
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                for device in ("eth0", "lo"):
                    ip("-n", name, "link", "set", device, "up")
                own.mkdir(parents=True)
                known = "".join(f"{it} {at}\n" for it, at in zip(addresses, names, strict=True))
                (own / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
            subprocess.run(["unshare", "-um", "true"], check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
        yield made
    finally:
        for name, own in zip(names, etc, strict=True):
            done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in done.stdout.split():
                subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            (own / "hosts").unlink(missing_ok=True)
            if own.exists():
                own.rmdir()
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)
