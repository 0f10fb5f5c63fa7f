"""Progress in a pipe: plain lines now and then, and no time left before there is anything to tell it from."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from dsctl.run.events import Advanced, Resumed
from dsctl.show import progress
from dsctl.show.output import Output


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_no_time_left_is_told_from_the_first_bytes(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    plan: Any = SimpleNamespace(bytes_in=1_000_000)
    shown = progress.Progress(plan, Output())
    shown.report(Resumed(1, 4, 200_000))
    clock[0] = 16.0
    shown.report(Advanced(10))
    clock[0] = 32.0
    shown.report(Advanced(40_000))
    assert lines(capsys) == [
        "resumed: 1 of 4 jobs were done already",
        "converting: 200.0 kB of 1.0 MB",
        "converting: 240.0 kB of 1.0 MB, 2.5 kB/s, 5 min 03 s left",
    ]


def test_lines_are_some_seconds_apart(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    plan: Any = SimpleNamespace(bytes_in=1_000_000)
    shown = progress.Progress(plan, Output())
    for second in range(60):
        clock[0] = float(second)
        shown.report(Advanced(10_000))
    told = lines(capsys)
    assert len(told) == 3 and all(re.fullmatch(r"converting: .*, 10.0 kB/s, .* left", line) for line in told)
