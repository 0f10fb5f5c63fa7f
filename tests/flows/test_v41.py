"""DeepSeek V4.1 from end to end: blocks of 32x32, n-gram tables, nested configs; and back byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from dsctl.core.config_fields import value_at
from dsctl.models.deepseek_v41_tables import part_sizes, sizes_of
from dsctl.plan.recipes import ready
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import contents, tensors
from tests.support.unusual import Tensors, same_files, unusual

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
TABLES = ("layers.1.engram.embed.weight", "layers.2.engram.embed.weight")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return partial(unusual, tmp_path_factory, "v4.1-flash")


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def config(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


def decoded(held: Tensors, name: str) -> torch.Tensor:
    """What a stored matrix is worth, in float64, by the plain formula; the grid shows what shares a scale."""
    codes, scales = held[name], held[name.removesuffix("weight") + "scale"]
    if codes.dtype == torch.int8:
        pairs = codes.view(torch.uint8)
        values = E2M1[torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).long()]
    else:
        values = codes.float().double()
    rows, columns = (a // b for a, b in zip(values.shape, scales.shape, strict=True))
    return values * scales.float().double().repeat_interleave(rows, 0).repeat_interleave(columns, 1)


@pytest.mark.parametrize("way", ["--bf16", "--fp8", "--fp8 --scale-fmt float32", "--to f32", "--to f32 --workers 2"])
def test_the_way_back_gives_the_same_bytes(made: Callable[[], Path], way: str, tmp_path: Path) -> None:
    source = made()
    dsctl("convert", source, tmp_path / "there", *way.split())
    dsctl("convert", tmp_path / "there", tmp_path / "back", "--to", "published", "--workers", 1)
    same_files(source, tmp_path / "back")


def test_decoding_is_exact_and_leaves_what_is_not_quantized(made: Callable[[], Path], tmp_path: Path) -> None:
    source = made()
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    before, after = tensors(source), tensors(tmp_path / "bf16")
    scales = {name.removesuffix("weight") + "scale" for name in before if name.endswith(".weight")} & before.keys()
    assert after.keys() == before.keys() - scales and {*TABLES} <= after.keys()
    for name, tensor in after.items():
        if name.removesuffix("weight") + "scale" in scales and name.endswith("weight"):
            assert tensor.dtype == torch.bfloat16 and torch.equal(tensor.double(), decoded(before, name)), name
        else:
            assert tensor.dtype == before[name].dtype and raw(tensor) == raw(before[name]), name
    was, now = config(source), config(tmp_path / "bf16")
    assert "quantization_config" not in now
    assert (now["text_config"], now["vision_config"]) == (was["text_config"], was["vision_config"])


def test_experts_become_fp8_in_blocks_of_32_and_the_rest_is_moved(made: Callable[[], Path], tmp_path: Path) -> None:
    """DeepSeek's inference/convert.py for V4.1: a block's scale is its largest group's / 64."""
    source = made()
    dsctl("convert", source, tmp_path / "fp8", "--fp8", "--workers", 1)
    before, after = tensors(source), tensors(tmp_path / "fp8")
    assert after.keys() == before.keys()
    for name in (name for name in before if ".experts." in name and name.endswith("weight")):
        scale = name.removesuffix("weight") + "scale"
        blocks = before[scale].float().unflatten(0, (-1, 32)).amax(1) / 64
        assert torch.equal(after[scale].float(), blocks) and after[scale].dtype == torch.float8_e8m0fnu
        assert torch.equal(decoded(after, name), decoded(before, name)), name
    kept = {name for name in before if ".experts." not in name}
    assert all(raw(after[name]) == raw(before[name]) for name in kept)
    said = config(tmp_path / "fp8")["quantization_config"]
    assert said == config(source)["quantization_config"] | {"expert_dtype": "fp8", "fmt": "e4m3"}  # type: ignore[operator]


