"""Where a run directory is, though it may be renamed or removed while the run goes on."""

import os
from pathlib import Path

from lima2cli.errors import RunFailed


class Whereabouts:
    """A directory that is held open, until `close`. ``path`` is where it was, absolute. OSError."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._descriptor = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def now(self) -> Path | None:
        """Where it is now; None where it was removed."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._descriptor)):
                return self.path
        except OSError:  # nothing has that name any more
            pass
        return self._moved()

    def _moved(self) -> Path | None:
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
            return path if os.path.samestat(os.stat(path), os.fstat(self._descriptor)) else None
        except OSError:
            return None

    def gone(self) -> str | None:
        """In words, where it is no longer where it was."""
        now = self.now()
        if now == self.path:
            return None
        became = "removed" if now is None else f"renamed to {now}"
        return f"the run directory went: {self.path} was {became} during the run"

    def found(self) -> Path:
        """Where it is now. Raises `RunFailed` where it was removed."""
        now = self.now()
        if now is None:
            raise RunFailed(f"{self.gone()}; nothing of the run is kept")
        return now

    def close(self) -> None:
        """Let it go."""
        os.close(self._descriptor)
