"""Names of transformers: what is called how, and which folder has which, told by names alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dsctl import models, releases
from dsctl.core.errors import PlanError
from dsctl.core.params import Family, Param
from dsctl.layouts import LAYOUTS
from dsctl.layouts.ranks import Ranks, Shares
from dsctl.layouts.transformers import MIXED, NAME, SPELLINGS, is_marked, met

SIZES = {
    "layers": 5,
    "experts": 2,
    "hidden": 128,
    "heads": 4,
    "vocab": 256,
    "intermediate": 256,
    "moe_intermediate": 128,
}


def families(release: str) -> tuple[Family, ...]:
    known = releases.known(release)
    model = models.recognise(known.config)
    return model.families(model.tiny(known.config, SIZES), known.storage.traits)


FLASH = families("v4-flash")
PARAMS = [param for family in FLASH for param in family.params()]
OWN = LAYOUTS[NAME].arranged(FLASH, None)


def named(param: Param, which: int) -> str:
    """A parameter's name by one of the spellings of its template."""
    spellings = SPELLINGS.get(param.template, (param.template,))
    return param.family.named(spellings[which], param.layer, param.expert)


def test_every_parameter_of_the_main_model_has_a_name_and_drafters_keep_theirs() -> None:
    for param in PARAMS:
        tensor = OWN.slots(param)[0].tensor
        assert tensor == (param.name if param.family.mtp else named(param, 0))
        assert (tensor == param.name) == param.family.mtp


@pytest.mark.parametrize(
    ("released", "own"),
    [
        ("embed.weight", "model.embed_tokens.weight"),
        ("head.weight", "lm_head.weight"),
        ("norm.weight", "model.norm.weight"),
        ("hc_head_scale", "model.hc_head.hc_scale"),
        ("layers.{layer}.hc_ffn_base", "model.layers.{layer}.ffn_hc.base"),
        ("layers.{layer}.attn.attn_sink", "model.layers.{layer}.self_attn.sinks"),
        ("layers.{layer}.attn.compressor.ape", "model.layers.{layer}.self_attn.compressor.position_bias"),
        (
            "layers.{layer}.attn.indexer.wq_b.weight",
            "model.layers.{layer}.self_attn.compressor.indexer.q_b_proj.weight",
        ),
        (
            "layers.{layer}.attn.indexer.compressor.wgate.weight",
            "model.layers.{layer}.self_attn.compressor.indexer.gate_proj.weight",
        ),
        ("layers.{layer}.ffn.gate.tid2eid", "model.layers.{layer}.mlp.gate.tid2eid"),
        ("layers.{layer}.ffn.experts.{expert}.w3.weight", "model.layers.{layer}.mlp.experts.gate_up_proj"),
    ],
)
def test_some_names_written_out(released: str, own: str) -> None:
    assert SPELLINGS[released][0] == own
    assert released in SPELLINGS[released]


def test_no_two_parameters_could_have_one_name() -> None:
    templates = Counter(spelling for spellings in SPELLINGS.values() for spelling in set(spellings))
    shared = {template for template, count in templates.items() if count > 1}
    assert shared and all(template.endswith("experts.gate_up_proj") for template in shared)


def test_scales_end_as_transformers_has_them() -> None:
    param = next(param for param in PARAMS if param.template.endswith("w1.weight") and param.expert == 1)
    slot = OWN.slots(param)[0]
    assert OWN.respelled == {"v4": "deepseek"}
    assert (slot.stack, slot.container, slot.at) == ((1, 2), (256, 128), (0, 0))


def test_folders_are_told_by_their_names() -> None:
    assert met(FLASH, {param.name for param in PARAMS}) is None
    own = met(FLASH, {named(param, 0) for param in PARAMS})
    assert own is not None and own.name == NAME
    assert [own.slots(param) for param in PARAMS] == [OWN.slots(param) for param in PARAMS]


@pytest.mark.parametrize("which", [1, 2, 3])
def test_any_mix_of_names_is_found(which: int) -> None:
    names = {
        param.name: param.family.named(spellings[min(which, len(spellings) - 1)], param.layer, param.expert)
        for param in PARAMS
        if (spellings := SPELLINGS.get(param.template))
    }
    layout = met(FLASH, set(names.values()))
    assert layout is not None and layout.name == MIXED
    assert {param.name: layout.slots(param)[0].tensor for param in PARAMS if param.name in names} == names


def test_scales_of_a_mix_are_called_as_they_are() -> None:
    prefix = "model.layers.0.attn.wq_a."
    mix = met(FLASH, {f"{prefix}weight", f"{prefix}scale"})
    assert mix is not None and mix.respelled == {} and mix.name == MIXED


@pytest.mark.parametrize("name", ["model.layers.7.hc_attn_fn", "layers.0.attn.norm.weight", "model.hc_head_fn"])
def test_names_that_transformers_or_others_write_have_a_mark(name: str) -> None:
    assert is_marked(name) and any(is_marked(slot.tensor) for param in PARAMS for slot in OWN.slots(param))


@pytest.mark.parametrize("release", ["v4-flash", "v4-pro", "v4-flash-0731", "v3.2"])
def test_names_of_releases_have_no_mark(release: str) -> None:
    assert not any(is_marked(param.name) for family in families(release) for param in family.params())


def test_other_models_have_their_experts_stacked() -> None:
    known = families("v3")
    ours, stacked = (LAYOUTS[name].arranged(known, None) for name in (NAME, "stacked"))
    for family in known:
        for param in family.params():
            assert ours.slots(param) == stacked.slots(param)


def test_ranks_are_refused() -> None:
    shares: Any = Shares.of(FLASH, Ranks(2))
    with pytest.raises(PlanError, match="whole checkpoint"):
        LAYOUTS[NAME].arranged(FLASH, shares)
