"""Kimi K3: the published inventory exactly, and configs whose lists of layers stay true."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl.core.config_fields import edited, text_fields
from dsctl.core.errors import FormatError
from dsctl.models import MODELS
from dsctl.releases import find

MODEL, RELEASE = MODELS["kimi_k3"], find("kimi-k3")
KINDS = "linear_attn_config"
SIZES = {
    "layers": 6, "experts": 4, "hidden": 256, "heads": 2, "vocab": 128, "intermediate": 512, "moe_intermediate": 64,
}  # fmt: skip


def test_values_are_those_of_public_audits() -> None:
    families = MODEL.families(RELEASE.config)
    assert sum(family.count * family.values for family in families) == 2_779_931_837_184
    eye = [family for family in families if family.role == "vision"]
    assert sum(family.count for family in eye) == 168 and not any(family.template.endswith("bias") for family in eye)


def test_layers_have_one_kind_of_attention() -> None:
    at = "language_model.model.layers.{layer}.self_attn."
    found: dict[str, list[tuple[int, ...]]] = {}
    for family in MODEL.families(RELEASE.config):
        found.setdefault(family.template.removeprefix(at), []).append(family.layers)
    kda, full = found["A_log"][0], found["kv_b_proj.weight"][0]
    assert (len(kda), len(full)) == (69, 24) and full[:2] == (3, 7) and full[-2:] == (91, 92)
    assert found["o_proj.weight"] == [kda, full] and found["g_proj.weight"] == [kda, full]
    assert sorted(kda + full) == list(range(93))


def test_published_shapes() -> None:
    at = "language_model.model.layers.{layer}."
    shapes = {one.template.removeprefix(at): (one.dtype, one.shape) for one in MODEL.families(RELEASE.config)}
    assert shapes["self_attn.A_log"] == ("F32", (128,)) and shapes["self_attn.b_proj.weight"] == ("BF16", (96, 7168))
    assert shapes["self_attn.k_conv1d.weight"] == ("F32", (12288, 1, 4))
    assert shapes["block_sparse_moe.experts.{expert}.w2.weight"] == ("BF16", (3584, 3072))
    assert shapes["mm_projector.proj.0.weight"] == ("BF16", (4096, 4096))


def test_a_slice_renumbers_layers_from_1() -> None:
    small = MODEL.sliced(RELEASE.config, [0, 3, 4, 92], [1, 5, 7])
    said = text_fields(small)
    assert (said[KINDS]["full_attn_layers"], said[KINDS]["kda_layers"]) == ([2, 4], [1, 3])
    assert (said["num_hidden_layers"], said["first_k_dense_replace"], said["num_experts"]) == (4, 1, 3)
    assert said["num_experts_per_token"] == 3
    assert small.keys() == RELEASE.config.keys() and small["text_config"].keys() == RELEASE.config["text_config"].keys()


@pytest.mark.parametrize(("layers", "full"), [(1, [1]), (4, [4]), (5, [4, 5]), (9, [4, 8, 9])])
def test_small_ones_have_the_release_s_turns(layers: int, full: list[int]) -> None:
    small = MODEL.tiny(RELEASE.config, SIZES | {"layers": layers})
    assert text_fields(small)[KINDS]["full_attn_layers"] == full
    assert MODEL.families(small)


@pytest.mark.parametrize(
    "kinds",
    [{"kda_layers": [1, 2]}, {"full_attn_layers": []}, {"kda_layers": [0, 1]}, {"head_dim": 0}, {"num_heads": "many"}],
)
def test_an_impossible_list_of_layers_is_named(kinds: dict[str, Any]) -> None:
    config = edited(RELEASE.config, {KINDS: text_fields(RELEASE.config)[KINDS] | kinds})
    with pytest.raises(FormatError, match="linear_attn_config"):
        MODEL.families(config)


def test_an_absurd_vision_config_is_named() -> None:
    config = RELEASE.config | {"vision_config": RELEASE.config["vision_config"] | {"qkv_hidden_size": -1}}
    with pytest.raises(FormatError, match=r"vision_config.*qkv_hidden_size"):
        MODEL.families(config)
