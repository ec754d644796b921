"""``python -m lima2cli`` is the program ``lima2``."""

import signal
import sys

from lima2cli.errors import INTERRUPTED


def main() -> None:
    """Entry point of the program. Ctrl-C while it is being imported ends it in silence, as the shell shows it: 130."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lima2cli.cli import main as program

    try:
        signal.signal(signal.SIGINT, handler)
        program()
    except KeyboardInterrupt:  # before a command, or after it
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
