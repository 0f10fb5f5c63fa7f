"""An object store as DST: files go up as they are done, `dsctl.json` last, and the same command resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import fsspec
import pytest

from dsctl.api import open as dsctl_open
from dsctl.core.errors import WorkError
from dsctl.stores import objects as room
from dsctl.stores import uploads
from tests.cloud.server import BUCKET, Objects
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl, dsctl_fails
from tests.support.forks import Launcher


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a folder would hold."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    dsctl("convert", source, folder, "--bf16", "--workers", "1")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_conversion_gives_a_folder_s_bytes_and_leaves_nothing_here(
    objects: Objects, source: Path, expected: dict[str, bytes], staging: Path
) -> None:
    url = f"s3://{BUCKET}/fresh"
    said = dsctl("convert", source, url, "--bf16", "--workers", "1")
    assert objects.contents("fresh") == expected
    assert url in said and not list(staging.rglob("*"))[1:]
    assert "no problems found" in dsctl("verify", url)
    assert "already complete" in dsctl("convert", source, url, "--bf16")


def test_from_store_to_store(objects: Objects, remote: str, expected: dict[str, bytes]) -> None:
    dsctl("convert", remote, f"s3://{BUCKET}/copied", "--bf16", "--workers", "1")
    made = objects.contents("copied")
    # Both name the source.
    named = ("dsctl.json", "dsctl.intoto.json")
    assert {*named} <= made.keys()
    assert {name: data for name, data in made.items() if name not in named} == {
        name: data for name, data in expected.items() if name not in named
    }


def test_large_files_go_in_parts_and_parts_of_killed_runs_are_given_back(
    objects: Objects, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny(tmp_path_factory, "v3.2", hidden=512, vocab=2048, intermediate=1024)
    left = {"Bucket": BUCKET, "Key": "parted/model-00001-of-000004.safetensors"}
    upload = objects.client.create_multipart_upload(**left)["UploadId"]
    objects.client.upload_part(**left, UploadId=upload, PartNumber=1, Body=b"left behind")
    other = objects.client.create_multipart_upload(Bucket=BUCKET, Key="parted-not/x")["UploadId"]
    monkeypatch.setattr(uploads, "PART_BYTES", 5 << 20)
    started: list[str] = []

    def watch(method: str, path: str) -> None:
        if method == "POST":
            started.append(path)

    with objects.disturbed(watch):
        dsctl("convert", source, f"s3://{BUCKET}/parted", "--bf16")
    dsctl("convert", source, tmp_path / "here", "--bf16", "--workers", "1")
    here = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert len(started) == 2 * sum(len(data) >= 10 << 20 for data in here.values()) > 0
    assert objects.contents("parted") == here
    left_over = objects.client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert [one["UploadId"] for one in left_over] == [other]


def test_what_is_on_its_way_when_a_run_ends_is_given_up(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(uploads, "PARTS", 1)
    large = tmp_path / "large"
    large.write_bytes(bytes(12 << 20))
    ended = uploads.Uploads(f"s3://{BUCKET}/ended")
    ended.stop()
    with pytest.raises(WorkError, match="has ended"):
        ended.send("large", large)
    assert objects.contents("ended") == {}
    left_over = objects.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())
    assert not any(one["Key"].startswith("ended/") for one in left_over)


def test_the_audit_comes_last(objects: Objects, source: Path) -> None:
    put: list[str] = []

    def watch(method: str, path: str) -> None:
        if method == "PUT":
            put.append(path)

    with objects.disturbed(watch):
        dsctl("convert", source, f"s3://{BUCKET}/ordered", "--bf16")
    assert put[0].endswith("/.dsctl/request.json") and put[-1].endswith("/dsctl.json")
    assert [path for path in put if path.endswith(".safetensors")] == put[1:5]


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_resumes_and_sends_no_file_twice(
    objects: Objects,
    source: Path,
    expected: dict[str, bytes],
    staging: Path,
    torn: bool,
    launcher: Launcher,
    settings: dict[str, str],
) -> None:
    url, put = f"s3://{BUCKET}/killed-{torn}", []

    def watch(method: str, path: str) -> None:
        if method == "PUT":
            put.append(path.rpartition("/")[2])
        if path.endswith("model-00003-of-000004.safetensors"):
            process.kill("driver")
            time.sleep(0.2)

    with objects.disturbed(watch):
        process = launcher.start("convert", source, url, "--bf16", "--workers", "1", environment=settings)
        assert process.wait(60).code == -signal.SIGKILL
    assert "dsctl.json" not in put
    first, put = set(put) - {"request.json", "model-00003-of-000004.safetensors"}, []
    for path in staging.rglob("model-00001-of-000004.safetensors") if torn else ():
        # As if it had died while it gave the blocks of what is up back to the disk.
        os.truncate(path, 0)

    def again(method: str, path: str) -> None:
        if method == "PUT":
            put.append(path.rpartition("/")[2])

    assert first
    with objects.disturbed(again):
        dsctl("convert", source, url, "--bf16")
    assert objects.contents(f"killed-{torn}") == expected
    assert first.isdisjoint(put) and not list(staging.rglob("*"))[1:]


def test_without_its_staging_folder_a_run_starts_over(
    objects: Objects, source: Path, expected: dict[str, bytes]
) -> None:
    objects.client.put_object(Bucket=BUCKET, Key="lost/stray", Body=b"x")
    assert dsctl_fails("convert", source, f"s3://{BUCKET}/lost", "--bf16") == 30
    objects.client.delete_object(Bucket=BUCKET, Key="lost/stray")
    audit = json.loads(expected["dsctl.json"])
    mark = json.dumps({"fingerprint": audit["fingerprint"]}).encode()
    objects.client.put_object(Bucket=BUCKET, Key="lost/.dsctl/request.json", Body=mark)
    objects.client.put_object(Bucket=BUCKET, Key="lost/config.json", Body=b"old")
    dsctl("convert", source, f"s3://{BUCKET}/lost", "--bf16")
    assert objects.contents("lost") == expected


def test_what_another_machine_took_there_is_not_taken_for_what_is_made_now(
    objects: Objects, source: Path, expected: dict[str, bytes]
) -> None:
    mark = json.dumps({"fingerprint": json.loads(expected["dsctl.json"])["fingerprint"]}).encode()
    objects.client.put_object(Bucket=BUCKET, Key="stale/.dsctl/request.json", Body=mark)
    for name in ("generation_config.json", "model-00001-of-000004.safetensors"):
        objects.client.put_object(Bucket=BUCKET, Key=f"stale/{name}", Body=bytes(len(expected[name])))
    dsctl("convert", source, f"s3://{BUCKET}/stale", "--bf16")
    assert objects.contents("stale") == expected


@pytest.mark.parametrize("complete", [True, False])
def test_force_removes_only_what_dsctl_made(objects: Objects, source: Path, complete: bool) -> None:
    url, prefix = f"s3://{BUCKET}/shared-{complete}", f"shared-{complete}"
    if complete:
        dsctl("convert", source, url, "--bf16", "--only", "model.norm.weight")
    else:
        mark = json.dumps({"fingerprint": "another", "files": ["model-00009.safetensors"]}).encode()
        objects.client.put_object(Bucket=BUCKET, Key=f"{prefix}/.dsctl/request.json", Body=mark)
        objects.client.put_object(Bucket=BUCKET, Key=f"{prefix}/model-00009.safetensors", Body=b"unfinished")
    objects.client.put_object(Bucket=BUCKET, Key=f"{prefix}/my-notes/keep.txt", Body=b"mine")
    before = objects.contents(prefix)
    done = call("convert", source, url, "--bf16", "--force")
    assert done.returncode == 30 and "my-notes/keep.txt" in done.stderr and "hint: " in done.stderr
    assert objects.contents(prefix) == before
    objects.client.delete_object(Bucket=BUCKET, Key=f"{prefix}/my-notes/keep.txt")
    dsctl("convert", source, url, "--bf16", "--force")
    assert "model-00009.safetensors" not in objects.contents(prefix)


def test_an_interrupt_ends_a_stalled_upload(
    objects: Objects, source: Path, launcher: Launcher, settings: dict[str, str]
) -> None:
    stalled, go_on = threading.Event(), threading.Event()

    def stall(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(".safetensors"):
            stalled.set()
            go_on.wait(60)

    with objects.disturbed(stall):
        words = ("convert", source, f"s3://{BUCKET}/stalled", "--bf16")
        process = launcher.start(*words, environment=settings)
        assert stalled.wait(60)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        try:
            done = process.wait(30)
        finally:
            go_on.set()
    assert done.code == 130 and "same command" in done.err, done.told()
    assert time.monotonic() - began < 5


def test_an_upload_that_stalls_is_given_up_by_its_part(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name, value in (
        (uploads, "PART_BYTES", 5 << 20), (uploads, "PARTS", 1), (uploads, "SENT_BYTES", 5 << 20),
        (room, "PATIENCE", 0.5), (room, "SLOWEST", 5 << 20), (room, "ATTEMPTS", 2), (room, "FIRST_WAIT", 0.01),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, value)
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(500 << 20)
    go_on = threading.Event()

    def stall(method: str, path: str) -> None:
        if method == "PUT":
            go_on.wait(60)

    with objects.disturbed(stall):
        began = time.monotonic()
        with pytest.raises(WorkError, match=r"slow/large: no answer in time \(2 attempts\)"):
            uploads.Uploads(f"s3://{BUCKET}/slow").send("large", large)
        # A part may take 1.5 s, the whole file 100 s.
        assert time.monotonic() - began < 20
        go_on.set()
    left_over = objects.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())
    assert not any(one["Key"].startswith("slow/") for one in left_over)


def test_a_target_that_refuses_is_told_as_the_target(objects: Objects, source: Path) -> None:
    with objects.disturbed(lambda method, path: 403):
        done = call("convert", source, f"s3://{BUCKET}/closed", "--bf16")
    assert done.returncode == 41 and f"s3://{BUCKET}/closed: the store refuses access" in done.stderr


def test_a_source_under_another_name_is_no_target(objects: Objects, source: Path) -> None:
    dsctl("convert", source, f"s3://{BUCKET}/victim", "--bf16")
    before = objects.contents("victim")
    for url in (f"s3://{BUCKET}/victim", f"simplecache::s3://{BUCKET}/victim"):
        assert dsctl_fails("convert", f"s3a://{BUCKET}/victim", url, "--fp8", "--force") == 30
    assert objects.contents("victim") == before


def test_another_request_is_refused_and_force_starts_over(
    objects: Objects, source: Path, expected: dict[str, bytes]
) -> None:
    url = f"s3://{BUCKET}/forced"
    dsctl("convert", source, url, "--bf16", "--only", "model.norm.weight")
    assert dsctl_fails("convert", source, url, "--bf16") == 40
    dsctl("convert", source, url, "--bf16", "--force")
    assert objects.contents("forced") == expected


def test_a_store_that_refuses_is_told_and_resumed(
    objects: Objects, source: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/refusing"
    monkeypatch.setattr(room, "ATTEMPTS", 1)

    def refuse(method: str, path: str) -> int | None:
        return 403 if method == "PUT" and path.endswith("2-of-000004.safetensors") else None

    with objects.disturbed(refuse):
        done = call("convert", source, url, "--bf16")
    assert done.returncode == 41 and "model-00002-of-000004.safetensors: the store refuses access" in done.stderr
    assert "Traceback" not in done.stderr and objects.environment["AWS_SECRET_ACCESS_KEY"] not in done.stderr
    assert "dsctl.json" not in objects.contents("refusing")
    dsctl("convert", source, url, "--bf16")
    assert objects.contents("refusing") == expected


def test_targets_that_can_be_none_are_refused(objects: Objects, remote: str, source: Path) -> None:
    assert dsctl_fails("convert", remote, f"{remote}/inner", "--bf16") == 30
    assert dsctl_fails("convert", source, "s3://no-such-bucket/x", "--bf16") == 41


def test_a_dry_run_names_the_target_and_touches_nothing(objects: Objects, source: Path, staging: Path) -> None:
    assert f"s3://{BUCKET}/dry as bf16" in dsctl("convert", source, f"s3://{BUCKET}/dry", "--bf16", "--dry-run")
    assert not objects.contents("dry") and not staging.exists()


def test_any_file_system_that_fsspec_knows(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    dsctl("convert", source, "memory://made", "--bf16", "--workers", "1", "--staging", "20MB")
    memory = fsspec.filesystem("memory")
    assert {path.removeprefix("/made/"): memory.cat_file(path) for path in memory.find("/made")} == expected
    dsctl("convert", source, f"file://{tmp_path}/out", "--bf16", "--workers", "1")
    assert (tmp_path / "out" / "dsctl.json").read_bytes() == expected["dsctl.json"]


def test_the_python_interface_takes_the_same_places(
    objects: Objects, source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    made = dsctl_open(str(source)).to("bf16")
    for _ in range(2):
        made.run(f"s3://{BUCKET}/called", workers=1)
    assert objects.contents("called") == expected


def step(source: Path, tmp_path: Path) -> Path:
    """The next step of a fine-tune: the same headers, other weights."""
    folder = Path(shutil.copytree(source, tmp_path / "next-step"))
    file = folder / "model-00002-of-000004.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-9] ^= 1
    file.write_bytes(raw)
    return folder


def test_another_source_with_equal_headers_is_refused(objects: Objects, source: Path, tmp_path: Path) -> None:
    url, other = f"s3://{BUCKET}/steps", step(source, tmp_path)

    def refuse(method: str, path: str) -> int | None:
        return 403 if method == "PUT" and path.endswith("2-of-000004.safetensors") else None

    with objects.disturbed(refuse), pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "ATTEMPTS", 1)
        assert call("convert", source, url, "--bf16").returncode == 41
    for what in ("the unfinished work", "the result"):
        done = call("convert", other, url, "--bf16")
        assert done.returncode == 40 and what in done.stderr, done.stderr
        assert str(source) in done.stderr and str(other) in done.stderr and "00002" in done.stderr
        dsctl("convert", source, url, "--bf16")


def test_two_runs_at_once_are_one(
    objects: Objects, source: Path, expected: dict[str, bytes], launcher: Launcher, settings: dict[str, str]
) -> None:
    words = ("convert", source, f"s3://{BUCKET}/twice", "--bf16", "--workers", "1")
    runs = [launcher.start(*words, environment=settings) for _ in range(2)]
    ends = [run.wait() for run in runs]
    codes = sorted(done.code for done in ends)
    assert codes in ([0, 40], [0, 0]) and not any("internal" in one.err or "Traceback" in one.err for one in ends), ends
    assert objects.contents("twice") == expected
