"""What every test can rely on."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.forks import Launcher

# pytest-xdist gives its workers a width of 80; without one, output has the width of a pipe.
os.environ.pop("COLUMNS", None)
# Options are those that a test gives: nothing comes from the environment of whoever runs it. The exception is no
# option, but a folder of other programs that tests/peers/test_shared_deltas.py runs.
for name in [name for name in os.environ if name.startswith("DSCTL_") and name != "DSCTL_DELTA_ORACLES"]:
    del os.environ[name]


# The whole suite runs in CI: each property gets this many examples, unless a test says how many it needs.
settings.register_profile("usual", max_examples=50)
settings.load_profile("usual")


# Nothing that is imported and collected ends before the tests begin.
gc.disable()


def pytest_collection_finish() -> None:
    """Spare what was imported and collected, which stays, from every later collection of garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts `dsctl` with none of this machine's settings of hubs, and shorter waits between attempts."""
    settings = {"dsctl.stores.hub_faults.FIRST_WAIT": 0.02}
    unsettled = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    with Launcher(tmp_path_factory.mktemp("said"), unsettled, settings) as launcher:
        yield launcher
