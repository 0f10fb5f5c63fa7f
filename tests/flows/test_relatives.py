"""Relatives of DeepSeek's releases: published totals, stored forms, and what only the tensors of some of them show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.header import TensorSpec, build, parse
from dsctl.core.params import PLAIN_TRAITS, Traits
from dsctl.look.source import describe
from dsctl.models import MODELS, recognise
from dsctl.models.deepseek_v3_traits import BIAS, ROTARY
from dsctl.models.kimi_k2 import declares_int4_experts
from dsctl.releases import find
from dsctl.stores import store_at
from tests.support.command import call, dsctl

# Tensors, bytes of tensors and files: from indexes, listings and audits of headers, as RELEASE.sources say.
TOTALS = {
    "glm-5.1-fp8": (119_028, 756_162_687_872, 142),
    "glm-5.2-fp8": (118_629, 755_617_140_416, 141),
    "glm-5.3": (118_629, 755_617_140_416, 141),
    "kimi-k2-0905": (139_644, 1_029_173_265_504, 62),
    "kimi-k2-thinking": (208_276, 594_205_920_512, 62),
    "moonlight": (5_344, 31_920_223_872, 27),
}
# Values of weights, without scales and words.
VALUES = {
    "kimi-k2-0905": 1_026_408_232_448 + 61 * 64,
    "kimi-k2-thinking": 1_026_408_232_448 + 61 * 64,
    "moonlight": 15_960_111_936,
    "r1t2-chimera": 684_489_845_504,
    "mai-ds-r1": 671_026_419_200,
    "joyai-llm-flash": 50_720_022_528,
}
# The parent of each relative whose parameters have the same names and shapes.
PARENTS = {
    "glm-5.1-fp8": "glm-5.1", "glm-5.2-fp8": "glm-5.2", "glm-5.3": "glm-5.2", "glm-5.3-bf16": "glm-5.2",
    "kimi-k2-0905": "kimi-k2", "kimi-k2-base": "kimi-k2", "kimi-k2-thinking": "kimi-k2", "r1t-chimera": "r1",
    "r1t2-chimera": "r1", "prover-v2": "v3", "math-v2": "v3.2", "v3.2-exp-base": "v3.2-exp", "v2-chat": "v2",
    "v2-chat-0628": "v2", "v2.5-1210": "v2.5", "coder-v2": "v2", "coder-v2-base": "v2", "coder-v2-lite": "v2-lite",
    "coder-v2-lite-base": "v2-lite", "moonlight-instruct": "moonlight",
}  # fmt: skip
ROUND_TRIPS = ("glm-5.2-fp8", "kimi-k2-0905", "r1t2-chimera", "math-v2", "moonlight", "v2-chat")
INT4: dict[str, Any] = find("kimi-k2-thinking").config["quantization_config"]


def tiny(alias: str, folder: Path) -> Path:
    dsctl("tiny", alias, folder, "--layers", 2, "--experts", 4)
    return folder


def same(one: Path, other: Path, *files: str) -> bool:
    names = files or [file.name for file in one.iterdir() if file.suffix in (".safetensors", ".json")]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names if name != "dsctl.json")


@pytest.mark.parametrize("alias", TOTALS)
def test_totals_are_the_published_ones(alias: str) -> None:
    described = describe(alias)
    assert (described.tensors, described.nbytes, described.files) == TOTALS[alias]
    release = find(alias)
    assert (release.storage.stored_tensors, release.storage.total_size, release.storage.files) == TOTALS[alias]


@pytest.mark.parametrize("alias", VALUES)
def test_values_are_the_published_ones(alias: str) -> None:
    assert describe(alias).values == VALUES[alias]


@pytest.mark.parametrize("alias", PARENTS)
def test_a_relative_has_the_parameters_of_its_parent(alias: str) -> None:
    names = {release.name for release in describe(alias).alike}
    assert {find(alias).name, find(PARENTS[alias]).name} <= names


def test_a_diff_says_that_the_shape_of_the_buffer_was_not_read() -> None:
    for sides in (("kimi-k2", "kimi-k2-0905"), ("v3", "moonlight")):
        told = " ".join(dsctl("diff", *sides).split())
        assert "the bytes of rotary_emb.inv_freq are known; its dtype and shape were not read" in told
    assert "were not read" not in dsctl("diff", "v3", "kimi-k2")


@pytest.mark.parametrize("alias", ["mai-ds-r1", "r1-1776"])
def test_two_models_of_r1_have_no_mtp_layer(alias: str) -> None:
    described = describe(alias)
    assert described.draft_layers == 0 and described.parameters == 45_395


def test_joyai_is_recognised_by_its_architecture(tmp_path: Path) -> None:
    release = find("joyai-llm-flash")
    assert release.config["model_type"] == "joyai_llm_flash" and recognise(release.config).name == "deepseek_v3"
    assert describe("joyai-llm-flash").parameters == 31_301
    assert "no problems found" in dsctl(
        "verify", tiny("joyai-llm-flash", tmp_path / "joyai"), "--ignore", "missing-code"
    )


@pytest.mark.parametrize("alias", ROUND_TRIPS)
def test_the_way_to_bf16_and_back_gives_the_same_files(alias: str, tmp_path: Path) -> None:
    first = tiny(alias, tmp_path / "first")
    dsctl("verify", first)
    dsctl("convert", first, tmp_path / "bf16", "--bf16")
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published")
    assert same(first, tmp_path / "back")


def test_kimi_thinking_stores_int4_experts_and_nothing_else(tmp_path: Path) -> None:
    first = tiny("kimi-k2-thinking", tmp_path / "first")
    dsctl("verify", first, "--deep")
    specs = open_checkpoint(store_at(str(first))).specs
    expert = "model.layers.1.mlp.experts.0.down_proj"
    assert specs[f"{expert}.weight_packed"] == TensorSpec("I32", (512, 32))
    assert specs[f"{expert}.weight_scale"] == TensorSpec("BF16", (512, 8))
    assert specs[f"{expert}.weight_shape"] == TensorSpec("I32", (2,))
    assert specs[ROTARY.format(layer=0)] == TensorSpec("F32", (64,))
    others = {spec.dtype for name, spec in specs.items() if ".experts." not in name and ".rotary_emb." not in name}
    assert others == {"BF16", "F32"}


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_the_way_back_to_int4_gives_the_same_files(tmp_path: Path, dtype: str) -> None:
    first = tiny("kimi-k2-thinking", tmp_path / "first")
    dsctl("convert", first, tmp_path / "plain", "--to", dtype)
    said = dsctl("convert", tmp_path / "plain", tmp_path / "back", "--to", "published")
    assert "int4-group-32: original scales are reused if they still fit" in " ".join(said.split())
    assert same(first, tmp_path / "back")
    audit = json.loads((tmp_path / "back" / "dsctl.json").read_text())["audit"]
    assert audit["groups_restored"] > 0 and "groups_computed" not in audit


def test_int4_without_kept_scales_says_that_codes_are_new(tmp_path: Path) -> None:
    """A side file that an earlier version wrote has headers and texts alone."""
    first = tiny("kimi-k2-thinking", tmp_path / "first")
    dsctl("convert", first, tmp_path / "bf16", "--bf16")
    assert json.loads(dsctl("compare", first, tmp_path / "bf16", "--json"))["total"]["identical"]
    side = tmp_path / "bf16" / "original.dsctl"
    save_file({name: one for name, one in load_file(side).items() if not name.endswith("_scale")}, side)
    said = dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published")
    assert "int4-group-32: no scales were kept, so every group gets a new one" in " ".join(said.split())
    assert same(first, tmp_path / "back", "config.json", "model.safetensors.index.json")
    checkpoints = [open_checkpoint(store_at(str(folder))) for folder in (first, tmp_path / "back")]
    assert checkpoints[0].specs == checkpoints[1].specs
    dsctl("verify", tmp_path / "back", "--deep")
    dsctl("convert", tmp_path / "back", tmp_path / "again", "--bf16")
    compared = json.loads(dsctl("compare", tmp_path / "bf16", tmp_path / "again", "--json"))
    assert 20 < compared["roles"]["routed experts"]["snr_db"] < 40


def test_int4_in_its_published_form_is_copied(tmp_path: Path) -> None:
    first = tiny("kimi-k2-thinking", tmp_path / "first")
    dsctl("convert", first, tmp_path / "copy", "--to", "published")
    assert same(first, tmp_path / "copy", *(file.name for file in first.glob("*.safetensors*")))
    dsctl("verify", tmp_path / "copy", "--deep")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({}, True),
        ({"ignore": ["lm_head"]}, False),
        ({"ignore": None}, False),
        ({"quant_method": "fp8"}, False),
        ({"config_groups": {}}, False),
        ({"config_groups": []}, False),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, False),
        ({"config_groups": {"group_0": {}}}, False),
        ({"config_groups": {"group_0": None}}, False),
    ],
)
def test_kimi_s_form_is_what_the_config_declares(edit: dict[str, Any], expected: bool) -> None:
    assert declares_int4_experts(INT4 | edit) == expected
    config = find("kimi-k2-thinking").config | {"quantization_config": INT4 | edit}
    published = MODELS["kimi_k2"].published(config)
    assert {form.format for form in published.values()} == {"int4-group-32" if expected else "fp8-block"}
    assert not declares_int4_experts(None)


@pytest.mark.parametrize(
    ("model", "stored", "traits"),
    [
        ("deepseek_v3", {}, PLAIN_TRAITS),
        ("deepseek_v3", {BIAS: ("BF16", (64,))}, PLAIN_TRAITS),
        ("deepseek_v3", {ROTARY: ("F32", (64,))}, Traits(rotary=TensorSpec("F32", (64,)))),
        ("deepseek_v3", {ROTARY: ("BF16", (64,)), BIAS: ("F32", (64,))}, Traits(rotary=TensorSpec("BF16", (64,)))),
        (
            "deepseek_v3",
            {ROTARY: ("BF16", (64,)), BIAS: ("BF16", (64,))},
            Traits(rotary=TensorSpec("BF16", (64,)), bias="BF16"),
        ),
        (
            "deepseek_v3",
            {ROTARY: ("F32", (32,)), BIAS: ("BF16", (64,))},
            Traits(rotary=TensorSpec("F32", (32,)), bias="BF16"),
        ),
        ("kimi_k2", {ROTARY: ("BF16", (56,)), BIAS: ("BF16", (64,))}, Traits(rotary=TensorSpec("BF16", (56,)))),
        ("kimi_k2", {ROTARY: ("I64", (56,))}, PLAIN_TRAITS),
        ("kimi_k2", {ROTARY: ("BF16", (2, 56))}, PLAIN_TRAITS),
        ("kimi_k2", {ROTARY: ("BF16", (1 << 20,))}, PLAIN_TRAITS),
    ],
)
def test_tensors_show_the_buffer_and_the_biases(
    model: str, stored: dict[str, tuple[str, tuple[int, ...]]], traits: Traits
) -> None:
    specs = {name.format(layer=1): TensorSpec(*spec) for name, spec in stored.items()}
    assert MODELS[model].traits({"num_hidden_layers": 3}, specs) == traits
    assert MODELS[model].traits({"num_hidden_layers": "3"}, specs) == PLAIN_TRAITS
    assert MODELS[model].traits({"num_hidden_layers": 10**9}, specs) == PLAIN_TRAITS


@pytest.mark.parametrize("spec", [TensorSpec("F32", (64,)), TensorSpec("BF16", (128,)), TensorSpec("F16", (36,))])
@pytest.mark.parametrize("alias", ["kimi-k2-0905", "moonlight"])
def test_the_buffer_of_the_headers_is_accepted_whatever_its_size(alias: str, spec: TensorSpec, tmp_path: Path) -> None:
    """Of some releases only the bytes of the buffer are known: a description may have a wrong shape."""
    folder = tiny(alias, tmp_path / alias)
    for file in folder.glob("*.safetensors"):
        _with_buffer(file, spec)
    index = folder / "model.safetensors.index.json"
    text = json.loads(index.read_text())
    text["metadata"]["total_size"] = open_checkpoint(store_at(str(folder))).nbytes
    index.write_text(json.dumps(text))
    dsctl("verify", folder)
    found = json.loads(call("verify", folder, "--against", alias, "--json").stdout)["findings"]
    assert {one["code"] for one in found} >= {"other-architecture", "other-storage"}
    assert not any("inv_freq" in one["where"] and "x [" in one["what"] for one in found)
    dsctl("convert", folder, tmp_path / "fp8", "--fp8")
    assert open_checkpoint(store_at(str(tmp_path / "fp8"))).specs[ROTARY.format(layer=1)].shape == spec.shape


def _with_buffer(file: Path, spec: TensorSpec) -> None:
    """Give every stored rotary buffer of a file another dtype and size, all ones."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = parse(raw[8 : 8 + length], file.name, len(raw))
    specs = {name: spec if "inv_freq" in name else ref.spec for name, ref in header.tensors.items()}
    made, begins = build(specs, {"format": "pt"})
    out = bytearray(len(made) + sum(one.nbytes for one in specs.values()))
    out[: len(made)] = made
    for name, ref in header.tensors.items():
        data = b"\x00\x3c" * (spec.nbytes // 2) if "inv_freq" in name else raw[ref.begin : ref.end]
        out[begins[name] : begins[name] + len(data)] = data
    file.write_bytes(out)


def test_moonlight_is_told_from_v3_by_its_tensors(tmp_path: Path) -> None:
    folder = tiny("moonlight", tmp_path / "moonlight")
    checkpoint = open_checkpoint(store_at(str(folder)))
    assert checkpoint.config is not None and checkpoint.config["model_type"] == "deepseek_v3"
    assert checkpoint.traits == find("moonlight").storage.traits
    assert {spec.dtype for spec in checkpoint.specs.values()} == {"BF16"}
    assert replace(checkpoint.traits, rotary=None, bias="") == PLAIN_TRAITS
    assert "no problems found" in dsctl("verify", folder, "--ignore", "missing-code")


def test_names_that_are_no_modules_do_not_trouble_the_real_config_of_glm_5_2_fp8(tmp_path: Path) -> None:
    """Its list has 541 entries in no order, and calls the indexer's weights_proj `indexers_proj`."""
    spared = find("glm-5.2-fp8").config["quantization_config"]["modules_to_not_convert"]
    assert len(spared) == 541 and spared != sorted(spared)
    assert sum(name.endswith("indexers_proj") for name in spared) == 22
    assert not any("weights_proj" in name for name in spared)
    folder = tiny("glm-5.2-fp8", tmp_path / "glm")
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["modules_to_not_convert"] == spared
    assert "no problems found" in dsctl("verify", folder, "--deep")
