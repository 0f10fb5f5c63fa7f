"""vLLM, on a CPU, drafts with what `--mtp only` writes: `VLLM_PYTHON=... pytest tests/serving -m serving`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_drafters import COPIES, exported
from tests.support.checkpoints import tiny
from tests.support.command import dsctl

ENGINE = Path(__file__).with_name("drafter.py")


def drafted(target: Path, draft: Path | str) -> tuple[dict[str, Any] | None, str]:
    """What vLLM drafts with, or None if it stops, and all that it says."""
    told = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    words = [os.environ["VLLM_PYTHON"], str(ENGINE), str(target), str(draft)]
    done = subprocess.run(words, env={**os.environ, **told}, capture_output=True, text=True, check=False)
    lines = [line.removeprefix("drafted ") for line in done.stdout.splitlines() if line.startswith("drafted ")]
    return (json.loads(lines[-1]) if lines else None), done.stdout[-4000:] + done.stderr[-8000:]


@pytest.mark.serving
def test_a_draft_is_what_the_target_holds(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    dsctl("convert", tiny(tmp_path_factory, "v3"), tmp_path / "target", "--bf16")
    dsctl("convert", tmp_path / "target", tmp_path / "draft", "--mtp", "only")
    dsctl("convert", tmp_path / "target", tmp_path / "bare", "--mtp", "only", *COPIES)
    own, said = drafted(tmp_path / "target", "-")
    assert own is not None, said
    assert own["drafts"] > 0 and len(own["parameters"]) > 20
    for name in ("draft", "bare"):
        assert drafted(tmp_path / "target", tmp_path / name)[0] == own


@pytest.mark.serving
def test_what_vllm_does_not_draft_with(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = tiny(tmp_path_factory, "v3")
    dsctl("convert", source, tmp_path / "target", "--bf16")
    dsctl("convert", exported(source, tmp_path / "export"), tmp_path / "export-bf16", "--bf16")
    found, said = drafted(tmp_path / "target", tmp_path / "export-bf16")
    assert found is None and "MTP speculative decoding layer 3 weights missing" in said
    # It takes the number of MTP layers from the target's config, also for a draft in a folder of its own.
    dsctl("convert", tmp_path / "target", tmp_path / "draft", "--mtp", "only")
    dsctl("convert", tmp_path / "target", tmp_path / "model", "--mtp", "drop")
    assert drafted(tmp_path / "model", tmp_path / "draft")[0] is None
    (tmp_path / "model" / "config.json").write_bytes((tmp_path / "target" / "config.json").read_bytes())
    again, said = drafted(tmp_path / "model", tmp_path / "draft")
    assert again is not None, said
    assert again == drafted(tmp_path / "target", "-")[0]
