"""`dsctl convert` from end to end: what the output holds, bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from tests.support import trees
from tests.support.checkpoints import smaller
from tests.support.command import dsctl, dsctl_fails

INDEX = "model.safetensors.index.json"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    files = {file: load_file(folder / file) for file in sorted(set(index.values()))}
    return {name: files[file][name] for name, file in index.items()}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def formula(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The textbook: every code times its block's scale, in float32, rounded once."""
    rows, columns = codes.shape
    full = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return (codes.float() * full).to(torch.bfloat16)


@pytest.fixture(scope="module", params=["v3", "v3.2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def bf16(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bf16") / "out"
    dsctl("convert", source, target, "--bf16")
    return target


def test_every_value_is_the_formula_s(source: Path, bf16: Path) -> None:
    before, after = tensors(source), tensors(bf16)
    decoded = 0
    for name, tensor in before.items():
        if name.endswith("_scale_inv"):
            assert name not in after
        elif tensor.dtype == torch.float8_e4m3fn:
            assert torch.equal(after[name], formula(tensor, before[name + "_scale_inv"])), name
            decoded += 1
        else:
            assert torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype, name
    assert decoded > 50


def test_the_folder_is_complete_and_says_what_it_is(source: Path, bf16: Path) -> None:
    config = json.loads((bf16 / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"
    carried = {path.name for path in source.iterdir() if path.suffix != ".safetensors"} - {INDEX, "config.json"}
    for name in carried:
        assert (bf16 / name).read_bytes() == (source / name).read_bytes()
    index = json.loads((bf16 / INDEX).read_text())
    found = tensors(bf16)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in found.values())
    assert set(index["weight_map"]) == set(found)
    assert not list(bf16.glob("*.part")) and not (bf16 / ".dsctl").exists()


def test_the_audit_counts_everything_and_its_digests_are_the_files(source: Path, bf16: Path) -> None:
    signed = json.loads((bf16 / "dsctl.json").read_text())
    audit, before = signed["audit"], tensors(source)
    quantized = sum(tensor.dtype == torch.float8_e4m3fn for tensor in before.values())
    assert audit["dequantized"] == quantized
    assert audit["moved"] == len(before) - 2 * quantized
    assert audit["parameters"] == len(before) - quantized
    assert audit["unexplained"] == audit["dropped"] == 0
    assert set(signed["files"]) == {path.name for path in bf16.iterdir()} - {"dsctl.json"}
    for name, file in signed["files"].items():
        data = (bf16 / name).read_bytes()
        if "tree" in file:
            assert file == trees.entry(bf16 / name), name
        else:
            assert file == {"size": len(data), "blake3": blake3(data).hexdigest()}, name


@pytest.mark.parametrize("workers", [1, 2])
def test_the_way_back_gives_identical_shards(source: Path, bf16: Path, tmp_path: Path, workers: int) -> None:
    dsctl("convert", bf16, tmp_path / "back", "--fp8", "--workers", workers)
    assert digests(tmp_path / "back") == digests(source)
    for name in ("config.json", INDEX):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    audit = json.loads((tmp_path / "back" / "dsctl.json").read_text())["audit"]
    assert audit["blocks_restored"] > 0 and "blocks_computed" not in audit


def test_headers_are_those_of_save_file(bf16: Path, tmp_path: Path) -> None:
    for path in bf16.glob("*.safetensors"):
        save_file(load_file(path), tmp_path / path.name, metadata={"format": "pt"})
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_without_kept_scales_the_recipe_is_followed(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--no-keep-scales")
    assert not (tmp_path / "bf16" / "original.dsctl").exists()
    for fmt in ("float32", "ue8m0"):
        dsctl("convert", tmp_path / "bf16", tmp_path / fmt, "--fp8", "--scale-fmt", fmt)
        values, stored = tensors(tmp_path / "bf16"), tensors(tmp_path / fmt)
        for name in (name for name in stored if name + "_scale_inv" in stored):
            codes, scales = recipe(values[name], fmt == "ue8m0")
            assert torch.equal(stored[name + "_scale_inv"], scales), name
            assert torch.equal(stored[name].view(torch.uint8), codes.view(torch.uint8)), name
        config = json.loads((tmp_path / fmt / "config.json").read_text())["quantization_config"]
        assert config["weight_block_size"] == [128, 128] and config["quant_method"] == "fp8"
        assert config.get("scale_fmt") == ("ue8m0" if fmt == "ue8m0" else None)


def recipe(values: torch.Tensor, power_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales of DeepGEMM's per_block_cast_to_fp8, the codes of DeepSeek's act_quant, which divides; plain torch."""
    rows, columns = values.shape
    padded = torch.zeros(-(-rows // 128) * 128, -(-columns // 128) * 128)
    padded[:rows, :columns] = values.float()
    blocks = padded.view(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
    scales = blocks.abs().amax((1, 3)).clamp(1e-4) / 448
    if power_of_two:
        scales = torch.pow(2.0, torch.ceil(torch.log2(scales)))
    full = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return (values.float() / full).clamp(-448, 448).to(torch.float8_e4m3fn), scales


def test_changed_weights_are_encoded_anew_and_the_rest_is_kept(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = smaller(tmp_path_factory, "v3.2")
    dsctl("convert", source, tmp_path / "bf16", "--bf16")
    name = "model.layers.0.mlp.gate_proj.weight"
    file = tmp_path / "bf16" / json.loads((tmp_path / "bf16" / INDEX).read_text())["weight_map"][name]
    held = load_file(file)
    held[name][3, 5] = 0.123
    save_file(held, file, metadata={"format": "pt"})
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--fp8")
    audit = json.loads((tmp_path / "back" / "dsctl.json").read_text())["audit"]
    assert audit["blocks_computed"] == 1
    before, after = tensors(source), tensors(tmp_path / "back")
    different = [key for key in before if not torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8))]
    assert set(different) <= {name, name + "_scale_inv"} and name in different
    codes, scales = recipe(held[name], True)
    assert torch.equal(after[name][:128, :128].view(torch.uint8), codes[:128, :128].view(torch.uint8))
    assert after[name + "_scale_inv"][0, 0] == scales[0, 0]


@pytest.mark.parametrize("to", ["f16", "f32"])
def test_other_floats(source: Path, tmp_path: Path, to: str) -> None:
    dsctl("convert", source, tmp_path / to, "--to", to)
    before, after = tensors(source), tensors(tmp_path / to)
    dtype = {"f16": torch.float16, "f32": torch.float32}[to]
    for name, tensor in after.items():
        native = before[name]
        if native.dtype == torch.float8_e4m3fn:
            rows, columns = native.shape
            scale = before[name + "_scale_inv"]
            full = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
            native = native.float() * full
        wanted = native if before[name].dtype == torch.float32 else native.to(dtype)
        assert torch.equal(tensor, wanted), name
    assert (
        json.loads((tmp_path / to / "config.json").read_text())["torch_dtype"]
        == {"f16": "float16", "f32": "float32"}[to]
    )


def test_parts_of_a_model(source: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "some", "--bf16", "--only", "model.layers.1.*", "--skip", "*experts*")
    names = set(tensors(tmp_path / "some"))
    assert names and all(name.startswith("model.layers.1.") and "experts" not in name for name in names)
    dsctl("convert", source, tmp_path / "short", "--bf16", "--no-mtp")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0
    last = config["num_hidden_layers"]
    assert not any(name.startswith(f"model.layers.{last}.") for name in tensors(tmp_path / "short"))
    assert dsctl_fails("convert", source, tmp_path / "none", "--bf16", "--only", "nothing*") == 30
    assert not (tmp_path / "none").exists()


def test_regrouping_changes_files_only(source: Path, bf16: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "grouped", "--bf16", "--shard-size", "4MB")
    one, two = tensors(bf16), tensors(tmp_path / "grouped")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    files = sorted(path.name for path in (tmp_path / "grouped").glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):06d}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 3


def test_a_dry_run_writes_nothing_and_tells_the_sizes(source: Path, bf16: Path, tmp_path: Path) -> None:
    said = json.loads(dsctl("convert", source, tmp_path / "out", "--bf16", "--dry-run", "--json"))
    assert not (tmp_path / "out").exists()
    assert said["bytes_out"] == sum(p.stat().st_size for p in bf16.iterdir() if not p.name.startswith("dsctl."))
    assert said["files"] == {p.name: p.stat().st_size for p in bf16.iterdir() if p.name in said["files"]}


@pytest.mark.parametrize("target", [".", "inside", ".."])
def test_source_and_target_must_be_apart(source: Path, tmp_path: Path, target: str) -> None:
    copy = tmp_path / "outer" / "copy"
    shutil.copytree(source, copy)
    before = digests(copy)
    assert dsctl_fails("convert", copy, copy / target, "--bf16") == 30
    assert digests(copy) == before and not (copy / "inside").exists()


def test_a_foreign_folder_and_another_request_are_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    assert dsctl_fails("convert", source, tmp_path / "mine", "--bf16") == 30
    assert dsctl_fails("convert", source, tmp_path / "mine", "--bf16", "--force") == 30
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    dsctl("convert", source, tmp_path / "out", "--bf16", "--only", "model.norm.weight")
    assert dsctl_fails("convert", source, tmp_path / "out", "--bf16", "--only", "lm_head.weight") == 40
    dsctl("convert", source, tmp_path / "out", "--bf16", "--only", "lm_head.weight", "--force")
    assert set(tensors(tmp_path / "out")) == {"lm_head.weight"}


@pytest.mark.parametrize("release", ["r1", "v3.1", "kimi-k2", "glm-5-fp8"])
def test_there_and_back_for_other_releases(
    release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = smaller(tmp_path_factory, release)
    dsctl("convert", source, tmp_path / "bf16", "--bf16")
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--fp8")
    assert digests(tmp_path / "back") == digests(source)
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()
