"""The program ``lima2`` as ``python -m lima2cli``."""

import signal
import sys

from lima2cli.errors import ExitCode


def main() -> None:
    """Run the program. Ctrl-C during its import ends it in silence, with the shell's code 130."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lima2cli.cli import main as program

    try:
        signal.signal(signal.SIGINT, handler)
        program()
    except KeyboardInterrupt:  # before a command, or after it
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
