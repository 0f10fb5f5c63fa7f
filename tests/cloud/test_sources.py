"""An object store as SRC: every verb that reads takes it, by ranges, pinned to what was listed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from pathlib import Path

import fsspec
import pytest

from dsctl.core.errors import SourceError
from dsctl.stores import objects as room
from dsctl.stores import store_at
from dsctl.stores.objects import ObjectFolder
from tests.cloud.server import BUCKET, Objects
from tests.support.command import call, dsctl, dsctl_fails, run


def weights(folder: Path) -> dict[str, str]:
    """Digests of everything but the audit, which names its source."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("dsctl.json", "dsctl.intoto.json")
    }


def test_what_looks_sees_what_the_folder_holds(objects: Objects, remote: str, source: Path) -> None:
    there, here = json.loads(dsctl("inspect", remote, "--json")), json.loads(dsctl("inspect", source, "--json"))
    assert {key for key in here if there[key] != here[key]} <= {"place", "source", "origin"}
    said = dsctl("verify", remote)
    assert "no problems found" in said
    assert "library     not opened with the safetensors library: the source is remote\n" in said
    assert call("diff", remote, source, "--exit-code").returncode == 0
    assert json.loads(dsctl("diff", remote, source, "--json"))["a"]["kind"] == "store"
    assert "repository" not in dsctl("diff", remote, source)
    assert "tensors" in dsctl("inspect", f"{remote}/model-00001-of-000004.safetensors")


def test_a_conversion_gives_the_folder_s_bytes(objects: Objects, remote: str, source: Path, tmp_path: Path) -> None:
    done = run("convert", remote, tmp_path / "a", "--bf16", "--workers", 2, env=os.environ | objects.environment)
    assert done.returncode == 0, done.stderr
    dsctl("convert", source, tmp_path / "b", "--bf16", "--workers", "1")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert json.loads((tmp_path / "a" / "dsctl.json").read_text())["source"]["place"] == remote


def test_an_object_that_changes_is_noticed(objects: Objects, source: Path) -> None:
    store = store_at(objects.publish(source, "changing"))
    assert len(store.read("config.json", 0, 10)) == 10
    size = store.files()["config.json"]
    objects.client.put_object(Bucket=BUCKET, Key="changing/config.json", Body=b" " * size)
    with pytest.raises(SourceError, match="has changed"):
        store.read("config.json", 0, 10)
    assert store_at(f"s3://{BUCKET}/changing").revision != store.revision


def test_unfinished_work_from_what_has_changed_since_is_not_resumed(
    objects: Objects, source: Path, tmp_path: Path
) -> None:
    url, target = objects.publish(source, "moving"), tmp_path / "out"
    (target / ".dsctl").mkdir(parents=True)
    mark = {"fingerprint": "of before", "revision": store_at(url).revision}
    objects.client.put_object(Bucket=BUCKET, Key="moving/LICENSE", Body=b"another")
    (target / ".dsctl" / "request.json").write_text(json.dumps(mark))
    done = call("convert", url, target, "--bf16")
    assert done.returncode == 40 and "has changed since" in done.stderr and "--force" in done.stderr


def test_an_object_that_is_gone_is_told(objects: Objects, source: Path) -> None:
    store = store_at(objects.publish(source, "going"))
    objects.client.delete_object(Bucket=BUCKET, Key="going/config.json")
    with pytest.raises(SourceError, match=r"going/config\.json: the object or bucket does not exist"):
        store.read("config.json", 0, 10)


@pytest.mark.parametrize("key", ["../x.json", "a//b.json", "a/./b", "a\\b"])
def test_names_that_lead_elsewhere_are_refused(objects: Objects, key: str) -> None:
    prefix = f"hostile-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    objects.client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=b"x")
    with pytest.raises(SourceError, match="is not a file name within a folder"):
        store_at(f"s3://{BUCKET}/{prefix}")


