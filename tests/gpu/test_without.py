"""Without pyopencl, or a driver of OpenCL that works, users are shown what to do."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lima2cli.errors import EnvironmentUnfit
from lima2cli.gpu.devices import devices, open_device
from tests.running import lima2, run

TEXT = """
lima2: 1
detector: {remu: {image: {width: 16, height: 8}}}
acquisition: {frames: 5}
receivers: {r: {memspaces: {m: {gpu: {device: not here}}}}}
flows: {raw: {dataset: data, buffers: {at: [r.m]}}}
nodes: {dark: {input: raw, background_sub: {image: 1}}, saved: {input: dark, io_hdf5: {}}}
"""
INSTALL = 'pyopencl is not installed: pip install "lima2cli[gpu]"'


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)


@pytest.mark.parametrize("device", ["not here", "pocl", "7"])
def test_a_run_says_what_to_install(tmp_path: Path, absent: None, device: str) -> None:
    (tmp_path / "p.yaml").write_text(TEXT.replace("not here", device))
    assert lima2("validate", "p.yaml", cwd=tmp_path).returncode == 0
    done = lima2("run", "p.yaml", cwd=tmp_path)
    assert done.returncode == 12
    assert f"memspace m of r: {INSTALL}" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_host_stands_in(tmp_path: Path, absent: None) -> None:
    ran = run(TEXT.replace("not here", "not here, fallback: host"), tmp_path, "inline")
    assert ran.code == 0
    assert ran.summary["channels"]["saved"]["saved"] == 5
    assert f"warning: memspace r.m is in host memory: {INSTALL}" in ran.output


def test_doctor_goes_on(tmp_path: Path, absent: None) -> None:
    (tmp_path / "p.yaml").write_text(TEXT)
    done = lima2("doctor", "p.yaml", cwd=tmp_path)
    assert INSTALL in " ".join(done.stdout.split())
    assert "internal-error" not in done.stderr


class _Error(Exception):
    """Error of OpenCL."""


def opencl(*platforms: Any) -> Any:
    """A module that is used as pyopencl."""
    kinds = SimpleNamespace(GPU=4, ACCELERATOR=8)
    return SimpleNamespace(Error=_Error, device_type=kinds, get_platforms=lambda: list(platforms))


def platform(*found: str, fails: bool = False) -> Any:
    """A driver with devices; ``fails``: it does not list them."""
    own = SimpleNamespace(name="driver")

    def get_devices() -> list[Any]:
        if fails:
            raise _Error("out of host memory")
        return [SimpleNamespace(name=name, type=4, platform=own) for name in found]

    own.get_devices = get_devices
    return own


def test_a_driver_that_fails_does_not_hide_the_devices_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", opencl(platform(fails=True), platform("one", "two")))
    assert devices() == ["one", "two"]
    monkeypatch.setitem(sys.modules, "pyopencl", opencl(platform(fails=True)))
    with pytest.raises(EnvironmentUnfit, match="OpenCL can't be used here: out of host memory"):
        devices()


def test_a_device_that_is_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(found: list[Any]) -> None:
        raise _Error("device not available")

    module, driver = opencl(), platform("one")
    (device,) = driver.get_devices()
    device.extensions, device.single_fp_config = "cl_khr_fp64", 0
    driver.get_devices = lambda: [device]
    module.get_platforms, module.Context = lambda: [driver], busy
    module.device_fp_config = SimpleNamespace(CORRECTLY_ROUNDED_DIVIDE_SQRT=128)
    monkeypatch.setitem(sys.modules, "pyopencl", module)
    with pytest.raises(EnvironmentUnfit, match=r"device one \(one\) can't be used: device not available"):
        open_device("one")


def test_a_device_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TEXT.replace("not here", '""'))
    done = lima2("validate", "p.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "error[bad-name]" in done.stdout
