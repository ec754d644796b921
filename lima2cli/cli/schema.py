"""``lima2 schema``."""

from lima2cli.cli.border import border
from lima2cli.cli.options import Debug


def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of pipelines, with all kinds that are installed."""
    with border(as_json=False, debug=debug):
        from lima2cli.config.schema import schema_text

        print(schema_text(), end="", flush=True)
