"""Faults to plant in a small checkpoint, one at a time, and what a check must say of each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
STATEMENT = "dsctl.intoto.json"
NORM = "model.layers.0.input_layernorm.weight"
MATRIX = "model.layers.0.self_attn.o_proj.weight"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
OTHER_EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
ROUTER = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
MTP = "model.layers.2.eh_proj.weight"
TWIN = "model.layers.2.embed_tokens.weight"
HEAD = "lm_head.weight"
SCALE = "_scale_inv"


class Folder:
    """A checkpoint to spoil."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def json(self, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
        value = json.loads((self.path / file).read_text())
        change(value)
        (self.path / file).write_text(json.dumps(value))

    def config(self, change: Callable[[dict[str, Any]], Any]) -> None:
        self.json("config.json", change)

    def index(self, change: Callable[[dict[str, Any]], Any]) -> None:
        self.json(INDEX, change)

    def file(self, name: str) -> Path:
        """The file that the index says holds a tensor."""
        return self.path / json.loads((self.path / INDEX).read_text())["weight_map"][name]

    def tensors(self, name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
        """Change the tensors of the file that holds one, and make the index true again."""
        path = self.file(name)
        held = load_file(path)
        change(held)
        save_file(held, path, {"format": "pt"})
        path.chmod(0o644)
        self.reindex()

    def reindex(self) -> None:
        total, weights = 0, {}
        for path in sorted(self.path.glob("model-*.safetensors")):
            for name, entry in self.header(path).items():
                if name != "__metadata__":
                    weights[name] = path.name
                    total += entry["data_offsets"][1] - entry["data_offsets"][0]
        (self.path / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weights}))

    def header(self, path: Path) -> dict[str, Any]:
        raw = path.read_bytes()
        return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])

    def reheader(self, path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a header and leave the weights as they are."""
        raw = path.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])

    def entry(self, name: str, **fields: Any) -> None:
        self.reheader(self.file(name), lambda header: header[name].update(fields))

    def shape(self, name: str) -> list[int]:
        return self.header(self.file(name))[name]["shape"]

    def poke(self, name: str, at: int, data: bytes) -> None:
        """Overwrite some of a tensor's bytes."""
        path = self.file(name)
        begin = 8 + int.from_bytes(path.read_bytes()[:8], "little") + self.header(path)[name]["data_offsets"][0]
        with path.open("r+b") as file:
            file.seek(begin + at)
            file.write(data)

    def scale(self, value: float) -> None:
        self.poke(EXPERT + SCALE, 0, torch.tensor([value]).numpy().tobytes())

    def first(self) -> Path:
        return min(self.path.glob("model-*.safetensors"))


class Planted(NamedTuple):
    """A fault: the code and the place that a check must name, how to plant it, and what else is then true.

    `release` is the checkpoint to spoil; `deep` says that only reading every byte shows it; `signed` spoils a folder
    that dsctl converted to BF16; `also` are codes that the same fault brings with it; `refused` says that the
    safetensors library refuses a file because of it.
    """

    code: str
    where: str
    plant: Callable[[Folder], Any]
    release: str = "v3.2"
    deep: bool = False
    signed: bool = False
    against: bool = False
    also: tuple[str, ...] = ()
    refused: bool = False


def cut(folder: Folder, name: str, dtype: torch.dtype) -> None:
    folder.tensors(name, lambda held: held.update({name: held[name].to(dtype)}))


def drop(folder: Folder, name: str) -> None:
    folder.tensors(name, lambda held: held.pop(name))


def add(folder: Folder, name: str, tensor: torch.Tensor) -> None:
    folder.tensors(NORM, lambda held: held.update({name: tensor}))


def stacked(folder: Folder) -> None:
    add(folder, "stack.weight", torch.ones(2, 3, 4).to(torch.float8_e4m3fn))
    folder.config(lambda config: config.update(model_type="x", architectures=[]))


def decoded(folder: Folder) -> None:
    """A matrix in BF16 amid FP8, without its scale."""
    drop(folder, EXPERT + SCALE)
    cut(folder, EXPERT, torch.bfloat16)


def quantized_router(folder: Folder) -> None:
    def change(held: dict[str, torch.Tensor]) -> None:
        held[ROUTER] = (held[ROUTER].float() * 1000).to(torch.float8_e4m3fn)
        held[ROUTER + SCALE] = torch.full(
            (-(-held[ROUTER].shape[0] // 128), -(-held[ROUTER].shape[1] // 128)), 2.0**-10
        )

    folder.tensors(ROUTER, change)


def copied(folder: Folder, name: str, other: str) -> None:
    with safe_open(folder.file(other), "pt") as file:
        tensor = file.get_tensor(other)
    folder.tensors(name, lambda held: held.update({name: tensor}))


def loosened(folder: Folder) -> None:
    """A block quantized with 8 times the scale it needs: codes an eighth, three bits lost."""

    def change(held: dict[str, torch.Tensor]) -> None:
        codes = held[EXPERT].float()
        codes[:128, :128] /= 8
        held[EXPERT] = codes.to(torch.float8_e4m3fn)

    folder.tensors(EXPERT, change)
    with safe_open(folder.file(EXPERT + SCALE), "pt") as file:
        first = float(file.get_tensor(EXPERT + SCALE)[0, 0])
    folder.scale(first * 8)


def scaled(folder: Folder, factor: float) -> None:
    """The first scale of a matrix, times a factor."""
    with safe_open(folder.file(EXPERT + SCALE), "pt") as file:
        folder.scale(float(file.get_tensor(EXPERT + SCALE)[0, 0]) * factor)


def rescaled(folder: Folder, value: float) -> None:
    """All scales of a matrix the same."""
    folder.tensors(EXPERT + SCALE, lambda held: held[EXPERT + SCALE].fill_(value))


def renamed(folder: Folder) -> None:
    folder.tensors(EXPERT + SCALE, lambda held: held.update({EXPERT + "_scale": held.pop(EXPERT + SCALE)}))


def transposed(folder: Folder, name: str) -> None:
    folder.entry(name, shape=folder.shape(name)[::-1])


def unindexed(folder: Folder, name: str) -> None:
    folder.index(lambda index: index["weight_map"].pop(name))


def misplaced(folder: Folder) -> None:
    other = next(path.name for path in folder.path.glob("model-*.safetensors") if path != folder.file(NORM))
    folder.index(lambda index: index["weight_map"].update({NORM: other}))


def doubled(folder: Folder) -> None:
    """A tensor in two files; the index names one of them."""
    before = (folder.path / INDEX).read_text()
    with safe_open(folder.file(NORM), "pt") as file:
        tensor = file.get_tensor(NORM)
    folder.tensors(HEAD, lambda held: held.update({NORM: tensor}))
    (folder.path / INDEX).write_text(before)


def overlapping(folder: Folder) -> None:
    def change(header: dict[str, Any]) -> None:
        header[NORM]["data_offsets"] = [n + 8 for n in header[NORM]["data_offsets"]]

    folder.reheader(folder.file(NORM), change)


def truncated(folder: Folder) -> None:
    os.truncate(folder.first(), folder.first().stat().st_size - 1)


def lengthened(folder: Folder) -> None:
    with folder.first().open("ab") as file:
        file.write(b"\0")


def garbled(folder: Folder) -> None:
    with folder.first().open("r+b") as file:
        file.seek(8)
        file.write(b"garbage")


def repeated(folder: Folder) -> None:
    """An entry of a header twice, the same both times."""
    path = folder.file(NORM)
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    entry = f"{json.dumps(NORM)}: {json.dumps(folder.header(path)[NORM])}, ".encode()
    text = b"{" + entry + raw[9:end]
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def nested(folder: Folder) -> None:
    """A field that no reader knows, in more brackets than the library reads."""
    value: list[Any] = []
    for _ in range(200):
        value = [value]
    folder.entry(NORM, unknown=value)


def pointer(folder: Folder) -> None:
    folder.first().write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def dangling(folder: Folder) -> None:
    """What a hub's cache has where somebody deleted a blob."""
    path = folder.first()
    path.unlink()
    path.symlink_to("../../blobs/0123")


def flipped(folder: Folder) -> None:
    """One bit of one mantissa."""
    path = folder.first()
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


def no_quantization(folder: Folder) -> None:
    folder.config(lambda config: config.pop("quantization_config"))


def changed(field: str, value: object) -> Callable[[Folder], None]:
    return lambda folder: folder.config(lambda config: config.update({field: value}))


def quantization(folder: Folder, **fields: Any) -> None:
    folder.config(lambda config: config.setdefault("quantization_config", {}).update(fields))


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FIRST = "model-00001-of-000004.safetensors"

PLANTED: dict[str, Planted] = {
    # dtypes and shapes
    "a norm's dtype flipped in the header": Planted(
        "odd-dtype", NORM, lambda f: f.entry(NORM, dtype="F16"), "v3"
    ),
    "an FP8 weight called E5M2": Planted("wrong-scale", EXPERT, lambda f: f.entry(EXPERT, dtype="F8_E5M2")),
    "an FP8 weight called U8": Planted("wrong-scale", EXPERT, lambda f: f.entry(EXPERT, dtype="U8")),
    "a norm in I16": Planted("wrong-dtype", NORM, lambda f: f.entry(NORM, dtype="I16"), "v3"),
    "a router's bias cut to BF16": Planted("router-bias-narrowed", BIAS, lambda f: cut(f, BIAS, torch.bfloat16)),
    "a norm cut to BF16": Planted("narrowed", NORM, lambda f: cut(f, NORM, torch.bfloat16)),
    "a norm widened to F32": Planted("widened", NORM, lambda f: cut(f, NORM, torch.float32), "v3"),
    "a matrix transposed": Planted("wrong-shape", MTP, lambda f: transposed(f, MTP)),
    "an expert transposed": Planted("wrong-shape", EXPERT, lambda f: transposed(f, EXPERT)),
    "a scale transposed": Planted("wrong-scale", EXPERT, lambda f: transposed(f, EXPERT + SCALE)),
    "a scale in BF16": Planted("scale-dtype", EXPERT + SCALE, lambda f: cut(f, EXPERT + SCALE, torch.bfloat16)),
    "a scale renamed to another format's": Planted("other-format", EXPERT, renamed),
    "a quantized matrix left out in the config": Planted(
        "other-format", MATRIX, lambda f: quantization(f, modules_to_not_convert=[MATRIX.removesuffix(".weight")])
    ),
    "one expert not quantized": Planted("not-quantized", EXPERT, decoded),
    "a quantized router": Planted("not-quantizable", ROUTER, quantized_router),
    # what is there
    "a scale missing": Planted("missing-scale", EXPERT, lambda f: drop(f, EXPERT + SCALE)),
    "a weight missing": Planted("missing-weight", EXPERT, lambda f: drop(f, EXPERT)),
    "a norm missing": Planted("missing-tensor", NORM, lambda f: drop(f, NORM)),
    "a router's bias missing": Planted("missing-tensor", BIAS, lambda f: drop(f, BIAS)),
    "a tensor too many": Planted("extra-tensor", "surplus", lambda f: add(f, "surplus", torch.ones(3))),
    "an attention bias that is not the architecture's": Planted(
        "extra-tensor", "model.layers.0.self_attn.o_proj.bias",
        lambda f: add(f, "model.layers.0.self_attn.o_proj.bias", torch.ones(3)),
    ),
    "one expert fewer in the config": Planted(
        "wrong-config", "config.json", lambda f: f.config(lambda c: c.update(n_routed_experts=3)), also=("odd-config",),
    ),
    "one layer more in the config": Planted(
        "wrong-config", "config.json", lambda f: f.config(lambda c: c.update(num_hidden_layers=3)),
    ),
    # scales
    "a scale of zero": Planted("bad-scale", EXPERT + SCALE, lambda f: f.scale(0.0)),
    "a negative scale": Planted("bad-scale", EXPERT + SCALE, lambda f: f.scale(-1.0)),
    "a scale that is NaN": Planted("bad-scale", EXPERT + SCALE, lambda f: f.scale(float("nan"))),
    "an infinite scale": Planted("bad-scale", EXPERT + SCALE, lambda f: f.scale(float("inf"))),
    "a scale that is no power of two": Planted("not-power-of-two", EXPERT + SCALE, lambda f: f.scale(3e-4)),
    "a scale with an exponent's bit flipped": Planted("odd-scale", EXPERT + SCALE, lambda f: f.scale(2.0**20)),
    "a scale of next to nothing": Planted("odd-scale", EXPERT + SCALE, lambda f: f.scale(2.0**-140)),
    "a scale 1024 times too large": Planted("odd-scale", EXPERT + SCALE, lambda f: scaled(f, 2.0**10)),
    "all scales of next to nothing": Planted("odd-scale", EXPERT + SCALE, lambda f: rescaled(f, 2.0**-100)),
    "all scales too small": Planted("odd-scale", EXPERT + SCALE, lambda f: rescaled(f, 2.0**-28)),
    "all scales too large": Planted("odd-scale", EXPERT + SCALE, lambda f: rescaled(f, 2.0**5)),
    "ue8m0 lost from the config": Planted(
        "scale-fmt-undeclared", "config.json",
        lambda f: f.config(lambda c: c["quantization_config"].pop("scale_fmt")),
    ),
    # config
    "quantization_config deleted": Planted("format-not-declared", "config.json", no_quantization),
    "quantization_config left in a BF16 folder": Planted(
        "declared-not-stored", "config.json", lambda f: quantization(f, **FP8), "v2"
    ),
    "another method declared": Planted(
        "format-not-declared", "config.json", lambda f: quantization(f, quant_method="awq")
    ),
    "a static activation scheme declared": Planted(
        "format-not-declared", "config.json", lambda f: quantization(f, activation_scheme="static")
    ),
    "another block size declared": Planted(
        "block-size", "config.json", lambda f: quantization(f, weight_block_size=[64, 64])
    ),
    "a block size that is none": Planted("bad-config", "config.json", lambda f: quantization(f, weight_block_size=[0])),
    **{
        f"config.json: {field} {value!r}": Planted("odd-config", where, changed(field, value))
        for where, field, value in (
            ("architectures", "model_type", "deepseek_v3"),
            ("num_experts_per_tok", "num_experts_per_tok", 5),
            ("n_group", "n_group", 3),
            ("topk_group", "topk_group", 3),
            ("index_topk", "index_topk", None),
            ("rms_norm_eps", "rms_norm_eps", "small"),
            ("rms_norm_eps", "rms_norm_eps", -1.0),
            ("rope_theta", "rope_theta", "x"),
            ("eos_token_id", "eos_token_id", 1_000_000),
            ("eos_token_id", "eos_token_id", [1, -1]),
            ("topk_method", "topk_method", "greedy"),
        )
    },
    "a dimension missing": Planted("bad-config", "config.json", lambda f: f.config(lambda c: c.pop("kv_lora_rank"))),
    "no config": Planted("no-config", "", lambda f: (f.path / "config.json").unlink()),
    "a config cut off": Planted("broken-json", "config.json", lambda f: os.truncate(f.path / "config.json", 100)),
    "an unknown architecture": Planted(
        "unknown-architecture", "config.json", lambda f: f.config(lambda c: c.update(model_type="x", architectures=[])),
    ),
    "stacked codes of an unknown architecture": Planted(
        "unread-form", "stack.weight", stacked, also=("unknown-architecture",)
    ),
    "another torch_dtype": Planted(
        "torch-dtype", "config.json", lambda f: f.config(lambda c: c.update(torch_dtype="float16"))
    ),
    "code that is not there": Planted(
        "missing-code", "modeling_x.py", lambda f: f.config(lambda c: c.update(auto_map={"AutoModel": "modeling_x.M"})),
    ),
    # index
    "no index": Planted("no-index", "", lambda f: (f.path / INDEX).unlink()),
    "an index cut off": Planted("broken-json", INDEX, lambda f: os.truncate(f.path / INDEX, 100)),
    "an index of numbers": Planted("broken-json", INDEX, lambda f: f.index(lambda i: i.update(weight_map={"a": 1}))),
    "an index that leads out": Planted(
        "broken-json", INDEX, lambda f: f.index(lambda i: i["weight_map"].update({NORM: "../x.safetensors"}))
    ),
    "a tensor misplaced in the index": Planted(
        "index-wrong", NORM, misplaced, also=("index-unknown", "missing-tensor")
    ),
    "a tensor not in the index": Planted("index-unknown", NORM, lambda f: unindexed(f, NORM)),
    "a wrong total": Planted(
        "total-size", "index", lambda f: f.index(lambda i: i["metadata"].update(total_size=1))
    ),
    "no total": Planted("total-size", "index", lambda f: f.index(lambda i: i.update(metadata={}))),
    "a tensor in two files": Planted("duplicate-name", NORM, doubled, also=("total-size",)),
    # files
    "a missing shard": Planted("missing-shard", FIRST, lambda f: f.first().unlink()),
    "a truncated shard": Planted("wrong-size", FIRST, truncated, refused=True),
    "a shard cut off within its header": Planted(
        "wrong-size", FIRST, lambda f: os.truncate(f.first(), 20), refused=True
    ),
    "an empty shard": Planted("wrong-size", FIRST, lambda f: os.truncate(f.first(), 0), refused=True),
    "a byte too many": Planted("wrong-size", FIRST, lengthened, refused=True),
    "a garbled header": Planted("broken-header", FIRST, garbled, refused=True),
    "overlapping tensors": Planted("broken-header", "", overlapping, refused=True),
    "a tensor twice in a header": Planted("broken-header", "", repeated),
    "a header nested too deep for the library": Planted("library-refuses", "", nested, refused=True),
    "no format in the header": Planted(
        "no-format-pt", FIRST, lambda f: f.reheader(f.first(), lambda header: header.pop("__metadata__"))
    ),
    "a shard of another model": Planted(
        "stray-file", "stray.safetensors", lambda f: shutil.copyfile(f.first(), f.path / "stray.safetensors")
    ),
    "a pointer for a shard": Planted("lfs-pointer", FIRST, pointer, refused=True),
    "a download on its way": Planted(
        "unfinished", "x.incomplete", lambda f: (f.path / "x.incomplete").write_bytes(b"x")
    ),
    "a conversion on its way": Planted("unfinished", ".dsctl", lambda f: (f.path / ".dsctl").mkdir()),
    "a part left over": Planted(
        "leftover", "x.part", lambda f: (f.path / "x.part").write_bytes(b"x"), signed=True, also=("unsigned-file",)
    ),
    "a file that nobody may read": Planted("unreadable-file", FIRST, lambda f: f.first().chmod(0)),
    "a shard that is a link to nowhere": Planted("unreadable-file", FIRST, dangling),
    "a template that is a link to nowhere": Planted(
        "unreadable-file", "chat_template.jinja", lambda f: (f.path / "chat_template.jinja").symlink_to("nowhere")
    ),
    "a link out of the folder": Planted(
        "unreadable-file", "foo.txt", lambda f: (f.path / "foo.txt").symlink_to("/etc/hostname")
    ),
    "a file that only its owner may read": Planted("private-file", FIRST, lambda f: f.first().chmod(0o600)),
    "a tokenizer cut off": Planted(
        "broken-json", "tokenizer.json", lambda f: os.truncate(f.path / "tokenizer.json", 1000)
    ),
    "no tokenizer": Planted(
        "no-tokenizer", "", lambda f: [path.unlink() for path in f.path.glob("tokenizer*")]
    ),
    "no tokenizer but its config": Planted("no-tokenizer", "", lambda f: (f.path / "tokenizer.json").unlink()),
    # another folder
    "a side file missing": Planted(
        "missing-side-file", "generation_config.json", lambda f: (f.path / "generation_config.json").unlink(),
        against=True,
    ),
    "another side file": Planted(
        "side-file-differs", "LICENSE", lambda f: (f.path / "LICENSE").write_text("other"), against=True
    ),
    "another rope base": Planted(
        "config-differs", "rope_theta", lambda f: f.config(lambda c: c.update(rope_theta=1)), against=True
    ),
    "another number of experts": Planted(
        "other-architecture", "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
        lambda f: f.config(lambda c: c.update(n_routed_experts=3)), against=True,
        also=("wrong-config", "config-differs", "odd-config"),
    ),
    # dsctl.json
    "a signed file of another size": Planted(
        "signed-size", "README.md", lambda f: (f.path / "README.md").write_text("x"), signed=True
    ),
    "a signed file gone": Planted(
        "signed-missing", "README.md", lambda f: (f.path / "README.md").unlink(), signed=True
    ),
    "a file that is not signed": Planted(
        "unsigned-file", "extra.txt", lambda f: (f.path / "extra.txt").write_text("x"), signed=True
    ),
    "a dsctl.json cut off": Planted(
        "broken-json", "dsctl.json", lambda f: os.truncate(f.path / "dsctl.json", 100), signed=True
    ),
    "a statement of another digest": Planted(
        "statement-subjects", STATEMENT,
        lambda f: f.json(STATEMENT, lambda s: s["subject"][0].update(digest={"blake3": "0" * 64})),
        signed=True, also=("signed-size",),
    ),
    "a statement of another request": Planted(
        "statement-differs", STATEMENT,
        lambda f: f.json(
            STATEMENT, lambda s: s["predicate"]["buildDefinition"]["externalParameters"]["request"].update(to="keep")
        ),
        signed=True, also=("signed-size",),
    ),
    "a statement without its type": Planted(
        "statement-broken", STATEMENT, lambda f: f.json(STATEMENT, lambda s: s.pop("_type")),
        signed=True, also=("signed-size",),
    ),
    "one bit flipped": Planted("digest", FIRST, flipped, deep=True, signed=True),
    # contents
    "one NaN": Planted("not-finite", MTP, lambda f: f.poke(MTP, 512, b"\xc0\x7f"), deep=True),
    "one infinity": Planted("not-finite", MTP, lambda f: f.poke(MTP, 1024, b"\x80\xff"), deep=True),
    "a NaN among F32": Planted("not-finite", BIAS, lambda f: f.poke(BIAS, 0, b"\x00\x00\xc0\x7f"), deep=True),
    "a NaN code": Planted("not-finite", EXPERT, lambda f: f.poke(EXPERT, 1000, b"\xff"), deep=True),
    "an exponent's bit flipped": Planted("huge-value", MTP, lambda f: f.poke(MTP, 512, b"\x00\x7e"), deep=True),
    "an expert of zeros": Planted(
        "all-zero", EXPERT, lambda f: f.tensors(EXPERT, lambda h: h[EXPERT].view(torch.uint8).zero_()), deep=True
    ),
    "a norm of zeros": Planted(
        "all-zero", NORM, lambda f: f.tensors(NORM, lambda h: h[NORM].zero_()), deep=True
    ),
    "a row of zeros": Planted("zero-part", MTP, lambda f: f.poke(MTP, 1024, bytes(1024)), deep=True),
    "a block of zeros": Planted(
        "zero-part", EXPERT, lambda f: f.tensors(EXPERT, lambda h: h[EXPERT].view(torch.uint8)[:128, :128].zero_()),
        deep=True,
    ),
    "some rows of zeros in FP8": Planted(
        "zero-part", EXPERT, lambda f: f.tensors(EXPERT, lambda h: h[EXPERT].view(torch.uint8)[7:107].zero_()),
        deep=True,
    ),
    "a matrix of next to nothing": Planted(
        "odd-magnitude", EXPERT, lambda f: f.tensors(EXPERT, lambda h: h[EXPERT].mul_(2.0**-20)), "v2", deep=True,
    ),
    "a block with too large a scale": Planted("scale-too-large", EXPERT + SCALE, loosened, deep=True),
    "an expert twice": Planted("duplicate", OTHER_EXPERT, lambda f: copied(f, OTHER_EXPERT, EXPERT), deep=True),
    "another embedding in the MTP layer": Planted(
        "twin-differs", TWIN, lambda f: f.poke(TWIN, 0, b"\x00\x3d"), deep=True
    ),
}  # fmt: skip
