"""Which parameters a target holds, and the reason for each that it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorSpec
from dsctl.core.params import Family, Param
from dsctl.plan.plan import ELSEWHERE, MISSING, NOWHERE
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.selection import nothing_left, wanted, why_dropped
from dsctl.plan.target import target_of
from tests.support.headers import BF16_CONFIG, Files, bf16, files_of, fp8, lay_out, opened, write

EXPERT = Param("layers.1.experts.3.up", Family("x", (2, 2), "routed experts", experts=4, layers=(1,)), 1, 3)
NORM = Param("norm", Family("norm", (2,), "norm"), None, None)
AHEAD = Param("layers.2.ahead", Family("y", (2,), "norm", layers=(2,), mtp=True), 2, None)


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return bf16(tmp_path / "src")


@pytest.mark.parametrize(
    ("param", "there", "request_", "why"),
    [
        (NORM, True, Request("keep"), None),
        (NORM, False, Request("keep"), MISSING),
        (NORM, True, Request("keep", only=("nor?",)), None),
        (NORM, True, Request("keep", only=("x", "*m")), None),
        (NORM, True, Request("keep", only=("nor",)), "not in --only"),
        (NORM, True, Request("keep", only=("NORM",)), "not in --only"),
        (NORM, True, Request("keep", skip=("*",)), "in --skip"),
        (NORM, True, Request("keep", only=("*",), skip=("norm",)), "in --skip"),
        (NORM, True, Request("keep", only=("x",), skip=("norm",)), "not in --only"),
        (NORM, True, Request("keep", layers=(0,)), "not in --layers"),
        (NORM, True, Request("keep", experts=(0,)), None),
        (EXPERT, True, Request("keep", layers=(1,)), None),
        (EXPERT, True, Request("keep", layers=(0, 2)), "not in --layers"),
        (EXPERT, True, Request("keep", experts=(3,)), None),
        (EXPERT, True, Request("keep", experts=(0, 1)), "not in --experts"),
        (EXPERT, True, Request("keep", layers=(0,), experts=(0,)), "not in --layers"),
        (AHEAD, True, Request("keep"), None),
        (AHEAD, True, Request("keep", mtp="drop"), "MTP layer"),
        (AHEAD, False, Request("keep", mtp="drop"), "MTP layer"),
        (NORM, True, Request("keep", mtp="drop"), None),
    ],
)
def test_why_a_parameter_is_left_out(param: Param, there: bool, request_: Request, why: str | None) -> None:
    assert why_dropped(param, there, request_) == why


@given(st.lists(st.sampled_from(["*", "norm", "layers.*", "x"]), max_size=3), st.sampled_from([NORM, EXPERT, AHEAD]))
def test_only_and_skip_of_the_same_globs_are_opposites(globs: list[str], param: Param) -> None:
    only, skip = (why_dropped(param, True, Request("keep", **{name: globs})) for name in ("only", "skip"))
    if globs:
        assert (only is None) != (skip is None)


def test_all_that_is_there_is_wanted(source: Checkpoint) -> None:
    wants, dropped, notes = wanted(target_of(source, Request("keep")))
    assert [want.param for want in wants] == source.params and dropped == [] and notes == []
    assert all(want.pieces == want.held and len(want.slots) == 1 for want in wants)


def test_what_is_left_out_is_told_with_its_size(source: Checkpoint) -> None:
    wants, dropped, _ = wanted(target_of(source, Request("keep", skip=("model.embed_tokens.weight",))))
    assert len(wants) == len(source.params) - 1
    assert dropped == [("model.embed_tokens.weight", "in --skip", 512 * 256)]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("keep", layers=(0, 3)), "no layer 3: there are 3, numbered from 0"),
        (Request("keep", layers=(-1,)), "no layer -1: there are 3, numbered from 0"),
        (Request("keep", experts=(4,)), "no expert 4: there are 4, numbered from 0"),
        (Request("keep", layers=(9,), experts=(9,)), "no layer 9: there are 3, numbered from 0"),
    ],
)
def test_layers_and_experts_that_are_not_there_are_refused(source: Checkpoint, request_: Request, words: str) -> None:
    with pytest.raises(PlanError) as found:
        wanted(target_of(source, request_))
    assert found.value.message == words


@pytest.mark.parametrize(("field", "what"), [("layers", "layers"), ("experts", "experts")])
def test_numbers_say_nothing_of_an_unknown_model(tmp_path: Path, field: str, what: str) -> None:
    source = opened(write(tmp_path, {"model_type": "llama"}, {"model.safetensors": {"w": TensorSpec("BF16", (2,))}}))
    with pytest.raises(PlanError, match=f"{what} are not known without a config of a known architecture$"):
        wanted(target_of(source, Request("keep", **{field: (0,)})))


@pytest.mark.parametrize(
    ("request_", "hint"),
    [
        (Request("keep", only=("x",)), "check --only"),
        (Request("keep", skip=("*",), layers=(0,)), "check --skip and --layers"),
        (Request("keep"), None),
    ],
)
def test_nothing_is_left(request_: Request, hint: str | None) -> None:
    error = nothing_left(request_)
    assert (error.message, error.hint, error.exit_code) == ("no parameter is left", hint, 30)


def test_a_request_that_leaves_nothing_is_refused(source: Checkpoint) -> None:
    with pytest.raises(PlanError, match=r"^no parameter is left$"):
        wanted(target_of(source, Request("keep", only=("model.layers.0.*",), layers=(1,))))


def _without(folder: Path, name: str) -> Checkpoint:
    files: Files = {
        file: {one: spec for one, spec in specs.items() if one != name} for file, specs in files_of(BF16_CONFIG).items()
    }
    return opened(write(folder, BF16_CONFIG, files))


def test_what_is_missing_is_dropped_as_such(tmp_path: Path) -> None:
    plan = make_plan(_without(tmp_path, "lm_head.weight"), Request("keep", allow_missing=True))
    assert plan.dropped == [("lm_head.weight", MISSING, 512 * 256)]


def test_surplus_tensors_are_parameters_of_their_own(tmp_path: Path) -> None:
    files = files_of(BF16_CONFIG)
    files[min(files)] |= {"more": TensorSpec("I64", (3,)), "less": TensorSpec("BF16", (3,))}
    source = opened(write(tmp_path, BF16_CONFIG, files))
    wants, _, _ = wanted(target_of(source, Request("f32")))
    found = {want.param.name: want.codec.name for want in wants[-2:]}
    assert found == {"more": "i64", "less": "f32"}
    _, dropped, _ = wanted(target_of(source, Request("keep", layers=(0,))))
    assert ("more", "not in --layers", 3) in dropped


def test_an_unknown_model_is_all_surplus(tmp_path: Path) -> None:
    source = opened(write(tmp_path, {"model_type": "llama"}, {"model.safetensors": {"w": TensorSpec("BF16", (2,))}}))
    (want,) = wanted(target_of(source, Request("f32")))[0]
    assert (want.param.role, want.codec.name) == ("other", "f32")


@pytest.mark.parametrize(("ranks", "why"), [((0,), ELSEWHERE), ((3,), ELSEWHERE)])
def test_what_other_ranks_hold_is_elsewhere(source: Checkpoint, ranks: tuple[int, ...], why: str) -> None:
    wants, dropped, notes = wanted(target_of(source, Request("keep", tp=1, ep=2, pp=2, ranks=ranks)))
    assert {one.why for one in dropped} == {why}
    assert len(wants) + len(dropped) == len(source.params)
    assert notes[0].startswith("tensor-parallel sizes that cut no block: 1, 2")


def test_what_a_layout_has_no_place_for(source: Checkpoint) -> None:
    plan = make_plan(source, Request("keep", layout="deepseek", tp=2, ep=2))
    assert {one.why for one in plan.dropped} <= {f"{NOWHERE}deepseek"}


def test_parts_of_which_a_rank_is_not_there_are_told(source: Checkpoint, tmp_path: Path) -> None:
    plan = make_plan(source, Request("keep", tp=2, ranks=(0,)))
    ranks = opened(lay_out(plan, tmp_path / "ranks"))
    with pytest.raises(PlanError) as found:
        wanted(target_of(ranks, Request("keep")))
    assert found.value.message.endswith("parameters are incomplete: rank 1 of 2 is missing")
    assert found.value.hint == "put the files of all ranks into one folder" and len(found.value.issues) == 20


def test_copies_are_held_and_one_of_them_is_read(tmp_path: Path) -> None:
    source = fp8(tmp_path / "src")
    ranks = opened(lay_out(make_plan(source, Request("keep", tp=2)), tmp_path / "ranks"))
    wants = {want.param.name: want for want in wanted(target_of(ranks, Request("keep")))[0]}
    norm, split = wants["model.norm.weight"], wants["model.embed_tokens.weight"]
    assert (len(norm.held), len(norm.pieces)) == (2, 1)
    assert (len(split.held), len(split.pieces)) == (2, 2)
