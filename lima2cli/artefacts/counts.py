"""How much the ended files of a run hold."""

import numpy as np

from lima2cli.artefacts.status import SAVED
from lima2cli.artefacts.tree import ENTRY, MEASUREMENT

STEP = 1 << 20
"""Rows looked at at once."""


def saved_frames(master: str) -> int:
    """Frames that a master shows. OSError where it can't be read."""
    import h5py

    with h5py.File(master) as file:
        entry = file[ENTRY]
        status = entry[str(entry.attrs["default"]).rpartition("/")[0]]["frame_status"]
        return sum(int(np.count_nonzero(status[k : k + STEP] == SAVED)) for k in range(0, len(status), STEP))


def table_rows(table: str) -> int:
    """Rows of a table. OSError where it can't be read."""
    import h5py

    with h5py.File(table) as file:
        return len(file[f"{MEASUREMENT}/frame_number"])


def tells(master: str) -> bool:
    """Whether a master is there that can be read and knows why frames are not saved."""
    import h5py

    try:
        with h5py.File(master) as file:
            entry = file[ENTRY]
            detector = entry[str(entry.attrs["default"]).rpartition("/")[0]]
            return bool(detector["flow"].attrs["told"])
    except (OSError, RuntimeError, KeyError):
        return False
