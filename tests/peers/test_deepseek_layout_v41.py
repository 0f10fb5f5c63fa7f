"""DeepSeek's inference layout of V4.1 against a restatement of its published rules, written by safetensors itself.

deepseek-ai/DeepSeek-V4.1-Flash, inference/convert.py: what is cut and along which dimension, how the rows of n-gram
tables are shared, what is decoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsctl import releases
from dsctl.core.config_fields import text_fields
from dsctl.layouts.native_config import native_config
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import tensors

SIZES = {"hidden": 128, "vocab": 512, "moe_intermediate": 128}
# Modules whose weight, and its scale, is cut, by the last words of their names; the drafter's two heads among them.
ROWS = ("embed", "head", "wq_b", "wo_a", "weights_proj", "attn_sink")
COLUMNS = ("wo_b",)
Tensors = dict[str, torch.Tensor]


def made(*words: object) -> str:
    return dsctl(*words, "--workers", 1)


def padded(name: str, table: torch.Tensor, world: int, rank: int) -> torch.Tensor:
    """A rank's rows of a table: equal numbers, with zeros, or a scale of 1, after the last row."""
    each = -(-len(table) // world)
    raw = table.view(torch.uint8)
    rows = raw[rank * each : (rank + 1) * each]
    fill = torch.full((each - len(rows), raw.shape[1]), 127 if name.endswith(".scale") else 0, dtype=torch.uint8)
    return torch.cat((rows, fill)).view(table.dtype)


def restated(source: Path, world: int) -> Iterator[Tensors]:
    """What every rank holds, by the rules."""
    stored, config = tensors(source), json.loads((source / "config.json").read_text())["text_config"]
    for rank in range(world):
        held: Tensors = {}
        for name, tensor in stored.items():
            words = name.split(".")
            module = words[-1] if words[-1] == "attn_sink" else words[-2] if len(words) > 1 else ""
            if "experts" in words:
                experts = config["dspark_n_routed_experts" if words[0] == "mtp" else "n_routed_experts"]
                number = int(words[words.index("experts") + 1])
                if rank * experts // world <= number < (rank + 1) * experts // world:
                    held[name] = tensor.view(torch.float4_e2m1fn_x2) if tensor.dtype == torch.int8 else tensor
            elif "engram" in words and module == "embed":
                held[name] = padded(name, tensor, world, rank)
            elif words[0] != "vision" and (module in ROWS or module in COLUMNS):
                held[name] = tensor.chunk(world, int(module in COLUMNS))[rank].contiguous()
            else:
                held[name] = tensor
        for name in [name for name in held if ".wo_a.weight" in name]:
            blocks = held.pop(name.removesuffix("weight") + "scale").float()
            blocks = blocks.repeat_interleave(32, 0).repeat_interleave(32, 1)
            held[name] = (held[name].float() * blocks).bfloat16()
        yield held


def contents(folder: Path) -> dict[str, bytes]:
    named = ("dsctl.json", "dsctl.intoto.json")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in named)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_files_are_those_of_the_published_rules_and_come_back(
    world: int, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, "v4.1-flash", **SIZES)
    config = json.loads((source / "config.json").read_text())["text_config"]
    assert world < 4 or any(rows % world for rows in config["engram_num_embeddings"]), "no table needs padding"
    out = tmp_path / "out"
    made("shard", source, out, "--layout", "deepseek", "--tp", world)
    assert len(list(out.glob("*.safetensors"))) == world
    for rank, held in enumerate(restated(source, world)):
        name = f"model{rank}-mp{world}.safetensors"
        save_file(held, tmp_path / name)
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    said = call("verify", out, "--deep", "--ignore", "odd-dtype")
    assert said.returncode == 0, said.stdout
    made("merge", out, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


def test_files_of_the_published_rules_are_merged(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """What the script leaves, with a config.json beside it, is a checkpoint like any other."""
    source, foreign = tiny(tmp_path_factory, "v4.1-flash", **SIZES), tmp_path / "foreign"
    foreign.mkdir()
    for rank, held in enumerate(restated(source, 4)):
        save_file(held, foreign / f"model{rank}-mp4.safetensors")
    (foreign / "config.json").write_bytes((source / "config.json").read_bytes())
    made("merge", foreign, tmp_path / "back", "--to", "published")
    before, after = tensors(source), tensors(tmp_path / "back")
    assert {name: (one.dtype, one.shape) for name, one in after.items()} == {
        name: (one.dtype, one.shape) for name, one in before.items()
    }
    other = {
        name for name, one in after.items() if not torch.equal(one.view(torch.uint8), before[name].view(torch.uint8))
    }
    assert all(".wo_a." in name for name in other)


def test_more_ranks_than_rows_are_refused(tmp_path: Path) -> None:
    said = call("shard", "v4.1-flash", tmp_path / "out", "--layout", "deepseek", "--tp", 16, "--dry-run")
    assert said.returncode == 30 and "8 output groups / 16" in said.stderr, said.stderr
    said = call("shard", "v4.1-flash", tmp_path / "out", "--layout", "deepseek", "--tp", 8, "--dry-run")
    assert said.returncode == 0, said.stderr


def test_the_inference_config_has_no_nested_fields() -> None:
    known = releases.known("v4.1-flash")
    assert known is not None
    found = native_config(text_fields(known.config))
    wanted = {
        "dim": 5120, "n_layers": 40, "n_mtp_layers": 3, "n_heads": 64, "norm_eps": 1e-20, "moe_inter_dim": 2304,
        "kv_source_layers": [2, 8, 14, 20], "index_source_layers": [2, 8, 14, 20, 24, 28, 32, 36],
        "candidate_source_layer": 20, "candidate_topk_blocks": 2048, "candidate_block_size": 8,
        "engram_pad_id": 2, "engram_num_embeddings": [384006168, 384016682], "dspark_n_routed_experts": 128,
        "dspark_n_activated_experts": 3, "vision_n_layers": 32, "vision_inter_dim": 2816, "vision_max_n_token": 1024,
        "vision_max_wh_ratio": None, "image_token_id": 129264, "dtype": "fp8", "scale_fmt": "ue8m0",
        "expert_dtype": "fp4", "original_seq_len": 65536, "rope_factor": 16, "compress_rope_theta": 160000,
    }  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted
