"""`verify --fix` on folders as people have them: permissions stay, and a mend that was killed is ended by the next."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dsctl.core import files
from dsctl.core.errors import WorkError
from dsctl.core.files import alone_in
from dsctl.stores.local import LocalFolder
from dsctl.verify import repair, verify
from tests.flows.planted import FIRST, INDEX, Folder
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl

SMALL = {
    "layers": 1, "experts": 2, "hidden": 128, "heads": 1, "vocab": 128, "intermediate": 128, "moe_intermediate": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that dsctl converted and signed."""
    folder = tmp_path_factory.mktemp("signed") / "bf16"
    dsctl("convert", tiny(tmp_path_factory, "v3.2", **SMALL), folder, "--bf16", "-q")
    return folder


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Folder:
    """A copy of which a header lacks its format and the index its total, and whose signatures are true."""
    copy = Folder(Path(shutil.copytree(clean, tmp_path / "copy")))
    copy.reheader(copy.path / FIRST, lambda header: header.pop("__metadata__"))
    copy.index(lambda index: index["metadata"].update(total_size=7))
    for file in (FIRST, INDEX):
        sign(copy, file)
    return copy


def sign(folder: Folder, file: str) -> None:
    raw = (folder.path / file).read_bytes()
    entry = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    folder.json("dsctl.json", lambda signed: signed["files"].update({file: entry}))


def test_permissions_stay(folder: Folder) -> None:
    modes = {FIRST: 0o640, INDEX: 0o640, "dsctl.json": 0o600}
    for file, mode in modes.items():
        (folder.path / file).chmod(mode)
    dsctl("verify", folder.path, "--fix")
    assert {file: stat.S_IMODE((folder.path / file).stat().st_mode) for file in modes} == modes
    assert "total_size" in (folder.path / INDEX).read_text()


class Killed(BaseException):
    """What ends a process between two calls."""


@pytest.mark.parametrize("steps", range(7))
def test_a_killed_mend_is_ended_by_the_next(folder: Folder, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Two files and the statement are mended, each with two replacements: its signature's and its own."""
    done = []

    def killed(path: Path) -> None:
        if len(done) == steps:
            raise Killed
        done.append(path)
        files.take_place(path)

    store = LocalFolder.at(folder.path)
    planned = repair.mends(store, verify(store))
    with monkeypatch.context() as patched:
        patched.setattr(repair, "take_place", killed)
        if steps < 6:
            with pytest.raises(Killed):
                repair.mend(store, planned)
            assert {"leftover"} <= {finding.code for finding in verify(store).findings}
        else:
            repair.mend(store, planned)
    ended = call("verify", folder.path, "--fix", "--deep", "--json")
    assert ended.returncode == 0, ended.stdout
    assert {finding["code"] for finding in json.loads(ended.stdout)["findings"]} == {"twin-equal"}
    assert not list(folder.path.glob("*.new"))


def test_a_sibling_that_nobody_signed_takes_no_place(folder: Folder) -> None:
    before = (folder.path / "README.md").read_bytes()
    (folder.path / "README.md.new").write_bytes(before[:-1] + b"?")
    (folder.path / "config.json.new").write_bytes(b"cut o")
    dsctl("verify", folder.path, "--fix")
    assert (folder.path / "README.md").read_bytes() == before
    assert (folder.path / "README.md.new").exists()
    report = verify(LocalFolder.at(folder.path))
    assert [finding.where for finding in report.findings if finding.code == "leftover"] == ["config.json.new"]


def test_what_a_hub_download_keeps_is_found(folder: Folder) -> None:
    kept = folder.path / ".cache" / "huggingface" / "download" / "inner"
    kept.mkdir(parents=True)
    (kept / "x.0123.incomplete").write_bytes(b"x")
    (kept / "x.metadata").write_bytes(b"x")
    found = [finding for finding in verify(LocalFolder.at(folder.path)).findings if "x." in finding.where]
    assert [(f.code, f.where) for f in found] == [("leftover", ".cache/huggingface/download/inner/x.0123.incomplete")]


def test_the_hint_to_mend_is_given_where_something_can_be(folder: Folder) -> None:
    folder.index(lambda index: index["weight_map"].popitem())
    assert "--fix corrects the metadata" in call("verify", folder.path).stderr
    dsctl("verify", folder.path, "--fix")
    folder.path.joinpath("LICENSE").write_text("longer or shorter")
    folder.path.joinpath("x.json.new").write_text("")
    done = call("verify", folder.path)
    assert done.returncode == 50 and "--fix" not in done.stderr.partition("hint: ")[2]


def test_a_folder_that_refuses_is_told_with_a_hint(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "open", refuse)
    with pytest.raises(WorkError, match="Permission denied") as error:
        files.write_beside(folder.path / INDEX, b"x")
    assert "permissions" in (error.value.hint or "")


def test_two_mends_at_once_are_one(folder: Folder) -> None:
    """Each writes the same siblings, and counts on the sizes that it found."""
    with alone_in(folder.path):
        done = call("verify", folder.path, "--fix")
        assert done.returncode == 40 and "another dsctl" in done.stderr and "hint: " in done.stderr
        assert "would fix" in call("verify", folder.path, "--fix", "--dry-run").stderr
    lines = [[sys.executable, "-m", "dsctl", "verify", str(folder.path), "--fix", "--deep"] for _ in range(4)]
    runs = [subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for line in lines]
    ends = [(run.communicate(timeout=120)[1], run.returncode) for run in runs]
    assert {code for _, code in ends} <= {0, 40} and any(code == 0 for _, code in ends), ends
    assert not json.loads(dsctl("verify", folder.path, "--json"))["counts"]["error"]
    assert "would fix" not in call("verify", folder.path, "--fix", "--dry-run").stderr
