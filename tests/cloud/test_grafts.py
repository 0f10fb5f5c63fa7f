"""A graft whose base, source or target is in an object store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cloud.server import Objects
from tests.cloud.test_sources import weights
from tests.support.command import call, dsctl

EXPERTS = "model.layers.*.mlp.experts.*"


@pytest.fixture(scope="module")
def decoded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoded") / "bf16"
    dsctl("convert", source, folder, "--bf16", "--no-keep-scales")
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, decoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of folders on this machine."""
    folder = tmp_path_factory.mktemp("expected") / "made"
    dsctl("graft", decoded, folder, "--from", source, EXPERTS)
    return folder


def test_the_same_from_a_url(objects: Objects, remote: str, decoded: Path, expected: Path, tmp_path: Path) -> None:
    """Only the bytes that are taken are read; the audit has the digest of the listing."""
    dsctl("graft", decoded, tmp_path / "made", "--from", remote, EXPERTS)
    assert weights(tmp_path / "made") == weights(expected)
    (found,) = json.loads((tmp_path / "made" / "dsctl.json").read_text())["grafts"]
    assert found["place"] == remote and found["revision"]
    assert "already complete" in dsctl("graft", decoded, tmp_path / "made", "--from", remote, EXPERTS)


def test_onto_a_url(objects: Objects, source: Path, remote: str, decoded: Path, tmp_path: Path) -> None:
    dsctl("graft", source, tmp_path / "here", "--from", decoded, "model.norm.weight,mtp")
    dsctl("graft", remote, tmp_path / "made", "--from", decoded, "model.norm.weight,mtp")
    assert weights(tmp_path / "made") == weights(tmp_path / "here")


def test_a_source_that_changed_is_not_taken_for_the_same(
    objects: Objects, source: Path, decoded: Path, tmp_path: Path
) -> None:
    place = objects.publish(source, "changing")
    dsctl("graft", decoded, tmp_path / "made", "--from", place, EXPERTS)
    file = max(source.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (changed / path.name).write_bytes(bytes(data) if path == file else path.read_bytes())
    place = objects.publish(changed, "changing")
    assert call("graft", decoded, tmp_path / "made", "--from", place, EXPERTS).returncode == 40
