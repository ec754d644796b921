"""The page of the manual about the names that other packages import, made from their docstrings and signatures."""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import lima2cli

GROUPS = (
    ("Nodes", "How they are put together: [write a node of your own](../how-to/write-a-node.md).",
     ("lima2cli.nodes.base", "lima2cli.nodes.pixelwise", "lima2cli.kernels.strips")),
    ("Frames and tables", "", ("lima2cli.frames", "lima2cli.view", "lima2cli.geometry", "lima2cli.facts",
     "lima2cli.files.channel")),
    ("Declarations of parameters", "", ("lima2cli.declare",)),
    ("Detectors", "", ("lima2cli.detectors.base", "lima2cli.detectors.emulated", "lima2cli.detectors.sources")),
    ("Runs from Python", "With examples: [drive a run from Python](../how-to/python.md).",
     ("lima2cli.drive", "lima2cli.drive.asynchronous")),
    ("Programs of your own", "[Delegate to other processes](../how-to/delegate.md), "
     "[use your own processing](../how-to/own-processing.md).", ("lima2cli.worker", "lima2cli.processing")),
    ("Errors", "", ("lima2cli.errors",)),
)  # fmt: skip
"""Headings, what stands below them, and the modules whose public names follow."""


def interface() -> str:
    """The page: every public name of the package."""
    named = [module for _, _, modules in GROUPS for module in modules]
    assert sorted(named) == sorted(lima2cli._PLACES)
    parts = [
        "# The interface of Python\n\n<!-- Made from the code by tests/docs/interface.py. -->\n",
        "All that packages with nodes and detectors, and programs that drive runs, import is in `lima2cli` itself:\n"
        "`from lima2cli import Map, node, param`. Tests that they inherit are in `lima2cli.testing`. Other modules\n"
        "may change at any time.\n",
    ]
    for title, about, modules in GROUPS:
        parts.append(f"## {title}\n" + (f"\n{about}\n" if about else ""))
        parts += [_entry(name) for module in modules for name in sorted(lima2cli._PLACES[module].split())]
    return "\n".join(parts)


def _entry(name: str) -> str:
    value = getattr(lima2cli, name)
    text = inspect.cleandoc(value.__doc__ or "") if inspect.isclass(value) or inspect.isfunction(value) else ""
    lines = [f"### `{name}{_signature(value)}`\n", *([_plain(text), ""] if text else [_alias(value), ""])]
    if inspect.isclass(value):
        lines += [f"* `{member}{signature}`: {_first(about)}" for member, signature, about in _members(value)]
        lines.append("")
    return "\n".join(lines)


def _alias(value: Any) -> str:
    text = re.sub(r"(lima2cli|numpy|collections|typing)[.][a-z_.]*", "", str(value))
    return f"`{text.replace('[tuple[Any, ...], [Any]]', 'numpy.ndarray')}`"


def _signature(value: Any) -> str:
    if inspect.isfunction(value):
        return _shown(inspect.signature(value))
    if inspect.isclass(value) and dataclasses.is_dataclass(value):
        return f"({', '.join(field.name for field in dataclasses.fields(value))})"
    return ""


def _shown(signature: inspect.Signature) -> str:
    """The names of the parameters, and defaults that are short; types are in the code."""
    kept = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in kept]
    short = [
        one.replace(default=...) if len(repr(one.default)) > 20 and one.default is not one.empty else one
        for one in bare
    ]
    return str(signature.replace(parameters=short, return_annotation=inspect.Signature.empty)).replace("Ellipsis", "…")


def _members(value: type) -> Iterator[tuple[str, str, str]]:
    """Public methods and properties of a class that it declares itself, in the order of the code."""
    for name, member in vars(value).items():
        inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if name.startswith("_") or not inner.__doc__:
            continue
        if isinstance(inner, property):
            yield name, "", inspect.cleandoc(inner.__doc__)
        elif inspect.isfunction(inner):
            yield name, _shown(inspect.signature(inner)), inspect.cleandoc(inner.__doc__)


def _first(text: str) -> str:
    return _code(" ".join(text.split("\n\n")[0].split()))


def _plain(text: str) -> str:
    """A docstring as Markdown: paragraphs stay, what is set in columns is shown as it is."""
    return "\n\n".join(_paragraph(part) for part in text.split("\n\n"))


def _paragraph(part: str) -> str:
    lines: Sequence[str] = part.splitlines()
    columns = len(lines) > 0 and (any(re.search(r"\S {2,}\S", line) for line in lines) or lines[0].startswith("    "))
    if columns or part.startswith("Raises:"):
        return "```text\n" + part + "\n```"
    return _code(part)


def _code(text: str) -> str:
    """Double backquotes, and names in single ones, as Markdown has them."""
    return text.replace("``", "`")
