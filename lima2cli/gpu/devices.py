"""Devices of OpenCL, by number or name.

Numbers count GPUs and accelerators, of all platforms in their order; CPUs are not counted, so that none is used by
mistake. `pocl`, the portable implementation of OpenCL on CPUs, is used where its name is given, for tests.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
        """Return memory of so many bytes, or a copy of an array.

        Raises:
            RuntimeError: the device has no room for it.
        """
        import pyopencl as cl

        flags = cl.mem_flags.READ_WRITE
        with self.named():
            if given is None or not given.nbytes:
                return cl.Buffer(self.context, flags, max(1, size))
            return cl.Buffer(self.context, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=given)

    def program(self, text: str) -> Any:
        """Return the program of a text.

        Raises:
            RuntimeError: the device does not take it.
        """
        import pyopencl as cl

        with self.named():
            return cl.Program(self.context, text).build(options=list(self.options))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the device in an error of OpenCL, and leave one line of it; a log of its compiler has hundreds.

        Raises:
            RuntimeError: this line.
        """
        import pyopencl as cl

        try:
            yield
        except cl.Error as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            found = [line for line in lines[1:] if "error" in line][:1]
            raise RuntimeError(f"device {self.name}: {': '.join([lines[0], *found])}") from error


@cache
def open_device(wanted: int | str) -> Device:
    """Return a device by its number, or a part of its name, whatever its case.

    Raises:
        EnvironmentUnfit: there is none, it has no floats of 64 bits, or OpenCL or the device can't be used.
    """
    cl = _opencl()
    found = _found(wanted)
    name, options = str(found.name).strip(), []
    if found.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT:
        options.append("-cl-fp32-correctly-rounded-divide-sqrt")
    try:
        context = cl.Context([found])
        profiled = cl.command_queue_properties.PROFILING_ENABLE
        queues = [cl.CommandQueue(context, properties=profiled) for _ in range(3)]
    except cl.Error as error:  # it is in use by another, or has failed
        raise EnvironmentUnfit(f"device {wanted} ({name}) can't be used: {error}") from error
    return Device(name, found.global_mem_size, tuple(options), context, *queues)


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
    cl = _opencl()
    kinds = cl.device_type.GPU | cl.device_type.ACCELERATOR
    return [one for one in _all() if one.type & kinds and not _is_pocl(one)]


def _is_pocl(device: Any) -> bool:
    return any(word in device.platform.name.lower() for word in _POCLS)


def _all() -> list[Any]:
    cl = _opencl()
    found, failed = list[Any](), None
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:  # there is none
        raise EnvironmentUnfit(f"OpenCL can't be used here: {error}") from error
    for platform in platforms:
        try:
            found += platform.get_devices()
        except cl.Error as error:  # of a driver without its device; those of others can be used
            failed = error
    if failed is not None and not found:
        raise EnvironmentUnfit(f"OpenCL can't be used here: {failed}") from failed
    return found


def _opencl() -> Any:
    try:
        import pyopencl
    except ModuleNotFoundError as error:
        if error.name != "pyopencl":
            raise EnvironmentUnfit(f"pyopencl can't be loaded: {error}") from error
        raise EnvironmentUnfit(f"pyopencl is not installed: {INSTALL}") from error
    except ImportError as error:  # a library that it needs
        raise EnvironmentUnfit(f"pyopencl can't be loaded: {error}") from error
    return pyopencl
