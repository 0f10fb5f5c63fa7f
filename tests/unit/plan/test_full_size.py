"""V4 at its full size, by headers alone: what every plan says of the published checkpoints."""

from __future__ import annotations

from collections import Counter

import pytest

from dsctl import models, releases
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.groups import Known, groups_of_release
from dsctl.core.header import parse
from dsctl.plan.overview import Overview, overview
from dsctl.plan.plan import Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from tests.support.full_size import hollow
from tests.support.headers import opened


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return opened(hollow(tmp_path_factory.mktemp("full") / "flash", "v4-flash"))


def dtypes(plan: Plan) -> Counter[str]:
    headers = (parse(file.header[8:], file.name, None) for file in plan.files if file.name.endswith(".safetensors"))
    return Counter(spec.dtype for header in headers for spec in header.specs)


def known(name: str) -> Known:
    release = releases.find(name)
    model = models.recognise(release.config)
    return Known(release.name, release.config, model, groups_of_release(release), release.storage.traits)


def planned(name: str, to: str) -> Overview:
    return overview(known(name), Request(to))


def test_the_files_are_those_of_the_release(flash: Checkpoint) -> None:
    """159,617,149,040 bytes in 46 files is what a public listing of V4-Flash's files sums up to."""
    assert sum(flash.files[file] for file in flash.headers) == 159_617_149_040 and len(flash.headers) == 46
    assert flash.regular is not None and not flash.survey.faults
    assert Counter(ref.spec.dtype for ref in flash.tensors) == {
        "BF16": 433, "F32": 417, "F8_E4M3": 375, "F8_E8M0": 34_167, "I64": 3, "I8": 33_792,
    }  # fmt: skip


def test_decoding_leaves_417_tensors_in_float32(flash: Checkpoint) -> None:
    plan = make_plan(flash, Request("bf16"))
    assert dtypes(plan) == {"BF16": 34_600, "F32": 417, "I64": 3}
    assert plan.counts["dequantized"] == 34_167 and plan.counts["moved"] == 853
    assert 8_800_000_000 < plan.gathered_most < 8_900_000_000
    assert any("odd-scales.dsctl" in note and "at most" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("name", "to", "nbytes"),
    [
        ("v4-flash", "bf16", 581_975_531_080), ("v4-pro", "bf16", 3_197_868_864_632),
        ("v4-flash", "fp8-block", 292_502_338_120), ("v4-pro", "fp8-block", 1_602_033_600_632),
        ("v4-flash", "published", 159_609_485_896), ("v4-flash-base", "published", 294_673_469_000),
        ("v4.1-flash", "published", 510_286_023_000), ("v4.1-flash", "fp8-block", 772_004_202_840),
    ],
)  # fmt: skip
def test_what_formats_take(name: str, to: str, nbytes: int) -> None:
    assert planned(name, to).bytes_out == nbytes


def test_experts_are_recast_and_the_rest_is_moved() -> None:
    counts = planned("v4-pro", "fp8-block").counts
    assert (counts["recast"], counts["moved"], counts["requantized"]) == (71_424, 1_740, 0)
    assert planned("v3.1", "mxfp8").counts["recast"] > 45_000
