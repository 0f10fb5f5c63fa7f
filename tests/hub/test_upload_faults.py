"""`dsctl upload` in spite of faults: after each, and after a kill at any moment, the same command ends the same way."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import Run, Started
from tests.hub.receiving import Receiving
from tests.hub.uploads import NEW, TO, TOKEN, XET, files, good, kept_secret, nth, refused, whole
from tests.support.forks import Launcher

# Each fault, and whether one command is enough in spite of it.
FAULTS: dict[str, tuple[Callable[[], Callable[[int, str, str], str | None]], bool]] = {
    "cut in the middle of an upload": (lambda: nth("half", "/lfs/", 1, 3, 4), True),
    "busy": (lambda: nth("not 429 1", "/lfs/", 2), True),
    "unable": (lambda: nth("not 503", "/commit/", 1, 2), True),
    "committed, but the answer is 504": (lambda: nth("504", "/commit/", 1), True),
    "created, but the answer is lost": (lambda: nth("reset", "create", 1), True),
    "an expired token": (lambda: nth("not 401", "/commit/", 1), False),
    "a full account": (lambda: nth("not 403", "/commit/", 1), False),
    "no storage": (lambda: nth("not 507", "batch", 2), False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_repository_is_the_same_in_the_end(received: Receiving, upload: Run, made: Path, fault: str) -> None:
    make, once = FAULTS[fault]
    received.hub.words = {401: "Invalid credentials in Authorization header", 403: "storage limit reached"}
    received.hub.fault = make()
    done = upload(made)
    if once:
        good(done)
    else:
        word = {"an expired token": "does not accept the token (401)", "a full account": "storage limit reached"}
        refused(done, 41, word.get(fault, "(507)"), "run the same command again")
        received.hub.fault = lambda *asked: None
        received.hub.log.clear()
        good(upload(made))
        # The storage has the bytes that were sent before.
        assert fault == "no storage" or not any(one.method == "PUT" for one in received.hub.log)
    whole(received, made)
    assert len(received.commits) == 1


def test_a_hub_that_hangs_is_left_at_once(received: Receiving, started: Started, made: Path, tmp_path: Path) -> None:
    received.hub.token = TOKEN
    for how, environment in (("/lfs/", {}), ("/v1/xorbs", XET)):
        received.xet = bool(environment)
        reached = []

        def fault(number: int, method: str, path: str, how: str = how, reached: list[str] = reached) -> str | None:
            return "hang" if how in path and "batch" not in path and not reached.append(path) else None

        received.hub.fault = fault
        running = started("upload", made, TO, HF_TOKEN=TOKEN, **environment)
        until(lambda reached=reached: reached)  # type: ignore[misc]
        began = time.monotonic()
        os.kill(running.pid, signal.SIGINT)
        done = running.wait()
        assert done.code == 130 and time.monotonic() - began < 3, done.err
        assert "error: interrupted" in done.err and "continues with the files" in done.err
        kept_secret(received.hub, done.out + done.err, tmp_path / "hf")


def until(reached: Callable[[], Any]) -> None:
    ends = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < ends
        time.sleep(0.01)


# The command, and what makes many small commits of it.
WHOLE = """
import sys
from dsctl import cli
from dsctl.run import uploading
# parts
sys.argv = ["dsctl", "upload", *sys.argv[1:]]
cli.main()
"""
PARTS = "uploading.LFS_FILES, uploading.REGULAR_FILES = 1, 3"


@dataclass
class Killer:
    """Kills an upload when it has made some number of requests, before or while the hub answers; then runs it again."""

    received: Receiving
    launcher: Launcher
    settings: dict[str, str]
    upload: Run
    made: Path

    def kill(self, seed: int) -> None:
        """One kill: the moment, the commits and the kind of storage come from the seed."""
        drawn, received = random.Random(seed), self.received
        received.hub.token, received.xet = TOKEN, seed % 5 == 0
        script = WHOLE.replace("# parts", PARTS) if seed % 2 else WHOLE
        at, pause = drawn.randrange(1, 45 if seed % 2 else 28), drawn.choice([0.0, 0.002, 0.02])
        running: list[Any] = []

        def fault(number: int, method: str, path: str) -> str | None:
            if number != at:
                return None
            until(lambda: running)
            time.sleep(pause)
            running[0].kill("group")
            return drawn.choice([None, "half", "not 503"])

        received.hub.fault = fault
        environment = self.settings | {"HF_TOKEN": TOKEN} | (XET if received.xet else {})
        running.append(self.launcher.start(self.made, TO, script=script, environment=environment))
        assert running[0].wait().code in (-9, 0)
        received.hub.fault = lambda *asked: None
        before = len(received.commits)
        done = json.loads(good(self.upload(self.made, "--json", xet=received.xet)).stdout)
        whole(received, self.made)
        assert done["commit"] == received.history[NEW, "main"][-1]
        assert done["commits"] == len(received.commits) - before
        # No commit was made twice, and only the last one has dsctl.json.
        added = [line["value"]["path"] for one in received.commits for line in one["lines"][1:]]
        assert sorted(added) == sorted(files(self.made)) and added[-1] == "dsctl.json"
        kept_secret(received.hub, "", Path(self.settings["HF_HOME"]), self.made)


@pytest.fixture
def killer(received: Receiving, launcher: Launcher, settings: dict[str, str], upload: Run, made: Path) -> Killer:
    """Kills uploads of the small folder."""
    return Killer(received, launcher, settings, upload, made)


@pytest.mark.parametrize("seed", range(10))
def test_a_kill_at_any_moment_changes_nothing(killer: Killer, seed: int) -> None:
    killer.kill(seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 150))
def test_kills_at_fifty_more_moments(killer: Killer, seed: int) -> None:
    killer.kill(seed)
