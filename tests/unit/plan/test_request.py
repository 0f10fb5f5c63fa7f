"""What is asked for, its identity, and options that nothing would heed."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from dsctl.codecs import CODECS
from dsctl.core.errors import UsageError
from dsctl.plan.request import KEEP, PUBLISHED, RECIPE, SCALED, SEARCHED, Request, refuse_idle

OTHERS: dict[str, Any] = {
    "to": "fp8-block", "layout": "fused", "scale_fmt": "ue8m0", "shard_size": 1, "only": ("a",), "skip": ("a",),
    "mtp": "drop", "allow_missing": True, "allow_extra": True, "keep_scales": False, "layers": (1,), "experts": (1,),
    "slice": "x", "rules": (("", "*", "bf16"),), "search": True, "tp": 2, "ep": 2, "pp": 2, "ranks": (1,),
    "recode": True, "placed": ((0, 1),), "allow_inexact": True, "original": "x", "lora": "x",
    "graft": (("a",),), "as_base": True, "delta": "x",
}  # fmt: skip


def test_every_field_is_part_of_the_identity() -> None:
    # Not told where they are not asked for: older runs go on.
    later = {"allow_inexact", "original", "lora", "graft", "as_base", "delta"}
    remarks = {"notes"}  # what is said of a request, not what it asks for
    assert {field.name for field in fields(Request)} - remarks == set(OTHERS) == set(Request("bf16").json()) | later
    for name, value in OTHERS.items():
        other = replace(Request("bf16"), **{name: value})
        assert other != Request("bf16") and other.json() != Request("bf16").json(), name


def test_the_identity_is_json() -> None:
    said = Request(**OTHERS).json()
    assert json.loads(json.dumps(said)) == said
    assert said["rules"] == [["", "*", "bf16"]] and said["placed"] == [[0, 1]]


def test_what_the_identity_of_a_plain_request_says() -> None:
    """An older version wrote this: its fields, their order in the digest and their values stay."""
    assert Request("bf16").json() == {
        "to": "bf16", "layout": "hf", "scale_fmt": "auto", "shard_size": None, "only": [], "skip": [], "mtp": "keep",
        "allow_missing": False, "allow_extra": False, "keep_scales": True, "layers": [], "experts": [], "slice": "",
        "rules": [], "search": False, "tp": 0, "ep": 1, "pp": 1, "ranks": [], "recode": False, "placed": [],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["only", "skip"])
def test_a_glob_may_stand_alone(name: str) -> None:
    assert replace(Request("bf16"), **{name: "a.*"}) == replace(Request("bf16"), **{name: ["a.*"]})
    with pytest.raises(UsageError, match=f"^{name}: 7 is not a glob$"):
        replace(Request("bf16"), **{name: [7]})


@pytest.mark.parametrize("name", ["layers", "experts", "ranks"])
def test_numbers_are_whole(name: str) -> None:
    assert getattr(replace(Request("bf16"), **{name: range(2)}), name) == (0, 1)
    for wrong in ("0", [0.5], ["0"], 7):
        with pytest.raises(UsageError) as found:
            replace(Request("bf16"), **{name: wrong})
        assert found.value.exit_code == 2


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("bf16", search=True), "--search: does nothing for bf16"),
        (Request("fp8-block", search=True), "--search: does nothing for fp8-block"),
        (Request("bf16", scale_fmt="ue8m0"), "--scale-fmt: does nothing for bf16"),
        (Request(KEEP, scale_fmt="float32"), "--scale-fmt: does nothing for keep"),
        (Request("fp8-block-ct", scale_fmt="float32"), "--scale-fmt: does nothing for fp8-block-ct"),
        (Request("fp8-block", scale_fmt="e8m0"), "--scale-fmt: unknown scale format 'e8m0'"),
        (Request("bf16", scale_fmt=""), "--scale-fmt: unknown scale format ''"),
        (
            Request(RECIPE, search=True, rules=(("norm", "", "keep"), ("", "*", "bf16"))),
            "--search: does nothing for bf16, keep",
        ),
    ],
)
def test_an_option_that_does_nothing_is_refused(request_: Request, words: str) -> None:
    with pytest.raises(UsageError) as found:
        refuse_idle(request_)
    assert found.value.message == words and found.value.exit_code == 2 and found.value.hint is not None


@pytest.mark.parametrize(
    "request_",
    [
        Request("bf16"),
        Request("fp8-block", scale_fmt="ue8m0"),
        Request(PUBLISHED, scale_fmt="float32"),
        *(Request(name, search=True) for name in SEARCHED),
        Request(RECIPE, search=True, rules=(("norm", "", "keep"), ("", "*", "nvfp4"))),
        Request(RECIPE, scale_fmt="ue8m0", rules=(("norm", "", "keep"), ("", "*", "fp8-block"))),
    ],
)
def test_an_option_that_does_something_is_not(request_: Request) -> None:
    refuse_idle(request_)


def test_formats_with_options_of_their_own_exist() -> None:
    assert {*SEARCHED, *SCALED} <= {*CODECS, PUBLISHED}
    assert not {KEEP, RECIPE, PUBLISHED} & set(CODECS)
