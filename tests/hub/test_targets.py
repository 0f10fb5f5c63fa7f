"""A repository as DST: it holds what a folder would, in commits of finished files, and the disk here stays small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import Run
from tests.hub.receiving import Receiving
from tests.hub.server import Hub
from tests.support.command import dsctl
from tests.support.forks import Launcher
from tests.support.schemas import faults

TOKEN = "hf_never-told"
# What a repository has beside, or instead of, the files of a folder.
OWN = {".gitattributes", "README.md", "README.source.md", "dsctl.json", "dsctl.intoto.json"}
USUAL = ("--bf16", "--workers", "1")


@pytest.fixture(scope="module")
def small(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with a README and settings of git, as releases have them."""
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("with") / "readme"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# The source\n")
    (folder / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    return folder


@pytest.fixture(scope="module")
def expected(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a folder would hold."""
    dsctl("convert", small, folder := tmp_path_factory.mktemp("expected") / "out", *USUAL, "--digest", "sha256", "-q")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folder_of(hub: Hub, repository: str, branch: str = "main") -> Path:
    """The files of a branch as they are now."""
    return hub.commits[repository][hub.branches[repository, branch]]


def same_files(made: Path, expected: Path) -> None:
    """Check that a repository has the bytes of a folder, except the files that it has instead."""
    there, here = contents(made), contents(expected)
    assert {name: data for name, data in there.items() if name not in OWN} == {
        name: data for name, data in here.items() if name not in OWN
    }
    ours, theirs = (json.loads((folder / "dsctl.json").read_text()) for folder in (made, expected))
    same = {"files": 0, "source": 0, "fingerprint": 0}
    assert ours | same == theirs | same
    files = ours["files"]
    assert files.keys() == there.keys() - {"dsctl.json", ".gitattributes"}
    for name, data in there.items():
        if name in files:
            assert files[name]["sha256"] == hashlib.sha256(data).hexdigest() and files[name]["size"] == len(data)
    statement = json.loads(there["dsctl.intoto.json"])
    assert {one["name"] for one in statement["subject"]} == files.keys() - {"dsctl.intoto.json"}


def test_a_repository_holds_what_a_folder_would(
    hub: Hub, received: Receiving, small: Path, expected: Path, command: Run, tmp_path: Path
) -> None:
    hub.token, staging = TOKEN, tmp_path / "staging"
    commit = hub.publish("acme/base", small)
    words = ("convert", "hf://acme/base", "hf://me/made", *USUAL)
    settings = {"HF_TOKEN": TOKEN, "DSCTL_STAGING": str(staging)}
    whole = json.loads(command(*words, "--staging", "20MB", "--dry-run", "--json", **settings).stdout)
    plan = whole["delivery"]
    assert not faults("convert-plan", whole) and plan["state"] == "new"
    assert plan["repository"] | {"address": ""} == {
        "repository": "me/made", "branch": "main", "address": "", "exists": False, "private": True, "commit": None,
    }  # fmt: skip
    assert "me/made" not in hub.commits and not staging.exists()

    done = command(*words, "--staging", "20MB", "-v", **settings)
    assert done.returncode == 0, done.stderr
    made = folder_of(hub, "me/made")
    same_files(made, expected)
    assert hub.private["me/made"] is True and not list(staging.rglob("*"))[1:]
    # The mark first, then files of weights as they are done, then all else in one commit.
    assert len(received.commits) == plan["commits"] >= 4
    names = [[line["value"].get("path") for line in one["lines"][1:]] for one in received.commits]
    assert names[0] == [".dsctl-run/request.json"]
    assert {"dsctl.json", "config.json", "README.md", ".dsctl-run/request.json"} <= {*names[-1]}
    assert plan["files"] == len(contents(made)) - 1
    assert re.search(rf"repository: {hub.endpoint}/me/made/tree/main \(private\), commit [0-9a-f]{{40}}", done.stdout)
    assert done.stderr.count("committed ") == len(received.commits) - 1 and "uploaded model-00001" in done.stderr

    card = (made / "README.md").read_text()
    assert card.startswith("---\nbase_model: acme/base\n---\n") and f"commit `{commit}`" in card
    assert "dsctl verify hf://me/made --deep" in card and "0 unexplained" in card and "README.source.md" in card
    assert (made / "README.source.md").read_bytes() == (small / "README.md").read_bytes()
    assert "no problems found" in command("verify", "hf://me/made", "--deep", HF_TOKEN=TOKEN).stdout
    assert command("inspect", "hf://me/made", HF_TOKEN=TOKEN).returncode == 0

    again = command(*words, "--json", **settings)
    assert again.returncode == 0 and len(received.commits) == plan["commits"]
    result = json.loads(again.stdout)
    repository = result["repository"]
    assert not faults("convert", result)
    assert "complete: there is nothing to do" in command(*words, "--dry-run", **settings).stdout
    assert repository["commit"] == received.commits[-1]["commit"] and repository["private"] is True
    told = done.stdout + done.stderr + again.stdout + "".join(map(str, received.commits))
    assert TOKEN not in told and str(tmp_path) not in str(names)


def test_ranks_and_back_and_a_graft(hub: Hub, received: Receiving, source: Path, command: Run, tmp_path: Path) -> None:
    def good(*words: Any) -> None:
        done = command(*words, DSCTL_STAGING=str(tmp_path / "staging"))
        assert done.returncode == 0, done.stderr

    good("shard", source, "hf://me/ranks", "--tp", 2, "--workers", 1, "--public")
    dsctl("shard", source, tmp_path / "ranks", "--tp", 2, "--workers", 1, "-q")
    same_files(folder_of(hub, "me/ranks"), tmp_path / "ranks")
    assert hub.private["me/ranks"] is False
    # A new branch of a new repository.
    good("merge", "hf://me/ranks", "hf://me/merged@back", "--workers", 1)
    made = contents(folder_of(hub, "me/merged", "back"))
    before = {name: data for name, data in contents(source).items() if name not in OWN}
    assert {name: made[name] for name in before} == before
    # The card of the ranks is not the source's text, which it stands beside.
    assert made["README.source.md"] == (source / "README.md").read_bytes() != made["README.md"]
    good("graft", source, "hf://me/grafted", "--from", source, "mtp", "--workers", 1)
    assert "mtp" in json.loads((folder_of(hub, "me/grafted") / "dsctl.json").read_text())["grafts"][0]["globs"][0]


def test_the_disk_here_never_holds_more_than_was_asked_for(
    hub: Hub, received: Receiving, source: Path, command: Run, tmp_path: Path
) -> None:
    staging, words = tmp_path / "staging", ("convert", source, "hf://me/made", "--bf16", "--shard-size", "2MB")
    settings = {"DSCTL_STAGING": str(staging)}
    plan = json.loads(command(*words, "--dry-run", "--json", **settings).stdout)["delivery"]
    least = plan["staging_least_bytes"]
    refused = command(*words, "--staging", str(least - 1), **settings)
    assert refused.returncode == 30 and f"give --staging {least} or more" in refused.stderr
    most = 0

    def look(number: int, method: str, path: str) -> None:
        nonlocal most
        most = max(most, sum(path.stat().st_blocks * 512 for path in staging.rglob("*") if path.is_file()))

    hub.fault = look
    done = command(*words, "--staging", str(least), "--workers", "3", **settings)
    assert done.returncode == 0, done.stderr
    assert 0 < most <= least < sum(path.stat().st_size for path in folder_of(hub, "me/made").iterdir())
    # As much as is needed at once, so every file is committed before the next one is made.
    assert len(received.commits) > 8


def test_a_repository_of_others_is_kept(hub: Hub, received: Receiving, small: Path, command: Run) -> None:
    def files(repository: str) -> dict[str, Any]:
        return received.state(repository)

    hub.publish("me/theirs", small)
    received.adopt("me/theirs")
    hub.private["me/theirs"] = False
    before = files("me/theirs")
    done = command("convert", small, "hf://me/theirs", *USUAL)
    assert done.returncode == 30 and "files that dsctl did not make, such as" in done.stderr and "hint: " in done.stderr
    assert files("me/theirs") == before and not received.commits

    received.answer(False, "POST", "/api/models/me/theirs/commit/main", _added("notes/mine.txt", b"mine"))
    received.commits.clear()
    plan = command("convert", small, "hf://me/theirs", *USUAL, "--force", "--dry-run")
    removed = [name for name in before if name.endswith((".safetensors", ".index.json"))]
    assert f"remove         {len(removed)} files that are there now; earlier commits keep them" in plan.stdout
    done = command("convert", small, "hf://me/theirs", *USUAL, "--force")
    assert done.returncode == 0, done.stderr
    first = [line["value"]["path"] for line in received.commits[0]["lines"] if line["key"] == "deletedFile"]
    assert sorted(first) == removed and files("me/theirs")["notes/mine.txt"][0] == 4
    # What it was before, it is: an existing repository keeps its visibility.
    assert hub.private["me/theirs"] is False and "(public)" in done.stdout

    other = command("convert", small, "hf://me/theirs", "--to", "fp8-block", "--only", "model.norm.weight")
    assert other.returncode == 40 and "holds the result of a different request" in other.stderr
    gone = command("convert", small, "hf://me/theirs", *USUAL, "--only", "model.norm.weight", "--force")
    assert gone.returncode == 0, gone.stderr
    assert "model-00002-of-000004.safetensors" not in files("me/theirs") and "notes/mine.txt" in files("me/theirs")


def _added(name: str, data: bytes) -> bytes:
    """A commit of somebody else's."""
    lines = (
        {"key": "header", "value": {"summary": "mine", "description": ""}},
        {"key": "file", "value": {"content": base64.b64encode(data).decode(), "path": name, "encoding": "base64"}},
    )
    return b"\n".join(json.dumps(line).encode() for line in lines)


def test_places_that_cannot_be_targets(
    hub: Hub, received: Receiving, source: Path, command: Run, tmp_path: Path
) -> None:
    for code, words in {
        (30, ("hf://acme/small", "hf://acme/small")),
        (30, ("hf://acme/small", "hf://Acme/small@other")),
        (2, (source, "hf://made")),
        (2, (source, f"hf://me/made@{'a' * 40}")),
        (2, (source, tmp_path / "folder", "--staging", "1GB")),
        (2, (source, tmp_path / "folder", "--public")),
        (2, ("v3.2", "hf://made", "--dry-run")),
    }:
        done = command("convert", *words, *USUAL)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count("error: ") == 1
    assert not received.commits and hub.commits.keys() == {"acme/small"}


def test_somebody_else_s_commit_ends_a_run_that_can_go_on(
    hub: Hub, received: Receiving, source: Path, command: Run, tmp_path: Path
) -> None:
    words, settings = ("convert", source, "hf://me/made", *USUAL), {"DSCTL_STAGING": str(tmp_path / "staging")}
    asked = (False, "POST", "/api/models/me/made/commit/main", _added("notes.txt", b"mine"))
    others: list[threading.Thread] = []

    def meddle(number: int, method: str, path: str) -> None:
        if "lfs/" in path and not others:
            others.append(threading.Thread(target=received.answer, args=asked))
            others[0].start()

    hub.fault = meddle
    stopped = command(*words, **settings)
    assert stopped.returncode == 40 and stopped.stderr.count("error: ") == 1, stopped.stderr
    # As a source it is not finished.
    unfinished = command("inspect", "hf://me/made")
    assert unfinished.returncode == 10 and "is not finished" in unfinished.stderr
    assert command(*words, **settings).returncode == 0
    assert {"notes.txt", "dsctl.json"} <= received.state("me/made").keys()


def test_the_python_interface_takes_a_repository(
    hub: Hub, received: Receiving, source: Path, launcher: Launcher, settings: dict[str, str], tmp_path: Path
) -> None:
    script = """
import dsctl, sys
told = []
made = dsctl.open(sys.argv[1]).to("bf16")
result = made.run("hf://me/called", workers=1, staging=16_000_000, public=True, report=told.append)
print(result.ok, result.target, *{type(event).__name__ for event in told})
"""
    said = launcher.script(script, source, environment=settings | {"DSCTL_STAGING": str(tmp_path / "staging")})
    assert said.startswith("True hf://me/called") and "Uploaded" in said and "Saved" in said
    assert hub.private["me/called"] is False and "dsctl.json" in received.state("me/called")


def test_a_new_branch_of_an_old_repository(hub: Hub, received: Receiving, source: Path, command: Run) -> None:
    """It begins at the first commit, which here has the files of a model already."""
    hub.publish("me/theirs", source)
    received.adopt("me/theirs")
    hub.private["me/theirs"] = True
    main = received.state("me/theirs")
    words = ("convert", source, "hf://me/theirs@bf16", *USUAL)
    assert command(*words).returncode == 30
    done = command(*words, "--force")
    assert done.returncode == 0 and "/me/theirs/tree/bf16 (private)" in done.stdout, done.stderr
    assert received.state("me/theirs") == main
    audit = json.loads((folder_of(hub, "me/theirs", "bf16") / "dsctl.json").read_text())
    assert audit["files"].keys() - {"README.source.md"} <= received.state("me/theirs", "bf16").keys()
    assert "no problems found" in command("verify", "hf://me/theirs@bf16").stdout
