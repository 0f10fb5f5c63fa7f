"""Every tensor of a target has a file and a place of its own, and the files are filled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.side_files import WHOLE
from dsctl.codecs.plain import Plain
from dsctl.core.errors import PlanError
from dsctl.core.header import PT, TensorSpec, parse
from dsctl.layouts.layout import whole
from dsctl.plan import files as files_module
from dsctl.plan import recipes
from dsctl.plan.files import folders, out_files, place
from dsctl.plan.plan import Placed, PlacedPart, Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.selection import wanted
from dsctl.plan.target import target_of
from tests.support.headers import BLOCKS, FP8_CONFIG, bf16, files_of, fp8, lay_out, opened, write

REQUESTS = {
    "keep": Request("keep"),
    "bf16": Request("bf16"),
    "bf16, nothing kept": Request("bf16", keep_scales=False),
    "int4": Request("int4-group"),
    "nvfp4": Request("recipe", rules=tuple(map(tuple, recipes.ready()["nvfp4-experts"].rules))),  # type: ignore[arg-type]
    "small files": Request("bf16", shard_size=300_000),
    "a file each": Request("keep", shard_size=1),
    "some": Request("bf16", layers=(0,)),
    "tp 2": Request("keep", tp=2),
    "tp 2, one rank": Request("keep", tp=2, ranks=(1,)),
    "tp 2, ep 4, pp 2": Request("bf16", tp=2, ep=4, pp=2),
    "recoded": Request("keep", tp=4, recode=True),
    "deepseek": Request("keep", layout="deepseek", tp=2, ep=2, mtp="drop"),
    "fused": Request("bf16", layout="fused"),
    "fused, tp 2": Request("keep", layout="fused", tp=2),
    "stacked": Request("keep", layout="stacked"),
    "stacked, tp 2": Request("keep", layout="stacked", tp=2, ep=2),
    "placed twice": Request("keep", tp=2, ep=2, placed=((0, 1, 2, 3, 0, 1),)),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return fp8(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def plans(source: Checkpoint) -> dict[str, Plan]:
    return {name: make_plan(source, request) for name, request in REQUESTS.items()}


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans side by side as one."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if found and found[-1][1] == begin:
            found[-1] = found[-1][0], end
        else:
            found.append((begin, end))
    return found


@pytest.mark.parametrize("name", REQUESTS)
def test_headers_are_true(plans: dict[str, Plan], name: str) -> None:
    for file in plans[name].files:
        header = parse(file.header[8:], file.name, file.size)
        assert header.size == len(file.header)


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_written_fills_the_files_and_does_not_overlap(plans: dict[str, Plan], name: str) -> None:
    """Whole tensors by their bytes; of those that several write together, each byte is somebody's."""
    plan = plans[name]
    spans: dict[str, list[tuple[int, int]]] = {file.name: [] for file in plan.files}
    shared: dict[tuple[str, int], int] = {}
    for file in plan.files:
        spans[file.name] += [(offset, offset + len(data)) for offset, data in file.literals]
    for step in plan.steps:
        for copy in step.copies:
            spans[copy.write.file].append((copy.write.offset, copy.write.offset + copy.write.spec.nbytes))
        for region in step.writes:
            for part in region.parts:
                whole_ = region.codec.specs(region.box.shape)[part.name].nbytes
                if region.container == region.box.shape:
                    spans[part.file].append((part.offset, part.offset + whole_))
                    continue
                left = shared.setdefault((part.file, part.offset), part.spec.nbytes)
                shared[part.file, part.offset] = left - whole_
                if left == part.spec.nbytes:
                    spans[part.file].append((part.offset, part.offset + part.spec.nbytes))
    assert not any(shared.values())
    for file in plan.files:
        assert _merged(spans[file.name]) == [(len(file.header), file.size)]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_target_is_a_whole_checkpoint(plans: dict[str, Plan], name: str, tmp_path: Path) -> None:
    made = opened(lay_out(plans[name], tmp_path))
    left = {dropped.name for dropped in plans[name].dropped}
    faults = [fault for fault in made.survey.faults if fault.code != "missing-rank"]
    assert {fault.where.rpartition("/")[2] for fault in faults} <= left
    assert made.survey.extra == []


