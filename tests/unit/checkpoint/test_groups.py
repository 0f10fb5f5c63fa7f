"""Families by how they are stored: what is counted adds up to what the headers say, in parts as in the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl import releases
from dsctl.checkpoint.groups import folded, groups_of, groups_of_release, whole
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.header import TensorSpec
from dsctl.core.params import OTHER, Family
from tests.support.headers import BF16_CONFIG, BLOCKS, FP8_CONFIG, bf16, files_of, fp8, opened, write

FAMILY = Family(
    "layers.{layer}.{expert}.up.weight", (256, 200), "routed experts", True, 0, layers=(1, 2), experts=3, active=2
)


def test_a_whole_checkpoint_is_its_families(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    groups = groups_of(checkpoint)
    assert [group.family for group in groups] == list(checkpoint.families)
    assert sum(group.nbytes for group in groups) == checkpoint.nbytes
    assert sum(group.tensors for group in groups) == len(list(checkpoint.tensors))
    assert sum(group.count for group in groups) == len(checkpoint.params)


def test_what_is_looked_at_tensor_by_tensor_adds_up_too(tmp_path: Path) -> None:
    files = files_of(FP8_CONFIG, BLOCKS)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    holder = next(file for file, specs in files.items() if name in specs)
    files[holder][name] = TensorSpec("BF16", (256, 256))
    files[holder].pop(f"{name}_scale_inv")
    files[holder] |= {f"extra.{number}.w": TensorSpec("I64", (number % 2 + 1,)) for number in range(4)}
    checkpoint = opened(write(tmp_path, FP8_CONFIG, files))
    assert checkpoint.regular is None
    groups = groups_of(checkpoint)
    assert sum(group.nbytes for group in groups) == checkpoint.nbytes
    assert sum(group.tensors for group in groups) == len(list(checkpoint.tensors))
    mixed = [group for group in groups if group.family.template.endswith("{expert}.up_proj.weight")]
    apart = [group for group in mixed if not group.family.mtp]
    assert [(group.codec.name, group.count, group.some and len(group.some)) for group in apart] == [
        ("fp8-block", 3, 3),
        ("bf16", 1, 1),
    ]
    assert [group.layers for group in apart] == [(1,), (1,)]
    assert apart[1].some == (name,) and [param.name for param in apart[1].params] == [name]
    others = [group for group in groups if group.family.role == OTHER]
    assert [(group.family.template, group.family.shape, group.layers, group.count) for group in others] == [
        ("extra.{layer}.w", (1,), (0, 2), 2),
        ("extra.{layer}.w", (2,), (1, 3), 2),
    ]


def test_a_parameter_that_is_not_there_is_in_no_group(tmp_path: Path) -> None:
    files = files_of(BF16_CONFIG)
    files[min(files)].pop("model.norm.weight")
    checkpoint = opened(write(tmp_path, BF16_CONFIG, files))
    assert "model.norm.weight" not in {group.family.template for group in groups_of(checkpoint)}


@pytest.mark.parametrize("codec", [Plain(), Fp8Block(), Fp8Block(scale_dtype="BF16")])
def test_a_family_stored_alike(codec: Plain | Fp8Block) -> None:
    group = whole(FAMILY, codec)
    assert (group.count, group.tensors, group.layers) == (6, 6 * len(codec.parts), (1, 2))
    assert group.nbytes == 6 * sum(spec.nbytes for spec in group.specs.values())
    assert group.values == 6 * 256 * 200 and list(group.names) == FAMILY.names()
    assert [param.name for param in group.params] == FAMILY.names()


@given(st.sets(st.integers(0, 5), min_size=1))
def test_a_group_is_cut_into_parts_that_add_up(numbers: set[int]) -> None:
    group = whole(FAMILY, Fp8Block())
    params = group.params
    chosen = [param for place, param in enumerate(params) if place in numbers]
    others = [param for place, param in enumerate(params) if place not in numbers]
    part = group.part(chosen)
    assert part.params == chosen and list(part.names) == [param.name for param in chosen]
    assert part.layers == tuple(dict.fromkeys(param.layer for param in chosen))
    assert (part == group) == (not others)
    if others:
        rest = group.part(others)
        for field in ("count", "tensors", "nbytes", "values"):
            assert getattr(part, field) + getattr(rest, field) == getattr(group, field)
        assert part.part(chosen[:1]).nbytes * len(chosen) == part.nbytes


@pytest.mark.parametrize(
    ("name", "template", "numbers"),
    [
        ("a.b", "a.b", ()),
        ("layers.3.w", "layers.{layer}.w", (3,)),
        ("layers.3.experts.12.w", "layers.{layer}.experts.{expert}.w", (3, 12)),
        ("a.1.b.2.c.3", "a.{layer}.b.{expert}.c.{expert}", (1, 2, 3)),
        ("a.1234567890.w", "a.1234567890.w", ()),
        ("a.\N{SUPERSCRIPT TWO}.\N{ARABIC-INDIC DIGIT TWO}", "a.\N{SUPERSCRIPT TWO}.\N{ARABIC-INDIC DIGIT TWO}", ()),
        ("", "", ()),
        ("7", "{layer}", (7,)),
    ],
)
def test_names_are_folded_by_their_numbers(name: str, template: str, numbers: tuple[int, ...]) -> None:
    assert folded(name) == (template, numbers)


def test_a_checkpoint_of_an_unknown_architecture_is_all_other(tmp_path: Path) -> None:
    checkpoint = opened(write(tmp_path, None, {"model.safetensors": {"w": TensorSpec("F4", (4,))}}))
    (group,) = groups_of(checkpoint)
    assert (group.family.role, group.codec, group.nbytes) == (OTHER, Plain("F4"), 2)


@pytest.mark.parametrize("alias", ["v2-lite", "v3", "v3.1", "v3.2"])
def test_a_release_is_all_its_families(alias: str) -> None:
    release = releases.find(alias)
    groups = groups_of_release(release)
    assert all(group.count == group.family.count and not group.some for group in groups)
    quantized = {group.family.role for group in groups if group.codec.quantized}
    assert bool(quantized) == bool(release.config.get("quantization_config"))


def test_groups_of_the_same_in_bf16_are_all_plain(tmp_path: Path) -> None:
    assert all(group.codec.plain for group in groups_of(bf16(tmp_path)))
