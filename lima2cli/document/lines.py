"""Lines as YAML counts them."""

import re

_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends."""
    return _BREAK.split(text)


def line_starts(text: str) -> list[int]:
    """Index of the first character of each line."""
    return [0, *(found.end() for found in _BREAK.finditer(text))]
