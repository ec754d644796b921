"""``lima2 schema``."""

import sys

from lima2cli.cli.border import border
from lima2cli.cli.options import Debug


def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of pipelines, with all kinds that are installed."""
    with border(as_json=False, debug=debug):
        from lima2cli.config.kinds import complete_shape
        from lima2cli.config.schema import schema_text

        shape, problems = complete_shape()
        for problem in problems:
            print(f"warning[{problem.rule}]: {problem}", file=sys.stderr)
        print(schema_text(shape), end="", flush=True)
