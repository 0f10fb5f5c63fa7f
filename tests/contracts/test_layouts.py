"""What every layout promises, over the whole table: a new entry is tested unasked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from dsctl import models, releases
from dsctl.codecs import CODECS
from dsctl.codecs.plain import FLOATS
from dsctl.core.boxes import Box, tiles
from dsctl.core.errors import PlanError, UsageError
from dsctl.core.header import DTYPE_BITS
from dsctl.core.params import Family, Param
from dsctl.layouts import LAYOUTS
from dsctl.layouts.layout import Layout, Slot
from dsctl.layouts.naming import dialect_of
from dsctl.layouts.ranks import Ranks, Shares, check

SIZES = {
    "layers": 3, "experts": 8, "hidden": 256, "heads": 8, "vocab": 512, "intermediate": 1024, "moe_intermediate": 512,
}  # fmt: skip
SPREADS = (
    None, Ranks(), Ranks(2), Ranks(8), Ranks(4, 4), Ranks(4, 2), Ranks(2, 8), Ranks(1, 4),
    Ranks(2, 2, 2), Ranks(1, 1, 3),
)  # fmt: skip
RELEASES = (
    "v2", "v3", "v3.2", "glm-5", "kimi-k2", "kimi-k2.5", "kimi-k3", "mistral-large-3", "v4-flash", "v4-flash-base",
    "v4-flash-0731",
)  # fmt: skip


def families(release: str) -> tuple[Family, ...]:
    known = releases.known(release)
    model = models.recognise(known.config)
    return model.families(model.tiny(known.config, SIZES), known.storage.traits)


class Case(NamedTuple):
    """A layout arranged for a model, spread over ranks or whole."""

    layout: Layout
    params: tuple[Param, ...]


def cases() -> Iterator[pytest.ParameterSet]:
    for name, layout in LAYOUTS.items():
        for release in RELEASES:
            known = families(release)
            for ranks in SPREADS:
                try:
                    arranged = layout.arranged(known, Shares.of(known, ranks) if ranks else None)
                except (PlanError, UsageError):
                    continue
                params = tuple(param for family in known for param in family.params())
                spread = f"tp{ranks.tp}-ep{ranks.ep}-pp{ranks.pp}" if ranks else "whole"
                yield pytest.param(Case(arranged, params), id=f"{name}-{release}-{spread}")


CASES = list(cases())


def test_every_layout_has_cases() -> None:
    assert {case.values[0].layout.name for case in CASES} == set(LAYOUTS)


@pytest.mark.parametrize("case", CASES)
def test_regions_tile_every_parameter(case: Case) -> None:
    """Regions are equal, being copies, or apart, and together they are the parameter."""
    held = 0
    for param in case.params:
        slots = case.layout.slots(param)
        assert len({(slot.shard, slot.tensor, slot.stack) for slot in slots}) == len(slots)
        if slots or not (param.family.mtp or param.family.derived):
            assert tiles({slot.region for slot in slots}, Box.whole(param.shape)), param.name
            held += 1
    assert held > len(case.params) // 2


@pytest.mark.parametrize("case", CASES)
def test_stored_tensors_are_filled_exactly_once(case: Case) -> None:
    containers: dict[tuple[str, str, int], list[Slot]] = defaultdict(list)
    stacks: dict[tuple[str, str], set[tuple[int, int] | None]] = defaultdict(set)
    for param in case.params:
        for slot in case.layout.slots(param):
            containers[slot.shard, slot.tensor, slot.stack[0] if slot.stack else 0].append(slot)
            stacks[slot.shard, slot.tensor].add(slot.stack)
    for slots in containers.values():
        assert len({slot.container for slot in slots}) == 1
        boxes = [Box(slot.at, tuple(a + n for a, n in zip(slot.at, slot.region.shape, strict=True))) for slot in slots]
        assert tiles(boxes, Box.whole(slots[0].container)), slots[0].tensor
    for found in stacks.values():
        assert found == {None} or found == {(index, len(found)) for index in range(len(found))}


@pytest.mark.parametrize("case", CASES)
def test_files_belong_to_the_shard_that_they_are_named_for(case: Case) -> None:
    home = "model-00001-of-000002.safetensors"
    for shard in {slot.shard for param in case.params for slot in case.layout.slots(param)}:
        file = case.layout.file(shard, home)
        assert case.layout.shard_of(file) == shard
        assert case.layout.home(file) in (home, None)
        assert file.startswith(f"{shard}/") == case.layout.foldered


@pytest.mark.parametrize("case", CASES)
def test_names_of_scales_are_no_names_of_weights(case: Case) -> None:
    tensors = {slot.tensor for param in case.params for slot in case.layout.slots(param)}
    stored = {
        dialect_of(case.layout, codec.dialect).tensor(tensor, part)
        for tensor in tensors
        for codec in CODECS.values()
        for part in codec.parts
        if part in dialect_of(case.layout, codec.dialect).endings
    }
    assert not tensors & stored and len(stored) == 7 * len(tensors)


@pytest.mark.parametrize("ranks", [ranks for ranks in SPREADS if ranks], ids=str)
def test_ranks_share_a_model_equally(ranks: Ranks) -> None:
    """By the definition of each size, counted: layers by stage, heads and rows by TP, experts by EP."""
    known = families("v3")
    check(known, ranks, "v3")
    shares = Shares.of(known, ranks)
    held: dict[int, int] = defaultdict(int)
    experts: dict[int, set[int]] = defaultdict(set)
    for family in known:
        for param in family.params():
            for rank, box in shares.boxes(param):
                if param.expert is not None and param.layer == 1:
                    held[rank] += box.size
                    experts[rank].add(param.expert)
    assert len(held) == ranks.stage and len(set(held.values())) == 1
    assert {len(found) for found in experts.values()} == {8 // ranks.ep}
    assert sum(held.values()) == 8 * 3 * 512 * 256


def test_an_expert_may_be_on_several_ranks() -> None:
    known = families("v3")
    placed = {1: (frozenset({0, 1, 2, 3, 7}), frozenset({4, 5, 6, 7, 0}))}
    shares = Shares.of(known, Ranks(1, 2), placed=placed)
    layer = [param for family in known if family.experts for param in family.params() if param.layer == 1]
    ranks = {param.expert: [rank for rank, _ in shares.boxes(param)] for param in layer}
    assert ranks == {0: [0, 1], 1: [0], 2: [0], 3: [0], 4: [1], 5: [1], 6: [1], 7: [0, 1]}
    stacked = LAYOUTS["stacked"].arranged(known, shares)
    last = next(param for param in layer if param.expert == 7)
    assert [slot.stack for slot in stacked.slots(last)] == [(4, 5), (4, 5)]


@pytest.mark.parametrize("case", CASES)
def test_what_a_layout_decodes_could_be_stored_so(case: Case) -> None:
    decoded = {dtype for param in case.params if (dtype := case.layout.decoded(param.family))}
    assert decoded <= set(FLOATS)
    assert all(param.quantizable for param in case.params if case.layout.decoded(param.family))


@pytest.mark.parametrize("case", CASES)
def test_a_layout_that_drops_the_drafter_has_others_to_hold(case: Case) -> None:
    known = {param.family for param in case.params}
    if not case.layout.drops_drafter(known):
        drafted = [param for param in case.params if param.family.mtp and not param.family.twin]
        assert all(case.layout.slots(param) for param in drafted)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_codes_are_spelled_with_dtypes_that_headers_know(layout: Layout) -> None:
    kinds = {codec.form.codes for codec in CODECS.values()}
    assert layout.spelled.keys() <= kinds and set(layout.spelled.values()) <= DTYPE_BITS.keys()
