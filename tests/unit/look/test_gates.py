"""Kinds of difference that a check fails on: each is found where it is, and not beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsctl.checkpoint.groups import whole
from dsctl.codecs.plain import Plain
from dsctl.core.errors import UsageError
from dsctl.core.params import Family
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.gates import ANY, KINDS, found
from dsctl.look.source import describe

CONFIG = {"num_hidden_layers": 2, "hidden_size": 16, "transformers_version": "1"}
LAYERS = Family("model.layers.{layer}.up.weight", (32, 16), "dense mlp", layers=(0, 1))
HEAD = Family("lm_head.weight", (64, 16), "head")


def described(*families: Family, dtype: str = "BF16", **changed: object) -> Description:
    groups = tuple(whole(family, Plain(dtype)) for family in families)
    return Description("made", "/made", None, CONFIG | changed, "deepseek_v3", groups)


SIDE = described(LAYERS, HEAD)


@pytest.mark.parametrize(
    ("other", "kinds"),
    [
        (SIDE, {}),
        (described(LAYERS), {"architecture": "1 parameter"}),
        (described(replace(LAYERS, shape=(32, 8)), HEAD), {"architecture": "2 parameters"}),
        (described(replace(LAYERS, layers=(0, 1, 2)), HEAD), {"architecture": "3 parameters"}),
        (described(LAYERS, HEAD, dtype="F32"), {"storage": "3 parameters"}),
        (described(LAYERS, HEAD, hidden_size=8), {"config": "1 field"}),
        (described(LAYERS, HEAD, transformers_version="2"), {}),
        (replace(SIDE, missing=("lm_head.weight",)), {"architecture": "1 parameter"}),
        (replace(SIDE, part="ranks 1 of 2"), {"architecture": "the sides hold different ranks"}),
        (described(LAYERS, dtype="F32", hidden_size=8), dict.fromkeys(("architecture", "config", "storage"), "")),
    ],
)
def test_each_kind_is_found_where_it_is(other: Description, kinds: dict[str, str]) -> None:
    for diff in (Diff(SIDE, other), Diff(other, SIDE)):
        said = {one.partition(" (")[0]: one for one in found(diff, set(KINDS) - {ANY})}
        assert said.keys() == kinds.keys()
        assert all(extent.split()[0] in said[kind] if extent else True for kind, extent in kinds.items())


def test_any_is_what_exit_code_judges() -> None:
    clerical = Diff(SIDE, described(LAYERS, HEAD, transformers_version="2"))
    assert found(clerical, [ANY]) == ("config",)
    assert found(clerical, [ANY], "config") == ("config",) and found(clerical, [ANY], "tensors") == ()
    assert found(Diff(SIDE, SIDE), [ANY]) == ()


def test_sides_without_a_common_parameter_differ_in_storage_if_their_formats_do() -> None:
    renamed = replace(HEAD, template="head.weight")
    assert found(Diff(described(HEAD), described(renamed, dtype="F32")), ["storage"]) == ("storage (BF16 → F32)",)
    assert found(Diff(described(HEAD), described(renamed)), ["storage"]) == ()


@pytest.mark.parametrize("name", ["r1-zero", "v3-0324"])
def test_a_derived_config_is_not_judged(name: str) -> None:
    with pytest.raises(UsageError, match=r"--fail-on config: config\.json of .* was not read"):
        found(Diff(describe("v3"), describe(name)), ["config"])
    assert found(Diff(describe("v3"), describe(name)), ["architecture", "storage"]) == ()
