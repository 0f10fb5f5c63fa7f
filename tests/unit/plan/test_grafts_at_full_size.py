"""Grafts of published checkpoints at their full size, by headers alone: counts and bytes that are known elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.grafting import grafted
from dsctl.core.header import parse
from dsctl.plan.graft_options import graft_request
from dsctl.plan.plan import Plan
from dsctl.plan.planner import make_plan
from tests.support.full_size import hollow
from tests.support.headers import opened


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("full")
    return {name: hollow(folder / name, name) for name in ("v3", "r1", "v4-flash", "v4-flash-0731")}


@cache
def base_at(place: Path) -> Checkpoint:
    """A base, opened once for all grafts onto it: its tensors are a third of what a plan looks at."""
    return opened(place)


def planned(base: Path, other: Path, *globs: str) -> Plan:
    sources = [(str(other), globs)]
    return make_plan(grafted(base_at(base), sources), graft_request(sources))


def totals(plan: Plan) -> tuple[int, int]:
    """Tensors and bytes of the output."""
    headers = [parse(file.header[8:], file.name, None) for file in plan.files]
    return sum(len(header.names) for header in headers), sum(header.nbytes for header in headers)


def test_flash_with_the_block_drafter_has_the_inventory_of_its_release(releases: dict[str, Path]) -> None:
    """DeepSeek-V4-Flash-DSpark and V4-Flash-0731: 72,317 tensors, 166,878,536,440 bytes."""
    plan = planned(releases["v4-flash"], releases["v4-flash-0731"], "mtp.*")
    assert totals(plan) == (72_317, 166_878_536_440)
    new = {file.name: file.size for file in plan.files if file.name.startswith("grafted-")}
    assert len(new) == 2 and all(size <= 5.1e9 for size in new.values()) and len(plan.files) == 48
    assert {step.how for step in plan.steps} == {"move"}


def test_an_mtp_layer_of_v3_takes_15_4_gigabytes(releases: dict[str, Path]) -> None:
    """SGLang/DeepSeek-V3-NextN, which has the copies of embedding and head, shows 15.4 GB."""
    (found,) = planned(releases["v3"], releases["r1"], "model.layers.61.*").grafts
    assert found["parameters"] == 788 and found["bytes"] == 15_424_227_552


def test_without_the_copies_of_embedding_and_head_it_takes_11_7(releases: dict[str, Path]) -> None:
    """lmsys/DeepSeek-R1-NextN shows 11.7 GB."""
    plan = planned(releases["v3"], releases["r1"], "mtp")
    assert plan.grafts[0]["parameters"] == 786 and plan.grafts[0]["bytes"] == 11_717_511_392
    layer = [step for step in plan.steps if step.name.startswith("model.layers.61.")]
    read = {step.name: {part.file for part in step.parts_read} for step in layer}
    ours = {name for name, files in read.items() if not any(file.startswith("graft0://") for file in files)}
    assert ours == {"model.layers.61.embed_tokens.weight", "model.layers.61.shared_head.head.weight"}


def test_routed_experts_of_r1_as_in_r1t_chimera(releases: dict[str, Path]) -> None:
    """58 layers of 256 experts of three matrices, and those of the MTP layer; files, index and config are V3's."""
    plan = planned(releases["v3"], releases["r1"], "model.layers.*.mlp.experts.*")
    (found,) = plan.grafts
    assert found["parameters"] == 44_544 + 768
    parts = ("gate_proj", "up_proj", "down_proj")
    assert found["names"] == [f"model.layers.{{3-61}}.mlp.experts.{{0-255}}.{part}.weight" for part in parts]
    assert {file.name for file in plan.files} == {path.name for path in releases["v3"].glob("*.safetensors")}
    for name in ("config.json", "model.safetensors.index.json"):
        assert plan.texts[name] == (releases["v3"] / name).read_bytes()
