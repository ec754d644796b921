"""``python -m lima2cli`` is the program ``lima2``."""

from lima2cli.cli import main

main()
