"""`dsctl upload`: the repository that it makes, what it refuses, and what it says; `hf upload` as the oracle."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import Run, smallest
from tests.hub.receiving import FIRST, Receiving
from tests.hub.uploads import NEW, TOKEN, XET, files, good, refused, whole
from tests.support.command import dsctl
from tests.support.forks import Launcher
from tests.support.schemas import faults

WEIGHTS = "model-00001-of-000004.safetensors"

# What `hf upload` does, once the repository exists.
ORACLE = """
import sys, warnings
warnings.simplefilter("ignore")
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("acme/oracle", private=True, exist_ok=True)
api.upload_folder(repo_id="acme/oracle", folder_path=sys.argv[1], commit_message="x")
"""


def written(received: Receiving) -> bool:
    """Whether anything was changed on the hub or sent to it."""
    return any(one.method == "PUT" or "/commit/" in one.path or "create" in one.path for one in received.hub.log)


@pytest.mark.parametrize("how", ["lfs", "xet"])
def test_the_repository_is_the_one_that_hf_upload_makes(
    received: Receiving, upload: Run, made: Path, launcher: Launcher, settings: dict[str, str], how: str
) -> None:
    """One commit each, the same files with the same digests, stored in the same way, by the same kinds of requests."""
    received.xet = how == "xet"
    variables = XET if how == "xet" else {}
    good(upload(made, xet=how == "xet"))
    ours = asked(received, "acme/new")
    received.hub.log.clear()
    # What hf sends it would not send again if the storage had it.
    received.objects.clear()
    launcher.script(ORACLE, made, environment=settings | {"HF_TOKEN": TOKEN} | variables)
    received.hub.settle()
    theirs = asked(received, "acme/oracle")
    assert received.state(NEW) == received.state("acme/oracle")
    whole(received, made)
    first, second = (commit["lines"] for commit in received.commits)
    assert sorted(map(str, first[1:])) == sorted(map(str, second[1:]))
    # Ours looks before, and compares the hub's list at the end; hf asks in batches whether LFS has the bytes.
    weights = sum(name.endswith((".safetensors", ".dsctl")) for name in files(made))
    more = Counter({"GET revision": 4, "GET tree": 2})
    if how == "lfs":
        more["POST batch"] = weights - 1
    if how == "xet":
        # Every file of ours is complete for the storage before the next one; hf completes all of them together.
        for kind in ("POST shards", "POST xorbs", "POST xorb-grants", "GET chunks", "GET xet-write-token"):
            ours.pop(kind, None), theirs.pop(kind, None)
    theirs.pop("POST validate-yaml", None), ours.pop("POST validate-yaml", None)
    assert ours - theirs == more and not theirs - ours, (ours, theirs)


def asked(received: Receiving, repository: str) -> Counter[str]:
    """The requests by kind, without names and digests."""
    kinds: Counter[str] = Counter()
    for one in received.hub.log:
        words = [word for word in one.path.split("/") if word and not re.fullmatch(r"[0-9a-f]{40,}|main|\d+", word)]
        if "agent-harnesses" not in words and (repository in one.path or one.host == "storage" or "api" in words):
            kept = [word for word in words if word not in ("api", "models", "default", *repository.split("/"))]
            kinds[f"{one.method} {kept[-1] if kept else 'info'}"] += 1
    return kinds


def test_the_same_command_again_sends_nothing(received: Receiving, upload: Run, made: Path) -> None:
    done = good(upload(made, "--json"))
    facts = json.loads(done.stdout)
    assert faults("upload", facts) == [] and facts["commits"] == 1 and facts["private"] is True
    assert received.hub.private[NEW] and facts["sent"].keys() == files(made).keys()
    count = len(received.hub.log)
    facts = json.loads(good(upload(made, "--json")).stdout)
    assert faults("upload", facts) == [] and facts["commits"] == 0 and facts["same"].keys() == files(made).keys()
    assert {one.method for one in received.hub.log[count:]} == {"GET"}
    assert "up to date: hf://acme/new has all of it" in good(upload(made)).stdout


def test_digests_that_dsctl_json_has_spare_reading(
    received: Receiving, upload: Run, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = tmp_path / "signed"
    dsctl("convert", smallest(tmp_path_factory), folder, "--fp8", "--digest", "sha256")
    good(upload(folder))
    # Not the bytes that dsctl.json describes: they are neither read nor sent, because the hub has those.
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    facts = json.loads(good(upload(folder, "--json")).stdout)
    assert facts["commits"] == 0 and WEIGHTS in facts["not_read"] and "without reading" in " ".join(facts["compared"])


def test_a_dry_run_writes_nothing_and_says_what_it_asked(received: Receiving, upload: Run, made: Path) -> None:
    done = good(upload(made, "--dry-run", "--json"))
    facts = json.loads(done.stdout)
    assert faults("upload", facts) == [] and not written(received)
    assert facts["exists"] is False and facts["lfs"] is None and facts["most_commits"] == 1
    text = good(upload(made, "--dry-run"))
    assert "does not exist yet" in text.stdout and "was not asked" in text.stdout and "dry run" in text.stderr
    good(upload(made))
    received.hub.log.clear()
    facts = json.loads(good(upload(made, "--dry-run", "--json")).stdout)
    assert faults("upload", facts) == [] and facts["lfs"] == 5 and facts["to_compare"] and not facts["new"]
    assert "5 LFS files" in good(upload(made, "--dry-run")).stdout and not written(received)


def test_what_would_be_replaced_needs_force_and_nothing_is_deleted(
    received: Receiving, upload: Run, copy: Path, made: Path, source: Path
) -> None:
    good(upload(made))
    (copy / "dsctl.json").unlink()
    (copy / "config.json").write_text("{}")
    (copy / "new.txt").write_text("new")
    (copy / "LICENSE").unlink()
    received.hub.log.clear()
    refused(upload(copy), 30, "config.json: would be replaced", "--force", "@v2")
    refused(upload(copy, "--dry-run"), 30, "config.json")
    assert not written(received)
    done = good(upload(copy, "--force"))
    assert "left there unchanged: 2 files: LICENSE, dsctl.json" in done.stderr
    state = received.state(NEW)
    assert state["config.json"][0] == 2 and "new.txt" in state and "LICENSE" in state


@pytest.mark.parametrize("others", [("pytorch_model.bin",), ("x/model.safetensors",)])
def test_weights_of_a_different_model_need_force(
    received: Receiving, upload: Run, copy: Path, others: tuple[str, ...]
) -> None:
    good(upload(copy))
    for name in others:
        state = {name: (digest, lfs) for name, (_, digest, lfs) in received.state(NEW).items()}
        received._commit(NEW, "main", state | {name: (received.keep(b"theirs"), False)}, "theirs")
    refused(upload(copy), 30, others[0])
    good(upload(copy, "--force"))
    assert received.state(NEW)[others[0]][0] == 6


def test_a_licence_and_pictures_stay_without_force(received: Receiving, upload: Run, copy: Path) -> None:
    received.make(NEW)
    state = {".gitattributes": (received.keep(FIRST.encode()), False), "a.png": (received.keep(b"png"), False)}
    received._commit(NEW, "main", state, "by hand")
    done = good(upload(copy))
    assert "a.png" in done.stderr and "is public: everybody" in done.stderr and "a.png" in received.state(NEW)


def test_an_old_dsctl_json_is_gone_while_files_are_replaced(
    received: Receiving, upload: Run, copy: Path, made: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    good(upload(made))
    other, seen, make = tmp_path / "other", [], received._commit
    dsctl("convert", smallest(tmp_path_factory), other, "--to", "int8-channel")
    for number in range(60):
        (other / f"more-{number:02}.safetensors").write_bytes(b"%d" % number)

    def watch(repository: str, branch: str, state: dict[str, Any], summary: str) -> str:
        seen.append((summary, "dsctl.json" in state))
        return make(repository, branch, state, summary)

    received._commit = watch  # type: ignore[method-assign]
    good(upload(other, "--force", "--message", "int8"))
    assert seen == [("int8 (part 1)", False), ("int8", True)]


def test_visibility(received: Receiving, upload: Run, made: Path) -> None:
    good(upload(made, "--public"))
    assert received.hub.private[NEW] is False
    received.hub.log.clear()
    refused(upload(made, "--private"), 30, "is public, and --private does not change")
    assert not written(received)
    received.hub.private[NEW] = True
    refused(upload(made, "--private", "--public"), 2, "contradict")
    assert "is private and stays so" in good(upload(made, "--public")).stderr
    good(upload(made, target="hf://acme/second"))
    assert received.hub.private["acme/second"] is True


def test_a_card_is_added_where_none_is(received: Receiving, upload: Run, copy: Path) -> None:
    (copy / "README.md").unlink()
    done = good(upload(copy))
    assert "adding the card" in done.stderr and "README.md is not the one that dsctl.json lists" in done.stderr
    card = (received._folder(NEW, "main") / "README.md").read_text()
    assert card.startswith("# new\n") and "Audit of" in card
    assert any(one.path == "/api/validate-yaml" for one in received.hub.log)
    assert json.loads(good(upload(copy, "--json")).stdout)["commits"] == 0
    good(upload(copy, "--no-card", target="hf://acme/bare"))
    assert "README.md" not in received.state("acme/bare")


def test_a_readme_of_one_s_own_is_uploaded_unchanged(received: Receiving, upload: Run, copy: Path) -> None:
    (copy / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    good(upload(copy))
    whole(received, copy)
    (copy / "README.md").write_text("---\nno yaml\n---\n# Mine\n")
    received.hub.log.clear()
    refused(upload(copy, target="hf://acme/bad"), 41, "README.md: the hub refuses its front matter: bad YAML")
    assert not any(one.method == "PUT" for one in received.hub.log)


BROKEN: dict[str, tuple[int, str]] = {
    "part": (30, "is not finished (model.safetensors.part)"),
    "working": (30, "is not finished (.dsctl)"),
    "empty": (30, "has no files"),
    "size": (50, "dsctl.json says"),
    "missing": (50, "missing"),
    "index": (50, "model.safetensors.index.json names it"),
    "contents": (50, "differs from dsctl.json"),
    "weights": (50, "differs from dsctl.json"),
    "audit": (20, "dsctl.json"),
    "twins": (30, "differ in case only"),
    "name": (10, "is not printable"),
    "link": (10, "link out of the folder"),
    "no folder": (10, "no such folder"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_not_finished_or_not_whole_is_refused(
    received: Receiving, upload: Run, copy: Path, tmp_path: Path, how: str
) -> None:
    folder, data = copy, bytearray((copy / WEIGHTS).read_bytes())
    data[-1] ^= 1
    if how in ("working", "index"):
        (copy / "dsctl.json").unlink()
    if how in ("missing", "index"):
        (copy / WEIGHTS).unlink()
    changes = {
        "part": ("model.safetensors.part", b"x"), "working": (".dsctl/request.json", b"{}"),
        "size": ("config.json", b"{}"), "contents": ("tokenizer.json", bytes((copy / "tokenizer.json").stat().st_size)),
        "weights": (WEIGHTS, bytes(data)), "audit": ("dsctl.json", b'{"files": {"x": 5}}'),
        "twins": ("Config.json", b""), "name": ("a\x1bb.json", b""),
    }  # fmt: skip
    if how in changes:
        name, contents = changes[how]
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(contents)
    if how == "link":
        (copy / "x.json").symlink_to("/etc/hostname")
    if how in ("empty", "no folder"):
        folder = tmp_path / "nothing"
    if how == "empty":
        folder.mkdir()
    refused(upload(folder), *BROKEN[how])
    sent = {os.path.basename(one.path) for one in received.hub.log if one.method == "PUT"}
    assert received.hub.digest(copy / "config.json")[0] not in sent and not received.commits
    if how != "weights":
        assert not written(received)


@pytest.mark.parametrize("target", ["acme/new", "hf://acme", "hf://acme/new@" + "a" * 40, "s3://bucket/x"])
def test_other_targets_are_refused(received: Receiving, upload: Run, made: Path, target: str) -> None:
    refused(upload(made, target=target), 2, "hf://")
    assert not received.hub.log


def test_a_gitignore_leaves_files_out_but_none_of_the_result(received: Receiving, upload: Run, copy: Path) -> None:
    (copy / ".gitignore").write_text("notes.txt\n")
    (copy / "notes.txt").write_text("x")
    assert "notes.txt: left out" in good(upload(copy)).stderr and "notes.txt" not in received.state(NEW)
    received.ignored = frozenset({WEIGHTS})
    refused(upload(copy, target="hf://acme/second"), 30, f"leaves out {WEIGHTS}")


def test_files_beyond_one_commit_are_committed_in_parts(received: Receiving, upload: Run, copy: Path) -> None:
    (copy / "dsctl.json").unlink()
    for number in range(120):
        (copy / f"more-{number:03}.safetensors").write_bytes(b"%d" % number)
        for kind in ("note", "text", "more"):
            (copy / f"{kind}-{number:03}.txt").write_bytes(b"%d" % number)
    done = json.loads(good(upload(copy, "--json")).stdout)
    whole(received, copy)
    sizes = [len(commit["lines"]) - 1 for commit in received.commits]
    assert done["commits"] == len(sizes) > 2 and max(sizes) <= 320
    summaries = [commit["lines"][0]["value"]["summary"] for commit in received.commits]
    assert summaries[0].endswith("(part 1)") and "part" not in summaries[-1]
    kinds = ["".join(sorted({line["key"][0] for line in commit["lines"][1:]})) for commit in received.commits]
    assert kinds == ["l", "l", "fl", "f"]
