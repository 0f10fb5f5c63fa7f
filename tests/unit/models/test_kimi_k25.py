"""Kimi K2.5 to K2.7-Code: the published inventories exactly, and configs whose nesting stays."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl.core.config_fields import text_fields
from dsctl.core.errors import FormatError
from dsctl.models import MODELS
from dsctl.models.kimi_k25 import PREFIX
from dsctl.releases import find

MODEL = MODELS["kimi_k25"]
ALIASES = ("kimi-k2.5", "kimi-k2.6", "kimi-k2.7-code")


@pytest.mark.parametrize("alias", ALIASES)
def test_logical_values_are_those_of_public_audits(alias: str) -> None:
    families = MODEL.families(find(alias).config)
    assert sum(family.count * family.values for family in families) == 1_026_879_376_368
    eye = [family for family in families if family.role == "vision"]
    assert (sum(family.count for family in eye), sum(family.values for family in eye)) == (335, 471_143_920)
    assert not any(family.quantizable or family.split is not None or family.dtype != "BF16" for family in eye)


def test_the_language_model_is_kimi_k2_without_its_rotary_buffer() -> None:
    ours = [one for one in MODEL.families(find("kimi-k2.5").config) if one.role != "vision"]
    theirs = [one for one in MODELS["kimi_k2"].families(find("kimi-k2").config) if not one.derived]
    assert [one.template for one in ours] == [PREFIX + one.template for one in theirs]
    assert [one.fused for one in ours] == [one.fused and PREFIX + one.fused for one in theirs]
    assert [(one.shape, one.layers, one.experts) for one in ours] == [
        (one.shape, one.layers, one.experts) for one in theirs
    ]


def test_changed_configs_keep_their_nesting() -> None:
    config = find("kimi-k2.6").config
    small = MODEL.sliced(config, [0, 4, 5], [1, 3])
    assert text_fields(small)["num_hidden_layers"] == 3 and text_fields(small)["n_routed_experts"] == 2
    for made in (small, MODEL.without_mtp(config), MODEL.tiny(config, SIZES)):
        assert made.keys() == config.keys() and made["text_config"].keys() == config["text_config"].keys()
        assert made["text_config"]["quantization_config"] == config["text_config"]["quantization_config"]
        assert (made["model_type"], made["text_config"]["model_type"]) == ("kimi_k25", "kimi_k2")
    assert MODEL.without_mtp(config) == config


SIZES = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 2, "vocab": 128, "intermediate": 512, "moe_intermediate": 256,
}  # fmt: skip


def test_a_config_without_vision_has_no_parts_that_read_images() -> None:
    config = {field: value for field, value in find("kimi-k2.5").config.items() if field != "vision_config"}
    assert not any(family.role == "vision" for family in MODEL.families(config))
    assert "vision_config" not in MODEL.tiny(config, SIZES)


@pytest.mark.parametrize("value", [None, 0, -1, 1 << 40, "many", [1]])
@pytest.mark.parametrize("field", ["vt_hidden_size", "vt_num_hidden_layers", "merge_kernel_size", "text_hidden_size"])
def test_an_absurd_field_of_the_vision_config_is_named(field: str, value: Any) -> None:
    config = find("kimi-k2.5").config
    if (field, value) == ("vt_num_hidden_layers", 0):
        return
    with pytest.raises(FormatError, match=f"vision_config.*{field}"):
        MODEL.families(config | {"vision_config": config["vision_config"] | {field: value}})
