"""Every release: what a conversion writes is what `verify` expects of it, from its own form and on to others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsctl.releases import Release, releases
from tests.support.checkpoints import smaller
from tests.support.command import dsctl


def clean(folder: Path) -> None:
    assert "no problems found" in dsctl("verify", folder)


def kind(value: Any) -> Any:
    """What a config says, without the sizes, which small checkpoints do not have."""
    if isinstance(value, dict):
        return {key: kind(one) for key, one in sorted(value.items())}
    if isinstance(value, list):
        return sorted({json.dumps(kind(one)) for one in value})
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else value


def cases() -> Iterator[Any]:
    """Every release; one whose config differs from that of an earlier one in sizes alone takes its turn in the soak."""
    seen: set[str] = set()
    for release in releases():
        said = json.dumps(kind({**release.config, "_name_or_path": "", "transformers_version": ""}), sort_keys=True)
        yield pytest.param(release, id=release.alias[0], marks=[pytest.mark.soak] if said in seen else [])
        seen.add(said)


@pytest.mark.parametrize("release", [*cases()])
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
