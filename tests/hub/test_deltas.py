"""Deltas between places: both sides, the delta and the result in repositories on a hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.conftest import Within
from tests.hub.receiving import Receiving
from tests.hub.server import Hub
from tests.hub.uploads import kept_secret
from tests.support import changed, shared_deltas
from tests.support.command import Done, call, dsctl

NAMED = {"dsctl.json", "dsctl.intoto.json", ".gitattributes", "README.md", "README.source.md"}
Call = Callable[..., Done]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folder_of(hub: Hub, repository: str) -> Path:
    return hub.commits[repository][hub.branches[repository, "main"]]


def same(made: Path, expected: Path) -> None:
    there, here = contents(made), contents(expected)
    assert {name: there[name] for name in there.keys() - NAMED} == {name: here[name] for name in here.keys() - NAMED}


@pytest.fixture
def later(source: Path, tmp_path: Path) -> Path:
    return changed.side_files(changed.make(source, tmp_path / "later", changed.last_bits(0.02)))


@pytest.fixture
def there(
    hub: Hub, received: Receiving, within: Within, later: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Runs a command with a hub that holds both states."""
    hub.publish("acme/later", later)
    monkeypatch.setenv("DSCTL_STAGING", str(tmp_path / "staging"))

    def run(*words: object) -> Done:
        with within():
            done = call(*words)
        kept_secret(hub, done.stdout + done.stderr)
        return done

    return run


def test_everything_may_be_on_a_hub(hub: Hub, there: Call, source: Path, later: Path, tmp_path: Path) -> None:
    done = there("delta", "make", "hf://acme/small", "hf://acme/later", "hf://me/delta")
    assert done.returncode == 0, done.stderr
    assert hub.private["me/delta"] if hasattr(hub, "private") else True
    dsctl("delta", "make", source, later, tmp_path / "delta")
    same(folder_of(hub, "me/delta"), tmp_path / "delta")
    shared_deltas.check(folder_of(hub, "me/delta"))
    assert not list((tmp_path / "staging").rglob("*.safetensors"))
    done = there("delta", "make", "hf://acme/small", "hf://acme/later", "hf://me/delta")
    assert done.returncode == 0, done.stderr
    assert there("delta", "verify", "hf://me/delta", "--base", "hf://acme/small").returncode == 0
    done = there("delta", "apply", "hf://acme/small", "hf://me/delta", "hf://me/result")
    assert done.returncode == 0, done.stderr
    same(folder_of(hub, "me/result"), later)
    done = there("delta", "apply", "hf://acme/small", "hf://me/delta", tmp_path / "here")
    assert done.returncode == 0, done.stderr
    same(tmp_path / "here", later)
    done = there("delta", "apply", "hf://acme/later", "hf://me/delta", tmp_path / "wrong")
    assert done.returncode == 30 and "is not the base of the delta" in done.stderr
    done = there("delta", "apply", "hf://acme/small", "hf://me/delta", "--in-place")
    assert done.returncode == 30 and "only a folder on this machine" in done.stderr


def test_a_repository_with_something_else_is_left_alone(hub: Hub, there: Call, source: Path) -> None:
    before = hub.branches["acme/later", "main"]
    done = there("delta", "make", "hf://acme/small", "hf://acme/later", "hf://acme/later")
    assert done.returncode == 30, done.stderr
    done = there("delta", "make", source, "hf://acme/later", "hf://acme/small")
    assert done.returncode == 30, done.stderr
    assert hub.branches["acme/later", "main"] == before


def test_a_chain_on_a_hub_folds_to_a_hub(hub: Hub, there: Call, source: Path, later: Path, tmp_path: Path) -> None:
    third = changed.make(later, tmp_path / "third", changed.last_bits(0.01), seed=3)
    dsctl("delta", "make", source, later, tmp_path / "d1")
    dsctl("delta", "make", later, third, tmp_path / "d2", "--version", "2")
    hub.publish("me/d1", tmp_path / "d1")
    hub.publish("me/d2", tmp_path / "d2")
    done = there("delta", "fold", "hf://me/d1", "hf://me/d2", "hf://me/both")
    assert done.returncode == 0, done.stderr
    got = Path(shutil.copytree(source, tmp_path / "got"))
    shared_deltas.apply_in_place(got, folder_of(hub, "me/both"))
    assert {name: data for name, data in contents(got).items() if name.endswith(".safetensors")} == {
        name: data for name, data in contents(third).items() if name.endswith(".safetensors")
    }
