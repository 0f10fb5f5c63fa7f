"""Names in adapters: releases', transformers', joined modules', and where in a joined matrix a parameter lies."""

from __future__ import annotations

import pytest

from dsctl import releases
from dsctl.checkpoint.adapter_names import Place, names_of
from dsctl.core.params import OTHER, Family
from dsctl.look.source import describe


def families(release: str) -> tuple[Family, ...]:
    return tuple(group.family for group in describe(release).contents.groups if group.family.role != OTHER)


def of(release: str, module: str) -> list[tuple[str, int, int]]:
    found = names_of(families(release), [module]).modules
    return [(place.param.name, place.row, place.rows) for place in found[module]]


def stack(release: str, module: str) -> dict[str, dict[int, list[Place]]]:
    return names_of(families(release), [module]).stacks[module]


@pytest.mark.parametrize("module", ["model.layers.7.self_attn.q_a_proj", "layers.7.self_attn.q_a_proj"])
def test_a_module_is_its_own_weight(module: str) -> None:
    assert of("v3", module) == [("model.layers.7.self_attn.q_a_proj.weight", 0, 1536)]


@pytest.mark.parametrize("module", ["fused_qkv_a_proj", "fused_qkv_a_proj_with_mqa"])
def test_joined_modules_hold_one_matrix_below_the_other(module: str) -> None:
    attention = "model.layers.7.self_attn."
    assert of("v3", attention + module) == [
        (f"{attention}q_a_proj.weight", 0, 2112),
        (f"{attention}kv_a_proj_with_mqa.weight", 1536, 2112),
    ]
    shared = "model.layers.7.mlp.shared_experts."
    assert of("v3", f"{shared}gate_up_proj") == [
        (f"{shared}gate_proj.weight", 0, 4096),
        (f"{shared}up_proj.weight", 2048, 4096),
    ]


def test_experts_have_names_of_their_own_and_are_stacked() -> None:
    expert = "model.layers.7.mlp.experts.9."
    assert of("v3", f"{expert}gate_up_proj")[1] == (f"{expert}up_proj.weight", 2048, 4096)
    assert of("v3", f"{expert}down_proj") == [(f"{expert}down_proj.weight", 0, 7168)]
    stacked = stack("v3", "model.layers.7.mlp.experts")
    assert list(stacked) == ["gate_up_proj", "down_proj"] and len(stacked["down_proj"]) == 256
    assert [(one.param.name, one.row, one.rows) for one in stacked["gate_up_proj"][9]] == [
        (f"{expert}gate_proj.weight", 0, 4096),
        (f"{expert}up_proj.weight", 2048, 4096),
    ]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("layers.7.attn.wq_a", "layers.7.attn.wq_a.weight"),
        ("model.layers.7.self_attn.q_a_proj", "layers.7.attn.wq_a.weight"),
        ("model.layers.7.self_attn.o_b_proj", "layers.7.attn.wo_b.weight"),
        ("model.layers.7.mlp.shared_experts.up_proj", "layers.7.ffn.shared_experts.w3.weight"),
        ("model.layers.7.mlp.experts.9.down_proj", "layers.7.ffn.experts.9.w2.weight"),
        ("lm_head", "head.weight"),
        ("model.embed_tokens", "embed.weight"),
        ("mtp.0.attn.wkv", "mtp.0.attn.wkv.weight"),
    ],
)
def test_v4_is_known_by_its_own_names_and_by_those_of_transformers(module: str, name: str) -> None:
    assert [found for found, _, _ in of("v4-flash", module)] == [name]


def test_stacked_experts_of_v4() -> None:
    for module in ("model.layers.7.mlp.experts", "layers.7.mlp.experts"):
        assert [(one.param.name, one.row) for one in stack("v4-flash", module)["gate_up_proj"][9]] == [
            ("layers.7.ffn.experts.9.w1.weight", 0),
            ("layers.7.ffn.experts.9.w3.weight", 2048),
        ]


@pytest.mark.parametrize("release", [one.name for one in releases.releases()])
def test_every_matrix_of_every_release_has_a_module(release: str) -> None:
    described = families(release)
    params = [next(one.params()) for one in described if len(one.shape) == 2 and one.template.endswith(".weight")]
    asked = {param.name.removesuffix(".weight"): param for param in params}
    names = names_of(described, asked)
    assert {module: names.modules[module][0].param for module in asked} == asked
