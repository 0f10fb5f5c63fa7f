"""The statement of a conversion from a hub: repository, commit and the digests that the hub states."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.hub.conftest import REPOSITORY, Run
from tests.hub.server import Hub
from tests.support.schemas import STATEMENT, faults


def dependencies(folder: Path) -> dict[str, dict[str, Any]]:
    said = json.loads((folder / "dsctl.intoto.json").read_text())
    assert faults(STATEMENT, said) == []
    return {one["name"]: one for one in said["predicate"]["buildDefinition"]["resolvedDependencies"]}


def good(done: Any) -> str:
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_a_repository_is_named_with_commit_and_digests(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    good(command("convert", REPOSITORY, tmp_path / "out", "--bf16", "--workers", "2"))
    said = dependencies(tmp_path / "out")
    commit = said["source"]["digest"]["gitCommit"]
    assert said["source"] == {
        "name": "source", "uri": f"hf://{REPOSITORY}@{commit}", "digest": {"gitCommit": commit},
    }  # fmt: skip
    assert said.keys() == {path.name for path in source.iterdir()} | {"source"}
    for path in source.glob("*.safetensors"):
        one = said[path.name]
        assert one["uri"] == f"hf://{REPOSITORY}@{commit}/{path.name}" and one["annotations"]["digestFrom"] == "hub"
        assert one["digest"] == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    raw = (source / "config.json").read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
    assert said["config.json"]["digest"] == {"gitBlob": blob}
    assert hub.endpoint not in (tmp_path / "out" / "dsctl.intoto.json").read_text()
    card = good(command("card", tmp_path / "out"))
    assert card.startswith(f"---\nbase_model: {REPOSITORY}\n---\n") and commit in card


def test_its_folder_in_the_cache_is_named_too(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    folder = json.loads(good(command("download", REPOSITORY, "--json")))["folder"]
    good(command("convert", folder, tmp_path / "out", "--to", "int8-channel"))
    said = dependencies(tmp_path / "out")
    assert said["source"]["uri"] == f"hf://{REPOSITORY}@{Path(folder).name}"
    for path in source.glob("*.safetensors"):
        assert said[path.name]["digest"] == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        assert said[path.name]["annotations"]["digestFrom"] == "hub"
    assert "base_model_relation: quantized" in good(command("card", tmp_path / "out"))
    assert folder not in (tmp_path / "out" / "dsctl.intoto.json").read_text()


def test_a_repository_that_dsctl_made_is_a_link_of_the_chain(
    hub: Hub, source: Path, command: Run, tmp_path: Path
) -> None:
    good(command("convert", source, tmp_path / "bf16", "--bf16"))
    hub.publish("acme/made", tmp_path / "bf16")
    good(command("convert", "acme/made", tmp_path / "fp8", "--fp8"))
    raw = (tmp_path / "bf16" / "dsctl.intoto.json").read_bytes()
    link = dependencies(tmp_path / "fp8")["dsctl.intoto.json"]
    assert link["digest"]["sha256"] == hashlib.sha256(raw).hexdigest() and link["uri"].startswith("hf://acme/made@")