@pytest.mark.parametrize("name", REQUESTS)
def test_steps_and_dropped_are_all_parameters(plans: dict[str, Plan], source: Checkpoint, name: str) -> None:
    plan = plans[name]
    names = [step.name for step in plan.steps] + [dropped.name for dropped in plan.dropped]
    assert sorted(names) == sorted(param.name for param in source.params)
    assert plan.counts["unexplained"] == 0


@pytest.mark.parametrize("name", REQUESTS)
def test_each_read_is_where_the_source_has_it(plans: dict[str, Plan], source: Checkpoint, name: str) -> None:
    for step in plans[name].steps:
        for region in step.reads:
            for part in region.parts:
                assert len(source.headers[part.file].raw) + 8 <= part.offset
                assert part.offset + part.spec.nbytes <= source.files[part.file]


def test_what_is_kept_as_it_is_keeps_its_files(plans: dict[str, Plan], source: Checkpoint) -> None:
    assert {file.name: file.size for file in plans["keep"].files} == {
        file: source.files[file] for file in source.headers
    }
    held = {file.name: parse(file.header[8:], file.name, file.size).names for file in plans["keep"].files}
    assert {file: set(names) for file, names in held.items()} == {
        file: set(header.names) for file, header in source.headers.items()
    }


def test_decoded_parameters_stay_in_the_file_of_their_codes(plans: dict[str, Plan], source: Checkpoint) -> None:
    files = {step.name: step.writes[0].parts[0].file for step in plans["bf16"].steps}
    assert files == {name: ref.file for name, ref in source.catalogue[""].items() if name in files}


def test_the_way_back_has_the_original_s_headers_byte_for_byte(source: Checkpoint, tmp_path: Path) -> None:
    """Scales that were in another file than their codes go back there."""
    files = files_of(FP8_CONFIG, BLOCKS)
    first, last = sorted(files)
    for name in [name for name in files[first] if name.endswith("_scale_inv")]:
        files[last][name] = files[first].pop(name)
    apart = opened(write(tmp_path / "src", FP8_CONFIG, files))
    decoded = opened(lay_out(make_plan(apart, Request("bf16")), tmp_path / "decoded"))
    back = make_plan(decoded, Request("fp8-block"))
    assert {file.name: file.header[8:] for file in back.files} == {
        file: header.raw for file, header in apart.headers.items()
    }


@pytest.mark.parametrize("layout", ["published", "stacked", "fused"])
def test_ranks_are_put_together_to_the_same_headers(source: Checkpoint, tmp_path: Path, layout: str) -> None:
    ranks = opened(lay_out(make_plan(source, Request("keep", layout=layout, tp=2, ep=2)), tmp_path / "ranks"))
    merged = make_plan(ranks, Request("keep"))
    assert {file.name: file.header[8:] for file in merged.files} == {
        file: header.raw for file, header in source.headers.items()
    }


def test_ranks_keep_what_the_whole_was_and_it_alone(plans: dict[str, Plan]) -> None:
    extra = {name: {f.name for f in plan.files if f.name.endswith(".dsctl")} for name, plan in plans.items()}
    assert extra["tp 2"] == {WHOLE} and extra["keep"] == set() and extra["bf16"] == {ORIGINAL}
    assert extra["tp 2, ep 4, pp 2"] == {WHOLE, ORIGINAL} and extra["bf16, nothing kept"] == set()


def test_folders_are_those_of_the_ranks_that_are_written(plans: dict[str, Plan], source: Checkpoint) -> None:
    assert plans["tp 2"].folders == ("rank-00000", "rank-00001")
    assert plans["tp 2, one rank"].folders == ("rank-00001",)
    assert plans["deepseek"].folders == plans["keep"].folders == ()
    assert folders(target_of(source, Request("keep", tp=1))) == ("rank-00000",)


