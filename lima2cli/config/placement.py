"""What is wrong with where receivers are to run; whether their CPUs exist is known only on their machine."""

from collections.abc import Mapping

from lima2cli.config.records import Receiver
from lima2cli.diagnostics import Findings, Related
from lima2cli.poison import attempt

Users = dict[tuple[str | None, int], str]
"""The receiver that takes a CPU, by host and number."""


def check_placement(receivers: Mapping[str, Receiver], findings: Findings) -> None:
    """CPUs that a receiver lists twice, and those that several receivers of a host list."""
    users: Users = {}
    for name, receiver in receivers.items():
        attempt(lambda n=name, it=receiver: _check(n, it, users, findings))  # type: ignore[misc]


def _check(name: str, receiver: Receiver, users: Users, findings: Findings) -> None:
    cpus = receiver.cpus or ()
    host = None if receiver.host == "localhost" else receiver.host
    for index, cpu in enumerate(cpus):
        if cpu in cpus[:index]:
            findings.error("repeated-cpu", f"CPU {cpu} is listed twice", ("receivers", name, "cpus", index))
    shared = [cpu for cpu in dict.fromkeys(cpus) if (host, cpu) in users]
    if shared:
        other = users[host, shared[0]]
        listed = f"CPU{'s' * (len(shared) > 1)} {', '.join(map(str, shared))}"
        findings.warning(
            "shared-cpus",
            f"{name} and {other} are both to run on {listed}{f' of {host}' if host else ''}: they will take turns",
            ("receivers", name, "cpus"),
            related=[Related(("receivers", other, "cpus"), other)],
        )
    for cpu in cpus:
        users.setdefault((host, cpu), name)
