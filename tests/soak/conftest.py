"""What the soaks of whole commands share: a compiled layer, a process that forks, the verbs and what they read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.soak.undertow import JOB_BYTES, Case, cases, layer, settled
from tests.support.forks import Launcher


class Known(NamedTuple):
    """What a case does undisturbed: its files in the end, its seconds, and each call on them: what and which file."""

    case: Case
    whole: dict[str, str]
    seconds: float
    calls: list[tuple[str, str]]


class Ground:
    """The verbs, and what each does undisturbed."""

    def __init__(self, folder: Path, start: Launcher) -> None:
        self.folder, self.start, self._known = folder, start, dict[str, Known]()
        self.cases = cases(folder, start)

    def known(self, name: str) -> Known:
        """A case and what it does undisturbed."""
        if name not in self._known:
            self._known[name] = self._learn(self.cases[name])
        return self._known[name]

    def _learn(self, case: Case) -> Known:
        place, log = case.ready(self.place("learn")), self.folder / "calls.log"
        log.unlink(missing_ok=True)
        watched = {"DSCTL_TEST_WITHIN": str(place), "DSCTL_TEST_LOG": str(log)}
        done = self.start.run(*case.words(place), environment=watched)
        assert done.code == 0, done.told()
        lines = [line.split(" ", 2)[1:] for line in log.read_text().splitlines()]
        calls = [(call, path.removeprefix(f"{place}/")) for call, path in lines]
        again = self.start.run(*case.words(case.ready(place)))
        whole = settled(place / case.made)
        shutil.rmtree(place)
        return Known(case, whole, again.seconds, calls)

    def place(self, name: str) -> Path:
        """Where a try is made; the same place every time, for a source is known by its place too."""
        return self.folder / name


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """All verbs that write."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed, which compiles the layer that faults come from")
    folder = tmp_path_factory.mktemp("ground")
    (folder / "said").mkdir()
    preloaded = os.environ | {"LD_PRELOAD": str(layer(folder))}
    with Launcher(folder / "said", preloaded, {"dsctl.plan.jobs.JOB_BYTES": JOB_BYTES}) as start:
        yield Ground(folder, start)