def test_folder_marks_and_caches_are_passed_by(objects: Objects) -> None:
    for key in ("marked/", "marked/sub/", "marked/.git/config", "marked/config.json"):
        objects.client.put_object(Bucket=BUCKET, Key=key, Body=b"{}" if key.endswith("n") else b"")
    assert store_at(f"s3://{BUCKET}/marked").files() == {"config.json": 2}


@pytest.mark.parametrize(
    "url", [f"s3://{BUCKET}/none", "s3://no-such-bucket/none", "memory://none", "nonsense://a/b", "file:///none"]
)
def test_what_is_not_there_is_told_in_one_line(objects: Objects, url: str) -> None:
    assert dsctl_fails("inspect", url) == 10


def test_any_file_system_that_fsspec_knows(source: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(source), "/held", recursive=True)
    store = store_at("memory://held")
    assert isinstance(store, ObjectFolder)
    assert store.files() == {path.name: path.stat().st_size for path in sorted(source.iterdir())}
    assert store_at(f"file://{source}") == store_at(source)


def test_a_store_that_cannot_be_reached_is_a_source_error_without_secrets(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(room, "ATTEMPTS", 1)
    done = call("inspect", f"s3://{BUCKET}/small")
    assert done.returncode == 10 and "cannot reach the store" in done.stderr
    assert objects.environment["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("url", "profile", "said"),
    [
        (f"s3://{BUCKET}/small", "nobody", "profile (nobody) could not be found"),
        ("s3://NOT_a_bucket!/small", "", "Invalid bucket name"),
    ],
)
def test_what_will_not_pass_is_told_at_once(
    objects: Objects, monkeypatch: pytest.MonkeyPatch, url: str, profile: str, said: str
) -> None:
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    done = call("inspect", url)
    assert done.returncode == 10 and said in done.stderr and "attempts" not in done.stderr


def test_a_server_that_nobody_runs_is_not_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ATTEMPTS", 1)
    done = call("inspect", "http://127.0.0.1:9/x")
    assert done.returncode == 10 and "http://127.0.0.1:9/x: cannot reach the store" in done.stderr


@pytest.mark.parametrize(("url", "code"), [("s3://[bad", 10), ("s3://", 10), (f"s3://{BUCKET}/small?version=1", 2)])
def test_what_is_no_url_of_a_folder_is_told(objects: Objects, url: str, code: int) -> None:
    assert dsctl_fails("inspect", url) == code
    assert dsctl_fails("convert", url, "unused", "--bf16") == code


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    assert room.shown("ftp://me:word@host/a/b?signature=x") == "ftp://host/a/b"
    assert room.shown("s3://bucket/a/") == "s3://bucket/a"
    assert room.shown("s3://") == "s3://" and room.shown("s3://[bad") == "s3://[bad"
    assert room.shown("zip://a::ftp://me:word@host/b.zip") == "zip://a::ftp://host/b.zip"


def test_a_store_that_stalls_and_fails_now_and_then_costs_time_only(
    objects: Objects, remote: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PATIENCE", 0.5)
    monkeypatch.setattr(room, "FIRST_WAIT", 0.01)
    asked = itertools.count(1)

    def fault(method: str, path: str) -> int | None:
        number = next(asked)
        if number % 29 == 0:
            time.sleep(1)
        return 503 if number % 17 == 0 else None

    with objects.disturbed(fault):
        dsctl("convert", remote, tmp_path / "a", "--bf16", "--workers", "1")
    assert next(asked) > 50
    dsctl("convert", source, tmp_path / "b", "--bf16", "--workers", "1")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_a_store_that_stalls_is_asked_again_and_then_told(
    objects: Objects, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(remote)
    monkeypatch.setattr(room, "PATIENCE", 0.2)
    monkeypatch.setattr(room, "ATTEMPTS", 2)
    monkeypatch.setattr(room, "FIRST_WAIT", 0.01)
    with objects.stalled(), pytest.raises(SourceError, match=r"no answer in time \(2 attempts\)"):
        store.read("config.json", 0, 10)
    assert len(store.read("config.json", 0, 10)) == 10
