"""How the files of a channel and of a table are named."""

import re


def master_file(name: str, node: str) -> str:
    """Name of the master of a channel."""
    return f"{name}_{node}_master.h5"


def frame_file_names(name: str, node: str) -> re.Pattern[str]:
    """What names of frame files look like, with groups for receiver and number."""
    return re.compile(re.escape(f"{name}_{node}_") + r"(\d+)_(\d{5,})\.h5")


def part_names(name: str, node: str) -> re.Pattern[str]:
    """What names of parts of a table look like."""
    return re.compile(re.escape(f"{name}_{node}_") + r"\d+_rows\.h5")


def table_file(name: str, node: str) -> str:
    """Name of a whole table."""
    return f"{name}_{node}.h5"
