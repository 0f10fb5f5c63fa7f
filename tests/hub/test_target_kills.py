"""A run to a repository that is killed at any moment goes on, here or on a machine without its files: equal bytes."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.conftest import Started
from tests.hub.receiving import Receiving
from tests.hub.server import Hub
from tests.support.command import call
from tests.support.unusual import unusual

WORDS = ("--bf16", "--shard-size", "3MB", "--staging", "16MB")
TARGET = "hf://me/made"


class Killed:
    """Runs to one repository; the process is killed at the request with a number, before or after it is answered."""

    def __init__(self, hub: Hub, received: Receiving, started: Started, source: Path, staging: Path) -> None:
        self.hub, self.received, self.started, self.source, self.staging = hub, received, started, source, staging
        self.requests, self.workers, self.words = 0, 1, WORDS

    def run(self, last: int | None = None) -> int:
        """Run until the request with this number, or to the end; the exit code."""
        self.requests = 0

        def count(number: int, method: str, path: str) -> str | None:
            self.requests += 1
            if self.requests == last:
                process.kill("group")
            return None

        self.hub.fault = count
        words = ("convert", self.source, TARGET, *self.words, "--workers", self.workers)
        process = self.started(*words, DSCTL_STAGING=str(self.staging))
        done = process.wait(120)
        self.hub.fault = lambda number, method, path: None
        assert done.code in (0, -9) and "Traceback" not in done.err, done.told()
        return done.code

    def made(self) -> dict[str, tuple[int, str, bool]]:
        return self.received.state("me/made")

    def forget(self) -> None:
        """Remove the repository, and what is here of it."""
        # The hub may still be busy with the last request of a process that was killed.
        time.sleep(0.2)
        self.hub.commits.pop("me/made", None)
        self.hub.branches.pop(("me/made", "main"), None)
        self.received.history.pop(("me/made", "main"), None)
        self.received.objects.clear()
        self.received.folder = Path(tempfile.mkdtemp(dir=self.received.folder.parent))
        shutil.rmtree(self.staging, ignore_errors=True)


@pytest.fixture
def killed(hub: Hub, received: Receiving, started: Started, source: Path, tmp_path: Path) -> Killed:
    return Killed(hub, received, started, source, tmp_path / "staging")


def at_random(killed: Killed, rounds: int, seed: int, between: Callable[[], None]) -> None:
    """Kill at random requests until a run ends, in so many rounds; every repository is that of a run without kills."""
    chance = random.Random(seed)
    assert killed.run() == 0
    expected, most = killed.made(), killed.requests
    assert "dsctl.json" in expected and not any(name.startswith(".dsctl-run") for name in expected)
    kills = 0
    while kills < rounds:
        killed.forget()
        while killed.run(chance.randint(1, most)) != 0:
            kills += 1
            between()
            if chance.random() < 0.3:
                assert killed.run() == 0
                break
        assert killed.made() == expected
        assert not list(killed.staging.rglob("*.safetensors"))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_killed_run_goes_on(killed: Killed, elsewhere: bool) -> None:
    def between() -> None:
        if elsewhere:
            shutil.rmtree(killed.staging, ignore_errors=True)

    at_random(killed, 5, 15 + elsewhere, between)


@pytest.mark.soak
@pytest.mark.parametrize("elsewhere", [False, True])
def test_fifty_kills(killed: Killed, elsewhere: bool) -> None:
    def between() -> None:
        if elsewhere:
            shutil.rmtree(killed.staging, ignore_errors=True)

    killed.workers = 2
    at_random(killed, 50, 50 + elsewhere, between)


def test_odd_scales_of_finished_work_come_back_on_a_different_machine(
    killed: Killed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    killed.source = unusual(tmp_path_factory, "v4-flash")
    said = call("convert", killed.source, "memory://x", "--bf16", "--staging", "1").stderr
    least = int(said.partition("give --staging ")[2].split()[0])
    killed.words = ("--bf16", "--staging", str(least))
    assert killed.run() == 0
    expected, most = killed.made(), killed.requests
    assert "odd-scales.dsctl" in expected
    killed.forget()
    assert killed.run(most * 2 // 3) != 0
    assert any(name.startswith(".dsctl-run/rest-") for name in killed.made())
    shutil.rmtree(killed.staging)
    assert killed.run() == 0 and killed.made() == expected
    assert killed.requests < most
