r"""Escaped UTF-16 surrogates, as JSON writes characters beyond U+FFFF: ``"\ud83d\ude00"``.

Parsers of YAML refuse them. So each is replaced, for the parser, by the escape of a character of the private use area
that the text does not have: as long, so that places stay what they are, and put back in what the parser gives, which
alone knows where a backslash begins an escape.
"""

import re
from collections.abc import Mapping

_ESCAPE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_ESCAPES = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_HEXADECIMAL = re.compile("(?=([0-9a-f]{4}))")
_LONE = re.compile("[\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_PRIVATE = range(0xE000, 0xF900)


class Surrogates:
    """The escapes of a text, replaced and put back."""

    def __init__(self, text: str) -> None:
        """``parsed`` is the text for the parser."""
        self.parsed = text
        self._back: Mapping[str, str] = {}
        written = dict.fromkeys(_ESCAPE.findall(text))
        if not written:
            return
        used = {int(found[1], 16) for found in _HEXADECIMAL.finditer(text.lower())} | {ord(char) for char in set(text)}
        free = (code for code in _PRIVATE if code not in used)
        stand_ins = dict(zip(written, free, strict=False))  # more than there are would be refused by the parser
        self.parsed = _ESCAPE.sub(lambda it: f"\\u{stand_ins[it[0]]:04x}" if it[0] in stand_ins else it[0], text)
        back = {}
        for escape, code in stand_ins.items():
            back[chr(code)] = chr(int(escape[2:], 16))  # where it was an escape
            back[f"\\u{code:04x}"] = escape  # where it was text
        self._back = back
        self._stand_in = re.compile("|".join(map(re.escape, back)))

    def restored(self, value: str) -> str:
        """What the parser gave, as it was meant: pairs are characters, a half alone is left as it is."""
        if not self._back:
            return value
        value = self._stand_in.sub(lambda it: self._back[it[0]], value)
        return _PAIR.sub(lambda it: it[0].encode("utf-16", "surrogatepass").decode("utf-16"), value)


def is_half(value: str) -> bool:
    """Whether a surrogate is in a restored value."""
    return _LONE.search(value) is not None


def find_half(text: str, first: int, last: int) -> re.Match[str] | None:
    """The escape of the first surrogate without its other half between two indices of a text in double quotes."""
    return next((found for found in _ESCAPES.finditer(text, first, last) if found["half"]), None)
