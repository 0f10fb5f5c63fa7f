"""The deltas of trainers and engines: our own reader and writer of their form agree with each other, and with theirs.

Theirs run if DSCTL_DELTA_ORACLES names a folder of scripts, as docs/contributing.md says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import changed, programs, shared_deltas
from tests.support.checkpoints import tiny
from tests.support.raw_tensors import BITS, INDEX, RawTensor, bytes_of, header_of, places_of, save, save_folder
from tests.support.shared_deltas import DIGITS, ENCODINGS, BadDelta, Version, apply_in_place, check, write

SIZES = {"layers": 2, "experts": 2, "hidden": 256, "vocab": 128, "intermediate": 256, "moe_intermediate": 128}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two untidy checkpoints: odd tensors, scales apart from codes, some tensors equal, a wrong index."""
    folder = tmp_path_factory.mktemp("pair")
    old = Path(shutil.copytree(tiny(tmp_path_factory, **SIZES), folder / "old"))
    changed.rearranged(changed.added(old, changed.odd_tensors()))
    equal = [name for name in places_of(old) if "norm" in name]
    return old, changed.make(old, folder / "new", changed.last_bits(0.02), untouched=equal)


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place))


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("kind", DIGITS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_we_write_we_read(pair: tuple[Path, Path], tmp_path: Path, encoding: str, kind: str, files: int) -> None:
    old, new = pair
    delta = write(old, new, tmp_path / "delta", encoding=encoding, kind=kind, files=files)
    check(delta)
    got = copied(old, tmp_path / "got")
    named = apply_in_place(got, delta)
    assert bytes_of(got) == bytes_of(new) != bytes_of(old)
    was, now = bytes_of(old), bytes_of(new)
    assert named == sorted(name for name in now if was[name] != now[name])


def test_an_xor_applied_twice_is_refused_and_an_overwriting_delta_is_not(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = pair
    got = copied(new, tmp_path / "got")
    with pytest.raises(BadDelta, match="not what the delta was made for"):
        apply_in_place(got, write(old, new, tmp_path / "xor"))
    apply_in_place(got, write(old, new, tmp_path / "overwrite", encoding="overwrite"))
    assert bytes_of(got) == bytes_of(new)


def test_equal_checkpoints_have_a_delta_without_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, _ = pair
    delta = write(old, old, tmp_path / "delta")
    check(delta)
    assert [path.name for path in delta.iterdir()] == [INDEX]
    assert apply_in_place(copied(old, tmp_path / "got"), delta) == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda index: index["metadata"].update(compression_format="none"), "compressed by"),
        (lambda index: index["metadata"].update(delta_encoding="add"), "no encoding of readers"),
        (lambda index: index["metadata"].update(checksum_format="sha256"), "no checksum of readers"),
        (lambda index: index["metadata"].pop("version"), "not a delta's"),
        (lambda index: index["weight_map"].popitem(), "other tensors than the index"),
        (lambda index: index["weight_map"].update(more="model-00000-of-00001.safetensors"), "other tensors than"),
        (lambda index: index["weight_map"].update(more="../model.safetensors"), "is said to be in"),
        (lambda index: index["weight_map"].update(more="model-9.safetensors"), "No such file"),
    ],
)
def test_an_index_that_readers_refuse_is_refused_with_nothing_written(
    pair: tuple[Path, Path], tmp_path: Path, fault: Callable[[dict], object], message: str
) -> None:
    old, new = pair
    delta, got = write(old, new, tmp_path / "delta"), copied(old, tmp_path / "got")
    index = json.loads((delta / INDEX).read_text())
    fault(index)
    (delta / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadDelta, match=message):
        apply_in_place(got, delta)
    assert bytes_of(got) == bytes_of(old)


def small(folder: Path, values: np.ndarray) -> Path:
    tensor = RawTensor("U8", values.shape, values.astype(np.uint8))
    return save_folder(folder, {"model.safetensors": {"one": tensor}})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (lambda delta: shared_deltas.zstd.compress(delta + b"\0"), "101 bytes of difference for 100"),
        (lambda delta: shared_deltas.zstd.compress(delta[:-1]), "99 bytes of difference for 100"),
        (lambda delta: shared_deltas.zstd.compress(delta) + b"more", "not one whole frame"),
        (lambda delta: shared_deltas.zstd.compress(delta)[:-1], "not one whole frame"),
        (
            lambda delta: shared_deltas.zstd.compress(
                delta, options={shared_deltas.zstd.CompressionParameter.content_size_flag: 0}
            ),
            "has no content size",
        ),
        (lambda delta: shared_deltas.zstd.compress(delta[::-1]), "not what the delta was made for"),
    ],
)
def test_a_frame_that_a_reader_refuses_is_refused(
    tmp_path: Path, frame: Callable[[bytes], bytes], message: str
) -> None:
    random = np.random.default_rng(0)
    old, new = (small(tmp_path / name, random.integers(0, 256, 100)) for name in ("old", "new"))
    delta = write(old, new, tmp_path / "delta")
    content = (places_of(old)["one"].read() ^ places_of(new)["one"].read()).tobytes()
    data = np.frombuffer(frame(content), np.uint8)
    file = delta / "model-00000-of-00001.safetensors"
    save(file, {"one": RawTensor("U8", data.shape, data)}, header_of(file)[0]["__metadata__"])
    with pytest.raises(BadDelta, match=message):
        apply_in_place(old, delta)


