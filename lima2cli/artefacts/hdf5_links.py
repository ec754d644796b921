"""Where a path in an HDF5 file leads: through soft links, and through external links to other files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOPS = 64
"""Links followed before it is taken for a cycle."""


@dataclass(frozen=True, eq=False)
class Place:
    """An object and its real path, without links, in the file that it is in; ``files`` are those on the way."""

    item: Any
    file: Any
    path: str
    files: tuple[str, ...]

    @property
    def parent(self) -> Any:
        """The group that holds it."""
        return self.file[self.path.rpartition("/")[0] or "/"]


def follow(file: Any, path: str) -> Place:
    """The object at an absolute path. Raises KeyError or OSError where a link leads nowhere."""
    import h5py

    ahead = [name for name in path.split("/") if name]
    here, done = file["/"], ""
    files = [file.filename]
    hops = 0
    while ahead:
        name = ahead.pop(0)
        if not isinstance(here, h5py.Group):
            raise KeyError(f"{done} is no group")
        link = here.get(name, getlink=True)
        if isinstance(link, h5py.HardLink):
            here, done = here[name], f"{done}/{name}"
            continue
        hops += 1
        if link is None or hops > HOPS:
            raise KeyError(f"there is no {done}/{name}")
        target = link.path
        if isinstance(link, h5py.ExternalLink):
            file = here[name].file  # HDF5 knows where it looks for it
            files.append(file.filename)
            target = f"/{target}"
        base = "" if target.startswith("/") else done
        ahead = [part for part in f"{base}/{target}".split("/") if part and part != "."] + ahead
        here, done = file["/"], ""
    return Place(here, file, done or "/", tuple(str(Path(name).absolute()) for name in dict.fromkeys(files)))
