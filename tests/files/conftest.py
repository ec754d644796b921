"""Fixtures of tests of files that are read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lima2cli.inputs.stacks import FileStore


class Store(FileStore):
    """A store of files, and others of the same folder that are closed with it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder, self._others = folder, list[FileStore]()

    def anew(self) -> FileStore:
        """One that has seen no file yet."""
        self._others.append(FileStore(self._folder))
        return self._others[-1]

    def close(self) -> None:
        super().close()
        for other in self._others:
            other.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as files:
        yield files