@pytest.mark.parametrize("release", ["v4-flash", "v4.1-flash"])
def test_fp8_of_decoded_experts_does_not_say_that_they_have_four_bits(
    release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """The kept config of the original is not that of these files, although both are FP8 in blocks otherwise."""
    source = tiny(tmp_path_factory, release)
    dsctl("convert", source, tmp_path / "bf16", "--bf16")
    dsctl("convert", tmp_path / "bf16", tmp_path / "fp8", "--fp8")
    said = config(tmp_path / "fp8")
    assert value_at(said, "expert_dtype") == "fp8" or value_at(said, "quantization_config.expert_dtype") == "fp8"
    assert "no problems found" in dsctl("verify", tmp_path / "fp8", "--deep")


@pytest.mark.parametrize(
    "to", ["--to int4-group", "--to mxfp8", "--recipe nvfp4-modelopt-experts", "--recipe int4-experts"]
)
def test_tables_stay_as_they_are_in_other_formats(made: Callable[[], Path], to: str, tmp_path: Path) -> None:
    source = made()
    dsctl("convert", source, tmp_path / "out", *to.split(), "--workers", 1)
    before, after = tensors(source), tensors(tmp_path / "out")
    for name in (*TABLES, *(table.removesuffix("weight") + "scale" for table in TABLES)):
        assert raw(after[name]) == raw(before[name])
    dsctl("verify", tmp_path / "out", "--deep")
    said = config(tmp_path / "out")["quantization_config"]
    assert not any("engram.embed" in text for text in said.get("ignore", ()))  # type: ignore[union-attr]
    if "nvfp4" in to:
        assert said["weight_block_size"] == [32, 32] and said["moe_quant_algo"] == "NVFP4"  # type: ignore[index]
        assert json.loads(dsctl("compare", source, tmp_path / "out", "--json"))["total"]["identical"] is True


@pytest.mark.parametrize("name", sorted(ready()))
def test_every_ready_recipe_runs_and_its_result_is_clean(made: Callable[[], Path], name: str, tmp_path: Path) -> None:
    dsctl("convert", made(), tmp_path / "out", "--recipe", name, "--workers", 1)
    dsctl("verify", tmp_path / "out", "--deep")


def test_a_table_alone_becomes_fp8_again_without_kept_scales(made: Callable[[], Path], tmp_path: Path) -> None:
    """Every row gets scales of its own: powers of two, one for every 32 columns."""
    source = made()
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--no-keep-scales", "--workers", 1)
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", 1)
    before, after = tensors(source), tensors(tmp_path / "back")
    for name in TABLES:
        scale = name.removesuffix("weight") + "scale"
        assert after[scale].shape == before[scale].shape and after[scale].dtype == torch.float8_e8m0fnu
        error = (decoded(after, name) - decoded(before, name)).abs().max()
        assert error <= decoded(before, name).abs().max() / 16


def test_a_slice_keeps_the_first_rows_of_every_part_of_a_table(
    made: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsctl.models.deepseek_v41_config.COMPACT", 20)
    source = made()
    said = dsctl("slice", source, tmp_path / "out", "--layers", "0-2,4", "--experts", "0,1,3", "--workers", 1)
    assert "2 n-gram tables hold only the first rows of each of its parts" in said
    before, after, now = tensors(source), tensors(tmp_path / "out"), config(tmp_path / "out")
    large, small = sizes_of(config(source)), sizes_of(now)
    assert large is not None and small == part_sizes(2, 6, 20)
    for table, name in enumerate(TABLES):
        old, wanted, begin = before[name].view(torch.uint8), [], 0
        for rows, kept in zip(large[table], small[table], strict=True):
            wanted.append(old[begin : begin + kept])
            begin += rows
        assert torch.equal(after[name].view(torch.uint8), torch.cat(wanted))
    text = now["text_config"]
    assert isinstance(text, dict)
    assert text["compress_ratios"] == [0, 0, 2, 1] and text["engram_vocab_size"] == 20
    assert (text["kv_source_layer_ids"], text["index_source_layer_ids"]) == ([2, 3], [2, 3])
    assert (text["candidate_source_layer_id"], text["num_nextn_predict_layers"]) == (3, 0)
    dsctl("verify", tmp_path / "out", "--deep")


def test_layers_that_share_a_cache_are_kept_with_its_owner(made: Callable[[], Path], tmp_path: Path) -> None:
    said = call("slice", made(), tmp_path / "out", "--layers", "0,1,3")
    assert said.returncode == 30
    assert "layer 3 uses what layer 2 computes" in said.stderr and "--layers must include 2 too" in said.stderr
    said = call("slice", made(), tmp_path / "out", "--layers", "0-2,mtp", "--experts", "2,3")
    assert said.returncode == 30 and "the drafter has the experts 0 to 1: 0 of them would be left" in said.stderr


def test_the_drafter_can_be_left_out(made: Callable[[], Path], tmp_path: Path) -> None:
    dsctl("convert", made(), tmp_path / "out", "--bf16", "--no-mtp", "--workers", 1)
    text = config(tmp_path / "out")["text_config"]
    assert isinstance(text, dict)
    assert text["num_nextn_predict_layers"] == 0 and not any(name.startswith("dspark_") for name in text)
    assert len(text["compress_ratios"]) == text["num_hidden_layers"]
    assert not any(name.startswith("mtp.") for name in tensors(tmp_path / "out"))
    dsctl("verify", tmp_path / "out")


def test_ranks_share_the_rows_of_a_table_and_come_back(made: Callable[[], Path], tmp_path: Path) -> None:
    source = made()
    dsctl("shard", source, tmp_path / "two", "--tp", 2, "--workers", 1)
    dsctl("merge", tmp_path / "two", tmp_path / "back", "--workers", 1)
    found = contents(tmp_path / "back")
    assert {name: found.get(name) for name in contents(source)} == contents(source)


@pytest.mark.parametrize("layout", ["transformers", "fused", "stacked", "vllm"])
def test_layouts_without_names_for_it_refuse(made: Callable[[], Path], layout: str, tmp_path: Path) -> None:
    words = ("shard", "--tp", "2") if layout == "vllm" else ("convert",)
    said = call(words[0], made(), tmp_path / "out", "--layout", layout, *words[1:], "--dry-run")
    assert said.returncode == 30 and said.stderr.startswith(f"error: layout {layout}"), said.stderr
