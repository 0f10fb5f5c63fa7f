"""The command that adds an extra is that of the installer; a verb that needs torch says so before it writes."""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

import dsctl
from dsctl.core import extras
from dsctl.core.errors import PlanError
from tests.support.command import call


@pytest.mark.parametrize(
    ("file", "origin", "command"),
    [
        (None, {"url": "file:///checkout"}, "pip install 'dsctl[torch]'"),
        ("uv-receipt.toml", None, "uv tool install 'dsctl[torch]'"),
        ("uv-receipt.toml", {"url": "file:///checkout"}, "uv tool install 'dsctl[torch] @ file:///checkout'"),
        ("pipx_metadata.json", None, "pipx install --force 'dsctl[torch]'"),
        (
            "pipx_metadata.json",
            {"url": "https://example.org/dsctl", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
            "pipx install --force 'dsctl[torch] @ git+https://example.org/dsctl'",
        ),
    ],
)
def test_an_extra_is_added_as_dsctl_was_installed(
    file: str | None, origin: object, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if file:
        (tmp_path / file).touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(
        Distribution, "from_name", lambda name: _Installed(None if origin is None else json.dumps(origin))
    )
    assert extras.install_command("torch") == command


class _Installed:
    def __init__(self, text: str | None) -> None:
        self.text = text

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.text


def test_without_torch_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "small", tmp_path / "out"
    assert call("tiny", "v3.2", source, "--layers", 2, "--experts", 2).returncode == 0
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    for words in (("convert", source, target, "--bf16"), ("tiny", "v3.2", target), ("compare", source, source)):
        done = call(*words)
        assert done.returncode == 30 and not done.stdout, words
        assert done.stderr.count("error: ") == 1 and "needs torch, which is not installed\n" in done.stderr, words
    with pytest.raises(PlanError, match="writing weights needs torch"):
        dsctl.open(str(source)).to("bf16").run(target)
    with pytest.raises(PlanError, match="comparing values needs torch"):
        dsctl.open(str(source)).compare(str(source))
    assert call("convert", source, target, "--bf16", "--dry-run").returncode == 0
    assert not target.exists()