def test_files_are_no_larger_than_asked_unless_a_parameter_is(plans: dict[str, Plan]) -> None:
    plan = plans["small files"]
    sizes = [file.size - len(file.header) for file in plan.files if file.name.endswith(".safetensors")]
    larger = [size for size in sizes if size > 300_000]
    assert len(sizes) > 10 and larger and set(larger) == {2 * 768 * 256}
    assert (
        f"{len(larger)} files exceed --shard-size: each holds one parameter that is larger than the limit" in plan.notes
    )
    names = [file.name for file in plan.files if file.name != ORIGINAL]
    count = len(names)
    assert names == [f"model-{number:05d}-of-{count:06d}.safetensors" for number in range(1, count + 1)]


def test_a_file_each_is_told_to_be_larger(plans: dict[str, Plan], source: Checkpoint) -> None:
    plan = plans["a file each"]
    assert len(plan.files) == len(source.params)
    assert (
        f"{len(plan.files):,} files exceed --shard-size: each holds one parameter that is larger than the limit"
        in plan.notes
    )


def test_codes_and_scales_of_a_parameter_stay_together(plans: dict[str, Plan]) -> None:
    for step in plans["a file each"].steps:
        assert len({part.file for part in step.writes[0].parts}) == 1


def test_metadata_of_the_source_s_files_stay_and_say_pt(tmp_path: Path) -> None:
    source = bf16(tmp_path)
    file = min(source.headers)
    source.headers[file].metadata.update({"by": "somebody"})
    plan = make_plan(source, Request("keep"))
    said = {one.name: parse(one.header[8:], one.name, one.size).metadata for one in plan.files}
    assert said[file] == PT | {"by": "somebody"} and said[max(said)] == PT


def test_the_reference_model_s_files_say_nothing(plans: dict[str, Plan]) -> None:
    for file in plans["deepseek"].files:
        if file.name.endswith(".safetensors"):
            assert parse(file.header[8:], file.name, file.size).metadata == {}


def test_files_of_which_nothing_tells_the_place_are_of_a_usual_size(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(source, Request("keep", layout="deepseek", tp=2, ep=2))
    ranks = opened(lay_out(plan, tmp_path / "ranks"))
    (Path(ranks.store.place) / WHOLE).unlink()
    ranks = opened(Path(ranks.store.place))
    assert [file.name for file in make_plan(ranks, Request("keep", allow_missing=True)).files] == [
        "model-00001-of-000001.safetensors"
    ]
    monkeypatch.setattr(files_module, "USUAL_SHARD", 500_000)
    assert len(make_plan(ranks, Request("keep", allow_missing=True)).files) > 3


def test_what_is_joined_must_be_of_one_dtype(source: Checkpoint) -> None:
    target = target_of(source, Request("keep"))
    one, other = source.params[:2]
    parts = [PlacedPart("values", "both", "f.safetensors", TensorSpec(dtype, (2,))) for dtype in ("BF16", "F32")]
    pairs = zip((one, other), parts, strict=True)
    placed = {param.name: (Placed(whole(param, "", "both"), (part,)),) for param, part in pairs}
    with pytest.raises(PlanError, match=r"^both: joins matrices of different dtypes, BF16 and F32$"):
        out_files(target, (), placed)


def test_experts_of_nvfp4_come_with_a_warning(plans: dict[str, Plan]) -> None:
    warnings = {name: [note for note in plan.notes if note.startswith("warning: ")] for name, plan in plans.items()}
    assert len(warnings.pop("nvfp4")) == 1 and not any(warnings.values())


def test_places_are_in_the_order_of_the_slots(source: Checkpoint) -> None:
    target = target_of(source, Request("keep", tp=2))
    wants, _, _ = wanted(target)
    placed, notes = place(target, wants)
    assert notes == [] and list(placed) == [want.param.name for want in wants]
    for want in wants:
        assert tuple(one.slot for one in placed[want.param.name]) == want.slots
        assert all(tuple(part.name for part in one.parts) == want.codec.parts for one in placed[want.param.name])


def test_a_plain_codec_has_one_part(source: Checkpoint) -> None:
    target = target_of(source, Request("bf16"))
    placed, _ = place(target, wanted(target)[0])
    assert {len(one.parts) for places in placed.values() for one in places} == {len(Plain().parts)}
