"""Plans of experts: what is no plan is refused in words, and what each layer keeps is what the file says."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl.codecs.codec import VALUES
from dsctl.codecs.renumbered import Renumbered
from dsctl.core.errors import DsctlError, FormatError, PlanError
from dsctl.models.model import ExpertGroups
from dsctl.plan.expert_lists import Routed, lists_of, remarks
from dsctl.plan.expert_plan import ExpertPlan, parse_plan, read_plan
from tests.support.pruned import renumbered

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["0", "1", "mtp.0", "layers", "keep", "per_layer", "layer", "retained"]), inner),
    max_leaves=25,
)  # fmt: skip


def model(layers: int = 4, experts: int = 16, groups: int = 4, chosen: int = 2, active: int = 4) -> Routed:
    """A model with layers of experts from 1 on, and a drafter."""
    held = dict.fromkeys(range(1, layers + 1), experts)
    return Routed(held, dict.fromkeys(held, active), (layers,), layers, ExpertGroups(groups, chosen, 2), True)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or its refusal, which must be one line."""
    with suppress(DsctlError):
        return call()
    with pytest.raises(DsctlError) as found:
        call()
    assert "\n" not in found.value.message
    return found.value


@given(ANYTHING)
@settings(max_examples=600, deadline=None)
def test_any_document_is_a_plan_or_is_refused_in_words(said: Any) -> None:
    plan = outcome(lambda: parse_plan(said, "it"))
    if isinstance(plan, DsctlError):
        assert plan.message.startswith("--experts: it: ")
        return
    for row in (*plan.rows, *plan.by_layer.values()):
        assert row and all(type(one) in (int, bool) for one in row) and len({type(one) for one in row}) == 1
    found = outcome(lambda: lists_of(plan, model(), range(5)))
    assert isinstance(found, DsctlError) or all(len({*row}) == len(row) for row in found.values())


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_plan_or_are_refused(raw: bytes) -> None:
    with NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        assert isinstance(outcome(lambda: read_plan(file.name)), ExpertPlan | FormatError)


def places(groups: int, size: int) -> st.SearchStrategy[list[int]]:
    """The legal permutations: groups change places, and experts within each."""
    inner = st.tuples(*(st.permutations(range(group * size, group * size + size)) for group in range(groups)))
    return st.tuples(st.permutations(range(groups)), inner).map(
        lambda one: [expert for group in one[0] for expert in one[1][group]]
    )


@given(st.lists(places(4, 4), min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_legal_permutations_are_taken_as_they_are_listed(orders: list[list[int]]) -> None:
    plan = parse_plan({"layers": {str(layer): order for layer, order in enumerate(orders, 1)}}, "it")
    found = lists_of(plan, model(), range(5))
    assert found == {layer: tuple(order) for layer, order in enumerate(orders, 1)}


@given(st.permutations(range(16)))
@settings(max_examples=200, deadline=None)
def test_a_permutation_is_legal_if_and_only_if_each_place_of_a_group_has_one_group(order: list[int]) -> None:
    legal = all(len({expert // 4 for expert in order[at : at + 4]}) == 1 for at in range(0, 16, 4))
    plan = ExpertPlan("it", {"1": tuple(order)})
    found = outcome(lambda: lists_of(plan, model(), range(5)))
    if legal:
        assert found == {1: tuple(order)}
    else:
        assert isinstance(found, PlanError) and "would be among those of group" in found.message


@given(st.sets(st.integers(0, 15), min_size=2))
@settings(max_examples=200, deadline=None)
def test_a_keep_list_is_legal_if_groups_stay_equal_and_large_enough(kept: set[int]) -> None:
    counts = [sum(expert // 4 == group for expert in kept) for group in range(4)]
    legal = len({*counts}) == 1 and counts[0] >= 2
    plan = parse_plan({str(layer): sorted(kept) for layer in range(1, 5)}, "it")
    assert isinstance(outcome(lambda: lists_of(plan, model(), range(5))), dict if legal else PlanError)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_new_numbers_are_those_of_the_restatement(data: st.DataObject) -> None:
    experts = data.draw(st.integers(3, 12))
    columns = data.draw(st.integers(1, experts))
    number = data.draw(st.integers(columns, experts))
    kept = data.draw(st.permutations(range(experts)))[:number]
    rows = data.draw(st.lists(st.permutations(range(experts)), min_size=1, max_size=5))
    table = torch.tensor([row[:columns] for row in rows])
    out = torch.empty(table.shape, dtype=torch.float64)
    Renumbered("I64", experts=experts, kept=tuple(kept), near=True).decode({VALUES: table}, out)
    assert out.to(torch.int64).tolist() == [renumbered(row, kept) for row in table.tolist()]
    assert all(len({*row}) == columns for row in out.tolist())


def test_what_the_lists_do_in_words() -> None:
    assert remarks({1: (0, 2), 2: (2, 0), 4: (0, 1)}, model(), range(5)) == [
        "experts: 2 of 16 stay in each of layers 1-2, mtp.0, in a new order in 1 of them",
        "experts: the plan does not list layers 3: they stay as they are",
    ]


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "long.json").write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(DsctlError, match="has more than 16,777,216 bytes"):
        read_plan(str(tmp_path / "long.json"))
    (tmp_path / "plan.json").write_text(json.dumps({"layers": {"3": [1, 0]}}))
    assert read_plan(str(tmp_path / "plan.json")).by_layer == {"3": (1, 0)}
