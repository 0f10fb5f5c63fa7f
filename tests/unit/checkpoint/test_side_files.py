"""Side files keep what a folder was made from, and give back bytes only where nothing has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from msgspec import structs

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.reading import read_header
from dsctl.checkpoint.side_files import WHOLE, Original, Side, is_altered, kept_texts, read_side
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec, parse
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.stores import INDEX, SIGNED
from tests.support.headers import BLOCKS, bf16, lay_out, opened

HEADER = "header:model-00001-of-000002.safetensors"


def _read(checkpoint: Checkpoint) -> Original:
    assert checkpoint.original is not None
    return read_side(checkpoint, ORIGINAL, checkpoint.original)


def _read_of(folder: Checkpoint, literals: dict[str, bytes]) -> Original:
    """What is read of a side file that holds this."""
    side, path = Side(literals, {}, "x"), Path(folder.store.place) / ORIGINAL
    raw = bytearray(side.header.ljust(side.size, b"\0"))
    for offset, data in side.literals:
        raw[offset : offset + len(data)] = data
    path.write_bytes(raw)
    return _read(opened(path.parent))


def test_a_side_file_is_a_safetensors_file_that_is_filled() -> None:
    side = Side({"config.json": b"{}", "b": b"xyz"}, {"s": TensorSpec("F32", (2, 3))}, "what it is")
    header = parse(side.header[8:], "side", side.size)
    assert header.metadata == {"dsctl": "what it is"}
    assert {name: ref.begin for name, ref in header.tensors.items()} == side.begins
    assert {offset: len(data) for offset, data in side.literals} == {
        header.tensors[name].begin: header.tensors[name].nbytes for name in ("config.json", "b")
    }


def test_what_is_kept_comes_back(source: Checkpoint, decoded: Checkpoint) -> None:
    original = _read(decoded)
    assert {file: header.raw for file, header in original.headers.items()} == {
        file: header.raw for file, header in source.headers.items()
    }
    assert original.texts == {file: source.store.read(file, 0, source.files[file]) for file in ("config.json", INDEX)}
    assert original.config == source.config
    assert original.files == source.index
    assert {name: ref.spec for name, ref in original.scales.items()} == {
        ref.name: ref.spec for ref in source.tensors if ref.name.endswith("_scale_inv")
    }


def test_the_codec_of_the_original(decoded: Checkpoint) -> None:
    assert _read(decoded).codec == BLOCKS


def test_headers_come_back_for_the_same_tensors_alone(source: Checkpoint, decoded: Checkpoint) -> None:
    original = _read(decoded)
    for file, header in source.headers.items():
        specs = {name: ref.spec for name, ref in header.tensors.items()}
        known = original.header(file, specs)
        assert known is not None
        assert known[0] == len(header.raw).to_bytes(8, "little") + header.raw
        assert known[1] == {name: ref.begin for name, ref in header.tensors.items()}
        name = next(iter(specs))
        assert original.header(file, {**specs, name: TensorSpec("BF16", (1,))}) is None
        assert original.header(file, {**specs, "more": TensorSpec("BF16", (1,))}) is None
        assert original.header(file, {one: spec for one, spec in specs.items() if one != name}) is None
        assert original.header("other.safetensors", specs) is None


def test_the_index_comes_back_for_the_same_files_alone(source: Checkpoint, decoded: Checkpoint) -> None:
    original = _read(decoded)
    files = {file: {name: ref.spec for name, ref in header.tensors.items()} for file, header in source.headers.items()}
    assert original.index(files) == original.texts[INDEX]
    assert original.index({file: specs for file, specs in files.items() if file != min(files)}) is None
    assert original.index({**files, "more.safetensors": {}}) is None
    assert original.index(files | {min(files): {}}) is None


def test_what_a_side_file_keeps_of_a_checkpoint(source: Checkpoint) -> None:
    assert list(kept_texts(source)) == [*(f"header:{file}" for file in source.headers), "config.json", INDEX]


def test_ranks_keep_the_whole(source: Checkpoint, tmp_path: Path) -> None:
    plan = make_plan(source, Request("keep", tp=2))
    assert WHOLE in {file.name for file in plan.files}
    ranks = opened(lay_out(plan, tmp_path / "ranks"))
    side = read_side(ranks, WHOLE, read_header(ranks.store, WHOLE, ranks.files[WHOLE]))
    assert side.files == source.index and side.scales == {}


def test_scales_of_several_dtypes_are_of_no_codec(decoded: Checkpoint) -> None:
    original = _read(decoded)
    name, ref = next(iter(original.scales.items()))
    other = structs.replace(ref, spec=TensorSpec("BF16", ref.spec.shape))
    mixed = Original(original.headers, original.files, {**original.scales, name: other}, {}, original.config)
    assert mixed.codec is None
    assert Original({}, {}, {}, {}, original.config).codec is None
    assert Original({}, {}, original.scales, {}, {}).codec is None
    all_bf16 = {
        one: structs.replace(ref, spec=TensorSpec("BF16", ref.spec.shape)) for one, ref in original.scales.items()
    }
    assert Original({}, {}, all_bf16, {}, original.config).codec == Fp8Block(scale_fmt="ue8m0", scale_dtype="BF16")


@pytest.mark.parametrize(
    ("literals", "words"),
    [
        ({"config.json": b"{"}, "kept JSON is not valid"),
        ({"config.json": b"\xff"}, "kept JSON is not valid"),
        ({"config.json": b"[]"}, "kept config.json or its quantization_config is not an object"),
        (
            {"config.json": b'{"quantization_config": 7}'},
            "kept config.json or its quantization_config is not an object",
        ),
        ({INDEX: b"{"}, "kept JSON is not valid"),
        ({"header:../a.safetensors": b"{}"}, "is not a safetensors file inside the folder"),
        ({"header:a.bin": b"{}"}, "is not a safetensors file inside the folder"),
        ({HEADER: b"{"}, "header is not valid"),
        ({HEADER: b'{"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 3]}}'}, "BF16 \\[2\\] takes 4"),
    ],
)
def test_a_side_file_that_contradicts_itself(tmp_path: Path, literals: dict[str, bytes], words: str) -> None:
    with pytest.raises(FormatError, match=words) as found:
        _read_of(bf16(tmp_path), literals)
    assert found.value.message.startswith(ORIGINAL) and found.value.exit_code == 20


def test_a_broken_side_file_may_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as found:
        _read_of(bf16(tmp_path), {"config.json": b"{"})
    assert found.value.hint is not None and found.value.hint.startswith(f"no loader needs {ORIGINAL}")


def test_an_empty_side_file_tells_nothing(tmp_path: Path) -> None:
    original = _read_of(bf16(tmp_path), {})
    assert original == Original({}, {}, {}, {}, {}) and original.codec is None


def _signed(folder: Path, said: object) -> Checkpoint:
    (folder / SIGNED).write_text(json.dumps(said))
    return opened(folder)


def test_a_side_file_as_it_was_signed(decoded: Checkpoint) -> None:
    folder = Path(decoded.store.place)
    size, digest = (folder / ORIGINAL).stat().st_size, hashlib.sha256((folder / ORIGINAL).read_bytes()).hexdigest()
    assert not is_altered(_signed(folder, {"files": {ORIGINAL: {"size": size, "sha256": digest}}}), ORIGINAL)
    assert is_altered(_signed(folder, {"files": {ORIGINAL: {"size": size, "sha256": "0" * 64}}}), ORIGINAL)
    assert is_altered(_signed(folder, {"files": {ORIGINAL: {}}}), ORIGINAL)


@pytest.mark.parametrize(
    "said", [{}, {"files": 7}, {"files": []}, {"files": {}}, {"files": {ORIGINAL: "x"}}, {"files": {WHOLE: {}}}]
)
def test_of_a_side_file_of_which_nothing_is_signed_nothing_is_known(decoded: Checkpoint, said: object) -> None:
    assert not is_altered(decoded, ORIGINAL)
    assert not is_altered(_signed(Path(decoded.store.place), said), ORIGINAL)
