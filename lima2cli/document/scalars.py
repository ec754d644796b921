"""Plain scalars by the YAML 1.2 core schema (https://yaml.org/spec/1.2.2/, section 10.3.2).

PyYAML reads YAML 1.1: there ``no`` is false, ``010`` eight, ``12:30:45`` a number and ``1e3`` a text.
"""

import math
import re

Scalar = str | int | float | bool | None

_WORDS: dict[str, bool | None] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")

_LONGEST_NUMBER = 400
"""Characters; what is longer is text. Python refuses to read decimal numbers of more than 4300 digits."""


def resolve(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar: None, bool, int, float or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER or text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinity := _INFINITY.fullmatch(text):
        return -math.inf if infinity[1] == "-" else math.inf
    return math.nan if _NAN.fullmatch(text) else text


def kind(value: object) -> str:
    """What a value is, in words: "a number", "a map"..."""
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a text", int: "a number", float: "a number", dict: "a map", list: "a list", type(None): "null"}
    return names[type(value)]
