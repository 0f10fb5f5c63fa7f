"""Adapters in every way of naming: what they change is the sum that their factors say, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import smaller
from tests.support.command import dsctl
from tests.support.factors import handmade, pair
from tests.support.folders import tensors

V3 = "model.layers.1."
ATTENTION, SHARED, EXPERTS = f"{V3}self_attn.", f"{V3}mlp.shared_experts.", f"{V3}mlp.experts"
R, SCALING = 4, 2.0


def decoded(source: Path, place: Path, *asked: object) -> dict[str, torch.Tensor]:
    dsctl("convert", source, place, "--to", "f32", *asked)
    return tensors(place)


def check(source: Path, place: Path, adapter: Path, wanted: dict[str, torch.Tensor]) -> None:
    """Compare the decoded values with and without the adapter; `wanted` are the changes by parameter."""
    before, after = decoded(source, place / "without"), decoded(source, place / "with", "--lora", adapter)
    assert before.keys() == after.keys() and wanted.keys() <= before.keys()
    for name, values in before.items():
        if name in wanted:
            assert torch.allclose(after[name], values + wanted[name], rtol=0, atol=1e-6), name
            assert float((after[name] - values).abs().max()) > 1e-3, name
        else:
            assert torch.equal(after[name], values), name


def stacked(module: str, rows: int, columns: int, experts: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Factors of stacked experts as PEFT saves them, and D [experts, rows, columns] by its formula."""
    made = pair(module, rows, columns, R * experts)
    a, b = made.values()
    change = torch.einsum("o r e, e r i -> e o i", b.view(rows, R, experts), a.view(experts, R, columns))
    return made, change * SCALING


