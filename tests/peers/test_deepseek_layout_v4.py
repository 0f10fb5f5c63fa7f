"""DeepSeek's inference layout of V4 against a restatement of its published rules, written by safetensors itself.

deepseek-ai/DeepSeek-V4-Flash and DeepSeek-V4-Flash-0731, inference/convert.py: what is cut and along which dimension,
what is left out, decoded and recast; inference/config.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl import releases
from dsctl.layouts.deepseek import CONFIG
from dsctl.layouts.native_config import native_config
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import tensors

SIZES = {"layers": 4, "experts": 8, "hidden": 128, "heads": 4, "vocab": 512, "moe_intermediate": 128}
# Modules whose weight, and its scale, is cut, by the last words of their names.
ROWS = ("embed", "head", "wq_b", "wo_a", "weights_proj", "markov_w1", "markov_w2")
COLUMNS = ("wo_b",)
# The embedding and the head of the drafter's own.
SKIPPED = ("mtp.0.emb.tok_emb.weight", "mtp.0.head.weight")
MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
Tensors = dict[str, torch.Tensor]


class Expert(NamedTuple):
    """What a rank writes of a routed expert's matrix in four bits: codes (int8) and scales in, tensors out."""

    codes: torch.Tensor
    scale: torch.Tensor

    def as_it_is(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.codes.view(torch.float4_e2m1fn_x2), self.scale

    def in_eight_bits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A block's scale is its largest group's / 64; zeros have no sign."""
        pairs = torch.stack((self.codes & 15, (self.codes >> 4) & 15), 2).flatten(1).long()
        values = torch.where(pairs > 7, -MAGNITUDES[pairs & 7], MAGNITUDES[pairs & 7]) + 0.0
        (rows, columns), groups = values.shape, self.scale.float()
        blocks = groups.view(rows // 128, 128, columns // 128, 4).amax((1, 3)) / 64
        factors = groups.repeat_interleave(32, 1) / blocks.repeat_interleave(128, 0).repeat_interleave(128, 1)
        return (values * factors).to(torch.float8_e4m3fn), blocks.to(torch.float8_e8m0fnu)


def made(*words: object) -> str:
    """What is said by a verb that writes, in this process."""
    return dsctl(*words, "--workers", 1)


def restated(source: Path, world: int, of_expert: Callable[[Expert], tuple[torch.Tensor, ...]]) -> Iterator[Tensors]:
    """What every rank holds, by the rules."""
    stored, experts = tensors(source), json.loads((source / "config.json").read_text())["n_routed_experts"]
    for rank in range(world):
        held: Tensors = {}
        for name, tensor in stored.items():
            words = name.split(".")
            module = words[-1] if words[-1] == "attn_sink" else words[-2] if len(words) > 1 else ""
            if name in SKIPPED:
                continue
            if "experts" in words:
                number = int(words[words.index("experts") + 1])
                if rank * experts // world <= number < (rank + 1) * experts // world:
                    held[name] = tensor
            elif module in (*ROWS, "attn_sink") or module in COLUMNS:
                held[name] = tensor.chunk(world, int(module in COLUMNS))[rank].contiguous()
            else:
                held[name] = tensor
        for name in [name for name in held if name.endswith(".weight")]:
            scale = name.removesuffix("weight") + "scale"
            if ".wo_a." in name:
                blocks = held.pop(scale).float().repeat_interleave(128, 0).repeat_interleave(128, 1)
                held[name] = (held[name].float() * blocks).bfloat16()
            elif held[name].dtype == torch.int8:
                held[name], held[scale] = of_expert(Expert(held[name], held[scale]))
        yield held


CASES = [("v4-flash", 1), ("v4-flash", 4), ("v4-flash-base", 2), ("v4-flash-0731", 4), ("v4-pro", 2)]


@pytest.mark.parametrize(("release", "world"), [*CASES, ("v4-flash-vision-exp", 2)])
def test_files_are_those_of_the_published_rules_byte_for_byte(
    release: str, world: int, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, release, **SIZES)
    out = tmp_path / "out"
    made("shard", source, out, "--layout", "deepseek", "--tp", world)
    assert len(list(out.glob("*.safetensors"))) == world
    for rank, held in enumerate(restated(source, world, Expert.as_it_is)):
        name = f"model{rank}-mp{world}.safetensors"
        save_file(held, tmp_path / name)
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    for path in source.glob("*token*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    audit = json.loads((out / "dsctl.json").read_text())
    decoded = audit["audit"]["dequantized"]
    assert f"layout deepseek holds {decoded} parameters decoded, as BF16" in audit["notes"]
    assert {name for name, _ in audit["dropped"]} == ({*SKIPPED} if release == "v4-flash-base" else set())
    said = call("verify", out, "--ignore", "odd-dtype")
    assert said.returncode == 0, said.stdout


def test_experts_in_eight_bits_are_those_of_the_published_recast(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """But for the signs of zeros, which dsctl keeps."""
    source = tiny(tmp_path_factory, "v4-flash", **SIZES)
    made("convert", source, tmp_path / "fp8", "--fp8")
    made("shard", tmp_path / "fp8", tmp_path / "out", "--layout", "deepseek", "--tp", 2)
    signs = 0
    for rank, wanted in enumerate(restated(source, 2, Expert.in_eight_bits)):
        found = load_file(tmp_path / "out" / f"model{rank}-mp2.safetensors")
        assert {name: (one.dtype, one.shape) for name, one in found.items()} == {
            name: (one.dtype, one.shape) for name, one in wanted.items()
        }
        for name, tensor in wanted.items():
            ours, theirs = (one.contiguous().view(torch.uint8).flatten() for one in (found[name], tensor))
            other = (ours != theirs).nonzero().flatten()
            assert not len(other) or (tensor.dtype == torch.float8_e4m3fn and ".experts." in name)
            assert (ours[other] == 0x80).all() and (theirs[other] == 0).all()
            signs += len(other)
    assert signs
    assert "expert_dtype" not in json.loads((tmp_path / "out" / CONFIG).read_text())


def contents(folder: Path) -> dict[str, bytes]:
    named = ("dsctl.json", "dsctl.intoto.json")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in named)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("release", ["v4-flash", "v4-flash-0731", "v4-flash-vision-exp", "v4-pro"])
def test_merge_gives_the_published_files_back(
    release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, release, **SIZES)
    made("shard", source, tmp_path / "two", "--layout", "deepseek", "--tp", 2)
    said = made("merge", tmp_path / "two", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)
    assert " blocks with their kept scale" in said and "new scale" not in said


def test_ranks_of_one_kind_become_those_of_another_and_back(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, "v4-flash", **SIZES)
    way = [("--tp", 4), ("--layout", "deepseek", "--tp", 2), ("--layout", "deepseek", "--tp", 4), ("--tp", 2)]
    last = source
    for number, words in enumerate(way):
        made("shard", last, tmp_path / str(number), *words)
        last = tmp_path / str(number)
    made("merge", last, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


def test_an_embedding_and_a_head_of_the_drafter_are_told_to_be_gone(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, "v4-flash-base", **SIZES)
    said = made("shard", source, tmp_path / "two", "--layout", "deepseek", "--tp", 2)
    assert "left out: 2 parameters (no place in layout deepseek)" in said
    said = made("merge", tmp_path / "two", tmp_path / "back")
    assert f"the whole checkpoint had 2 more tensors, which these ranks lack: {', '.join(SKIPPED)}" in said
    before, after = tensors(source), tensors(tmp_path / "back")
    assert before.keys() - after.keys() == {*SKIPPED}
    assert all(torch.equal(one.view(torch.uint8), before[name].view(torch.uint8)) for name, one in after.items())


def test_files_of_the_published_rules_are_merged(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """What the script leaves, with a config.json beside it, is a checkpoint like any other."""
    source, foreign = tiny(tmp_path_factory, "v4-flash", **SIZES), tmp_path / "foreign"
    foreign.mkdir()
    for rank, held in enumerate(restated(source, 2, Expert.as_it_is)):
        save_file(held, foreign / f"model{rank}-mp2.safetensors")
    (foreign / "config.json").write_bytes((source / "config.json").read_bytes())
    said = made("merge", foreign, tmp_path / "plain")
    assert "5 parameters stay BF16, as in layout deepseek: without whole.dsctl their scales are lost" in said
    made("merge", foreign, tmp_path / "back", "--to", "published")
    before, after = tensors(source), tensors(tmp_path / "back")
    assert {name: (one.dtype, one.shape) for name, one in after.items()} == {
        name: (one.dtype, one.shape) for name, one in before.items()
    }
    other = [
        name for name, one in after.items() if not torch.equal(one.view(torch.uint8), before[name].view(torch.uint8))
    ]
    assert all(".wo_a." in name for name in other)


FLASH = {
    "vocab_size": 129280, "dim": 4096, "moe_inter_dim": 2048, "n_layers": 43, "n_hash_layers": 3, "n_heads": 64,
    "n_routed_experts": 256, "n_shared_experts": 1, "n_activated_experts": 6, "score_func": "sqrtsoftplus",
    "route_scale": 1.5, "swiglu_limit": 10.0, "q_lora_rank": 1024, "head_dim": 512, "rope_head_dim": 64, "o_groups": 8,
    "o_lora_rank": 1024, "window_size": 128, "original_seq_len": 65536, "rope_theta": 10000, "rope_factor": 16,
    "beta_fast": 32, "beta_slow": 1, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512, "hc_mult": 4,
    "hc_sinkhorn_iters": 20, "dtype": "fp8", "scale_fmt": "ue8m0", "expert_dtype": "fp4", "compress_rope_theta": 160000,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
}  # fmt: skip
LATER = {
    "n_mtp_layers": 3, "dspark_block_size": 5, "dspark_noise_token_id": 128799, "dspark_target_layer_ids": [40, 41, 42],
    "dspark_markov_rank": 256, "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0, 0, 0],
}  # fmt: skip


@pytest.mark.parametrize(("release", "published"), [("v4-flash", FLASH), ("v4-flash-0731", FLASH | LATER)])
def test_the_inference_config_is_the_published_one(release: str, published: dict[str, object]) -> None:
    known = releases.known(release)
    assert known is not None
    assert native_config(known.config) == published


def test_what_the_published_config_leaves_to_defaults_is_said_where_it_differs() -> None:
    known = releases.known("v4-flash")
    assert known is not None
    other = known.config | {"rms_norm_eps": 1e-20, "compress_ratios": FLASH["compress_ratios"][:-1]}
    del other["quantization_config"], other["expert_dtype"]
    found = native_config(other)
    assert (found["norm_eps"], found["n_mtp_layers"], found["dtype"]) == (1e-20, 0, "bf16")
    assert not {"scale_fmt", "expert_dtype", "hc_eps"} & found.keys()


@pytest.mark.parametrize(
    ("release", "world", "why"),
    [
        ("v4-flash", 16, "layers.{layer}.attn.wo_a.weight: 8,192 into 16 parts: 8 output groups / 16"),
        ("v4-pro", 32, "layers.{layer}.attn.attn_sink: 128 into 32 parts: 16 output groups / 32"),
    ],
)
def test_output_groups_are_never_cut(release: str, world: int, why: str, tmp_path: Path) -> None:
    said = call("shard", release, tmp_path / "out", "--layout", "deepseek", "--tp", world, "--dry-run")
    assert said.returncode == 30 and why in said.stderr, said.stderr


def test_a_release_is_planned_by_its_description(tmp_path: Path) -> None:
    said = dsctl("shard", "v4-pro", tmp_path / "out", "--layout", "deepseek", "--tp", 16, "--dry-run")
    assert "converted" in said and "16 ranks" in said
