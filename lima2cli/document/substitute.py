"""Replace ``${VAR}`` and ``${VAR:-default}`` in strings; ``${VAR!}`` is a secret, and ``$$`` is a dollar sign.

As in a shell and in Compose, the default of ``:-`` is taken where the variable is unset or empty.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import nearest
from lima2cli.secret import HIDDEN, SHORTEST, Secret

_REFERENCE = re.compile(r"\$(?:\$|\{([^{}]*)(\}?))")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(!?)(?::-(.*))?", re.DOTALL)

Report = Callable[[str, str, str | None], None]
"""Function that takes rule, message and help of a mistake."""


@dataclass
class Variables(Mapping[str, str]):
    """Variables that strings may mention.

    used     those whose values were put into a string;  secret   names of those whose values are secret
    """

    values_of: Mapping[str, str]
    used: dict[str, str] = field(default_factory=dict)
    secret: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Variables":
        """Return the mapping as `Variables`; the same object if it is one already."""
        return environment if isinstance(environment, cls) else cls(environment)

    def __getitem__(self, name: str) -> str:
        return self.values_of[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)

    @property
    def open(self) -> dict[str, str]:
        """Return the used variables that may be written down: all but secrets."""
        return {name: value for name, value in self.used.items() if name not in self.secret}


def substitute(text: str, environment: Mapping[str, str], report: Report) -> str:
    """Return ``text`` with references replaced, a `Secret` where one is; one without value is reported and kept."""
    variables = Variables.of(environment)
    parts, shown, written, values, end = list[str](), list[str](), list[str](), list[str](), 0
    for reference in _REFERENCE.finditer(text):
        value, secret = _value(reference, variables, report)
        before = text[end : reference.start()]
        parts += [before, value]
        shown += [before, HIDDEN if secret else value]
        written += [before, reference[0] if secret else value.replace("$", "$$")]
        values += [value] if secret and reference_name(reference) in variables.used else []
        end = reference.end()
    whole, visible, source = ("".join([*some, text[end:]]) for some in (parts, shown, written))
    return Secret(whole, visible, tuple(values), source) if whole != visible or values else whole


def reference_name(reference: re.Match[str]) -> str:
    """Return the name of the variable that a reference names; empty for none."""
    inside = _INSIDE.fullmatch(reference[1] or "")
    return "" if inside is None else inside[1]


def _value(reference: re.Match[str], variables: Variables, report: Report) -> tuple[str, bool]:
    """Return the replacement of a reference, and True if it is secret."""
    if reference[0] == "$$":
        return "$", False
    inside = _INSIDE.fullmatch(reference[1])
    if inside is None or not reference[2]:
        report(
            "variable-syntax",
            f"`{reference[0]}` is not a variable",
            "write `${NAME}`, `${NAME:-default}`, or `${NAME!}` for a secret; `$$` for a dollar sign",
        )
        return reference[0], False
    name, secret, default = inside[1], bool(inside[2]), inside[3]
    value = variables.get(name)
    if secret:
        variables.secret.add(name)
    if default is not None and not value:
        return default, secret
    if value is None:
        close = nearest(name, variables)
        guess = f"did you mean `{close}`? " if close else ""
        message = f"the environment variable {name} is not set"
        if secret:
            message += "; its value is secret and is not stored"
        report("variable-unset", message, f"{guess}`${{{name}{inside[2]}:-default}}` gives a default")
        return reference[0], False
    if secret and len(value) < SHORTEST:
        message = f"the secret {name} has {len(value)} characters: messages would hide every such string"
        report("secret-too-short", message, f"at least {SHORTEST}")
        return "", False
    variables.used[name] = value
    return value, secret
