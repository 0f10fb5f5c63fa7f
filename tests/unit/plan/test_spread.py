"""The layout that a request asks for on a model, and cuts that a format refuses."""

from __future__ import annotations

import pytest

from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.errors import DsctlError, FormatError, PlanError, UsageError
from dsctl.core.params import Family, Unit
from dsctl.layouts import LAYOUTS
from dsctl.plan.request import Request
from dsctl.plan.spread import MOST, Subject, arrangement, check_cuts
from tests.support.headers import BF16_CONFIG, families_of

FAMILIES = families_of(BF16_CONFIG)
SUBJECT = Subject("here", FAMILIES, 4)
BLOCKS = Fp8Block()
UP = Family("up", (768, 256), "dense mlp", True, 0)
DOWN = Family("down", (256, 768), "dense mlp", True, 1)


@pytest.mark.parametrize("name", ["published", "hf"])
def test_without_ranks_there_are_no_shares(name: str) -> None:
    layout = arrangement(SUBJECT, Request("keep", layout=name))
    assert layout.name == "published" and layout.published and layout.shares is None


@pytest.mark.parametrize(("tp", "ep", "pp", "world"), [(1, 1, 1, 1), (2, 1, 1, 2), (2, 4, 2, 8), (4, 2, 1, 4)])
def test_shares_are_of_all_ranks_unless_some_are_named(tp: int, ep: int, pp: int, world: int) -> None:
    layout = arrangement(SUBJECT, Request("keep", tp=tp, ep=ep, pp=pp))
    assert layout.shares is not None
    assert layout.shares.present == tuple(range(world)) and layout.shares.said == ""
    last = arrangement(SUBJECT, Request("keep", tp=tp, ep=ep, pp=pp, ranks=(world - 1,)))
    assert last.shares is not None and last.shares.present == (world - 1,)


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (Request("keep", layout="x"), UsageError, "--layout: unknown layout 'x'"),
        (Request("keep", tp=MOST + 1), UsageError, "TP 4097, EP 1, PP 1: sizes are from 1 to 4,096"),
        (Request("keep", tp=-1), UsageError, "TP -1, EP 1, PP 1: sizes are from 1 to 4,096"),
        (Request("keep", tp=1, ep=0), UsageError, "TP 1, EP 0, PP 1: sizes are from 1 to 4,096"),
        (Request("keep", tp=1, pp=0), UsageError, "TP 1, EP 1, PP 0: sizes are from 1 to 4,096"),
        (Request("keep", tp=3, ep=2), UsageError, "--tp 3 with --ep 2: one must be a multiple of the other"),
        (Request("keep", tp=3, ep=3), PlanError, "here: 4 experts cannot be split into 3 equal parts"),
        (Request("keep", tp=1, pp=3), PlanError, "here: 2 layers are too few for --pp 3"),
        (Request("keep", tp=2, ranks=(0, 2)), UsageError, "no rank 2: there are 2 ranks, numbered from 0"),
        (Request("keep", tp=2, ranks=(-1,)), UsageError, "no rank -1: there are 2 ranks, numbered from 0"),
        (
            Request("keep", tp=2, ep=2, placed=((0,),)), FormatError,
            "expert map: layer 1: 1 places do not divide into 2 equal parts",
        ),
        (
            Request("keep", tp=2, ep=2, placed=((0, 1),) * 5),
            FormatError,
            "expert map: 5 rows do not match 1 MoE layers",
        ),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(request_: Request, kind: type[DsctlError], words: str) -> None:
    with pytest.raises(kind) as found:
        arrangement(SUBJECT, request_)
    assert found.value.message == words and found.value.exit_code == kind.exit_code


def test_a_model_that_nobody_knows_has_no_ranks() -> None:
    unknown = Subject("here", (), None)
    assert arrangement(unknown, Request("keep")).shares is None
    with pytest.raises(PlanError, match=r"^here: ranks need a config\.json of a known architecture$"):
        arrangement(unknown, Request("keep", tp=1))


