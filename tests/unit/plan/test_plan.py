"""What a plan says of itself: sizes, kinds, what each folder repeats, and its fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.boxes import Box
from dsctl.plan.plan import BAND_BYTES, Plan, fingerprint, kind
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.steps import Region, Step
from tests.support.headers import FP8_CONFIG, fp8, opened, write_header

SHAPE = (4, 4)


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return fp8(tmp_path)


def _step(read: Codec, write: Codec, how: str) -> Step:
    regions = [Region(Box.whole(SHAPE), codec, (), SHAPE, (0, 0)) for codec in (read, write)]
    return Step("w", SHAPE, how, (regions[0],), (regions[1],))


@pytest.mark.parametrize(
    ("read", "write", "how", "word"),
    [
        (Plain(), Plain(), "move", "moved"),
        (Fp8Block(), Fp8Block(), "move", "moved"),
        (Plain(), Plain("F32"), "recode", "cast"),
        (Plain(), Fp8Block(), "recode", "quantized"),
        (Fp8Block(), Plain(), "recode", "dequantized"),
        (Fp8Block(), Fp8Block(), "recode", "requantized"),
    ],
)
def test_what_happens_to_a_parameter(read: Codec, write: Codec, how: str, word: str) -> None:
    assert kind(_step(read, write, how)) == word


def test_bytes_in_and_out(source: Checkpoint) -> None:
    plan = make_plan(source, Request("keep"))
    assert plan.bytes_in == source.nbytes + 2
    assert plan.bytes_out == sum(file.size for file in plan.files) + sum(map(len, plan.texts.values())) + 2


def test_carried_files_are_repeated_in_every_rank_s_folder(source: Checkpoint) -> None:
    plan = make_plan(source, Request("keep", tp=2))
    assert plan.repeated == ["tokenizer.json"]
    assert plan.bytes_out == sum(file.size for file in plan.files) + sum(map(len, plan.texts.values())) + 3 * 2
    assert make_plan(source, Request("keep")).repeated == []


def test_side_files_tell_of_the_whole_and_are_not_repeated(source: Checkpoint) -> None:
    plan = make_plan(source, Request("keep", tp=2))
    plan.carried["original.dsctl"] = 7
    assert plan.repeated == ["tokenizer.json"]


def _largest(plan: Plan, band: int) -> int:
    held: dict[str, int] = {}
    for step in plan.steps:
        for name, nbytes in step.buffers(band).items():
            held[name] = max(held.get(name, 0), nbytes)
    return sum(held.values())


@pytest.mark.parametrize("request_", [Request("keep"), Request("bf16"), Request("keep", tp=2), Request("nvfp4")])
@pytest.mark.parametrize("band", [1, 100_000, BAND_BYTES])
def test_the_peak_is_that_of_all_steps_together(source: Checkpoint, request_: Request, band: int) -> None:
    plan = make_plan(source, request_)
    assert plan.peak_bytes(band) == _largest(plan, band)


def test_smaller_bands_need_less(source: Checkpoint) -> None:
    plan = make_plan(source, Request("bf16"))
    assert plan.peak_bytes(1) < plan.peak_bytes(BAND_BYTES)


def test_a_fingerprint_is_of_the_source_and_the_request(source: Checkpoint) -> None:
    known = fingerprint(source, Request("bf16"))
    assert fingerprint(opened(Path(source.store.place)), Request("bf16")) == known
    others = [
        fingerprint(source, Request("f32")),
        fingerprint(source, Request("bf16", only=("*",))),
        fingerprint(replace(source, config=FP8_CONFIG | {"more": 1}), Request("bf16")),
        fingerprint(replace(source, config=None), Request("bf16")),
        fingerprint(replace(source, files=source.files | {"more": 1}), Request("bf16")),
        fingerprint(replace(source, files=source.files | {"tokenizer.json": 3}), Request("bf16")),
    ]
    assert len({known, *others}) == 1 + len(others)


def test_another_header_of_the_same_size_is_another_source(source: Checkpoint) -> None:
    file = min(source.headers)
    specs = {name: ref.spec for name, ref in source.headers[file].tensors.items()}
    known = fingerprint(source, Request("bf16"))
    name = next(iter(specs))
    specs[name[:-1] + "x"] = specs.pop(name)
    write_header(Path(source.store.place) / file, specs)
    assert fingerprint(opened(Path(source.store.place)), Request("bf16")) != known
