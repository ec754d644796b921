"""Plans kept in files with their origin, and how one differs from another."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lima2cli import __version__
from lima2cli.accounting.record import RunRecord, seal
from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Diagnostic
from lima2cli.errors import UnreadableInput
from lima2cli.paths import read_json_object
from lima2cli.plan.figures import plan_figures
from lima2cli.plan.ir import Plan
from lima2cli.secret import hidden

if TYPE_CHECKING:  # ranks read no YAML
    from lima2cli.document.substitute import Variables


@dataclass(frozen=True)
class Difference:
    """A value that is not the same; ``old`` and ``new`` are JSON, None where there is nothing.

    ``path`` is a JSON pointer: ``/gdts/FullDet1/slots``.
    """

    path: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.path}: added, {self.new}"
        return f"{self.path}: removed, {self.old}" if self.new is None else f"{self.path}: {self.old} → {self.new}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return all differences, in the order of the new plan, what is gone last. Lists are compared item by item."""
    return tuple(_differences("", json.loads(json.dumps(old)), json.loads(json.dumps(new))))


def _differences(path: str, old: Any, new: Any) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*new, *(key for key in old if key not in new)):
            place = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in old:
                yield Difference(place, None, _text(new[key]))
            elif key not in new:
                yield Difference(place, _text(old[key]), None)
            else:
                yield from _differences(place, old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list):
        yield from _differences(path, _numbered(old), _numbered(new))
    elif _text(old) != _text(new):  # as text: NaN is what it was
        yield Difference(path, _text(old), _text(new))


def _numbered(items: list[Any]) -> dict[str, Any]:
    """Return items by name where they have one, so that one more does not shift the others; else by place."""
    named = {str(item["name"]): item for item in items if isinstance(item, dict) and "name" in item}
    if len(named) == len(items):
        return named
    return {str(place): item for place, item in enumerate(items)}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


PLAN_FILE, PIPELINE_FILE = "plan.json", "pipeline.yaml"

RECOVERY = "recovery"
"""Key of `PLAN_FILE` in a run directory: the record of the run, which alone `lima2 recover` reads."""


@dataclass(frozen=True)
class Origin:
    """Source of a pipeline and all that its meaning depends on.

    file         as it was named;  base   resolves the file names in it
    overrides    of the command line;  environment   the variables that were put into the text, but for secrets
    profiles     (file, text) of each that was laid on the text, in order
    cores        of the machine;  texts   of files of graphs, by their names relative to ``base``
    secrets      names of the variables whose values are kept nowhere
    """

    text: str
    file: str
    base: Path
    overrides: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: int = 1
    texts: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()
    profiles: Sequence[tuple[str, str]] = ()

    @classmethod
    def here(
        cls,
        text: str,
        file: str,
        overrides: Sequence[str],
        texts: Mapping[str, str] | None = None,
        variables: "Variables | None" = None,
        profiles: Sequence[tuple[str, str]] = (),
    ) -> "Origin":
        """Return the origin of a file of the command line (``-`` is standard input) on this machine."""
        base, cores = Path(".") if file == "-" else Path(file).parent, len(os.sched_getaffinity(0))
        used = {} if variables is None else variables.open
        secrets = [] if variables is None else sorted(variables.secret & variables.used.keys())
        return cls(text, file, base, tuple(overrides), used, cores, texts or {}, secrets, tuple(profiles))

    def variables(self) -> dict[str, str]:
        """Return the variables to compile it with again: secrets are those of now, where they are set."""
        now = {name: os.environ.get(name) for name in self.secrets}
        return {**self.environment, **{name: value for name, value in now.items() if value}}

    @classmethod
    def known(cls, text: str, source: Mapping[str, Any]) -> "Origin":
        """Return the origin of a source and what `source` gave.

        Raises:
            KeyError, TypeError: the data are not of `source`.
        """
        origin = {name: source[name] for name in ("file", "overrides", "environment", "cores", "texts")}
        origin["secrets"] = source.get("secrets", [])
        kinds = {
            "file": str, "overrides": list, "environment": dict, "cores": int, "texts": dict, "secrets": list
        }  # fmt: skip
        values = [text for name in ("environment", "texts") for text in origin[name].values()]
        strings = [*origin["overrides"], *origin["secrets"], *values]
        if not all(isinstance(origin[name], kinds[name]) for name in kinds) or not all(
            isinstance(string, str) for string in strings
        ):
            raise TypeError("the source of the plan is not what lima2 writes")
        origin["profiles"] = [(str(one["file"]), str(one["text"])) for one in source.get("profiles", [])]
        return cls(text=text, base=Path(source["base"]), **origin)

    def source(self) -> dict[str, Any]:
        """Return all but the source text, as plain data."""
        return {
            "file": self.file,
            "base": str(self.base.resolve()),
            "overrides": list(self.overrides),
            "environment": dict(self.environment),
            "cores": self.cores,
            "texts": dict(self.texts),
            "secrets": list(self.secrets),
            "profiles": [{"file": str(Path(file).resolve()), "text": text} for file, text in self.profiles],
        }

    def write(self, directory: Path, contents: Mapping[str, Any], record: RunRecord) -> None:
        """Write it with the plan's contents and the record of the run to its directory, on the disk itself.

        Without the record nothing recovers the files, should the machine go down.

        Raises:
            OSError: a file can't be written.
        """
        kept = hidden({**contents, "source": self.source()}) | {RECOVERY: seal(record)}
        for name, content in ((PIPELINE_FILE, self.text), (PLAN_FILE, json.dumps(kept, indent=1) + "\n")):
            with (directory / name).open("w") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


NOT_COMPARED = ("warnings", "source", "predicted", RECOVERY)


def plan_contents(plan: Plan, warnings: Sequence[Diagnostic] = ()) -> dict[str, Any]:
    """Return a plan as plain data: its figures, and all parameters that it was compiled from."""
    return {
        **plan_figures(plan, warnings),
        "lima2": __version__,
        "parameters": dict(plan.record),
        "output": {"directory": plan.output_directory, "if_exists": plan.if_exists},
    }


def looks_saved(file: str) -> bool:
    """Return whether a file of the command line is meant as a saved plan: pipelines are not JSON with such keys."""
    if not file.endswith(".json"):
        return False
    try:
        return "gdts" in read_json_object(Path(file))
    except (OSError, ValueError):
        return False  # mistakes in it will be reported as those of a pipeline


def read_plan(file: str) -> tuple[Origin, dict[str, Any]]:
    """Return where a saved plan comes from (its source not yet read), and its contents.

    Raises:
        UnreadableInput: it can't be read.
    """
    try:
        contents = read_json_object(Path(file))
        return Origin.known("", contents.pop("source")), contents
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableInput(f"{file} is not a saved plan (lima2 plan --format json -o {file}): {error!r}") from error


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[Difference, ...]:
    """Return how the contents of two plans differ, warnings and origins left out."""
    before, after = (
        {key: value for key, value in contents.items() if key not in NOT_COMPARED} for contents in (old, hidden(new))
    )
    return differences(before, after)
