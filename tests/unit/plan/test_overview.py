"""A plan kind by kind says what the whole plan says: the same numbers, bytes, notes and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dsctl import models, releases
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.groups import Known, groups_of, groups_of_release
from dsctl.core.errors import DsctlError
from dsctl.core.header import parse
from dsctl.plan import recipes
from dsctl.plan.overview import Overview, overview
from dsctl.plan.plan import COUNTED, Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.spread import check_cuts
from dsctl.plan.target import target_of
from tests.support.headers import bf16, fp8, lay_out, opened


def _rules(name: str) -> tuple[tuple[str, str, str], ...]:
    return tuple(map(tuple, recipes.ready()[name].rules))  # type: ignore[arg-type]


REQUESTS = {
    "keep": Request("keep"),
    "bf16": Request("bf16"),
    "f32": Request("f32"),
    "published": Request("published"),
    "fp8": Request("fp8-block"),
    "fp8, scales": Request("fp8-block", scale_fmt="float32"),
    "ct": Request("fp8-block-ct"),
    "int8": Request("int8-block"),
    "int8-channel": Request("int8-channel"),
    "mxfp4": Request("mxfp4"),
    "nvfp4": Request("nvfp4"),
    "only": Request("bf16", only=("model.layers.1.*", "lm_head.weight")),
    "skip": Request("bf16", skip=("*.indexer.*", "*_norm.weight")),
    "layers": Request("bf16", layers=(0, 2)),
    "experts": Request("bf16", experts=(1, 2)),
    "without mtp": Request("bf16", mtp="drop"),
    "nothing kept": Request("bf16", keep_scales=False),
    "rule": Request("recipe", rules=(("", "*.experts.*", "int4-group"), ("norm", "", "keep"))),
    "tp 2": Request("keep", tp=2),
    "tp 2, ep 4, pp 2": Request("keep", tp=2, ep=4, pp=2),
    "tp 4, recoded": Request("keep", tp=4, recode=True),
    "some ranks": Request("bf16", tp=2, ep=2, ranks=(1,)),
    "deepseek": Request("keep", layout="deepseek", tp=2, ep=2, mtp="drop"),
    "fused": Request("bf16", layout="fused"),
    "stacked": Request("keep", layout="stacked"),
    "stacked, tp 2": Request("keep", layout="stacked", tp=2, ep=2),
    "placed": Request("keep", tp=2, ep=2, placed=((3, 2, 1, 0),)),
    **{name: Request("recipe", rules=_rules(name)) for name in recipes.ready()},
}
# Each is refused by both in the same words.
REFUSED = {
    "format": Request("fp9"),
    "layout": Request("keep", layout="megatron"),
    "idle search": Request("bf16", search=True),
    "scales": Request("fp8-block", scale_fmt="e5m2"),
    "heads": Request("bf16", tp=3),
    "blocks": Request("keep", tp=4),
    "tp and ep": Request("keep", tp=2, ep=3),
    "experts": Request("keep", tp=8, ep=8),
    "stages": Request("keep", tp=1, pp=3),
    "rank": Request("keep", tp=2, ranks=(2,)),
    "sizes": Request("keep", tp=5000),
    "deepseek without ranks": Request("keep", layout="deepseek"),
    "rule": Request("recipe", rules=(("", "nothing.*", "bf16"),)),
    "no parameter": Request("bf16", skip=("*",)),
    "a row of scales": Request("int8-channel", tp=2),
    "an indexer for vllm": Request("bf16", layout="vllm", tp=2, ep=2, mtp="drop"),
    "map": Request("keep", tp=2, ep=2, placed=((0, 1),)),
}


@pytest.fixture(scope="module", params=[fp8, bf16], ids=["of fp8", "of bf16"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    make: Callable[[Path], Checkpoint] = request.param
    return make(tmp_path_factory.mktemp("source"))


def _known(checkpoint: Checkpoint) -> Known:
    assert checkpoint.config is not None
    return Known(checkpoint.store.place, checkpoint.config, checkpoint.model, groups_of(checkpoint))


def _both(source: Checkpoint, request: Request) -> tuple[Plan, Overview]:
    return make_plan(source, request), overview(_known(source), request)


def _weights(plan: Plan) -> dict[str, int]:
    """The bytes of tensors in each file, side files apart."""
    return {file.name: file.size - len(file.header) for file in plan.files if file.name.endswith(".safetensors")}


@pytest.mark.parametrize("name", REQUESTS)
def test_parameters_are_counted_as_in_the_plan(source: Checkpoint, name: str) -> None:
    plan, found = _both(source, REQUESTS[name])
    assert found.counts == plan.counts and list(found.counts) == list(COUNTED)
    assert found.recoded == tuple(plan.recoded)


@pytest.mark.parametrize("name", REQUESTS)
def test_bytes_written_are_those_of_the_plan_s_files(source: Checkpoint, name: str) -> None:
    plan, found = _both(source, REQUESTS[name])
    assert found.bytes_out == sum(_weights(plan).values())
    assert sum(size for formats in found.roles.values() for size in formats.values()) == found.bytes_out
    assert set(found.roles) == set(plan.roles.values())


@pytest.mark.parametrize("name", REQUESTS)
def test_bytes_read_are_those_of_the_parameters_that_have_a_place(source: Checkpoint, name: str) -> None:
    plan, found = _both(source, REQUESTS[name])
    pieces = (source.survey.pieces[step.name][0] for step in plan.steps)
    assert found.bytes_in == sum(piece.nbytes for piece in pieces)


@pytest.mark.parametrize("name", [name for name, request in REQUESTS.items() if request.tp])
def test_every_rank_has_the_bytes_and_tensors_of_its_folder(source: Checkpoint, name: str) -> None:
    plan, found = _both(source, REQUESTS[name])
    folders: dict[int, list[int]] = {rank: [0, 0] for rank in found.nbytes}
    for file in plan.files:
        if not file.name.endswith(".safetensors"):
            continue
        head = file.name.partition("/")[0] if "/" in file.name else file.name.partition("-mp")[0]
        rank = int("".join(letter for letter in head if letter.isdecimal()))
        folders[rank][0] += file.size - len(file.header)
        folders[rank][1] += len(parse(file.header[8:], file.name, None).names)
    assert {rank: tuple(held) for rank, held in folders.items()} == {
        rank: (found.nbytes[rank], found.tensors[rank]) for rank in found.nbytes
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_it_says_of_formats_and_sizes_what_the_plan_says(source: Checkpoint, name: str) -> None:
    request = REQUESTS[name]
    plan, found = _both(source, request)
    assert set(found.notes) <= set(plan.notes)
    sizes = f"tensor-parallel sizes that cut no block: {', '.join(map(str, found.legal))}"
    assert (sizes in plan.notes) == bool(found.legal)


def _refusal(plan: Callable[[], object]) -> tuple[object, ...] | None:
    try:
        plan()
    except DsctlError as error:
        return type(error), error.message, error.hint
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_what_the_plan_refuses_in_the_same_words(source: Checkpoint, name: str) -> None:
    of_plan = _refusal(lambda: make_plan(source, REFUSED[name]))
    assert of_plan == _refusal(lambda: overview(_known(source), REFUSED[name]))
    # Values as they are have no blocks to cut through.
    assert (of_plan is None) == (name == "blocks" and source.quantization is None)


def test_of_what_cannot_be_joined_the_kind_is_named(source: Checkpoint) -> None:
    request = Request("int4-group", layout="fused")
    of_plan, found = _refusal(lambda: make_plan(source, request)), _refusal(lambda: overview(_known(source), request))
    assert of_plan is not None and found is not None
    assert str(of_plan[1]).replace("layers.0.", "layers.{layer}.") == found[1]


def test_what_is_converted_leaves_out_what_a_cut_recodes(source: Checkpoint) -> None:
    found = overview(_known(source), Request("keep", tp=4, recode=True))
    assert found.converted == 0
    assert overview(_known(source), Request("f32")).converted > 0


def test_a_release_by_name_is_planned_as_its_files_would_be(tmp_path: Path) -> None:
    release = releases.find("v3.2")
    model = models.recognise(release.config)
    found = overview(Known("v3.2", release.config, model, groups_of_release(release)), Request("bf16"))
    assert found.counts["parameters"] == sum(family.count for family in model.families(release.config))
    assert found.counts["dequantized"] > 40_000 and found.bytes_out > 1.3e12


def test_nothing_is_left_of_nothing() -> None:
    with pytest.raises(DsctlError, match="no parameter is left"):
        overview(Known("here", {}, None, ()), Request("keep"))


def test_ranks_of_an_unknown_model_are_refused(source: Checkpoint) -> None:
    with pytest.raises(DsctlError, match=r"ranks need a config\.json of a known architecture"):
        overview(Known("here", {}, None, ()), Request("keep", tp=2))


def test_sizes_are_looked_for_once_and_are_none_without_ranks(source: Checkpoint) -> None:
    target = target_of(source, Request("keep"))
    assert check_cuts(target.subject, target.request, target.layout, []) == []
    assert overview(_known(source), Request("keep")).legal == ()


def test_a_checkpoint_of_ranks_has_the_groups_of_the_whole(source: Checkpoint, tmp_path: Path) -> None:
    ranks = opened(lay_out(make_plan(source, Request("keep", tp=2)), tmp_path / "ranks"))
    held = {group.family.template: group.count for group in groups_of(source)}
    assert {group.family.template: group.count for group in groups_of(ranks)} == held
