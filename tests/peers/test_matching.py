"""Loaders find in our `quantization_config` which of their modules are stored how, fused ones and experts included.

What a loader does is told here in a few lines each, read in its source: vLLM 0.32 (model_executor/layers/quantization:
fp8.py, utils/quant_utils.py, utils/config_utils.py, compressed_tensors/utils.py), SGLang 0.5.23 (srt/layers/
quantization: fp8.py, blockwise_int8.py, utils.py, compressed_tensors/utils.py). transformers and compressed-tensors
answer themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from compressed_tensors.utils.match import is_match
from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
from transformers.quantizers.quantizers_utils import should_convert_module

import dsctl
from dsctl.codecs.codec import Codec
from dsctl.core.params import Param
from dsctl.plan.recipes import ready
from tests.support.checkpoints import smaller
from tests.support.command import dsctl as command

Fused = Mapping[str, tuple[str, ...]]
GATE_UP = {"gate_up_proj": ("gate_proj", "up_proj")}
VLLM: Fused = GATE_UP | {"fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa")}
SGLANG: Fused = {"fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa")}
EXPERT = (".0.gate_proj", ".0.up_proj", ".0.down_proj")

EXPERTS_STAY = """
[[rule]]
role = "routed experts"
format = "bf16"
[[rule]]
match = "*"
format = "{0}"
"""
ATTENTION_STAYS = EXPERTS_STAY.replace("routed experts", "attention")
DENSE_STAYS = EXPERTS_STAY.replace("routed experts", "dense mlp")
SOME_LAYERS = """
[[rule]]
match = "model.layers.1.*"
format = "bf16"
[[rule]]
match = "*"
format = "{0}"
"""
MIXED = """
[[rule]]
role = "dense mlp"
format = "bf16"
[[rule]]
role = "routed experts"
format = "mxfp4"
[[rule]]
match = "*"
format = "fp8-channel"
"""
# Recipes by name; those that come with dsctl are added where they are meant.
LEFT_OUT = {"experts": EXPERTS_STAY, "attention": ATTENTION_STAYS, "dense": DENSE_STAYS, "layer 1": SOME_LAYERS}
FP8 = [f"fp8-block but {name}" for name in LEFT_OUT]
INT8 = ["int8-block but attention", "int8-block but dense"]
DRESSED = ["mixed", *(f"int4-group but {name}" for name in LEFT_OUT)]
RELEASES = ("v3", "v3.2", "v2-lite")


class Asked(NamedTuple):
    """A conversion's `quantization_config`, and the codec of every parameter."""

    said: dict[str, Any]
    stored: list[tuple[Param, Codec]]

    def modules(self, fused: Fused) -> Iterator[tuple[str, str]]:
        """The modules of a loader that joins these, all experts of a layer in one; and the format, empty for none.

        Those only that loaders may quantize: not the indexer's `wk`, which they hold decoded.
        """
        joined = {part: whole for whole, parts in fused.items() for part in parts}
        queries = any(param.name.endswith("q_a_proj.weight") for param, _ in self.stored)
        for param, codec in self.stored:
            head, _, last = param.name.removesuffix(".weight").rpartition(".")
            if not param.quantizable or last == "wk":
                continue
            kind = codec.name if codec.config() else ""
            if param.family.experts:
                yield head.rpartition(".")[0], kind
            elif last in joined and (queries or last not in VLLM["fused_qkv_a_proj"]):
                yield f"{head}.{joined[last]}", kind
            else:
                yield f"{head}.{last}", kind


def written(recipe: str, folder: Path) -> Path:
    format_, _, left = recipe.partition(" but ")
    (folder / "recipe.toml").write_text(LEFT_OUT[left].format(format_) if left else MIXED)
    return folder / "recipe.toml"


