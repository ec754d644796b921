"""Where a plan comes from: kept with the data, so that it can be compiled again when files are to be recovered."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lima2cli.document.substitute import Variables
from lima2cli.plain import read_json_object
from lima2cli.secret import HIDDEN, hidden

PLAN_FILE, PIPELINE_FILE = "plan.json", "pipeline.yaml"

UNKNOWN = 2 * HIDDEN
"""Stands for a secret where its value is of no matter."""


@dataclass(frozen=True)
class Origin:
    """The text of a pipeline and all that its meaning depends on.

    file         as it was named;  base   resolves the file names in it
    overrides    of the command line;  environment   the variables that were put into the text, but for secrets
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

    @classmethod
    def here(
        cls,
        text: str,
        file: str,
        overrides: Sequence[str],
        texts: Mapping[str, str] | None = None,
        variables: Variables | None = None,
    ) -> "Origin":
        """Of a file of the command line (``-`` is standard input) on this machine."""
        base, used = Path(".") if file == "-" else Path(file).parent, variables or Variables({})
        cores, secrets = len(os.sched_getaffinity(0)), sorted(used.secret & used.used.keys())
        return cls(text, file, base, tuple(overrides), used.open, cores, texts or {}, secrets)

    def variables(self, *, needed: bool) -> dict[str, str]:
        """The variables to compile it with again: secrets are those of now.

        needed   False: one that is not set is of no matter, and something stands for it
        """
        now = {name: os.environ.get(name) or (None if needed else UNKNOWN) for name in self.secrets}
        return {**self.environment, **{name: value for name, value in now.items() if value is not None}}

    @classmethod
    def known(cls, text: str, source: Mapping[str, Any]) -> "Origin":
        """Of a text and what `source` gave. Raises KeyError or TypeError where it did not."""
        told = {name: source[name] for name in ("file", "overrides", "environment", "cores", "texts")}
        told["secrets"] = source.get("secrets", [])
        kinds = {
            "file": str, "overrides": list, "environment": dict, "cores": int, "texts": dict, "secrets": list
        }  # fmt: skip
        texts = [text for name in ("environment", "texts") for text in told[name].values()]
        strings = [*told["overrides"], *told["secrets"], *texts]
        if not all(isinstance(told[name], kinds[name]) for name in kinds) or not all(
            isinstance(it, str) for it in strings
        ):
            raise TypeError("the source of the plan is not what lima2 writes")
        return cls(text=text, base=Path(source["base"]), **told)

    def source(self) -> dict[str, Any]:
        """All but the text, as plain data."""
        return {
            "file": self.file,
            "base": str(self.base.resolve()),
            "overrides": list(self.overrides),
            "environment": dict(self.environment),
            "cores": self.cores,
            "texts": dict(self.texts),
            "secrets": list(self.secrets),
        }

    def write(self, directory: Path, contents: Mapping[str, Any]) -> None:
        """Keep it with the plan's contents in a run directory, on the disk itself: without them nothing recovers the
        files, should the machine go down. Raises OSError."""
        kept = hidden({**contents, "source": self.source()})
        for name, text in ((PIPELINE_FILE, self.text), (PLAN_FILE, json.dumps(kept, indent=1) + "\n")):
            with (directory / name).open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @classmethod
    def read(cls, directory: Path) -> "tuple[Origin, dict[str, Any]]":
        """From a run directory, with the plan's figures. Raises OSError, ValueError or KeyError where it is none."""
        figures = read_json_object(directory / PLAN_FILE)
        source = figures.pop("source")
        text = (directory / PIPELINE_FILE).read_text()
        return cls.known(text, source), figures