def test_tensors_that_came_went_or_have_another_shape_cannot_be_said(tmp_path: Path) -> None:
    one, other = small(tmp_path / "one", np.arange(6)), small(tmp_path / "other", np.arange(7))
    more = changed.added(copied(one, tmp_path / "more"), changed.odd_tensors())
    for old, new in ((one, other), (one, more), (more, one)):
        with pytest.raises(BadDelta):
            write(old, new, tmp_path / "delta")


@pytest.mark.parametrize("of", ["slime", "miles"])
@pytest.mark.parametrize("kind", DIGITS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_we_read_what_trainers_write(
    pair: tuple[Path, Path], tmp_path: Path, encoding: str, kind: str, of: str
) -> None:
    old, new = pair
    delta = tmp_path / "delta"
    ranks = 2 if (encoding, kind) == ("xor", "adler32") else 1
    options = ("--of", of, "--encoding", encoding, "--checksum", kind, "--ranks", ranks)
    programs.run("slime_write.py", old, new, delta, *options)
    assert len(list(delta.glob("*.safetensors"))) == ranks
    check(delta)
    got = copied(old, tmp_path / "got")
    apply_in_place(got, delta)
    assert bytes_of(got) == bytes_of(new)


@pytest.mark.parametrize("reader", ["main", "slime"])
@pytest.mark.parametrize("kind", DIGITS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_sglang_reads_what_we_write(
    pair: tuple[Path, Path], tmp_path: Path, encoding: str, kind: str, reader: str
) -> None:
    old, new = pair
    write(old, new, tmp_path / "weight_v000001", encoding=encoding, kind=kind, files=3)
    write(new, old, tmp_path / "weight_v000002", encoding=encoding, kind=kind, version=Version(2, 1))
    got = copied(old, tmp_path / "got")
    programs.run("sglang_apply.py", got, tmp_path, 1, "--reader", reader)
    assert bytes_of(got) == bytes_of(new)
    programs.run("sglang_apply.py", got, tmp_path, 2, "--reader", reader)
    assert bytes_of(got) == bytes_of(old)


def test_modelexpress_reads_what_we_write(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    delta, got = write(old, new, tmp_path / "delta", kind="adler32", files=3), copied(old, tmp_path / "got")
    programs.run("modelexpress_apply.py", got, delta)
    assert bytes_of(got) == bytes_of(new)


def test_codes_of_fp8_are_those_of_torch() -> None:
    """What makes the changed checkpoints rounds as torch does, ties included."""
    table = changed.from_e4m3(np.arange(256, dtype=np.uint8))
    assert np.array_equal(table, torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float(), equal_nan=True)
    positive = table[:0x7F]
    middles = (positive[1:] + positive[:-1]) / 2
    drawn = np.random.default_rng(0).normal(0, 100, 100_000).clip(-448, 448)
    values = np.concatenate([positive, middles, -middles, drawn]).astype(np.float32)
    assert np.array_equal(changed.to_e4m3(values), torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8))
    rounded = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint8)
    assert np.array_equal(changed.to_bf16(values), rounded)


def share(old: Path, new: Path, dtype: str) -> float:
    """The share of the elements of a dtype whose bytes differ."""
    was, now = places_of(old), places_of(new)
    pairs = [(place.read(), now[name].read()) for name, place in was.items() if place.dtype == dtype]
    before, after = (np.concatenate(side).reshape(-1, BITS[dtype] // 8) for side in zip(*pairs, strict=True))
    return float((before != after).any(1).mean())


def test_changes_are_as_large_as_they_say(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    plain, fp8 = tiny(tmp_path_factory, bf16=True, **SIZES), tiny(tmp_path_factory, **SIZES)
    v4 = tiny(tmp_path_factory, "v4-flash", **SIZES)
    assert 0.003 < share(plain, changed.make(plain, tmp_path / "step", changed.optimiser_step()), "BF16") < 0.012
    assert share(plain, changed.make(plain, tmp_path / "none", changed.optimiser_step(0)), "BF16") == 0
    assert share(plain, changed.make(plain, tmp_path / "tuned", changed.fine_tune()), "BF16") > 0.4
    assert share(plain, changed.make(plain, tmp_path / "other", changed.shuffled), "BF16") > 0.99
    for folder, dtype in ((plain, "BF16"), (fp8, "F8_E4M3"), (v4, "I8")):
        bits = changed.make(folder, tmp_path / f"bits{dtype}", changed.last_bits(0.01))
        assert share(folder, bits, dtype) == pytest.approx(0.01, abs=0.001)
    assert share(v4, changed.make(v4, tmp_path / "codes", changed.codes(0.01)), "I8") == pytest.approx(0.02, abs=0.002)
    assert share(fp8, changed.quantized_again(fp8, tmp_path / "same", 0.0), "F8_E4M3") == 0
    assert 0.01 < share(fp8, changed.quantized_again(fp8, tmp_path / "again"), "F8_E4M3") < 0.05
    one, two = (changed.make(fp8, tmp_path / f"seed{at}", changed.last_bits(0.01), seed=3) for at in (1, 2))
    assert bytes_of(one) == bytes_of(two)