def test_a_model_without_experts_has_no_expert_parts() -> None:
    dense = Subject("here", (UP, Family("l.{layer}", (2,), "norm", layers=(0,))), None)
    with pytest.raises(PlanError, match="has no experts for --ep 2"):
        arrangement(dense, Request("keep", tp=2, ep=2))
    placed = arrangement(dense, Request("keep", tp=2, placed=((0,),)))
    assert placed.shares is not None and placed.shares.placed == {}


def test_a_map_places_the_experts() -> None:
    layout = arrangement(SUBJECT, Request("keep", tp=2, ep=2, placed=((0, 2, 1, 3),)))
    assert layout.shares is not None
    assert layout.shares.placed == {1: (frozenset({0, 2}), frozenset({1, 3}))}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_layouts_say_whether_they_need_ranks(name: str) -> None:
    made = []
    for tp in (0, 2):
        try:
            made.append(arrangement(SUBJECT, Request("keep", layout=name, tp=tp, ep=2 if tp else 1)).name)
        except (PlanError, UsageError):
            made.append("")
    assert made == {"deepseek": ["", name], "vllm": ["", ""], "transformers": [name, ""]}.get(name, [name, name])


def _check(request: Request, *stored: tuple[Family, Codec], units: tuple[Unit, ...] = ()) -> list[int]:
    families = (*(family for family, _ in stored), Family("l.{layer}", (2,), "norm", layers=(0,)))
    subject = Subject("here", families, units)
    return check_cuts(subject, request, arrangement(subject, request), stored)


def test_sizes_that_fit_are_told() -> None:
    assert _check(Request("keep", tp=2), (UP, BLOCKS), (DOWN, BLOCKS)) == [1, 2, 3, 6]
    assert _check(Request("keep"), (UP, BLOCKS)) == []


def test_cuts_through_blocks_are_refused_with_those_that_fit() -> None:
    with pytest.raises(PlanError) as found:
        _check(Request("keep", tp=4), (UP, BLOCKS), (DOWN, BLOCKS))
    assert found.value.message == "TP 4, EP 1: 2 kinds of parameters would be cut through quantization blocks"
    assert found.value.issues == tuple(f"{name}: 768 into 4 parts: 192 = 1.5 x 128" for name in ("up", "down"))
    assert found.value.hint == "--tp 1, 2, 3, 6 would fit; --recode quantizes these again"


def test_cuts_through_blocks_may_be_encoded_anew() -> None:
    assert _check(Request("keep", tp=4, recode=True), (UP, BLOCKS)) == [1, 2, 3, 6]


@pytest.mark.parametrize("recode", [False, True])
def test_what_does_not_divide_is_refused_in_any_case_and_told_first(recode: bool) -> None:
    with pytest.raises(PlanError) as found:
        odd = Family("odd", (770, 2), "head", split=0)
        _check(Request("keep", tp=4, recode=recode), (UP, BLOCKS), (odd, Plain()))
    assert found.value.message == "TP 4, EP 1: 1 kind of parameters cannot be split: odd: 770 into 4 parts: 770 / 4"
    assert found.value.hint == "--tp 1, 2 would fit"


def test_no_size_fits_if_not_even_one_part_does() -> None:
    odd = Family("odd", (3, 2), "head", split=0)
    with pytest.raises(PlanError) as found:
        _check(Request("keep", tp=2, ep=1), (odd, Plain()), (Family("q", (5, 2), "attention", True, 0), Plain()))
    assert found.value.hint == "--tp 1 would fit"


def test_heads_are_never_cut() -> None:
    query = Family("q", (768, 256), "attention", True, 0)
    assert _check(Request("keep", tp=2), (query, Plain()), units=(Unit(6, "heads"),)) == [1, 2, 3, 6]
    with pytest.raises(PlanError, match="q: 768 into 4 parts: 6 heads / 4"):
        _check(Request("keep", tp=4), (query, Plain()), units=(Unit(6, "heads"),))
