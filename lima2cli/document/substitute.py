"""``${VAR}`` and ``${VAR:-default}`` in texts; ``$$`` is a dollar sign.

As in a shell and in Compose, the default of ``:-`` is taken where the variable is unset or empty.
"""

import re
from collections.abc import Callable, Mapping

from lima2cli.names import nearest

_REFERENCE = re.compile(r"\$(?:\$|\{([^{}]*)(\}?))")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)

Report = Callable[[str, str, str | None], None]
"""Takes rule, message and help of a mistake."""


def substitute(text: str, environment: Mapping[str, str], report: Report) -> str:
    """``text`` with its references replaced; a reference that cannot be is reported and stays as it is."""

    def replace(reference: re.Match[str]) -> str:
        if reference[0] == "$$":
            return "$"
        inside = _INSIDE.fullmatch(reference[1])
        if inside is None or not reference[2]:
            report(
                "variable-syntax",
                f"`{reference[0]}` is no variable",
                "write `${NAME}` or `${NAME:-default}`; `$$` for a dollar sign",
            )
            return reference[0]
        name, default = inside[1], inside[2]
        value = environment.get(name)
        if default is not None:
            return value or default
        if value is None:
            close = nearest(name, environment)
            guess = f"did you mean `{close}`? " if close else ""
            report(
                "variable-unset",
                f"the environment variable {name} is not set",
                f"{guess}`${{{name}:-default}}` gives a default",
            )
            return reference[0]
        return value

    return _REFERENCE.sub(replace, text)
