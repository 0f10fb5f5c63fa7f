"""Hostile sources: one mutation of a good checkpoint each, one clear line, the right exit code, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.checkpoints import tiny
from tests.support.command import Done, call, reports

INDEX = "model.safetensors.index.json"
ORIGINAL = "original.dsctl"
WEIGHT = "model.layers.0.self_attn.o_proj.weight"
SCALE = WEIGHT + "_scale_inv"
NORM = "model.norm.weight"
SOURCE, FORMAT = 10, 20

SIZES = {"layers": 2, "experts": 2, "hidden": 256, "heads": 2, "vocab": 8, "intermediate": 128, "moe_intermediate": 128}


class Case(NamedTuple):
    """What is done to the folder, the exit code it must bring, and words that the error must hold."""

    name: str
    mutate: Callable[[Path], object]
    says: str
    code: int = FORMAT


def shard(folder: Path, name: str = WEIGHT) -> Path:
    """The file that holds a tensor."""
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def parts(path: Path) -> tuple[bytes, bytes]:
    """A file's header JSON and its tensors' bytes."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + length], raw[8 + length :]


def put(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def raw_header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """The header's JSON as bytes, changed."""

    def mutate(folder: Path) -> None:
        header, data = parts(shard(folder))
        changed = change(header)
        assert changed != header
        put(shard(folder), changed, data)

    return mutate


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The header's JSON as an object, changed; the tensors' bytes stay."""

    def mutate(folder: Path) -> None:
        text, data = parts(shard(folder))
        entries = json.loads(text)
        change(entries)
        put(shard(folder), json.dumps(entries).encode(), data)

    return mutate


def entry(**fields: Any) -> Callable[[Path], None]:
    """Fields of one tensor's entry; None takes one away."""

    def change(entries: dict[str, Any]) -> None:
        for field, value in fields.items():
            if value is None:
                del entries[WEIGHT][field]
            else:
                entries[WEIGHT][field] = value

    return header(change)


def offsets(begin: Callable[[int, int], int], end: Callable[[int, int], int]) -> Callable[[Path], None]:
    """The offsets of one tensor, from the right ones."""

    def change(entries: dict[str, Any]) -> None:
        right = entries[WEIGHT]["data_offsets"]
        entries[WEIGHT]["data_offsets"] = [begin(*right), end(*right)]

    return header(change)


def text(file: str, change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    """A text file, changed."""

    def mutate(folder: Path) -> None:
        before = (folder / file).read_text()
        after = change(before)
        assert after != before
        (folder / file).write_bytes(after if isinstance(after, bytes) else after.encode())

    return mutate


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """`config.json` as an object, changed."""

    def changed(before: str) -> str:
        value = json.loads(before)
        change(value)
        return json.dumps(value)

    return text("config.json", changed)


def field(**fields: Any) -> Callable[[Path], None]:
    return config(lambda value: value.update(fields))


def quantization(**fields: Any) -> Callable[[Path], None]:
    return config(lambda value: value["quantization_config"].update(fields))


def unknown(**fields: Any) -> Callable[[Path], None]:
    """An unknown architecture with such a `quantization_config`."""

    def changed(value: dict[str, Any]) -> None:
        value.update(model_type="llama", architectures=["LlamaForCausalLM"])
        value["quantization_config"].update(fields)

    return config(changed)


def index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    """The index's weight_map, changed."""

    def changed(before: str) -> str:
        value = json.loads(before)
        change(value["weight_map"])
        return json.dumps(value)

    return text(INDEX, changed)


def placed(file: str) -> Callable[[Path], None]:
    """The index places a tensor in this file."""
    return index(lambda names: names.update({WEIGHT: file}))


def rewritten(change: Callable[[dict[str, tuple[str, list[int], bytes]]], object]) -> Callable[[Path], None]:
    """The tensors of a file (dtype, shape, bytes), changed; header, offsets and index are made to fit."""

    def mutate(folder: Path) -> None:
        path = shard(folder)
        head, data = parts(path)
        entries = json.loads(head)
        entries.pop("__metadata__")
        tensors = {
            name: (said["dtype"], said["shape"], data[slice(*said["data_offsets"])]) for name, said in entries.items()
        }
        change(tensors)
        write(path, tensors)
        value = json.loads((folder / INDEX).read_text())
        names = {name: file for name, file in value["weight_map"].items() if file != path.name}
        value["weight_map"] = names | dict.fromkeys(tensors, path.name)
        (folder / INDEX).write_text(json.dumps(value))

    return mutate


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    at, entries = 0, {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape, raw) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}  # type: ignore[dict-item]
        at += len(raw)
    put(path, json.dumps(entries).encode(), b"".join(raw for _, _, raw in tensors.values()))


def scale_value(value: float) -> Callable[[Path], None]:
    """One block's scale."""

    def change(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        dtype, shape, raw = tensors[SCALE]
        assert dtype == "F32" and len(raw) >= 8
        tensors[SCALE] = dtype, shape, raw[:4] + struct.pack("<f", value) + raw[8:]

    return rewritten(change)


def as_scale(dtype: str, shape: list[int], nbytes: int) -> Callable[[Path], None]:
    return rewritten(lambda tensors: tensors.update({SCALE: (dtype, shape, bytes(nbytes))}))


def as_weight(dtype: str, rows: int, width: int) -> Callable[[Path], None]:
    """One weight with another dtype, or another number of rows, its scale beside it."""

    def change(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        columns = tensors[WEIGHT][1][1]
        tensors[WEIGHT] = dtype, [rows or tensors[WEIGHT][1][0], columns], b""
        tensors[WEIGHT] = dtype, tensors[WEIGHT][1], bytes(tensors[WEIGHT][1][0] * columns * width)

    return rewritten(change)


def replaced(make: Callable[[Path, Path], object]) -> Callable[[Path], None]:
    """Something else in a file's place; it is made from the folder and the file's path."""

    def mutate(folder: Path) -> None:
        path = shard(folder)
        kept = path.rename(folder.parent / "moved.safetensors")
        assert kept.exists()
        make(folder, path)

    return mutate


def cut_to(size: Callable[[int, int], int]) -> Callable[[Path], None]:
    """A file cut to a size, of its header's and its own size."""

    def mutate(folder: Path) -> None:
        path = shard(folder)
        os.truncate(path, size(8 + len(parts(path)[0]), path.stat().st_size))

    return mutate


def longer(extra: bytes) -> Callable[[Path], None]:
    return lambda folder: shard(folder).open("ab").write(extra)


def prefix(length: int) -> Callable[[Path], None]:
    """The header's length, wrong."""

    def mutate(folder: Path) -> None:
        with shard(folder).open("r+b") as file:
            file.write(length.to_bytes(8, "little"))

    return mutate


def in_two_files(folder: Path) -> None:
    """No index, and one tensor in a second file."""
    (folder / INDEX).unlink()
    write(folder / "more.safetensors", {NORM: ("F32", [1], bytes(4))})


def million(folder: Path) -> None:
    """An index with a million names that no file holds."""
    file = shard(folder).name
    names = ",".join(f'"t{n}":"{file}"' for n in range(1_000_000))
    (folder / INDEX).write_text('{"weight_map":{' + names + "}}")


def link_to_pipe(folder: Path, path: Path) -> None:
    os.mkfifo(folder / "pipe")
    path.symlink_to("pipe")


def named(name: str) -> Callable[[Path], None]:
    """A surplus tensor with this name."""
    return rewritten(lambda tensors: tensors.update({name: ("F32", [1], bytes(4))}))


def first(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw.replace(old, new, 1)


DEEP = "[" * 100_000

FILES = (
    Case("missing shard", lambda folder: shard(folder).unlink(), "but the index names it"),
    Case("empty file", cut_to(lambda header, size: 0), "too short"),
    Case("cut in the length", cut_to(lambda header, size: 5), "too short"),
    Case("cut in the header", cut_to(lambda header, size: header // 2), "does not fit"),
    Case("cut after the header", cut_to(lambda header, size: header), "truncated"),
    Case("cut in the data", cut_to(lambda header, size: (header + size) // 2), "truncated"),
    Case("cut by a byte", cut_to(lambda header, size: size - 1), "truncated"),
    Case("longer by a byte", longer(b"x"), "longer than its tensors"),
    Case("longer by a megabyte", longer(bytes(1 << 20)), "longer than its tensors"),
    Case("text file", replaced(lambda folder, path: path.write_text("<html>404 Not Found</html>")), "over the limit"),
    Case("git-lfs pointer", replaced(lambda folder, path: path.write_text("version https://git-lfs...")), "over the"),
    Case("header over 100 MB", prefix(100_000_001), "over the limit"),
    Case("header longer than the file", prefix(99_999_999), "does not fit"),
    Case("header of 2**64 - 1 bytes", prefix(2**64 - 1), "over the limit"),
    Case("header of no bytes", prefix(0), "not valid"),
    Case("pipe", replaced(lambda folder, path: os.mkfifo(path)), "but the index names it"),
    Case("folder", replaced(lambda folder, path: path.mkdir()), "but the index names it"),
    Case("device", replaced(lambda folder, path: path.symlink_to("/dev/zero")), "link out of the folder", SOURCE),
    Case(
        "link out",
        replaced(lambda folder, path: path.symlink_to(folder.parent / "moved.safetensors")),
        "link out of the folder",
        SOURCE,
    ),
    Case(
        "link up",
        replaced(lambda folder, path: path.symlink_to("../moved.safetensors")),
        "link out of the folder",
        SOURCE,
    ),
    Case("dangling link", replaced(lambda folder, path: path.symlink_to("nothing")), "No such file", SOURCE),
    Case("link to itself", replaced(lambda folder, path: path.symlink_to(path.name)), "symbolic", SOURCE),
    Case("link to a folder", replaced(lambda folder, path: path.symlink_to(".")), "out of the folder", SOURCE),
    Case("link to a pipe", replaced(link_to_pipe), "but the index names it"),
    Case("unprintable file name", lambda folder: (folder / "a\x1b[2Jb.json").touch(), "printable", SOURCE),
    Case("file name that is no UTF-8", lambda folder: (folder / os.fsdecode(b"\xff")).touch(), "printable", SOURCE),
)

OUT = f"tensor {WEIGHT}: offsets {10**15}"
HEADERS = (
    Case("JSON cut", raw_header(lambda raw: raw[: len(raw) // 2]), "not valid"),
    Case("array", raw_header(lambda raw: b"[]"), "not valid"),
    Case("number", raw_header(lambda raw: b"1"), "not valid"),
    Case("no tensors", raw_header(lambda raw: b"{}"), "longer than its tensors"),
    Case("NaN", raw_header(first(b'"F8_E4M3"', b"NaN")), "not valid"),
    Case("deep nesting", raw_header(lambda raw: b'{"a":' + DEEP.encode()), "not valid"),
    Case("deep nesting beside", raw_header(first(b'"dtype"', b'"x":' + DEEP.encode() + b',"dtype"')), "not valid"),
    Case("no UTF-8", raw_header(first(b"model.layers", b"model\xff.layers")), "not valid"),
    Case("no UTF-8 in a foreign key", raw_header(first(b'"dtype"', b'"x":"\xff","dtype"')), "not valid"),
    Case("BOM", raw_header(lambda raw: b"\xef\xbb\xbf" + raw), "not valid"),
    Case("rubbish at the end", raw_header(lambda raw: raw.rstrip() + b"x"), "not valid"),
    Case("name twice", raw_header(lambda raw: b'{"a":{},"a":{},' + raw[1:]), "twice"),
    Case("name twice, once escaped", raw_header(lambda raw: b'{"\\u0061":{},"a":{},' + raw[1:]), "twice"),
    Case("field twice", raw_header(first(b'"dtype"', b'"dtype":"F32","dtype"')), "twice"),
    Case("field twice, once escaped", raw_header(first(b'"dtype"', b'"dt\\u0079pe":"F32","dtype"')), "twice"),
    Case("metadata twice", raw_header(lambda raw: b'{"__metadata__":{"format":"pt"},' + raw[1:]), "twice"),
    Case("metadata is a list", header(lambda entries: entries.update(__metadata__=[])), "not valid"),
    Case("metadata holds a number", header(lambda entries: entries.update(__metadata__={"format": 1})), "not valid"),
    Case("entry is null", header(lambda entries: entries.update({WEIGHT: None})), "not valid"),
    Case("entry is a list", header(lambda entries: entries.update({WEIGHT: []})), "not valid"),
    Case("no dtype", entry(dtype=None), "has no dtype"),
    Case("no shape", entry(shape=None), "impossible shape"),
    Case("no offsets", entry(data_offsets=None), "out of range"),
    Case("unknown dtype", entry(dtype="F7"), "unknown dtype 'F7'"),
    Case("dtype is a number", entry(dtype=7), f"not valid: tensor {WEIGHT}: "),
    Case("negative shape", entry(shape=[-512, 512]), "impossible shape"),
    Case("twice negative shape", entry(shape=[-512, -512]), "impossible shape"),
    Case("huge shape", entry(shape=[1 << 62, 1]), "impossible shape"),
    Case("shape that overflows", entry(shape=[1 << 40, 1 << 40]), "impossible shape"),
    Case("shape beyond 64 bits", entry(shape=[10**40, 1]), "impossible shape"),
    Case("shape of a thousand digits", entry(shape=[10**1000, 1]), "impossible shape"),
    Case("shape of ten thousand digits", raw_header(first(b'"shape":[', b'"shape":[' + b"9" * 10_000)), "not valid"),
    Case("name of a megabyte", header(lambda entries: entries.update({"a" * 10**6: {}})), "characters more"),
    Case("shape of many dimensions", entry(shape=[1] * 1000), "impossible shape"),
    Case("shape of floats", entry(shape=[512.0, 512.0]), "not valid"),
    Case("shape of booleans", entry(shape=[True, True]), "not valid"),
    Case("shape is no list", entry(shape=512), f"not valid: tensor {WEIGHT}: "),
    Case("offsets overlap", offsets(lambda begin, end: begin - 1, lambda begin, end: end - 1), "overlap"),
    Case("offsets leave a hole", offsets(lambda begin, end: begin + 1, lambda begin, end: end + 1), "overlap"),
    Case("offsets out of range", offsets(lambda begin, end: 10**15, lambda begin, end: 10**15 + end - begin), OUT),
    Case("offsets negative", offsets(lambda begin, end: -5, lambda begin, end: end - begin - 5), "out of range"),
    Case("offsets reversed", offsets(lambda begin, end: end, lambda begin, end: begin), "out of range"),
    Case("offsets beyond 64 bits", offsets(lambda begin, end: 1 << 70, lambda begin, end: (1 << 70) + 1), "tensor"),
    Case("offsets too far apart", offsets(lambda begin, end: begin, lambda begin, end: end + 1), "takes"),
    Case("three offsets", entry(data_offsets=[0, 1, 2]), "not valid"),
    Case("offsets of the same bytes twice", header(lambda e: e.update(copy=e[WEIGHT])), "overlap"),
)

INDEXES = (
    Case("climbs out", placed("../../x.safetensors"), "inside the folder"),
    Case("climbs out within", placed("a/../../x.safetensors"), "inside the folder"),
    Case("absolute", placed("/etc/x.safetensors"), "inside the folder"),
    Case("backslash", placed("..\\x.safetensors"), "inside the folder"),
    Case("no safetensors file", placed("config.json"), "inside the folder"),
    Case("pickle", placed("pytorch_model.bin"), "inside the folder"),
    Case("empty name", placed(""), "inside the folder"),
    Case("control characters", placed("\x1b[2J\n.safetensors"), "\\x1b[2J\\n"),
    Case("wrong file", lambda f: index(lambda names: names.update({WEIGHT: shard(f, NORM).name}))(f), "does not hold"),
    Case("JSON cut", text(INDEX, lambda raw: raw[: len(raw) // 2]), "not a valid index"),
    Case("array", text(INDEX, lambda raw: "[]"), "not a valid index"),
    Case("no weight_map", text(INDEX, lambda raw: "{}"), "not a valid index"),
    Case("weight_map is a list", text(INDEX, lambda raw: '{"weight_map":[]}'), "not a valid index"),
    Case("weight_map of numbers", text(INDEX, lambda raw: '{"weight_map":{"a":1}}'), "not a valid index"),
    Case("name twice", text(INDEX, lambda raw: raw.replace("{", '{"weight_map":{},', 1)), "twice"),
    Case(
        "tensor twice",
        text(INDEX, lambda raw: raw.replace('"weight_map": {', '"weight_map": {"lm_head.weight": "x.bin",', 1)),
        "twice",
    ),
    Case("NaN", text(INDEX, lambda raw: raw.replace('"metadata": {', '"metadata": {"x": NaN,', 1)), "not a valid"),
    Case("deep nesting", text(INDEX, lambda raw: '{"weight_map":' + DEEP), "not a valid index"),
    Case("no UTF-8", text(INDEX, lambda raw: raw.encode().replace(b"model.norm", b"\xff", 1)), "not a valid index"),
    Case("BOM", text(INDEX, lambda raw: "\ufeff" + raw), "not a valid index"),
    Case("empty", text(INDEX, lambda raw: ""), "not a valid index"),
    Case("a million names", million, "faults"),
)

CONFIGS = (
    Case("absent", lambda folder: (folder / "config.json").unlink(), "no config.json"),
    Case("JSON cut", text("config.json", lambda raw: raw[: len(raw) // 2]), "not valid JSON"),
    Case("empty", text("config.json", lambda raw: ""), "not valid JSON"),
    Case("array", text("config.json", lambda raw: "[]"), "expected a JSON object"),
    Case("key twice", text("config.json", lambda raw: raw.replace("{", '{"hidden_size":1,', 1)), "twice"),
    Case("NaN", field(rms_norm_eps=float("nan")), "not valid JSON"),
    Case("deep nesting", text("config.json", lambda raw: '{"a":' + DEEP), "not valid JSON"),
    Case("no UTF-8", text("config.json", lambda raw: raw.encode().replace(b"bfloat16", b"\xff")), "not valid JSON"),
    Case("BOM", text("config.json", lambda raw: "\ufeff" + raw), "not valid JSON"),
    Case("half a character in a value", field(x=["\ud800"]), "'\\ud800', half of a surrogate pair"),
    Case("half a character in a key", field(**{"x\udfff": 1}), "'\\udfff', half of a surrogate pair"),
    Case("half a character far down", quantization(fmt={"a": ["\ud800"]}), "half of a surrogate pair"),
    Case("a number beyond all", text("config.json", lambda raw: raw.replace("{", '{"x":1e999,', 1)), "1e999 is beyond"),
    Case("architectures is a number", field(model_type=None, architectures=5), "not a list"),
    Case(
        "an unknown architecture with blocks that are no numbers",
        unknown(weight_block_size=[128, "x"]),
        "weight_block_size",
    ),
    Case("a billion layers", field(num_hidden_layers=10**9), "num_hidden_layers"),
    Case("negative layers", field(num_hidden_layers=-1), "num_hidden_layers"),
    Case("layers as text", field(num_hidden_layers="61"), "num_hidden_layers"),
    Case("layers as a float", field(num_hidden_layers=2.5), "num_hidden_layers"),
    Case("layers missing", config(lambda value: value.pop("num_hidden_layers")), "num_hidden_layers"),
    Case("a billion prediction layers", field(num_nextn_predict_layers=10**9), "num_nextn_predict_layers"),
    Case("no hidden size", field(hidden_size=0), "hidden_size"),
    Case("huge hidden size", field(hidden_size=10**30), "hidden_size"),
    Case("too many parameters", field(num_hidden_layers=4096, n_routed_experts=1 << 16), "more than"),
    Case("too many experts", field(n_routed_experts=1 << 20), "n_routed_experts"),
    Case("more parameters than files can hold", field(n_routed_experts=1 << 16, num_hidden_layers=8), "hold only"),
    Case("another vocabulary", field(vocab_size=16), "vocab_size is 16, but the files hold 8"),
    Case("one layer more", field(num_hidden_layers=3), "num_hidden_layers is 3, but the files hold 2"),
    Case(
        "block size missing", config(lambda v: v["quantization_config"].pop("weight_block_size")), "weight_block_size"
    ),
    Case("block size 0", quantization(weight_block_size=[0, 128]), "weight_block_size"),
    Case("block size negative", quantization(weight_block_size=[-128, 128]), "weight_block_size"),
    Case("block size as text", quantization(weight_block_size=["128", "128"]), "weight_block_size"),
    Case("block size of three", quantization(weight_block_size=[128, 128, 128]), "weight_block_size"),
    Case("block size is a number", quantization(weight_block_size=128), "weight_block_size"),
    Case("block size huge", quantization(weight_block_size=[1 << 40, 128]), "weight_block_size"),
    Case("another block size", quantization(weight_block_size=[64, 64]), "scales are stored for [128, 128]"),
    Case("another method", quantization(quant_method="awq"), "quant_method is 'awq'"),
    Case("method is a list", quantization(quant_method=["fp8"]), "quant_method is ['fp8']"),
    Case("method is an object", quantization(quant_method={"fp8": 1}), "quant_method is"),
    Case("quantization_config is text", field(quantization_config="fp8"), "quantization_config"),
    Case(
        "quantization_config gone",
        config(lambda value: value.pop("quantization_config")),
        "quantization_config is absent",
    ),
)

TENSORS = (
    Case("scale missing", rewritten(lambda tensors: tensors.pop(SCALE)), "FP8 without a scale"),
    Case("weight missing", rewritten(lambda tensors: tensors.pop(WEIGHT)), "although its scale is there"),
    Case("both missing", rewritten(lambda tensors: (tensors.pop(WEIGHT), tensors.pop(SCALE))), WEIGHT),
    Case("surplus", named("model.layers.0.self_attn.o_proj.bias"), "no such tensor"),
    Case("surplus with control characters", named("\x1b]0;x\x07\r\nok"), "\\x1b]0;x\\x07\\r\\nok"),
    Case("scale as integers", as_scale("I32", [2, 2], 16), "does not match"),
    Case("scale grid too small", as_scale("F32", [1, 2], 8), "does not match"),
    Case("scale grid too large", as_scale("F32", [3, 2], 24), "does not match"),
    Case("scale grid flat", as_scale("F32", [4], 16), "does not match"),
    Case("scale per tensor", as_scale("F32", [], 4), "does not match"),
    Case("BF16 beside a scale", as_weight("BF16", 0, 2), SCALE),
    Case("integers beside a scale", as_weight("I8", 0, 1), "does not match"),
    Case("too few rows", as_weight("F8_E4M3", 128, 1), "in the architecture"),
    Case("scale NaN", scale_value(float("nan")), "block [0, 1] is nan"),
    Case("scale zero", scale_value(0.0), "block [0, 1] is 0"),
    Case("scale negative", scale_value(-1.0), "block [0, 1] is -1"),
    Case("scale infinite", scale_value(float("inf")), "block [0, 1] is inf"),
    Case("tensor in two files", in_two_files, "and in another file"),
)

GROUPS = {"file": FILES, "header": HEADERS, "index": INDEXES, "config": CONFIGS, "tensor": TENSORS}
CASES = [pytest.param(case, id=f"{group}: {case.name}") for group, cases in GROUPS.items() for case in cases]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2", **SIZES)


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "source"))


def refused(done: Done, code: int, says: str) -> None:
    """One error line with these words, the exit code, no traceback, nothing that steers a terminal."""
    assert done.returncode == code, done.stderr
    report = reports(done.stderr)[0]
    said = json.loads(report)["error"]["message"] if report.startswith("{") else done.stderr
    assert says in said, done.stderr
    assert len(reports(done.stderr)) == 1 and done.stderr.startswith(reports(done.stderr)[0]), done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    assert not done.stdout
    assert all(character.isprintable() or character == "\n" for character in done.stderr), repr(done.stderr)
    assert len(done.stderr) < 10_000


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_source_is_refused_and_nothing_is_written(case: Case, copy: Path, tmp_path: Path) -> None:
    case.mutate(copy)
    refused(call("convert", copy, tmp_path / "out", "--bf16"), case.code, case.says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", CASES)
def test_inspecting_a_hostile_source_shows_it_or_refuses_it(case: Case, copy: Path) -> None:
    case.mutate(copy)
    done = call("inspect", copy, "--json")
    if done.returncode:
        refused(done, case.code, case.says)
        return
    assert isinstance(json.loads(done.stdout), dict)
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    assert all(character.isprintable() or character == "\n" for character in done.stderr), repr(done.stderr)


def side(change: Callable[[dict[str, tuple[str, list[int], bytes]]], object]) -> Callable[[Path], None]:
    """The tensors of the side file, changed."""

    def mutate(folder: Path) -> None:
        path = folder / ORIGINAL
        head, data = parts(path)
        entries = json.loads(head)
        entries.pop("__metadata__")
        tensors = {
            name: (said["dtype"], said["shape"], data[slice(*said["data_offsets"])]) for name, said in entries.items()
        }
        change(tensors)
        write(path, tensors)

    return mutate


def kept(name: str, raw: bytes) -> Callable[[Path], None]:
    return side(lambda tensors: tensors.update({name: ("U8", [len(raw)], raw)}))


SIDES = (
    Case("text", lambda folder: (folder / ORIGINAL).write_text("<html>404 Not Found</html>"), "over the limit"),
    Case("cut", lambda folder: os.truncate(folder / ORIGINAL, 1000), "does not fit"),
    Case("empty", lambda folder: os.truncate(folder / ORIGINAL, 0), "too short"),
    Case("link out", lambda f: (f / ORIGINAL).unlink() or (f / ORIGINAL).symlink_to("/dev/zero"), "link out", SOURCE),
    Case("header that climbs out", kept("header:../../x.safetensors", b"{}"), "inside the folder"),
    Case("absolute header", kept("header:/etc/x.safetensors", b"{}"), "inside the folder"),
    Case("header of no safetensors file", kept("header:config.json", b"{}"), "inside the folder"),
    Case("header that is no JSON", kept("header:x.safetensors", b"{"), "not valid"),
    Case(
        "header with a hole",
        kept("header:x.safetensors", b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'),
        "begins at 1, expected 0",
    ),
    Case("config that is no JSON", kept("config.json", b"{"), "not valid"),
    Case("config that is no UTF-8", kept("config.json", b"\xff"), "not valid"),
    Case("config that is a list", kept("config.json", b"[]"), "object"),
    Case("config of deep nesting", kept("config.json", DEEP.encode()), "not valid"),
    Case("config with text for quantization", kept("config.json", b'{"quantization_config":"fp8"}'), "quantization"),
    Case(
        "config with a wrong block size",
        kept("config.json", b'{"quantization_config":{"quant_method":"fp8"}}'),
        "block",
    ),
    Case("index that is no JSON", kept(INDEX, b"{"), "not valid"),
    Case("index of deep nesting", kept(INDEX, DEEP.encode()), "not valid"),
)


def test_what_is_wrong_with_the_config_is_mended_as_the_hint_says(copy: Path, tmp_path: Path) -> None:
    quantization(weight_block_size=[64, 64])(copy)
    refused(call("convert", copy, tmp_path / "out", "--bf16"), FORMAT, "dsctl verify --fix")
    assert call("verify", copy, "--fix").returncode == 0
    assert call("convert", copy, tmp_path / "out", "--bf16").returncode == 0


@pytest.mark.parametrize("more", [["--fp8"], ["--bf16", "--dry-run"], ["--fp8", "--dry-run"]])
def test_a_scale_that_cannot_be_one_is_found_where_it_is_moved_or_only_looked_at(
    more: list[str], copy: Path, tmp_path: Path
) -> None:
    scale_value(float("nan"))(copy)
    done = call("convert", copy, tmp_path / "out", *more)
    # The plan warns before scales are read.
    done = done._replace(stderr=done.stderr.removeprefix("warning: already fp8-block: this only copies\n"))
    refused(done, FORMAT, "block [0, 1] is nan")
    assert not (tmp_path / "out").exists()


def test_a_file_to_carry_over_is_opened_before_the_work(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def denied(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("source/tokenizer.json"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", denied)
    refused(call("convert", copy, tmp_path / "out", "--bf16"), SOURCE, "tokenizer.json: Permission denied")
    assert not (tmp_path / "out").exists()


def test_codes_and_scales_that_give_no_finite_value_are_counted(copy: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
        dtype, shape, raw = tensors[WEIGHT]
        tensors[WEIGHT] = dtype, shape, b"\x7f\xff\x7f" + raw[3:]

    rewritten(spoil)(copy)
    done = call("convert", copy, tmp_path / "out", "--bf16")
    assert done.returncode == 0 and "3 decoded values are not a number" in done.stderr
    audit = json.loads((tmp_path / "out" / "dsctl.json").read_text())["audit"]
    assert audit["values_not_a_number"] == 3 and "values_infinite" not in audit
    refused(call("convert", tmp_path / "out", tmp_path / "back", "--fp8"), 41, "--skip")
    scale_value(2.0**127)(copy)
    assert "infinite" in call("convert", copy, tmp_path / "out", "--bf16", "--force").stderr
    assert json.loads((tmp_path / "out" / "dsctl.json").read_text())["audit"]["values_infinite"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("convert source", "missing argument 'DST'"),
        ("convert source out --nope", "dsctl convert: unknown option '--nope'"),
        ("tiny v3 out --layers 1", "--layers: '1' is not a number from 2 to 4096"),
        ("tiny v3 out --layers x", "--layers: 'x' is not a number from 2 to 4096"),
        ("tiny v3 out --seed -1", "--seed: '-1' is not a number of at least 0"),
        ("tiny v3 out --fail-under x", "unknown option '--fail-under'"),
        ("compare source out --fail-under x", "--fail-under: 'x' is not a valid float"),
        ("shard source out --tp", "--tp: requires an argument"),
        ("convert source out --b16", "did you mean --bf16?"),
        ("konvert", "did you mean convert?"),
        ("verify source --ignore mising-scale", "--ignore: unknown finding code 'mising-scale'"),
        ("diff v3 v3.2 --only tensor", "did you mean tensors?"),
        ("plan v3.2 --kv fp16", "--kv: unknown format 'fp16'"),
        ("convert source out --bf16 --device gpu", "--device: unknown device 'gpu'"),
        ("convert source out --bf16 --engine process", "did you mean processes?"),
        ("tiny v33 out", "did you mean"),
    ],
)
def test_words_that_the_parser_refuses_are_told_as_any_error_is(words: str, says: str) -> None:
    done = call(*words.split())
    refused(done, 2, says)
    assert "hint: " in done.stderr and len(done.stderr.splitlines()) == 3


@pytest.fixture(scope="module")
def decoded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoded") / "bf16"
    assert call("convert", source, folder, "--bf16").returncode == 0
    return folder


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in SIDES])
def test_a_hostile_side_file_is_refused(case: Case, decoded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(decoded, tmp_path / "source"))
    case.mutate(copy)
    refused(call("convert", copy, tmp_path / "out", "--fp8"), case.code, case.says)
    assert not (tmp_path / "out").exists()


def test_bf16_that_declares_fp8_is_refused(source: Path, decoded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(decoded, tmp_path / "source"))
    shutil.copy(source / "config.json", copy)
    refused(call("convert", copy, tmp_path / "out", "--fp8"), FORMAT, "no weight is quantized")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "option", "there"),
    [
        (lambda tensors: (tensors.pop(WEIGHT), tensors.pop(SCALE)), "--allow-missing", False),
        (lambda tensors: tensors.update({"extra": ("F32", [1], bytes(4))}), "--allow-extra", True),
    ],
)
def test_missing_and_surplus_tensors_can_be_allowed(
    change: Callable[[Any], object], option: str, there: bool, copy: Path, tmp_path: Path
) -> None:
    rewritten(change)(copy)
    refused(call("convert", copy, tmp_path / "out", "--bf16"), FORMAT, option)
    assert call("convert", copy, tmp_path / "out", "--bf16", option).returncode == 0
    names = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert WEIGHT in names if there else WEIGHT not in names
    assert ("extra" in names) == there


def test_a_cache_snapshot_s_links_into_its_blobs_are_followed(source: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert call("inspect", snapshot).returncode == 0
    (snapshot / "more.json").symlink_to("../../../other")
    (tmp_path / "other").touch()
    refused(call("inspect", snapshot), SOURCE, "link out of the folder")
