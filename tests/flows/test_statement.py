"""The statement beside `dsctl.json`: what it says, that equal runs give equal bytes, and what `verify` finds in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from dsctl.checkpoint.statement import WITHHELD
from dsctl.stores.local import LocalFolder
from dsctl.verify import verify
from tests.flows.planted import Folder
from tests.support import trees
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.forks import Launcher
from tests.support.schemas import STATEMENT as SCHEMA
from tests.support.schemas import faults

SMALL = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "intermediate": 256, "moe_intermediate": 256,
}  # fmt: skip
STATEMENT = "dsctl.intoto.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2", **SMALL)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "bf16"
    dsctl("convert", source, folder, "--bf16", "--workers", 1)
    return folder


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / STATEMENT).read_text())
    assert faults(SCHEMA, found) == []
    return found


def subjects(folder: Path) -> dict[str, dict[str, str]]:
    return {one["name"]: one["digest"] for one in read(folder)["subject"]}


def dependencies(folder: Path) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in read(folder)["predicate"]["buildDefinition"]["resolvedDependencies"]}


def sums(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    return {"blake3": blake3(raw).hexdigest(), "sha256": hashlib.sha256(raw).hexdigest()}


def findings(folder: Path) -> dict[str, str]:
    return {one.code: one.what for one in verify(LocalFolder.at(folder)).findings if one.code.startswith("statement")}


def test_the_subjects_are_the_files_with_their_digests(made: Path) -> None:
    said = subjects(made)
    assert said.keys() == {path.name for path in made.iterdir()} - {STATEMENT, "dsctl.json"}
    for name, digest in said.items():
        if "blake3" in digest:
            assert digest == {"blake3": sums(made / name)["blake3"]}
        else:
            assert digest == {"dsctlBlake3Tree": trees.entry(made / name)["tree"]}


def test_with_sha256_every_subject_has_it(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "out", "--bf16", "--digest", "sha256")
    said = subjects(tmp_path / "out")
    assert len(said) > 9
    assert all(digest["sha256"] == sums(tmp_path / "out" / name)["sha256"] for name, digest in said.items())


def test_request_version_and_audit_are_those_of_the_audit(made: Path) -> None:
    audit, predicate = json.loads((made / "dsctl.json").read_text()), read(made)["predicate"]
    assert predicate["buildDefinition"]["externalParameters"] == {"request": audit["request"]}
    assert predicate["runDetails"]["builder"]["version"] == {"dsctl": audit["dsctl"]}
    (counts,) = predicate["runDetails"]["byproducts"]
    assert json.loads(b64decode(counts["content"])) == audit["audit"]


def test_no_digest_of_a_file_is_claimed_that_nobody_computed(source: Path, made: Path) -> None:
    said = dependencies(made)
    assert said.keys() == {path.name for path in source.iterdir()}
    for name, one in said.items():
        assert one["annotations"]["size"] == (source / name).stat().st_size and "uri" not in one
        if name.endswith(".safetensors"):
            assert one["annotations"]["digestFrom"] == "sample" and one["digest"].keys() == {"dsctlSample"}
        else:
            assert one["annotations"]["digestFrom"] == "bytes"
            assert one["digest"].items() <= sums(source / name).items()


def test_it_names_no_place_and_no_time(source: Path, made: Path, tmp_path: Path) -> None:
    text = (made / STATEMENT).read_text()
    assert str(source) not in text and "/" not in text.replace("https://in-toto.io/Statement/v1", "").replace(
        "https://slsa.dev/provenance/v1", ""
    ).replace("application/json", "").replace('"content": "', "")
    elsewhere = Path(shutil.copytree(source, tmp_path / "copied", copy_function=shutil.copy))
    dsctl("convert", elsewhere, tmp_path / "out", "--bf16", "--workers", 4)
    assert (tmp_path / "out" / STATEMENT).read_text() == text


def test_killed_between_statement_and_audit_it_is_made_again(
    source: Path, made: Path, tmp_path: Path, launcher: Launcher
) -> None:
    for number in (1, 2):
        last = ("dsctl.run.statement.Made.statement", 1) if number == 1 else ("dsctl.run.driver.replace_file", 7)
        launcher.start("convert", source, tmp_path / "out", "--bf16", "--workers", "1", last=last).wait()
        assert not (tmp_path / "out" / "dsctl.json").exists()
    dsctl("convert", source, tmp_path / "out", "--bf16")
    assert (tmp_path / "out" / STATEMENT).read_bytes() == (made / STATEMENT).read_bytes()


def test_a_run_killed_at_its_first_job_ends_with_the_same_statement(
    source: Path, made: Path, tmp_path: Path, launcher: Launcher
) -> None:
    last = ("dsctl.run.journal.Journal.append", 2)
    launcher.start("convert", source, tmp_path / "out", "--bf16", "--workers", "1", last=last).wait()
    assert (tmp_path / "out" / ".dsctl").exists()
    dsctl("convert", source, tmp_path / "out", "--bf16", "--workers", 2)
    assert (tmp_path / "out" / STATEMENT).read_bytes() == (made / STATEMENT).read_bytes()


def test_a_consumed_source_gives_the_same(source: Path, made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    dsctl("convert", copy, tmp_path / "out", "--bf16", "--consume", "--consume")
    assert not list(copy.glob("*.safetensors"))
    assert (tmp_path / "out" / STATEMENT).read_bytes() == (made / STATEMENT).read_bytes()


def test_there_and_back_is_a_chain(source: Path, made: Path, tmp_path: Path) -> None:
    dsctl("convert", made, tmp_path / "fp8", "--fp8")
    dsctl("convert", tmp_path / "fp8", tmp_path / "again", "--bf16")
    for before, after in ((made, tmp_path / "fp8"), (tmp_path / "fp8", tmp_path / "again")):
        said = dependencies(after)
        assert said[STATEMENT]["digest"] == sums(before / STATEMENT)
        for name, digest in subjects(before).items():
            if name in said:
                assert said[name]["digest"] == digest and said[name]["annotations"]["digestFrom"] == "dsctl.json"
        assert len(subjects(before).keys() & said.keys()) > 9
    assert STATEMENT not in subjects(tmp_path / "fp8") and "original.dsctl" in dependencies(tmp_path / "fp8")


def test_a_source_of_an_earlier_version_is_named_by_its_audit(made: Path, tmp_path: Path) -> None:
    old = older(Path(shutil.copytree(made, tmp_path / "old")))
    dsctl("convert", old, tmp_path / "fp8", "--fp8")
    said = dependencies(tmp_path / "fp8")
    assert said["dsctl.json"]["digest"] == sums(old / "dsctl.json") and STATEMENT not in said


@pytest.mark.parametrize(
    "audit",
    [
        b"",
        b"[]",
        b'{"files": {"config.json": {"size": 9, "blake3": "../x"}}}',
        b'{"files": 7}',
        b'{"files": {"config.json": {}}}',
        b"{" * 9,
    ],
)
def test_a_source_s_audit_that_cannot_be_read_is_no_record(made: Path, tmp_path: Path, audit: bytes) -> None:
    source = older(Path(shutil.copytree(made, tmp_path / "odd")))
    (source / "original.dsctl").unlink()
    (source / "dsctl.json").write_bytes(audit)
    dsctl("convert", source, tmp_path / "out", "--to", "int8-channel")
    assert "dsctl.json" not in dependencies(tmp_path / "out")


def older(folder: Path) -> Path:
    """A folder as a version without statements made it."""
    (folder / STATEMENT).unlink()
    Folder(folder).json("dsctl.json", lambda audit: audit["files"].pop(STATEMENT))
    return folder


def test_a_folder_of_an_earlier_version_is_complete_and_clean(source: Path, made: Path, tmp_path: Path) -> None:
    old = older(Path(shutil.copytree(made, tmp_path / "old")))
    assert findings(old) == {} and "statement" not in dsctl("verify", old, "--deep")
    assert json.loads(dsctl("verify", old, "--json"))["checked"]["statement"] is None
    assert "is already complete" in dsctl("convert", source, old, "--bf16")
    assert not (old / STATEMENT).exists()


def test_a_statement_alone_is_not_compared(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "x"))
    (folder / "dsctl.json").unlink()
    assert "statement   not compared with dsctl.json" in dsctl("verify", folder)


def test_the_original_s_folder_is_a_dependency_and_its_path_is_withheld(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "plain", "--bf16", "--no-keep-scales")
    dsctl("convert", tmp_path / "plain", tmp_path / "fp8", "--fp8", "--original", source)
    assert str(source) not in (tmp_path / "fp8" / STATEMENT).read_text()
    request = read(tmp_path / "fp8")["predicate"]["buildDefinition"]["externalParameters"]["request"]
    assert request["original"] == WITHHELD
    said = dependencies(tmp_path / "fp8")
    assert any(name.startswith("original://model-") for name in said)
    assert "no problems found" in dsctl("verify", tmp_path / "fp8")


def test_ranks_have_one_statement_at_the_top(source: Path, tmp_path: Path) -> None:
    dsctl("shard", source, tmp_path / "ranks", "--tp", 2)
    assert [path.parent.name for path in (tmp_path / "ranks").rglob(STATEMENT)] == ["ranks"]
    assert {"rank-00000/config.json", "rank-00001/config.json"} <= subjects(tmp_path / "ranks").keys()
    dsctl("merge", tmp_path / "ranks", tmp_path / "merged")
    assert dependencies(tmp_path / "merged")[STATEMENT]["digest"] == sums(tmp_path / "ranks" / STATEMENT)
    assert findings(tmp_path / "ranks") == findings(tmp_path / "merged") == {}


def test_a_slice_has_one(source: Path, tmp_path: Path) -> None:
    dsctl("slice", source, tmp_path / "cut", "--layers", "0-1", "--experts", 2)
    request = read(tmp_path / "cut")["predicate"]["buildDefinition"]["externalParameters"]["request"]
    assert request["slice"] and findings(tmp_path / "cut") == {}


def test_a_signature_of_the_source_is_left_out(made: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(made, tmp_path / "signed"))
    for name in ("model.sig", "dsctl.sigstore.json"):
        (source / name).write_text("{}")
    said = dsctl("convert", source, tmp_path / "fp8", "--fp8")
    assert "left out model.sig: it signs the files of the source" in said
    assert not (tmp_path / "fp8" / "model.sig").exists() and not (tmp_path / "fp8" / "dsctl.sigstore.json").exists()


def test_where_it_belongs_a_link_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "out" / STATEMENT)
    done = call("convert", source, tmp_path / "out", "--bf16")
    assert done.returncode == 30 and STATEMENT in done.stderr and not (tmp_path / "elsewhere").exists()


def spoiled(made: Path, place: Path) -> Folder:
    return Folder(Path(shutil.copytree(made, place / "copy")))


def test_a_subject_more_or_fewer_or_another_digest_is_found(made: Path, tmp_path: Path) -> None:
    folder = spoiled(made, tmp_path)

    def change(said: dict[str, Any]) -> None:
        said["subject"][0]["digest"] = {"blake3": "0" * 64}
        said["subject"][1]["name"] = "never.json"

    folder.json(STATEMENT, change)
    assert findings(folder.path) == {
        "statement-subjects": "3 subjects not as in dsctl.json: LICENSE, README.md, never.json"
    }
    done = call("verify", folder.path)
    assert done.returncode == 50 and "statement-subjects" in done.stdout


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("buildDefinition", "externalParameters", "request", "to"), "keep", "the request"),
        (("buildDefinition", "externalParameters", "request"), 7, "the request"),
        (("buildDefinition", "externalParameters", "request", "more"), 7, "the request"),
        (("runDetails", "builder", "version", "dsctl"), "0.0", "the version of dsctl"),
        (("runDetails", "byproducts"), [], "the audit"),
        (("buildDefinition", "resolvedDependencies"), [], "the source's files"),
    ],
)
def test_what_is_not_as_in_the_audit_is_found(
    made: Path, tmp_path: Path, place: tuple[str, ...], value: Any, said: str
) -> None:
    folder = spoiled(made, tmp_path)

    def change(statement: dict[str, Any]) -> None:
        at = statement["predicate"]
        for name in place[:-1]:
            at = at[name]
        at[place[-1]] = value

    folder.json(STATEMENT, change)
    assert findings(folder.path) == {"statement-differs": f"{said}: not as in dsctl.json"}


@pytest.mark.parametrize("raw", [b"{}", b"7", b'{"_type": 1, "_type": 1}', b'{"_type": "x", "subject": [{"name": 7}]}'])
def test_what_is_no_statement_is_found(made: Path, tmp_path: Path, raw: bytes) -> None:
    folder = spoiled(made, tmp_path)
    (folder.path / STATEMENT).write_bytes(raw)
    assert findings(folder.path).keys() == {"statement-broken"}
    done = call("verify", folder.path, "--json")
    assert done.returncode == 50 and json.loads(done.stdout)["checked"]["statement"] == 0


def test_what_is_no_json_is_found_once(made: Path, tmp_path: Path) -> None:
    folder = spoiled(made, tmp_path)
    (folder.path / STATEMENT).write_bytes(b"[" * 100_000)
    codes = {one.code for one in verify(LocalFolder.at(folder.path)).findings}
    assert codes == {"broken-json", "signed-size"}


def test_the_bytes_are_compared_when_all_are_read(made: Path, tmp_path: Path) -> None:
    folder = spoiled(made, tmp_path)
    text = (folder.path / STATEMENT).read_text()
    (folder.path / STATEMENT).write_text(text.replace('"digestFrom": "bytes"', '"digestFrom": "bytez"', 1))
    assert findings(folder.path) == {} and "no problems found" in dsctl("verify", folder.path)
    done = call("verify", folder.path, "--deep")
    assert done.returncode == 50 and f"{STATEMENT}: differs from dsctl.json" in done.stdout


def test_fixed_metadata_gets_into_the_statement_and_is_marked(made: Path, tmp_path: Path) -> None:
    folder = spoiled(made, tmp_path)
    first = min(folder.path.glob("*.safetensors"))
    folder.reheader(first, lambda header: header.update(__metadata__={"made": "elsewhere"}))
    folder.json("dsctl.json", lambda audit: audit["files"].update({first.name: trees.entry(first)}))
    dsctl("verify", folder.path, "--fix")
    assert "no problems found" in dsctl("verify", folder.path, "--deep") and findings(folder.path) == {}
    marked = [one["name"] for one in read(folder.path)["subject"] if one.get("annotations")]
    assert marked == [first.name]
    before, after = subjects(made), subjects(folder.path)
    assert {name for name in after if after[name] != before[name]} == {*marked}


def test_a_request_is_not_fixed(made: Path, tmp_path: Path) -> None:
    folder = spoiled(made, tmp_path)
    folder.json(STATEMENT, lambda said: said["predicate"]["runDetails"].update(byproducts=[]))
    assert call("verify", folder.path, "--fix").returncode == 50
    assert findings(folder.path).keys() == {"statement-differs"}