def asked(release: str, recipe: str, folder: Path, factory: pytest.TempPathFactory) -> Asked:
    source = smaller(factory, release, bf16=True, layers=3, experts=2)
    if recipe not in ready():
        recipe = str(written(recipe, folder))
    plan = dsctl.open(source).to(recipe=recipe).plan
    codecs = {step.name: step.writes[0].codec for step in plan.steps}
    params = [param for param in dsctl.open(source).checkpoint.params if param.name in codecs]
    said = json.loads(plan.texts["config.json"])["quantization_config"]
    return Asked(said, [(param, codecs[param.name]) for param in params])


def agreed(answers: list[Any]) -> Any:
    """The one answer of all parts of a module: loaders stop where they differ."""
    assert len(set(answers)) == 1
    return answers[0]


def parts(module: str, fused: Fused) -> list[str]:
    head, _, last = module.rpartition(".")
    return [f"{head}.{part}" for part in fused.get(last, ())]


def vllm_skips(module: str, listed: list[str]) -> bool:
    if module in listed:
        return True
    if split := parts(module, VLLM):
        return bool(agreed([part in listed for part in split]))
    return "experts" in module and any(module in name for name in listed if "experts" in name)


def sglang_skips(module: str, listed: list[str], fused: Fused = SGLANG) -> bool:
    def under(one: str) -> bool:
        return any(f".{name}." in f".{one}." for name in listed)

    if split := parts(module, {**GATE_UP, **fused}):
        return bool(agreed([under(part) for part in split]))
    return under(module) or ("experts" in module and any(module in name for name in listed if "experts" in name))


