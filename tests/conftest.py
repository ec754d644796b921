"""What several tests need."""

import os
from pathlib import Path

import pytest

collect_ignore = ["plugin_example"]  # a package of its own, installed and tested by test_plugins.py


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real detector frames: ``LIMA2_TEST_DATA``, or ``../shared/data`` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    found = Path(os.environ.get("LIMA2_TEST_DATA", beside))
    if not found.is_dir():
        pytest.skip(f"no folder of detector frames at {found} (LIMA2_TEST_DATA)")
    return found
