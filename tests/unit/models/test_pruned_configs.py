"""What models say about numbers and groups of experts, and configs with other numbers of them."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl import models, releases
from dsctl.core.config_fields import text_fields
from dsctl.core.errors import PlanError
from dsctl.models.model import ExpertGroups

MAIN = {"kimi-k3": "num_experts", "mistral-large-3": "num_experts"}


@pytest.mark.parametrize("release", [one.alias[0] for one in releases.releases()])
def test_only_numbers_of_experts_change(release: str) -> None:
    config = releases.find(release).config
    model, before = models.recognise(config), text_fields(config)
    drafter = "dspark_n_routed_experts" in before
    after = text_fields(model.pruned(config, 4, 3 if drafter else 0))
    field = MAIN.get(release, "n_routed_experts")
    inside = before | before.get("moe", {}), after | after.get("moe", {})
    changed = {name for name in inside[0].keys() | inside[1].keys() if inside[0].get(name) != inside[1].get(name)}
    assert changed - {"moe"} == {field} | ({"dspark_n_routed_experts"} if drafter else set())
    assert inside[1][field] == 4 and after.get("dspark_n_routed_experts") == (3 if drafter else None)
    counts = {
        family.experts for family in model.families(model.pruned(config, 4, 0)) if family.experts and not family.mtp
    }
    assert counts == {4}


def test_one_number_for_two_is_refused() -> None:
    config = releases.find("v4-flash-0731").config
    with pytest.raises(PlanError, match="one n_routed_experts for main layers and drafter, which would have 4 and 3"):
        models.recognise(config).pruned(config, 4, 3)


@pytest.mark.parametrize(
    ("release", "groups"),
    [
        ("v2", ExpertGroups(8, 3, 1)), ("v2-lite", ExpertGroups()), ("v3", ExpertGroups(8, 4, 2)),
        ("v3.2", ExpertGroups(8, 4, 2)), ("kimi-k2", ExpertGroups()), ("kimi-k2.5", ExpertGroups()),
        ("kimi-k3", ExpertGroups()), ("mistral-large-3", ExpertGroups()), ("v4-pro", ExpertGroups()),
        ("v4.1-flash", ExpertGroups()), ("glm-5", ExpertGroups()),
    ],
)  # fmt: skip
def test_groups_of_releases(release: str, groups: ExpertGroups) -> None:
    config = releases.find(release).config
    assert models.recognise(config).expert_groups(config) == groups


@pytest.mark.parametrize(
    "wrong", [{"n_group": "8"}, {"n_group": True}, {"n_group": -8}, {"topk_group": 0}, {"topk_group": None}]
)
def test_groups_that_cannot_be_are_none(wrong: dict[str, Any]) -> None:
    config = {**releases.find("v3").config, **wrong}
    assert models.recognise(config).expert_groups(config) == ExpertGroups()
