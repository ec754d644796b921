"""Devices of OpenCL, by number or name.

Numbers count GPUs and accelerators, of all platforms in their order; CPUs are not counted, so that none is used by
mistake. `pocl`, the portable implementation of OpenCL on CPUs, is used where its name is given, for tests.
"""

import importlib.util
from functools import cache
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit
from lima2cli.units import size_text

POCL = "pocl"
_POCLS = ("portable computing language", POCL)

INSTALL = 'pip install "lima2cli[gpu]"'


@dataclass(frozen=True, eq=False)
class Device:
    """A device that is at work in this process: its context, and a queue for each way and one for kernels."""

    name: str
    memory: int
    options: tuple[str, ...]
    context: Any
    up: Any
    work: Any
    down: Any

    def buffer(self, size: int, given: Any = None) -> Any:
        """Return memory of so many bytes, or a copy of an array."""
        import pyopencl as cl

        flags = cl.mem_flags.READ_WRITE
        if given is None or not given.nbytes:
            return cl.Buffer(self.context, flags, max(1, size))
        return cl.Buffer(self.context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=given)

    def program(self, text: str) -> Any:
        """Return the program of a text.

        Raises:
            RuntimeError: the device does not take it.
        """
        import pyopencl as cl

        return cl.Program(self.context, text).build(options=list(self.options))


@cache
def open_device(wanted: int | str) -> Device:
    """Return a device by its number, or a part of its name, whatever its case.

    Raises:
        EnvironmentUnfit: there is none; or it has no numbers of 64 bits, or OpenCL can't be used.
    """
    import pyopencl as cl

    found = _found(wanted)
    context = cl.Context([found])
    options = []
    if found.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT:
        options.append("-cl-fp32-correctly-rounded-divide-sqrt")
    queues = [cl.CommandQueue(context, properties=cl.command_queue_properties.PROFILING_ENABLE) for _ in range(3)]
    return Device(found.name.strip(), found.global_mem_size, tuple(options), context, *queues)


def check_device(wanted: int | str, needed: int) -> str:
    """Return the name of a device.

    Raises:
        EnvironmentUnfit: there is none, or less memory than ``needed`` bytes.
    """
    found = _found(wanted)
    name = str(found.name).strip()
    if needed > found.global_mem_size:
        has = size_text(found.global_mem_size)
        raise EnvironmentUnfit(f"device {wanted} ({name}) has {has} of memory, {size_text(needed)} are needed")
    return name


def devices() -> list[str]:
    """Return the names of all devices that are counted, in order.

    Raises:
        EnvironmentUnfit: OpenCL can't be used here.
    """
    return [str(one.name).strip() for one in _counted()]


def _found(wanted: int | str) -> Any:
    if isinstance(wanted, str) and wanted.lower() == POCL:
        named = [one for one in _all() if _is_pocl(one)]
    elif isinstance(wanted, str):
        named = [one for one in _counted() if wanted.lower() in one.name.lower()]
    else:
        named = _counted()[wanted : wanted + 1]
    if not named:
        known = ", ".join(devices()) or "there is none"
        raise EnvironmentUnfit(f"device {wanted} of OpenCL was not found (GPUs and accelerators: {known})")
    if "cl_khr_fp64" not in named[0].extensions:
        raise EnvironmentUnfit(f"device {wanted} ({named[0].name.strip()}) has no floats of 64 bits")
    return named[0]


def _counted() -> list[Any]:
    import pyopencl as cl

    kinds = cl.device_type.GPU | cl.device_type.ACCELERATOR
    return [one for one in _all() if one.type & kinds and not _is_pocl(one)]


def _is_pocl(device: Any) -> bool:
    return any(word in device.platform.name.lower() for word in _POCLS)


def _all() -> list[Any]:
    if importlib.util.find_spec("pyopencl") is None:
        raise EnvironmentUnfit(f"pyopencl is not installed: {INSTALL}")
    import pyopencl as cl

    try:
        return [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error as error:  # no platform at all
        raise EnvironmentUnfit(f"OpenCL can't be used here: {error}") from error
