"""`dsctl slice` of quantized checkpoints: what config.json says of formats is true of the layers that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.checkpoints import tiny
from tests.support.command import dsctl

SMALL = {
    "layers": 4, "experts": 4, "hidden": 256, "heads": 2, "vocab": 256, "intermediate": 256, "moe_intermediate": 256,
}  # fmt: skip


@pytest.fixture(scope="module", params=["int4-experts-fp8", "int4-experts", "int8"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / str(request.param)
    dsctl("convert", tiny(tmp_path_factory, "v3.2", **SMALL), folder, "--recipe", request.param, "-q")
    return folder


@pytest.mark.parametrize("words", ["--layers 0", "--layers 0,2", "--layers 3,mtp --experts 0,2", "--layers 1-3"])
def test_a_slice_says_what_is_stored(quantized: Path, tmp_path: Path, words: str) -> None:
    """Layers get other numbers, and the formats of what is left out are of nothing any more."""
    dsctl("slice", quantized, tmp_path / "cut", *words.split(), "-q")
    found = json.loads(dsctl("verify", tmp_path / "cut", "--strict", "--json"))["findings"]
    assert {finding["severity"] for finding in found} <= {"note"}
    said = json.loads((tmp_path / "cut" / "config.json").read_text()).get("quantization_config")
    assert (said is None) == (quantized.name == "int4-experts" and words == "--layers 0")
    assert said is None or len(said["config_groups"]) == (
        2 if quantized.name == "int4-experts-fp8" and words != "--layers 0" else 1
    )
