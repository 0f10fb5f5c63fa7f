"""The whole plan: steps in source order, what each does, and what is said of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import dsctl
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.core.errors import FormatError, UsageError
from dsctl.core.header import TensorSpec
from dsctl.plan.jobs import source_order
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.steps import Step
from tests.support.headers import BF16_CONFIG, BLOCKS, FP8_CONFIG, bf16, files_of, lay_out, opened, write

UP = "model.layers.0.mlp.up_proj.weight"


def _steps(checkpoint: Checkpoint, request: Request) -> dict[str, Step]:
    return {step.name: step for step in make_plan(checkpoint, request).steps}


def test_steps_are_in_source_order_and_in_jobs(source: Checkpoint) -> None:
    plan = make_plan(source, Request("bf16"))
    assert [source_order(step) for step in plan.steps] == sorted(source_order(step) for step in plan.steps)
    assert [step for job in plan.jobs for step in job.steps] == plan.steps


def test_a_plan_is_made_the_same_again(source: Checkpoint) -> None:
    one, other = (make_plan(opened(Path(source.store.place)), Request("bf16", tp=2)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("request_", "how"),
    [
        (Request("keep"), "move"),
        (Request("fp8-block"), "move"),
        (Request("published"), "move"),
        (Request("keep", tp=2), "move"),
        (Request("fp8-block", scale_fmt="float32"), "move"),
        (Request("bf16"), "recode"),
        (Request("fp8-block-e8m0"), "recast"),
    ],
)
def test_what_is_the_same_in_bits_is_moved(source: Checkpoint, request_: Request, how: str) -> None:
    assert _steps(source, request_)[UP].how == how


def test_scales_of_any_value_are_no_powers_of_two(tmp_path: Path) -> None:
    config = FP8_CONFIG | {"quantization_config": FP8_CONFIG["quantization_config"] | {"scale_fmt": "float32"}}
    source = opened(write(tmp_path, config, files_of(config, BLOCKS)))
    assert _steps(source, Request("fp8-block", scale_fmt="ue8m0"))[UP].how == "recode"
    assert _steps(source, Request("fp8-block"))[UP].how == "move"


def test_parts_of_a_rank_alone_are_read_for_it(source: Checkpoint, tmp_path: Path) -> None:
    ranks = opened(lay_out(make_plan(source, Request("keep", tp=2)), tmp_path / "ranks"))
    step = _steps(ranks, Request("keep", tp=2, ranks=(1,)))[UP]
    assert [part.file.partition("/")[0] for part in step.parts_read] == ["rank-00001"] * 2


def test_copies_in_other_ranks_are_compared(source: Checkpoint, tmp_path: Path) -> None:
    ranks = opened(lay_out(make_plan(source, Request("keep", tp=2)), tmp_path / "ranks"))
    steps = _steps(ranks, Request("keep"))
    assert [twin.region.parts[0].file.partition("/")[0] for twin in steps["model.norm.weight"].twins] == ["rank-00001"]
    assert steps[UP].twins == () and len(steps[UP].reads) == 2


def test_a_global_scale_is_surveyed_with_what_loaders_join(tmp_path: Path) -> None:
    plan = make_plan(bf16(tmp_path), Request("nvfp4"))
    steps = {step.name: step for step in plan.steps}
    gate, up, down = (steps[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    assert [step.name for step in gate.surveyed] == [step.name for step in up.surveyed] == [gate.name, up.name]
    assert [step.name for step in down.surveyed] == [down.name]
    assert steps["model.norm.weight"].surveyed == ()
    twice = sum(step.read_bytes for step in plan.steps if step.surveyed)
    assert (
        f"{twice:,} bytes are read twice: a global scale needs the largest magnitude before the first value"
        in plan.notes
    )


@pytest.mark.parametrize(("recode", "count"), [(False, 0), (True, 1)])
def test_ranks_say_how_many_parameters_a_cut_recodes(source: Checkpoint, recode: bool, count: int) -> None:
    plan = make_plan(source, Request("keep", tp=4 if recode else 2, recode=recode))
    said = [note for note in plan.notes if note.endswith("parameters quantized again because of a cut")]
    measured = sum(step.measured for step in plan.steps)
    assert said == [f"{measured:,} parameters quantized again because of a cut"] and bool(measured) == bool(count)
    assert sum(one.parameters for one in plan.recoded) == measured


def test_roles_are_those_of_totals(source: Checkpoint) -> None:
    plan = make_plan(source, Request("keep"))
    assert plan.roles[UP] == "dense mlp" and plan.roles["model.layers.2.enorm.weight"] == "mtp"
    assert list(plan.roles) == [param.name for param in source.params]


def test_source_files_are_told_with_their_headers(source: Checkpoint) -> None:
    plan = make_plan(source, Request("keep"))
    for file, header in source.headers.items():
        digest = hashlib.sha256(header.raw).hexdigest()
        assert plan.source_files[file] == f"{source.files[file]} bytes, header sha256 {digest}"


def test_counts_add_up(source: Checkpoint) -> None:
    counts = make_plan(source, Request("bf16", mtp="drop", skip=("lm_head.weight",))).counts
    kinds = ("dequantized", "quantized", "requantized", "cast", "moved", "dropped", "unexplained")
    assert sum(counts[name] for name in kinds) == counts["parameters"] == len(source.params)


def test_what_the_files_contradict_is_refused_before_anything_else(tmp_path: Path) -> None:
    files = files_of(BF16_CONFIG)
    files[min(files)]["more"] = TensorSpec("BF16", (1,))
    source = opened(write(tmp_path, BF16_CONFIG, files))
    with pytest.raises(FormatError, match="more: in model-00001"):
        make_plan(source, Request("nonsense"))
    with pytest.raises(UsageError, match="unknown format"):
        make_plan(source, Request("nonsense", allow_extra=True))


def test_ranks_of_another_config_are_refused(source: Checkpoint, tmp_path: Path) -> None:
    folder = lay_out(make_plan(source, Request("keep", tp=2)), tmp_path / "ranks")
    (folder / "rank-00001" / "config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"config\.json and rank-00001/config\.json differ in "):
        make_plan(opened(folder), Request("keep"))


@pytest.mark.parametrize(
    "requests",
    [
        [Request("keep", tp=2), Request("keep")],
        [Request("keep", tp=2, ep=4, pp=2), Request("keep", tp=1), Request("keep")],
        [Request("keep", layout="stacked"), Request("keep", layout="fused", tp=2), Request("keep")],
        [Request("keep", layout="deepseek", tp=2, ep=2), Request("keep")],
        [Request("keep", tp=2, ep=2, placed=((0, 2, 1, 3),)), Request("keep", tp=2, ep=1), Request("keep")],
    ],
    ids=lambda requests: ", ".join(f"{one.layout} {one.tp}" for one in requests),
)
def test_there_and_back_everything_is_moved(source: Checkpoint, tmp_path: Path, requests: list[Request]) -> None:
    now = source
    for number, request in enumerate(requests):
        plan = make_plan(now, request)
        assert {step.how for step in plan.steps} == {"move"} and plan.dropped == []
        now = opened(lay_out(plan, tmp_path / str(number)))
    assert {name: [piece.codec for piece in pieces] for name, pieces in now.survey.pieces.items()} == {
        name: [piece.codec for piece in pieces] for name, pieces in source.survey.pieces.items()
    }
    assert now.nbytes == source.nbytes and now.config == source.config


def test_neither_plan_nor_checkpoint_loads_torch() -> None:
    rooms = [Path(dsctl.__file__).parent / room for room in ("plan", "checkpoint")]
    modules = [
        ".".join(path.with_suffix("").relative_to(room.parent.parent).parts).removesuffix(".__init__")
        for room in rooms
        for path in sorted(room.rglob("*.py"))
    ]
    assert len(modules) > 30
    script = (
        f"import sys, importlib; [importlib.import_module(name) for name in {modules}]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
