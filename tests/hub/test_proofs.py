"""`verify --against` a repository: values are compared by byte ranges, whole or by a sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.conftest import REPOSITORY, Run
from tests.hub.server import Hub, one_in
from tests.support.checkpoints import tiny
from tests.support.command import dsctl


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V3.2 of 60 MB, whose matrices are larger than what a sample reads whole."""
    return tiny(tmp_path_factory, "v3.2", layers=2, experts=4, hidden=1024, moe_intermediate=512, vocab=4096)


def test_a_conversion_is_proved_against_a_repository(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "-q")
    hub.fault = one_in(9, "503", "cut", "reset")
    seen = command("verify", tmp_path / "bf16", "--against", f"hf://{REPOSITORY}", "--json")
    assert seen.returncode == 0, seen.stdout + seen.stderr
    values = json.loads(seen.stdout)["values"]
    assert values["holds"] and values["counts"]["exact"] > 80 and values["source"].startswith("small@")


def test_a_sample_reads_about_its_share(hub: Hub, large: Path, command: Run, tmp_path: Path) -> None:
    dsctl("convert", large, tmp_path / "bf16", "--bf16", "-q")
    hub.publish("deepseek-ai/DeepSeek-V3.2", large)
    weights = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    seen = command("verify", tmp_path / "bf16", "--against", "v3.2", "--sample", "1%", "--seed", "3", "--json")
    assert seen.returncode in (0, 50), seen.stderr
    values = json.loads(seen.stdout)["values"]
    assert values["holds"] and values["source"] == "DeepSeek-V3.2" and "DeepSeek-V3.2's" in values["line"]
    sent = hub.sent(".safetensors")
    assert sent < 0.06 * weights, (sent, weights)
    other = command("verify", "v3.2", "--remote", "--against", str(tmp_path / "bf16"), "--sample", "1%", "--json")
    assert json.loads(other.stdout)["values"]["holds"], other.stdout


def test_a_release_without_sample_or_remote_is_a_description(hub: Hub, source: Path, command: Run) -> None:
    hub.publish("deepseek-ai/DeepSeek-V3.2", source)
    seen = command("verify", source, "--against", "v3.2", "--json")
    assert "--remote" in json.loads(seen.stdout)["values"]["not_compared"] and not hub.log
    whole = command("verify", source, "--against", "v3.2", "--remote", "--json")
    assert json.loads(whole.stdout)["values"]["counts"]["moved"] == json.loads(whole.stdout)["values"]["parameters"]
