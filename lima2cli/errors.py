"""The exceptions that cross a stage's border.

Lima2Error
├── UnreadableInput    a file that cannot be read or is not YAML at all        exit 2
├── EnvironmentUnfit   this machine cannot run the plan; nothing was started   exit 12
├── FileProblem        a data file that a pipeline names is missing or unfit
├── RunFailed          a run that started and could not finish                 exit 10
├── StateError         an operation that a detector's state refuses
├── UserCodeError      code of the user's failed, or gave what was not declared
└── Misfit             a node's parameters do not go with the data that it gets

EndedAtOnce            the user ended the run at once; no Exception, so that nothing on the way takes it for a failure
"""


class Lima2Error(Exception):
    """Root of all errors that lima2 raises on purpose."""


class UnreadableInput(Lima2Error):
    """A file given on the command line cannot be read."""


class EnvironmentUnfit(Lima2Error):
    """The machine lacks what the plan needs; the message says the arithmetic."""


class FileProblem(Lima2Error):
    """A file with data in it (``path.h5::/dataset``, ``path.cbf``…) is missing or not what is needed.

    ``rule`` is the kebab-case name of the diagnostic that it becomes.
    """

    def __init__(self, message: str, rule: str = "file-unreadable") -> None:
        super().__init__(message)
        self.rule = rule


class RunFailed(Lima2Error):
    """The run started, and could not do what was asked."""


class StateError(Lima2Error):
    """A detector was asked for what its state does not allow."""


class UserCodeError(Lima2Error):
    """Code of the user's failed, or gave what was not declared; the message says where.

    ``frame`` is the number of the frame, None where it is not about one.
    """

    def __init__(self, message: str, frame: int | None = None) -> None:
        super().__init__(message)
        self.frame = frame


class EndedAtOnce(BaseException):
    """The second Ctrl-C of a run whose ranks are all in one process."""


class Misfit(Lima2Error):
    """A node's parameters don't go with the data that it gets; becomes a diagnostic at the parameter.

    ``key`` is the path below the node's kind, e.g. ``("rois", "door", "rect")``.
    """

    def __init__(self, rule: str, message: str, key: tuple[str | int, ...] = (), help: str | None = None) -> None:
        super().__init__(message)
        self.rule, self.message, self.key, self.help = rule, message, key, help
