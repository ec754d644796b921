"""Resources of a machine, as the system tells them."""

from pathlib import Path

import pytest

from lima2cli.job import resources as environment

MIB = 1 << 20


def group(folder: Path, limit: str, used: int, cached: int = 0, *, names: tuple[str, str, str]) -> None:
    """The files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\nother 7\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /, with 1000 MiB of memory."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {1000 * 1024} kB\n")
    monkeypatch.setattr(environment, "Path", lambda text: tmp_path / str(text).lstrip("/"))
    monkeypatch.setattr(environment, "CGROUPS", tmp_path / "groups")
    return tmp_path


def test_memory_without_control_groups(system: Path) -> None:
    assert environment.available_memory() == 1000 * MIB


def test_the_limit_of_a_group_counts_and_its_cached_files_do_not(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("0::/jobs/mine\n")
    group(system / "groups/jobs/mine", str(300 * MIB), 100 * MIB, 40 * MIB, names=V2)
    assert environment.available_memory() == 240 * MIB


def test_the_limit_of_a_group_above_counts(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("0::/jobs/mine\n")
    group(system / "groups/jobs/mine", "max", 100 * MIB, names=V2)
    group(system / "groups/jobs", str(500 * MIB), 450 * MIB, names=V2)
    assert environment.available_memory() == 50 * MIB


def test_groups_of_the_first_version(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("9:name=systemd:/x\n4:memory:/mine\n0::/\n")
    group(system / "groups/memory/mine", str(200 * MIB), 150 * MIB, 10 * MIB, names=V1)
    group(system / "groups/memory", "9223372036854771712", 700 * MIB, names=V1)
    assert environment.available_memory() == 60 * MIB


def test_a_group_that_is_used_up_leaves_nothing(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("0::/\n")
    group(system / "groups", str(100 * MIB), 120 * MIB, names=V2)
    assert environment.available_memory() == 0