def older_sglang_skips(module: str, listed: list[str]) -> bool:
    """Before it knew of gate and up, and of experts: by whole names alone."""
    split = parts(module, SGLANG)
    return bool(agreed([part in listed for part in split])) if split else module in listed


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("recipe", FP8)
def test_servers_skip_what_fp8_leaves_out(
    recipe: str, release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = asked(release, recipe, tmp_path, tmp_path_factory)
    assert told.said["quant_method"] == "fp8"
    # Older versions of vLLM and SGLang read the first key alone, transformers the second.
    listed = told.said["ignored_layers"]
    assert listed == told.said["modules_to_not_convert"] and not [name for name in listed if name.startswith("re:")]
    loaders: tuple[tuple[Callable[[str, list[str]], bool], Fused], ...] = (
        (vllm_skips, VLLM), (sglang_skips, GATE_UP | SGLANG), (older_sglang_skips, GATE_UP | SGLANG),
    )  # fmt: skip
    for skips, fused in loaders:
        kinds = dict(told.modules(fused))
        assert {module: skips(module, listed) for module in kinds} == {module: not kinds[module] for module in kinds}
        assert len(set(kinds.values())) == 2


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("recipe", INT8)
def test_sglang_skips_what_int8_blocks_leave_out(
    recipe: str, release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = asked(release, recipe, tmp_path, tmp_path_factory)
    for module, kind in told.modules(GATE_UP | SGLANG):
        # It takes the experts for INT8 without asking.
        skipped = not module.endswith(".experts") and sglang_skips(module, told.said["ignored_layers"], {})
        assert skipped == (not kind), module


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("recipe", FP8)
def test_transformers_converts_what_fp8_is(
    recipe: str, release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = asked(release, recipe, tmp_path, tmp_path_factory)
    listed = told.said["modules_to_not_convert"]
    kinds = {module: bool(kind) for module, kind in told.modules({})}
    assert {module: should_convert_module(module, listed) for module in kinds} == kinds
    assert not should_convert_module("lm_head", listed)


@pytest.mark.parametrize("release", ["v3", "v3.2"])
@pytest.mark.parametrize("recipe", FP8)
def test_the_modules_that_transformers_makes_are_those(
    recipe: str, release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = asked(release, recipe, tmp_path, tmp_path_factory)
    config = AutoConfig.from_pretrained(smaller(tmp_path_factory, release, bf16=True, layers=3, experts=2))
    config.quantization_config = None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    replace_with_fp8_linear(model, told.said["modules_to_not_convert"], FineGrainedFP8Config(**told.said))
    made = {name for name, module in model.named_modules() if type(module).__name__ in ("FP8Linear", "FP8Experts")}
    main = [(param, codec) for param, codec in told.stored if not param.family.mtp]
    wanted = {module for module, kind in Asked(told.said, main).modules({}) if kind}
    wanted |= {
        param.name.removesuffix(".weight")
        for param, codec in main
        if param.name.endswith("wk.weight") and codec.config()
    }
    assert {name for name in made if not name.endswith("experts")} == {n for n in wanted if not n.endswith("experts")}
    assert {name for name in made if name.endswith(".experts")} == {n for n in wanted if n.endswith(".experts")}


def fits(module: str, entry: str) -> bool:
    return bool(re.match(entry[3:], module)) if entry.startswith("re:") else module == entry


def targets(said: dict[str, Any]) -> dict[str, str]:
    return {target: group["format"] for group in said["config_groups"].values() for target in group["targets"]}


def vllm_scheme(module: str, said: dict[str, Any]) -> str:
    def ignored(one: str) -> bool:
        return any(fits(one, entry) for entry in said["ignore"])

    split = parts(module, VLLM)
    if ignored(module) or (split and agreed([ignored(part) for part in split])):
        return ""
    for name in (module, *split):
        for target, format_ in targets(said).items():
            if target == "Linear" or fits(name, target):
                return format_
    return "none found"


def sglang_scheme(module: str, said: dict[str, Any]) -> str:
    def ignored(one: str) -> bool:
        return any(fits(one, entry) or one.endswith(f".{entry}") for entry in said["ignore"])

    split = parts(module, SGLANG) if module not in said["ignore"] else []
    if agreed([ignored(part) for part in split or [module]]):
        return ""
    for name in (module, *split):
        for target, format_ in targets(said).items():
            if target == "Linear" or fits(name, target):
                return format_
    return "none found"


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("recipe", [*sorted(ready().keys() - {"nvfp4-modelopt-experts"}), *DRESSED])
def test_compressed_tensors_configs_say_of_every_module_how_it_is_stored(
    recipe: str, release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = asked(release, recipe, tmp_path, tmp_path_factory)
    formats = {codec.name: (codec.config() or {}).get("format", "") for _, codec in told.stored}
    for scheme, fused in ((vllm_scheme, VLLM), (sglang_scheme, GATE_UP | SGLANG)):
        for module, kind in told.modules(fused):
            names = [module + one for one in EXPERT] if module.endswith(".experts") else [module]
            found = agreed([scheme(name, told.said) for name in names])
            assert found == (formats[kind] if kind else ""), module
    groups = [(group["format"], group["targets"]) for group in told.said["config_groups"].values()]
    linear = torch.nn.Linear(1, 1, device="meta")
    for param, codec in told.stored:
        if not param.quantizable:
            continue
        module = param.name.removesuffix(".weight")
        found = [format_ for format_, target in groups if is_match(module, linear, target, told.said["ignore"])]
        assert found == [formats[codec.name]] * bool(codec.config()), module


@pytest.mark.parametrize("release", ["v3", "v3.2"])
def test_transformers_loads_fp8_beside_experts_in_bf16(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = smaller(tmp_path_factory, release, aligned=True, bf16=True, mtp=False)
    command("convert", source, tmp_path / "fp8", "--recipe", written("fp8-block but experts", tmp_path))
    command("convert", tmp_path / "fp8", tmp_path / "decoded", "--bf16")
    found = []
    for folder, options in (("fp8", {"quantization_config": FineGrainedFP8Config(dequantize=True)}), ("decoded", {})):
        model, said = AutoModelForCausalLM.from_pretrained(
            tmp_path / folder, dtype=torch.bfloat16, output_loading_info=True, **options
        )
        assert not said["missing_keys"] and not said["mismatched_keys"] and not said["unexpected_keys"]
        with torch.no_grad():
            found.append(model.to(torch.bfloat16)(torch.arange(50)[None]).logits)
    assert found[0].isfinite().all() and torch.equal(*found)
