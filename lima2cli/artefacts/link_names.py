"""Names of links in HDF5 files, made of names that users give: any text, and no two in one place."""

from collections.abc import Collection, Iterable
from itertools import chain, count

LONGEST = 255
"""Bytes of a name; HDF5 itself takes 64 KiB, people and programs do not."""


def link_name(text: str) -> str:
    """A name that HDF5 takes for one link: ``/`` would make several, and ``.`` is where one is."""
    return text.replace("/", "-") if text.strip(".") else "unnamed"


def link_names(texts: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """A link's name for each of ``texts``, no two alike and none of ``taken``.

    Texts that can be a name are one; to others, and to those that are taken, a number is added where they collide.
    """
    wanted = {text: link_name(text) for text in texts}
    used = set(taken) | {text for text, name in wanted.items() if text == name}
    names = {}
    for text, name in wanted.items():
        free = text == name and text not in taken
        candidates = chain((name,), (f"{name}_{number}" for number in count(2)))
        names[text] = name if free else next(it for it in candidates if it not in used)
        used.add(names[text])
    return names
