"""Whose weights a target holds: another source with equal headers is refused, a changed one is read again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dsctl.run import identity
from dsctl.run.identity import EVEN_SLICES, FAR_BYTES, FAR_SHARE, FAR_SLICES, SLICE_BYTES, slices
from tests.flows.test_claim import FIRST, SIZES, convert, small_jobs, stopped, told
from tests.flows.test_resume import contents
from tests.support.checkpoints import tiny
from tests.support.command import Done, call

__all__ = ["small_jobs"]
SECOND = "model-00002-of-000002.safetensors"


@pytest.fixture
def one(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A step of a fine-tune."""
    return Path(shutil.copytree(tiny(tmp_path_factory, "v3.2", **SIZES), tmp_path / "step-1"))


@pytest.fixture
def two(one: Path) -> Path:
    """The next step: the same headers, sizes and config, one byte of one weight differs."""
    folder = Path(shutil.copytree(one, one.with_name("step-2")))
    flip(folder / SECOND)
    return folder


def flip(file: Path, at: int = -2000) -> None:
    """Change a byte, and keep the time of the last change as `cp -p` and `rsync -a` do."""
    status, raw = file.stat(), bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(file: Path, at: int = -2000) -> None:
    """The same as a new file that takes the old one's place."""
    other = file.with_name("other")
    shutil.copy2(file, other)
    flip(other, at)
    other.replace(file)