def turned(module: str, rows: int, columns: int, experts: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same of versions that took the first dimension for `in`."""
    made = pair(module, columns, rows, R * experts)
    a, b = made.values()
    change = torch.einsum("o r e, e r i -> e i o", b.view(columns, R, experts), a.view(experts, R, rows))
    return made, change * SCALING


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3", moe_intermediate=192)


@pytest.mark.parametrize("default", [False, True])
def test_joined_modules(v3: Path, tmp_path: Path, default: bool) -> None:
    """As trainers on vLLM's or Megatron's modules save them."""
    known = {name: tuple(one.shape) for name, one in tensors(v3).items()}
    (above, columns), (below, _) = (known[f"{ATTENTION}{name}.weight"] for name in ("q_a_proj", "kv_a_proj_with_mqa"))
    made = pair(f"{ATTENTION}fused_qkv_a_proj", above + below, columns)
    a, b = made.values()
    gated = pair(f"{SHARED}gate_up_proj", 384, 256)
    a2, b2 = gated.values()
    held = made | gated
    if default:
        held = {name.replace(".weight", ".default.weight"): one for name, one in held.items()}
    wanted = {
        f"{ATTENTION}q_a_proj.weight": b[:above] @ a * SCALING,
        f"{ATTENTION}kv_a_proj_with_mqa.weight": b[above:] @ a * SCALING,
        f"{SHARED}gate_proj.weight": b2[:192] @ a2 * SCALING,
        f"{SHARED}up_proj.weight": b2[192:] @ a2 * SCALING,
    }
    check(v3, tmp_path, handmade(tmp_path / "adapter", held), wanted)


@pytest.mark.parametrize("way", [stacked, turned])
def test_stacked_experts_in_both_orders_of_dimensions(v3: Path, tmp_path: Path, way: object) -> None:
    assert callable(way)
    (joined, both), (down, one) = way(f"{EXPERTS}.base_layer", 384, 256, 8), way(EXPERTS, 256, 192, 8)
    config = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    wanted = {f"{EXPERTS}.{expert}.down_proj.weight": one[expert] for expert in range(8)}
    wanted |= {f"{EXPERTS}.{expert}.gate_proj.weight": both[expert, :192] for expert in range(8)}
    wanted |= {f"{EXPERTS}.{expert}.up_proj.weight": both[expert, 192:] for expert in range(8)}
    check(v3, tmp_path, handmade(tmp_path / "adapter", joined | down, **config), wanted)


def test_a_square_stack_takes_its_order_from_the_other_one(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """gate_up_proj of V4-Flash is square: only down_proj shows the order of dimensions."""
    source = smaller(tmp_path_factory, "v3", moe_intermediate=128)
    config = {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]}
    for way in (stacked, turned):
        (joined, both), (down, one) = way(f"{EXPERTS}.base_layer", 256, 256, 8), way(EXPERTS, 256, 128, 8)
        wanted = {f"{EXPERTS}.{expert}.down_proj.weight": one[expert] for expert in range(8)}
        wanted |= {f"{EXPERTS}.{expert}.gate_proj.weight": both[expert, :128] for expert in range(8)}
        wanted |= {f"{EXPERTS}.{expert}.up_proj.weight": both[expert, 128:] for expert in range(8)}
        place = tmp_path / way.__name__
        check(source, place, handmade(place / "adapter", joined | down, **config), wanted)


@pytest.mark.parametrize("spelling", ["release", "transformers"])
def test_v4_under_its_own_names_and_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, spelling: str
) -> None:
    source = smaller(tmp_path_factory, "v4-flash", moe_intermediate=128)
    known = {name: tuple(one.shape) for name, one in decoded(source, tmp_path / "shapes").items()}
    attention, expert = "layers.1.attn.wq_b.weight", "layers.1.ffn.experts.3.w2.weight"
    count = len({name.split(".")[4] for name in known if name.startswith("layers.1.ffn.experts.")})
    if spelling == "release":
        held = pair("layers.1.attn.wq_b", *known[attention]) | pair("layers.1.ffn.experts.3.w2", *known[expert])
        a, b, c, d = held.values()
        wanted, config = {attention: b @ a * SCALING, expert: d @ c * SCALING}, {}
    else:
        held = pair("model.layers.1.self_attn.q_b_proj", *known[attention])
        a, b = held.values()
        down, change = stacked("model.layers.1.mlp.experts", *known[expert], count)
        wanted = {expert.replace(".3.", f".{one}."): change[one] for one in range(count)}
        wanted |= {attention: b @ a * SCALING}
        held, config = held | down, {"target_parameters": ["mlp.experts.down_proj"]}
        assert known[expert][0] != known[expert][1]
    check(source, tmp_path, handmade(tmp_path / "adapter", held, **config), wanted)


def test_groups_of_v4s_own_experts_that_an_adapter_leaves_alone_keep_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Scales that do not follow from the values stay too: `dsctl tiny` makes some."""
    source = smaller(tmp_path_factory, "v4-flash")
    before, module = tensors(source), "layers.1.ffn.experts.3.w2"
    rows, columns = before[f"{module}.weight"].shape
    held = pair(module, rows, 2 * columns)
    held[f"base_model.model.{module}.lora_A.weight"][:, 32:] = 0
    dsctl("convert", source, tmp_path / "out", "--lora", handmade(tmp_path / "adapter", held))
    after = tensors(tmp_path / "out")
    other = {name for name in before if not torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))}
    assert other == {f"{module}.weight", f"{module}.scale"}
    for name, first in ((f"{module}.weight", 16), (f"{module}.scale", 1)):
        assert torch.equal(before[name][:, first:].view(torch.uint8), after[name][:, first:].view(torch.uint8))


def test_a_tensor_that_replaces_a_parameter_is_taken_over(v3: Path, tmp_path: Path) -> None:
    head = torch.randn(512, 256).bfloat16()
    held = pair(f"{ATTENTION}o_proj", 256, 512) | {"base_model.model.lm_head.weight": head}
    adapter = handmade(tmp_path / "adapter", held, modules_to_save=["lm_head"])
    said = dsctl("convert", v3, tmp_path / "out", "--lora", adapter)
    assert torch.equal(tensors(tmp_path / "out")["lm_head.weight"], head)
    assert "1 merged, 1 replaced" in said and "lora: head: 1 parameter replaced" in said
    assert "lm_head.weight changes; its copy in the MTP layer" in said
