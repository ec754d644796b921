"""Fixtures and hooks of all tests."""

import gc
import importlib.util
import os
import sys
from compileall import compile_dir
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from typer import testing

from lima2cli import secret
from lima2cli.job import run
from tests import ROOT, world

# While tests are collected what one process has compiled serves all others, whatever the environment says, and nothing
# is garbage.
WRITES_NO_BYTECODE, sys.dont_write_bytecode = sys.dont_write_bytecode, False
gc.disable()
settings.register_profile(  # time says nothing where others use the machine, too; a folder may serve all examples
    "lima2",
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("thorough", settings.get_profile("lima2"), max_examples=1000)  # --hypothesis-profile thorough
settings.load_profile("lima2")

collect_ignore = ["plugin_example"]  # a package of its own, installed and tested by test_plugins.py


def pytest_configure(config: pytest.Config) -> None:
    """Let runs go to ranks that stay, unless a test is about the launch; make the commands of the program once.

    All modules are compiled before the first test, once: processes of tests may not be allowed to write bytecode.
    """
    if not hasattr(config, "workerinput"):
        for folder in ("lima2cli", "tests"):
            compile_dir(ROOT / folder, quiet=2)
    vars(testing)["_get_command"] = cache(testing._get_command)
    if importlib.util.find_spec("mpi4py") is not None:
        vars(run)["run_with_mpiexec"] = world.run_in_world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests of devices to the end: a compiler of OpenCL makes a process large, and slow to fork from then on."""
    items.sort(key=lambda item: item.path.parent.name == "gpu")


def pytest_collection_finish() -> None:
    """Keep the garbage collector, and forks, from going through all tests again and again."""
    sys.dont_write_bytecode = WRITES_NO_BYTECODE
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """See `tests.world`, where a process that has any secret can't run: those of other files of tests are forgotten."""
    world.Worlds.launched = item.get_closest_marker("launch") is not None
    if item.path != world.Worlds.file:
        world.Worlds.file = item.path
        secret._known.clear()


def pytest_sessionfinish() -> None:
    """End the ranks that have stayed."""
    world.Worlds.end()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real detector frames: ``LIMA2_TEST_DATA``, or ``../shared/data`` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    found = Path(os.environ.get("LIMA2_TEST_DATA", beside))
    if not found.is_dir():
        pytest.skip(f"no folder of detector frames at {found} (LIMA2_TEST_DATA)")
    return found
