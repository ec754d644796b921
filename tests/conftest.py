"""What several tests need."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(  # time says nothing where others use the machine, too; a folder may serve all examples
    "lima2", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("lima2")

collect_ignore = ["plugin_example"]  # a package of its own, installed and tested by test_plugins.py


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real detector frames: ``LIMA2_TEST_DATA``, or ``../shared/data`` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    found = Path(os.environ.get("LIMA2_TEST_DATA", beside))
    if not found.is_dir():
        pytest.skip(f"no folder of detector frames at {found} (LIMA2_TEST_DATA)")
    return found
