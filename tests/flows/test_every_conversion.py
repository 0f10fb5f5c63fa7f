"""Every release: what a conversion writes is what `verify` expects of it, from its own form and on to others."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl.releases import Release, releases
from tests.support.checkpoints import smaller
from tests.support.command import dsctl


def clean(folder: Path) -> None:
    assert "no problems found" in dsctl("verify", folder)


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.alias[0])
def test_there_and_on_to_fp8_and_back(
    release: Release, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source, bf16, fp8, back = smaller(tmp_path_factory, release.alias[0]), *(tmp_path / one for one in "abc")
    dsctl("convert", source, bf16, "--bf16", "--workers", 1)
    clean(bf16)
    dsctl("convert", bf16, fp8, "--fp8", "--workers", 1)
    clean(fp8)
    dsctl("convert", fp8, back, "--to", "published", "--workers", 1)
    clean(back)


@pytest.mark.parametrize("release", ["v3", "v3.2", "v4-flash", "glm-5-fp8"])
def test_experts_in_nvfp4_beside_fp8_blocks_of_any_scales(
    release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Scales that are no powers of two must not be declared ue8m0, as V4's are."""
    dsctl("convert", smaller(tmp_path_factory, release), tmp_path / "made", "--recipe", "nvfp4-modelopt-experts")
    clean(tmp_path / "made")
