"""Deltas of `dsctl delta` beside a second reader and writer of their form, and beside the programs that share it.

The programs themselves run if DSCTL_DELTA_ORACLES names a folder of scripts, as docs/contributing.md says.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import changed, programs, shared_deltas
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.raw_tensors import INDEX, bytes_of, places_of

SIZES = {"layers": 2, "experts": 2, "hidden": 256, "vocab": 128, "intermediate": 256, "moe_intermediate": 128}
FIRST = "weight_v000001"


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place))


def untidy(folder: Path) -> Path:
    """Odd tensors, scales in files other than their codes', a wrong index."""
    return changed.rearranged(changed.added(folder, changed.odd_tensors()))


@pytest.fixture(scope="module", params=["v3.2 FP8", "v3.2 BF16", "v4-flash", "untidy"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its next version: FP8 quantized again, a step in BF16, other FP4 codes, last bits of all."""
    folder, what = tmp_path_factory.mktemp("pair"), request.param
    release = what.split()[0] if what != "untidy" else "v3.2"
    old = copied(tiny(tmp_path_factory, release, bf16=what.endswith("BF16"), **SIZES), folder / "old")
    if what == "untidy":
        equal = [name for name in places_of(untidy(old)) if "norm" in name]
        return old, changed.make(old, folder / "new", changed.last_bits(0.02), untouched=equal)
    if what.endswith("FP8"):
        return old, changed.quantized_again(old, folder / "new")
    change = changed.optimiser_step(1e-4) if what.endswith("BF16") else changed.codes(0.01)
    return old, changed.make(old, folder / "new", change)


@pytest.mark.parametrize(("encoding", "kind"), [("xor", "adler32"), ("xor", "blake3"), ("overwrite", "xxh3-128")])
def test_our_deltas_are_as_every_reader_needs_them(
    pair: tuple[Path, Path], tmp_path: Path, encoding: str, kind: str
) -> None:
    old, new = pair
    delta, got = tmp_path / "delta", copied(old, tmp_path / "got")
    dsctl("delta", "make", old, new, delta, "--encoding", encoding, "--checksum", kind, "--anyway")
    shared_deltas.check(delta)
    named = shared_deltas.apply_in_place(got, delta)
    was, now = bytes_of(old), bytes_of(new)
    assert bytes_of(got) == now
    assert named == sorted(name for name in now if was[name] != now[name])


@pytest.mark.parametrize(
    ("encoding", "kind", "files"), [("xor", "xxh3-128", 4), ("xor", "adler32", 1), ("overwrite", "blake3", 4)]
)
def test_the_second_writer_s_deltas_are_applied(
    pair: tuple[Path, Path], tmp_path: Path, kind: str, encoding: str, files: int
) -> None:
    old, new = pair
    delta = shared_deltas.write(old, new, tmp_path / "delta", encoding=encoding, kind=kind, files=files)
    dsctl("delta", "apply", old, delta, tmp_path / "got")
    assert bytes_of(tmp_path / "got") == bytes_of(new)
    same = copied(old, tmp_path / "same")
    dsctl("delta", "apply", same, delta, "--in-place")
    assert bytes_of(same) == bytes_of(new)


def test_a_fold_is_as_every_reader_needs_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    last = changed.make(new, tmp_path / "last", changed.last_bits(0.005), seed=5)
    dsctl("delta", "make", old, new, tmp_path / "one", "--anyway")
    dsctl("delta", "make", new, last, tmp_path / "two", "--version", 2, "--anyway")
    dsctl("delta", "fold", tmp_path / "one", tmp_path / "two", tmp_path / "both")
    shared_deltas.check(tmp_path / "both")
    got = copied(old, tmp_path / "got")
    shared_deltas.apply_in_place(got, tmp_path / "both")
    assert bytes_of(got) == bytes_of(last)


@pytest.mark.parametrize("reader", ["main", "slime"])
@pytest.mark.parametrize("encoding", shared_deltas.ENCODINGS)
def test_sglang_reads_ours(pair: tuple[Path, Path], tmp_path: Path, encoding: str, reader: str) -> None:
    programs.needed()
    old, new = pair
    back = ("--version", 2, "--checksum", "xxh3-128", "--encoding", encoding, "--anyway")
    dsctl("delta", "make", old, new, tmp_path / FIRST, "--encoding", encoding, "--anyway")
    dsctl("delta", "make", new, old, tmp_path / "weight_v000002", *back)
    got = copied(old, tmp_path / "got")
    programs.run("sglang_apply.py", got, tmp_path, 1, "--reader", reader)
    assert bytes_of(got) == bytes_of(new)
    programs.run("sglang_apply.py", got, tmp_path, 2, "--reader", reader)
    assert bytes_of(got) == bytes_of(old)


def test_modelexpress_reads_ours(pair: tuple[Path, Path], tmp_path: Path) -> None:
    programs.needed()
    old, new = pair
    got = copied(old, tmp_path / "got")
    dsctl("delta", "make", old, new, tmp_path / FIRST, "--anyway")
    programs.run("modelexpress_apply.py", got, tmp_path / FIRST)
    assert bytes_of(got) == bytes_of(new)


@pytest.mark.parametrize("of", ["slime", "miles"])
@pytest.mark.parametrize("encoding", shared_deltas.ENCODINGS)
def test_we_apply_theirs(pair: tuple[Path, Path], tmp_path: Path, encoding: str, of: str) -> None:
    old, new = pair
    delta = tmp_path / "delta"
    programs.run("slime_write.py", old, new, delta, "--of", of, "--encoding", encoding)
    dsctl("delta", "apply", old, delta, tmp_path / "got")
    assert bytes_of(tmp_path / "got") == bytes_of(new)


@pytest.mark.parametrize("reader", ["main", "slime"])
def test_sglang_refuses_an_encoding_that_only_we_read_before_it_writes(
    pair: tuple[Path, Path], tmp_path: Path, reader: str
) -> None:
    programs.needed()
    old, new = pair
    dsctl("delta", "make", old, new, tmp_path / FIRST, "--encoding", "shuffled", "--anyway")
    got = copied(old, tmp_path / "got")
    assert "NotImplementedError" in programs.refusal("sglang_apply.py", got, tmp_path, 1, "--reader", reader)
    assert bytes_of(got) == bytes_of(old)


def test_a_wrong_base_is_refused_whoever_wrote_the_delta(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    dsctl("delta", "make", old, new, tmp_path / "ours", "--anyway")
    shared_deltas.write(old, new, tmp_path / "theirs")
    wrong = changed.make(old, tmp_path / "wrong", changed.last_bits(0.001), seed=9)
    before = bytes_of(wrong)
    for delta in ("ours", "theirs"):
        for options in ((tmp_path / f"got-{delta}",), ("--in-place",)):
            done = call("delta", "apply", wrong, tmp_path / delta, *options)
            assert done.returncode not in (0, 1)
            assert bytes_of(wrong) == before
        assert not (tmp_path / f"got-{delta}" / INDEX).exists()
