"""Verbs that only look, on a repository: headers alone are read, and few requests are made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsctl.look.source import describe
from dsctl.releases import find
from dsctl.stores.hub import FIRST_READ
from dsctl.tiny import make
from dsctl.tiny.blueprint import TinyRecipe
from tests.hub.conftest import REPOSITORY, Run
from tests.hub.server import Hub, one_in

FILES = 163


def test_verify_reads_headers_and_scales(hub: Hub, source: Path, command: Run) -> None:
    hub.fault = one_in(5, "503", "cut", "reset")
    seen = command("verify", f"hf://{REPOSITORY}", "--json")
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["ok"]
    assert hub.sent(".safetensors") < sum(path.stat().st_size for path in source.iterdir()) / 4


def test_a_folder_is_verified_against_a_repository(hub: Hub, source: Path, command: Run) -> None:
    same = command("verify", source, "--against", f"hf://{REPOSITORY}")
    assert same.returncode == 0, same.stdout + same.stderr


def test_diff_of_a_repository_and_its_copy_is_empty(hub: Hub, source: Path, command: Run) -> None:
    same = command("diff", f"hf://{REPOSITORY}", source, "--exit-code", "--quiet")
    assert same.returncode == 0, same.stderr
    assert command("diff", f"hf://{REPOSITORY}", "v3.2", "--exit-code", "--quiet").returncode == 1
    found = json.loads(command("diff", f"hf://{REPOSITORY}", source, "--json").stdout)
    ours = found["origins"]["a"]
    assert (ours["kind"], ours["place"]) == ("repository", REPOSITORY) and len(ours["revision"]) == 12
    assert f"hub repository {REPOSITORY} at commit {ours['revision']}" in ours["text"]
    assert found["files"] is None and "tokenizer" in found["not_compared"], "bytes afar are not read for a diff"


@pytest.mark.parametrize("verb", ["inspect", "diff", "verify"])
def test_a_release_of_many_files_takes_two_requests_a_file(hub: Hub, command: Run, tmp_path: Path, verb: str) -> None:
    make("v3.2", tmp_path / "many", TinyRecipe(shards=FILES, hidden=128, vocab=256, experts=64))
    hub.publish("acme/many", tmp_path / "many")
    repository = "hf://acme/many"
    hub.redirects = False
    again = [repository] if verb == "diff" else []
    seen = command(verb, repository, *again, "--json")
    assert seen.returncode == 0, seen.stdout + seen.stderr
    asked = [request.path for request in hub.log if request.path.endswith(".safetensors")]
    assert len(set(asked)) == FILES
    most = 3 if verb == "verify" else 2  # the scales of a file are one more
    assert max(asked.count(path) for path in set(asked)) <= most


VERBS = [("inspect",), ("diff", "v3.2"), ("verify",), ("plan",)]


@pytest.mark.parametrize("line", VERBS, ids=lambda line: line[0])
def test_remote_reads_a_release_s_repository(hub: Hub, source: Path, command: Run, line: tuple[str, ...]) -> None:
    hub.publish("deepseek-ai/DeepSeek-V3.2", source)
    assert command(*line, "v3.2", "--quiet").returncode in (0, 10) and not hub.log
    assert command(*line, "v3.2", "--remote", "--quiet").returncode == 0
    assert {request.path for request in hub.log if request.path.endswith(".safetensors")}


def test_remote_is_for_releases_and_repositories(command: Run) -> None:
    refused = command("inspect", "acme/small/extra", "--remote")
    assert refused.returncode == 2 and "is not a repository name" in refused.stderr


def test_headers_are_little_beside_what_is_asked_for_most_sparingly() -> None:
    release = find("v3.2")
    indexers = sum(group.nbytes for group in describe("v3.2").groups if "indexer" in group.family.template)
    assert indexers and (release.storage.files or 0) * FIRST_READ < 0.02 * indexers


def test_the_doctor_reaches_the_hub(hub: Hub, command: Run, tmp_path: Path) -> None:
    told = json.loads(command("doctor", tmp_path, "--json").stdout)["hub"]
    assert told == {"endpoint": hub.endpoint, "reached": True, "why": "", "token": False}
    hub.close()
    away = json.loads(command("doctor", tmp_path, "--json").stdout)["hub"]
    assert not away["reached"] and away["why"]
