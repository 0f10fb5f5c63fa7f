"""Folds of uncommon chains: of several writers, behind tensors that are stored whole, of frames that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dsctl.core.frames import compressed
from tests.support import shared_deltas
from tests.support.command import call, dsctl, reports
from tests.support.little_deltas import Little, changed, little, raw, rewritten, weights
from tests.support.raw_tensors import save_folder
from tests.support.shared_deltas import Version


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Little:
    return little(tmp_path_factory.mktemp("little"))


@pytest.mark.parametrize("ours", ["first", "second"])
def test_deltas_of_dsctl_and_of_others_fold_together(ours: str, good: Little, tmp_path: Path) -> None:
    """Their files have different names for the same tensors."""
    kind = "--checksum", "xxh3-128", "--anyway"
    if ours == "first":
        dsctl("delta", "make", good.old, good.new, tmp_path / "d1", *kind)
        shared_deltas.write(good.new, good.third, tmp_path / "d2", files=2, version=Version(2, 1))
    else:
        shared_deltas.write(good.old, good.new, tmp_path / "d1", files=1)
        dsctl("delta", "make", good.new, good.third, tmp_path / "d2", *kind, "--version", 2)
    dsctl("delta", "fold", tmp_path / "d1", tmp_path / "d2", tmp_path / "both")
    shared_deltas.check(tmp_path / "both")
    dsctl("delta", "apply", good.old, tmp_path / "both", tmp_path / "got")
    assert weights(tmp_path / "got") == weights(good.third)


def test_what_only_dsctl_can_apply_needs_its_record(good: Little, tmp_path: Path) -> None:
    dsctl("delta", "make", good.old, good.other, tmp_path / "d1", "--checksum", "xxh3-128", "--anyway")
    theirs = shared_deltas.write(good.old, good.new, tmp_path / "d2", version=Version(2, 1))
    done = call("delta", "fold", tmp_path / "d1", theirs, tmp_path / "both")
    assert done.returncode == 30 and "another delta has no such record" in done.stderr, done.stderr
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("encoding", ["xor", "overwrite"])
def test_differences_fold_behind_a_whole_tensor(encoding: str, tmp_path: Path) -> None:
    states = [raw("U8", 100), raw("U8", 3 << 20, seed=1)]
    states += [changed(states[1], 2 << 20)]
    states += [changed(states[2], 1000)]
    folders = [save_folder(tmp_path / str(n), {"x.safetensors": {"w": one}}) for n, one in enumerate(states)]
    deltas = [tmp_path / f"d{n}" for n in (1, 2, 3)]
    for number, delta in enumerate(deltas, 1):
        line = (*folders[number - 1 : number + 1], delta, "--version", number, "--anyway", "--encoding", encoding)
        dsctl("delta", "make", *line)
    dsctl("delta", "fold", *deltas, tmp_path / "all")
    dsctl("delta", "verify", tmp_path / "all", "--base", folders[0])
    dsctl("delta", "apply", folders[0], tmp_path / "all", tmp_path / "got")
    assert weights(tmp_path / "got") == weights(folders[3])


@pytest.mark.parametrize("nbytes", [639, 641, 3 << 20, 0])
def test_frames_of_different_lengths_are_refused(nbytes: int, good: Little, tmp_path: Path) -> None:
    for spoiled in ("xor", "next"):
        deltas = {kind: Path(shutil.copytree(good.deltas[kind], tmp_path / spoiled / kind)) for kind in ("xor", "next")}
        rewritten(deltas[spoiled], "x.safetensors", {"a": compressed(bytes(nbytes))})
        done = call("delta", "fold", *deltas.values(), tmp_path / spoiled / "out")
        assert done.returncode == 20 and len(reports(done.stderr)) == 1, done.stderr
        assert "of different lengths" in done.stderr and not (tmp_path / spoiled / "out" / "dsctl.json").exists()


def test_a_frame_that_is_copied_is_looked_into(good: Little, tmp_path: Path) -> None:
    """`c` of the first delta alone would be copied."""
    first = Path(shutil.copytree(good.deltas["theirs"], tmp_path / "first"))
    third = Path(shutil.copytree(good.new, tmp_path / "third"))
    second = shared_deltas.write(good.new, third, tmp_path / "second", version=Version(2, 1))
    for frame, name in ((b"nonsense", "no frame"), (compressed(bytes(301)) + b"x", "more")):
        delta = Path(shutil.copytree(first, tmp_path / name))
        file = next(path for path in sorted(delta.glob("*.safetensors")) if b'"c"' in path.read_bytes()).name
        rewritten(delta, file, {"c": frame})
        done = call("delta", "fold", delta, second, tmp_path / "out")
        assert done.returncode == 20 and len(reports(done.stderr)) == 1, done.stderr
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
