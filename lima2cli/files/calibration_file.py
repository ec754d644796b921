"""Calibration files: images that nodes take, with what they are, their errors, and where they come from."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lima2cli.errors import EnvironmentUnfit
from lima2cli.files.appending import VERSIONS, written
from lima2cli.files.fields import PACKED
from lima2cli.files.nexus import ENTRY, write_root
from lima2cli.files.tree import fixed, group, write_plain

GROUP = "calibration"


def write_calibration(
    path: Path,
    kind: str,
    data: NDArray[Any],
    more: Mapping[str, NDArray[Any]],
    counts: Collection[str],
    about: Mapping[str, Any],
    master: Path,
) -> None:
    """Write a new file, at once as a whole: ``/entry_0000/calibration``, NXdata whose signal is ``data``.

    data, more  images (height, width) or stacks of them; those named in ``counts`` are in counts of the detector
    about       what was done, plain data: ``/entry_0000/process``
    master      of a run that saved one of the images: it says how they show the detector

    Raises:
        EnvironmentUnfit: the file exists, or can't be written.
    """
    part = f"{path}.part"
    try:
        with written(part, libver=VERSIONS) as file:
            entry = write_root(file, f"{kind} calibration", None)
            entry.attrs["default"] = GROUP
            made = group(entry, GROUP, "NXdata")
            made.attrs["signal"] = fixed("data")
            for name, array in {"data": data, **more}.items():
                chunks = (1,) * (array.ndim - 2) + array.shape[-2:]
                made.create_dataset(name, data=array, chunks=chunks, **PACKED)
                if name in counts:
                    made[name].attrs["units"] = fixed("counts")
            _copy_operation(master, made)
            process = group(entry, "process", "NXprocess")
            write_plain(process, about)
        _give_name(part, path)
    except FileExistsError as error:
        raise EnvironmentUnfit(f"{path} exists, and is not overwritten") from error
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write {path}: {error}") from error


def _give_name(part: str, path: Path) -> None:
    """Give a file its name; raises FileExistsError where there is such a file."""
    try:
        os.link(part, path)  # in one step, whoever makes a file of that name meanwhile
    except FileExistsError:
        os.remove(part)
        raise
    except OSError:  # a file system without links
        if path.exists():
            os.remove(part)
            raise FileExistsError(str(path)) from None
        os.rename(part, path)
    else:
        os.remove(part)


def _copy_operation(master: Path, made: Any) -> None:
    """Copy how saved frames show the detector, next to the images."""
    import h5py

    with h5py.File(master) as file:
        found: list[str] = []
        file[ENTRY].visit(lambda name: found.append(name) if name.endswith("/image_operation") else None)
        if found:
            file.copy(file[f"{ENTRY}/{found[0]}"], made, "image_operation")