def test_a_finished_target_is_not_that_of_the_next_step(one: Path, two: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert convert(one, target).returncode == 0
    before = contents(target)
    told(convert(two, target), 40, str(one), str(two), SECOND, "--force")
    told(convert(two, target, "--dry-run"), 40, str(one), str(two), SECOND)
    assert contents(target) == before
    assert convert(two, target, "--force").returncode == 0
    assert convert(two, tmp_path / "whole").returncode == 0
    assert contents(target) == contents(tmp_path / "whole")


@pytest.mark.parametrize("records", [1, 5, 12])
def test_an_unfinished_target_is_not_gone_on_with_from_the_next_step(
    one: Path, two: Path, tmp_path: Path, records: int
) -> None:
    target = tmp_path / "out"
    stopped(one, target, records)
    told(convert(two, target), 40, "unfinished work", str(one), str(two), SECOND)
    assert convert(one, target).returncode == 0
    assert convert(one, tmp_path / "whole").returncode == 0
    assert contents(target) == contents(tmp_path / "whole")


@pytest.mark.parametrize("verb", [("shard", "--ep", "2"), ("slice", "--layers", "0")])
def test_no_verb_takes_one_source_for_the_next(one: Path, two: Path, tmp_path: Path, verb: tuple[str, ...]) -> None:
    name, *more = verb
    flip(two / FIRST)
    assert call(name, one, tmp_path / "out", *more).returncode == 0
    told(call(name, two, tmp_path / "out", *more), 40, str(one), str(two))


def test_a_true_copy_is_the_same_source(one: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(one, tmp_path / "copy"))
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    assert convert(one, tmp_path / "out").returncode == 0
    assert "already complete" in convert(copy, tmp_path / "out").stdout


@pytest.mark.parametrize("change", [flip, replaced])
@pytest.mark.parametrize("records", [3, 12])
def test_a_file_replaced_with_its_time_kept_is_read_again(one: Path, tmp_path: Path, change: Any, records: int) -> None:
    target = tmp_path / "out"
    stopped(one, target, records)
    for file in (FIRST, SECOND):
        change(one / file)
    assert convert(one, target).returncode == 0
    assert convert(one, tmp_path / "whole").returncode == 0
    assert contents(target) == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", [flip, replaced])
@pytest.mark.parametrize("file", [FIRST, "tokenizer_config.json"])
def test_a_finished_target_is_not_that_of_a_source_whose_files_changed(
    one: Path, tmp_path: Path, change: Any, file: str
) -> None:
    target = tmp_path / "out"
    assert convert(one, target).returncode == 0
    assert "already complete" in convert(one, target).stdout
    change(one / file, -10)
    told(convert(one, target), 40, file, "changed", "--force")
    assert convert(one, target, "--force").returncode == 0
    assert (target / file).read_bytes() == (one / file).read_bytes() or file == FIRST


def test_a_file_that_has_become_longer_is_named(one: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert convert(one, target).returncode == 0
    with (one / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    told(convert(one, target), 40, str(one), "before it changed: tokenizer_config.json differs", "--force")


def test_a_file_of_equal_bytes_that_was_touched_is_doubtful(one: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert convert(one, target).returncode == 0
    copy = shutil.copy2(one / FIRST, one / "copy")
    os.replace(copy, one / FIRST)
    told(convert(one, target), 40, FIRST, "touched or replaced", "sample of the bytes is equal")


def test_an_index_that_changed_under_way_is_the_one_that_is_kept(one: Path, tmp_path: Path) -> None:
    target, index = tmp_path / "out", one / "model.safetensors.index.json"
    stopped(one, target, 12)
    index.write_text(index.read_text().replace('"total_size"', '"total-size"'))
    assert convert(one, target).returncode == 0
    assert convert(one, tmp_path / "whole").returncode == 0
    assert contents(target) == contents(tmp_path / "whole")


def test_a_mark_that_noted_nothing_of_its_source_is_not_believed(one: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert convert(one, target).returncode == 0
    signed = json.loads((target / "dsctl.json").read_text())
    del signed["source"]["identity"]
    (target / "dsctl.json").write_text(json.dumps(signed))
    told(convert(one, target), 40, "did not record the identity of its source", "--force")


def test_what_stands_for_a_file() -> None:
    assert slices(100, [], remote=False) == ((0, 100),)
    assert slices(100, [], remote=True) == ((0, 100),)
    far = slices(10**10, [(number * 10**7, 10**7) for number in range(900)], remote=True)
    assert len(far) == FAR_SLICES and far[0][1] <= 10**7 and far[-1][0] >= 899 * 10**7
    assert all(end - begin == FAR_BYTES for begin, end in far)
    assert sum(end - begin for begin, end in slices(10**10, [(8, 10**6)], remote=True)) <= 10**6 // FAR_SHARE + 1
    carried = slices(10**10, [], remote=True)
    assert len(carried) == FAR_SLICES and carried[0][0] == 0 and carried[-1][1] == 10**10
    parts = [(number * 10**7, 10**7) for number in range(900)] + [(9 * 10**9, 8)]
    near = slices(10**10, parts, remote=False)
    assert len(near) <= len(parts) + EVEN_SLICES and near[-1][1] == 10**10
    for begin, length in parts:
        assert any(begin <= low and high <= begin + length for low, high in near)
    assert all(high - low <= SLICE_BYTES for low, high in near)


def test_a_sample_of_every_tensor_tells_large_files_apart(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of files above 64 MB: steps of a fine-tune in which every matrix changed a little differ."""
    monkeypatch.setattr(identity, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(identity, "EVEN_SLICES", 2)
    assert convert(one, tmp_path / "out").returncode == 0
    two = Path(shutil.copytree(one, tmp_path / "two"))
    assert "already complete" in convert(two, tmp_path / "out").stdout
    raw = bytearray((two / SECOND).read_bytes())
    body = 8 + int.from_bytes(raw[:8], "little") + 5000
    for at in range(body, len(raw) - 5000, 100):
        raw[at] ^= 1
    (two / SECOND).write_bytes(raw)
    told(convert(two, tmp_path / "out"), 40, SECOND)


def back(source: Path, target: Path) -> Done:
    return call("convert", source, target, "--fp8", "--workers", "1")


def test_the_way_back_says_when_it_cannot_restore(one: Path, tmp_path: Path) -> None:
    decoded = tmp_path / "decoded"
    assert convert(one, decoded).returncode == 0
    assert "byte for byte" not in back(decoded, tmp_path / "back").stdout
    raw = bytearray((decoded / "original.dsctl").read_bytes())
    kept = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    scale = next(entry for name, entry in kept.items() if name.endswith("weight_scale_inv"))
    at = 8 + int.from_bytes(raw[:8], "little") + scale["data_offsets"][0]
    raw[at + 2] ^= 0x80
    (decoded / "original.dsctl").write_bytes(raw)
    done = back(decoded, tmp_path / "altered")
    assert done.returncode == 0 and "original.dsctl: was altered since it was written" in done.stdout
    assert any("was altered" in note for note in json.loads((tmp_path / "altered" / "dsctl.json").read_text())["notes"])
    (decoded / "original.dsctl").unlink()
    for more in ((), ("--dry-run",)):
        done = call("convert", decoded, tmp_path / "new", "--fp8", "--workers", "1", *more)
        assert done.returncode == 0 and "do not come back byte for byte" in done.stdout
