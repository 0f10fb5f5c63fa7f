"""The work on a very large parameter is cut into jobs over its rows, and the output is the same, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsctl.plan import jobs, large
from tests.support.checkpoints import tiny
from tests.support.command import dsctl
from tests.support.folders import contents

WAYS = {
    "bf16": ("convert", ("--bf16",)),
    "fp8": ("convert", ("--fp8",)),
    "f32": ("convert", ("--to", "f32")),
    "deepseek": ("shard", ("--layout", "deepseek", "--tp", "4")),
    "ranks": ("shard", ("--tp", "2")),
    "slice": ("slice", ("--layers", "0-3,mtp", "--experts", "4")),
}


def made(source: Path, target: Path, verb: str, words: tuple[str, ...]) -> dict[str, bytes]:
    dsctl(verb, source, target, *words, "--workers", 1)
    return {name: data for name, data in contents(target).items() if name != "dsctl.json"}


@pytest.mark.parametrize("way", WAYS)
def test_output_does_not_depend_on_how_steps_are_cut(
    way: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, words = WAYS[way]
    source = tiny(tmp_path_factory, "v4.1-flash", hidden=128, vocab=512)
    whole = made(source, tmp_path / "whole", verb, words)
    monkeypatch.setattr(large, "LARGE", 1 << 14)
    monkeypatch.setattr(jobs, "JOB_BYTES", 1 << 13)
    assert made(source, tmp_path / "cut", verb, words) == whole
    if way in ("bf16", "fp8"):
        back = made(tmp_path / "cut", tmp_path / "back", "convert", ("--to", "published"))
        assert back == contents(source)


def test_every_job_is_signed(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny(tmp_path_factory, "v4.1-flash", hidden=128, vocab=512)
    monkeypatch.setattr(large, "LARGE", 1 << 14)
    monkeypatch.setattr(jobs, "JOB_BYTES", 1 << 13)
    said = json.loads(dsctl("convert", source, tmp_path / "out", "--bf16", "--dry-run", "--json"))
    assert said["jobs"] > 528
    dsctl("convert", source, tmp_path / "out", "--bf16", "--workers", 2)
    dsctl("verify", tmp_path / "out", "--deep")
