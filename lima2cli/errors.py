"""Exceptions that cross the border of a stage, and the exit codes of the program."""

from enum import IntEnum


class Lima2Error(Exception):
    """Root of all errors that lima2 raises on purpose."""


class UnreadableInput(Lima2Error):
    """A file given on the command line cannot be read."""


class EnvironmentUnfit(Lima2Error):
    """The machine lacks what the plan needs; the message says the arithmetic."""


class FileProblem(Lima2Error):
    """A file with data in it (``path.h5::/dataset``, ``path.cbf``…) is missing or not what is needed.

    ``rule`` is the kebab-case name of the diagnostic that it becomes, ``help`` the cure, if we know one.
    """

    def __init__(self, message: str, rule: str = "file-unreadable", help: str | None = None) -> None:
        super().__init__(message)
        self.rule, self.help = rule, help


class StreamProblem(Lima2Error):
    """A message of a stream of frames is damaged, or not what is expected."""


class RunFailed(Lima2Error):
    """A run that started, and could not do the job."""


class StateError(Lima2Error):
    """An operation that the state of a detector does not allow."""


class UserCodeError(Lima2Error):
    """Code of the user's failed, or returned an undeclared result; the message names the place.

    ``frame`` is the number of the frame, None where it is not about one.
    """

    def __init__(self, message: str, frame: int | None = None) -> None:
        super().__init__(message)
        self.frame = frame


class EndedAtOnce(BaseException):
    """Raised at the second Ctrl-C of a run whose ranks are all in one process."""


class NodeMisuse(Lima2Error):
    """Parameters of a node that do not go with its data; becomes a diagnostic at the parameter.

    ``key`` is the path below the node's kind, e.g. ``("rois", "door", "rect")``.
    """

    def __init__(self, rule: str, message: str, key: tuple[str | int, ...] = (), help: str | None = None) -> None:
        super().__init__(message)
        self.rule, self.message, self.key, self.help = rule, message, key, help


class ExitCode(IntEnum):
    """Exit codes of the program; see also `of_signal`."""

    FINE = 0
    PROBLEMS = 1
    """The input has problems."""
    USAGE = 2
    """Wrong usage, or an unreadable file."""
    BUG = 3
    """A mistake of lima2's own."""
    FAILED = 10
    """The run failed."""
    DATA_LOST = 11
    """The run lost data although the pipeline forbids it."""
    UNFIT = 12
    """This machine cannot run the plan; nothing was started."""
    INTERRUPTED = 130
    """Ctrl-C."""


BY_SIGNAL = 128
"""Exit code to which the number of the signal is added that stopped the program, as shells do."""


def of_signal(number: int) -> int:
    """Return the exit code of a program that a signal has stopped."""
    return BY_SIGNAL + number
