"""Groups, datasets and links as they are written: their names, their classes, plain data and quantities."""

import json
from collections.abc import Collection, Iterable, Mapping
from itertools import chain, count
from typing import Any

import numpy as np

LONGEST_LINK = 255
"""Bytes of a name; HDF5 itself takes 64 KiB, people and programs do not."""


def link_name(text: str) -> str:
    """Return a name that HDF5 takes for one link: ``/`` would make several, and ``.`` is the group itself."""
    return text.replace("/", "-") if text.strip(".") else "unnamed"


def link_names(texts: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Return a link's name for each of ``texts``, no two alike and none of ``taken``.

    Strings that can be a name are kept; to others, and to those that are taken, a number is added where they collide.
    """
    wanted = {text: link_name(text) for text in texts}
    used = set(taken) | {text for text, name in wanted.items() if text == name}
    names = {}
    for text, name in wanted.items():
        free = text == name and text not in taken
        candidates = chain((name,), (f"{name}_{number}" for number in count(2)))
        names[text] = name if free else next(candidate for candidate in candidates if candidate not in used)
        used.add(names[text])
    return names


KEY = "key"
"""Attribute of what could not have the name that a user gave it: that name."""


def group(parent: Any, name: str, nx_class: str) -> Any:
    """Make a new group with its NX_class."""
    made = parent.create_group(name)
    made.attrs["NX_class"] = fixed(nx_class)
    return made


def fixed(text: str) -> Any:
    """Return the value of an attribute, ASCII of a fixed length: readers in C take no other.

    It has room for a NUL at the end: read as a string of C, one without loses its last letter.
    """
    return np.array(text.encode("ascii"), f"S{len(text) + 1}")


def write_plain(parent: Any, data: Mapping[str, Any]) -> None:
    """Write plain data as datasets: mappings become groups, lists of numbers arrays, other lists JSON.

    None is left out. Whole numbers of more than 64 bits become their digits.
    """
    held = {str(key): value for key, value in data.items() if value is not None}
    for key, name in link_names(held).items():
        value = held[key]
        if isinstance(value, Mapping):
            write_plain(group(parent, name, "NXcollection"), value)
        elif isinstance(value, list | tuple):
            parent[name] = _array_or_json(value)
        else:
            parent[name] = str(value) if _beyond(value) else value
        if name != key:
            parent[name].attrs[KEY] = key


def write_quantity(parent: Any, name: str, value: float, units: str) -> None:
    """Write a number with its unit."""
    parent[name] = float(value)
    parent[name].attrs["units"] = fixed(units)


def _beyond(value: Any) -> bool:
    """Return whether no integer of HDF5 holds a number."""
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _array_or_json(value: Any) -> Any:
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return json.dumps(value, default=str)
    return array if array.size and array.dtype.kind in "biuf" else json.dumps(value, default=str)


def soft(path: str) -> Any:
    """Return a link to a path of the same file."""
    import h5py

    return h5py.SoftLink(path)
