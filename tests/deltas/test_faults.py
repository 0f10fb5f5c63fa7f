"""Disks that fail, sources that change meanwhile, two runs at once: one line, and the same command ends with the same
bytes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dsctl.cli import deltas as verbs
from dsctl.run import delta_files
from dsctl.run.delta_files import DeltaFiles
from dsctl.run.delta_states import States
from dsctl.run.locks import Lock
from tests.support.command import Done, call, dsctl, reports
from tests.support.faults import fault, met
from tests.support.little_deltas import SIGNED, Little, contents, little, weights
from tests.support.raw_tensors import RawPlace, places_of

STEP = 6


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Little:
    return little(tmp_path_factory.mktemp("little"))


def line_of(verb: str, good: Little, folder: Path, out: Path) -> list[Any]:
    """A command on copies in a folder."""
    made = good
    return {
        "make": ["make", made.old, made.new, out, "--anyway"],
        "make own": ["make", made.old, made.other, out, "--anyway"],
        "apply": ["apply", made.old, made.deltas["own"], out],
        "theirs": ["apply", made.old, made.deltas["theirs"], out],
        "in place": ["apply", out, made.deltas["own"], "--in-place"],
        "fold": ["fold", made.deltas["xor"], good.deltas["next"], out],
    }[verb]


VERBS = ("make", "make own", "apply", "theirs", "in place", "fold")


def prepared(verb: str, good: Little, out: Path) -> None:
    if verb == "in place":
        shutil.copytree(good.old, out)


def told(done: Done, *codes: int, says: str = "") -> None:
    assert done.returncode in codes and says in done.stderr, (done.returncode, done.stderr)
    assert len(reports(done.stderr)) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "internal error" not in done.stderr and not done.stdout, done.stderr


def made(folder: Path) -> dict[str, bytes]:
    """What does not say when it was made, and of what place."""
    own = ("dsctl.", ".dsctl/lock", ".dsctl/delta/")
    return {name: data for name, data in contents(folder).items() if not name.startswith(own)}


@contextmanager
def failing(name: str, after: int, number: int = errno.EIO) -> Iterator[None]:
    """Let a call of `os` that names a path fail once."""
    real: Callable[..., Any] = getattr(os, name)
    left = [after]

    def call_(*arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(number, os.strerror(number), str(arguments[0]))
        return real(*arguments, **more)

    with mock.patch.object(os, name, call_):
        yield


@pytest.mark.parametrize("name", ["pwrite", "fsync", "fdatasync", "pread", "preadv", "replace", "rename", "unlink"])
@pytest.mark.parametrize("verb", VERBS)
def test_whichever_call_fails_one_line_and_the_same_command_goes_on(
    verb: str, name: str, good: Little, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    prepared(verb, good, whole)
    dsctl("delta", *line_of(verb, good, tmp_path, whole))
    expected = made(whole)
    states = good.old, good.other
    failed = 0
    for after in range(0, 60, STEP):
        out = tmp_path / str(after)
        prepared(verb, good, out)
        number = errno.ENOSPC if after % 2 else errno.EIO
        named = name in ("replace", "rename", "unlink")
        at = failing(name, after, number) if named else met(fault(errno.errorcode[number], name, after=after))
        with at:
            done = call("delta", *line_of(verb, good, tmp_path, out))
        if not done.returncode:
            # There are fewer such calls.
            assert made(out) == expected
            break
        failed += 1
        told(done, 10, 30, 40, 41)
        if verb == "in place":
            old, new, now = map(weights, (*states, out))
            assert all(data in (old.get(file), new.get(file)) for file, data in now.items())
        else:
            assert not (out / SIGNED).exists() or name in ("unlink", "fsync"), done.stderr
        dsctl("delta", *line_of(verb, good, tmp_path, out))
        assert made(out) == expected
    # Some of these call nothing of the kind.
    assert failed or name in ("pwrite", "preadv", "rename", "unlink", "fdatasync", "pread"), failed


def test_what_a_finished_run_left_is_not_taken_for_the_base_s(good: Little, tmp_path: Path) -> None:
    base = Path(shutil.copytree(good.old, tmp_path / "base"))
    (base / ".dsctl" / "delta").mkdir(parents=True)
    (base / ".dsctl" / "delta" / "config.json").write_text("stale")
    dsctl("delta", "apply", base, good.deltas["xor"], "--in-place")
    assert made(base) == made(good.new) and not (base / ".dsctl").exists()


def test_a_full_disk_at_a_frame_and_at_a_file(good: Little, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name in ("_copied", "shutil.copyfileobj", "tempfile.SpooledTemporaryFile"):
        for verb in ("make", "fold"):
            line = line_of(verb, good, tmp_path, tmp_path / name / verb)
            with mock.patch(f"{delta_files.__name__}.{name}", side_effect=full):
                told(call("delta", *line), 41, says="free some space")
            dsctl("delta", *line)


def changing(folder: Path, name: str) -> RawPlace:
    """Change some bytes of a tensor."""
    place = places_of(folder)[name]
    data = place.read().copy()
    data[-1] ^= 255
    place.write(data)
    return place


def test_a_source_that_changes_while_it_is_read_is_not_signed(good: Little, tmp_path: Path) -> None:
    old, new, out = good.old, Path(shutil.copytree(good.new, tmp_path / "new")), tmp_path / "out"
    make = DeltaFiles._make

    def meanwhile(self: DeltaFiles, file: Any, *more: Any) -> None:
        make(self, file, *more)
        if file.name == "x.safetensors":
            changing(new, "b")

    with mock.patch.object(DeltaFiles, "_make", meanwhile):
        done = call("delta", "make", old, new, out, "--anyway")
    told(done, 41, says=f"{new}/x.safetensors: was changed while it was read")
    assert not (out / SIGNED).exists()
    dsctl("delta", "make", old, new, out, "--anyway")
    dsctl("delta", "apply", old, out, tmp_path / "got")
    assert weights(tmp_path / "got") == weights(new)


@pytest.mark.parametrize("how", ["nothing", "changed", "back to the old", "another folder", "the old side"])
def test_a_finished_file_is_made_again_if_its_source_changed_since(how: str, good: Little, tmp_path: Path) -> None:
    old = Path(shutil.copytree(good.old, tmp_path / "old"))
    new, out = Path(shutil.copytree(good.new, tmp_path / "new")), tmp_path / "out"
    with failing("replace", 2):
        done = call("delta", "make", old, new, out, "--anyway")
    told(done, 41)
    assert (out / "x.safetensors").exists() and not (out / "y.safetensors").exists(), os.listdir(out)
    finished = (out / "x.safetensors").stat().st_ino
    if how == "back to the old":
        # Its delta file must go.
        with (new / "x.safetensors").open("r+b") as file:
            file.write((old / "x.safetensors").read_bytes())
    elif how == "another folder":
        new = Path(shutil.copytree(new, tmp_path / "other"))
        changing(new, "b")
    elif how != "nothing":
        changing(old if how == "the old side" else new, "b")
    dsctl("delta", "make", old, new, out, "--anyway")
    assert (out / "x.safetensors").exists() == (how != "back to the old")
    assert how != "nothing" or (out / "x.safetensors").stat().st_ino == finished
    dsctl("delta", "verify", out, "--base", old)
    dsctl("delta", "apply", old, out, tmp_path / "got")
    assert weights(tmp_path / "got") == weights(new)


def test_a_finished_delta_is_not_that_of_a_changed_source(good: Little, tmp_path: Path) -> None:
    new = Path(shutil.copytree(good.new, tmp_path / "new"))
    dsctl("delta", "make", good.old, new, tmp_path / "out", "--anyway")
    before = contents(tmp_path / "out")
    changing(new, "b")
    told(call("delta", "make", good.old, new, tmp_path / "out", "--anyway"), 40, says="changed")
    assert contents(tmp_path / "out") == before


def test_a_delta_touched_since_is_folded_again(good: Little, tmp_path: Path) -> None:
    first = Path(shutil.copytree(good.deltas["xor"], tmp_path / "first"))
    line = ["fold", first, good.deltas["next"], tmp_path / "out"]
    with failing("replace", 2):
        told(call("delta", *line), 41)
    (first / "x.safetensors").touch()
    dsctl("delta", *line)
    dsctl("delta", "fold", first, good.deltas["next"], tmp_path / "again")
    assert made(tmp_path / "out") == made(tmp_path / "again")


@pytest.mark.parametrize(("kind", "what"), [("xor", "b"), ("own", "a"), ("theirs", "a"), ("overwrite", "b")])
def test_a_base_that_changes_after_the_check_makes_no_file(kind: str, what: str, good: Little, tmp_path: Path) -> None:
    base = Path(shutil.copytree(good.old, tmp_path / "base"))
    delta, out = good.deltas[kind], tmp_path / "out"
    moved = kind == "own"
    check = verbs.check_base

    def then(*arguments: Any) -> None:
        check(*arguments)
        changing(base, "a" if kind == "theirs" else "b" if not moved else "a")

    with mock.patch.object(verbs, "check_base", then):
        done = call("delta", "apply", base, delta, out)
    if moved:
        # It brings `a` and `b` themselves: nothing of the changed file is needed but that.
        assert done.returncode in (0, 20), done.stderr
    else:
        told(done, 20, says="verify both")
        assert not (out / SIGNED).exists() and not (out / "x.safetensors").exists()
    shutil.rmtree(base)
    shutil.copytree(good.old, base)
    done = call("delta", "apply", base, delta, out)
    if done.returncode:
        told(done, 40, says="touched or replaced")
    else:
        assert weights(out) == weights(good.result(kind))


def test_a_base_or_a_delta_that_changes_after_the_check_in_place(good: Little, tmp_path: Path) -> None:
    found = States.found
    for kind in ("xor", "theirs", "overwrite"):
        for which in ("base", "delta"):
            base = Path(shutil.copytree(good.old, tmp_path / kind / which / "base"))
            delta = Path(shutil.copytree(good.deltas[kind], tmp_path / kind / which / "delta"))
            line = ("apply", base, delta, "--in-place")

            def then(self: States, base: Path = base, delta: Path = delta, which: str = which) -> dict[str, str]:
                states = found(self)
                changing(base if which == "base" else delta, "a")
                return states

            with mock.patch.object(States, "found", then):
                done = call("delta", *line)
            told(done, 20)
            old, new, now = weights(good.old), weights(good.new), weights(base)
            assert now["y.safetensors"] in (old["y.safetensors"], new["y.safetensors"])
            assert now["x.safetensors"] != new["x.safetensors"] and not (base / "config.json").exists()
            for place in (base, delta):
                source = good.old if place == base else good.deltas[kind]
                if which == place.name:
                    changing(place, "a")
                    assert weights(place).keys() == weights(source).keys()
            dsctl("delta", *line)
            assert weights(base) == weights(good.new) and (base / "config.json").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_two_runs_at_once_are_refused(verb: str, good: Little, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(verb, good, out)
    lock = Lock(out / ".dsctl")
    before = contents(out)
    done = call("delta", *line_of(verb, good, tmp_path, out))
    told(done, 40, says="another dsctl is working here")
    assert contents(out) == before
    lock.release()
    if verb != "in place":
        shutil.rmtree(out, ignore_errors=True)
    dsctl("delta", *line_of(verb, good, tmp_path, out))


def test_a_run_that_ended_meanwhile_is_seen(good: Little, tmp_path: Path) -> None:
    """Both looked at the base, one was faster."""
    base = Path(shutil.copytree(good.old, tmp_path / "base"))
    line = ("delta", "apply", base, good.deltas["xor"], "--in-place")
    found = States.found

    def later(self: States) -> dict[str, str]:
        with mock.patch.object(States, "found", found):
            told(call(*line), 40, says="another dsctl")
        return found(self)

    with mock.patch.object(States, "found", later):
        dsctl(*line)
    assert weights(base) == weights(good.new)
    opened = verbs._opened

    def slow(*arguments: Any, **more: Any) -> Any:
        made_ = opened(*arguments, **more)
        with mock.patch.object(verbs, "_opened", opened):
            dsctl(*line[:2], place, *line[3:])
        return made_

    place = Path(shutil.copytree(good.old, tmp_path / "place"))
    with mock.patch.object(verbs, "_opened", slow):
        done = call(*line[:2], place, *line[3:])
    assert done.returncode == 0 and "already" in done.stderr, done.stderr
    assert weights(place) == weights(good.new)
