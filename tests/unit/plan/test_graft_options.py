"""The options of a graft, and the names that its audit folds."""

from __future__ import annotations

import pytest

from dsctl.checkpoint.grafts import folded
from dsctl.core.errors import UsageError
from dsctl.core.params import Family, Param
from dsctl.plan.graft_options import graft_request, split
from dsctl.plan.request import Request


@pytest.mark.parametrize(
    ("text", "globs"),
    [
        ("a.*", ("a.*",)), ("a,b", ("a", "b")), ("a.[0,1].*, b", ("a.[0,1].*", "b")), ("a,", ("a", "")), ("", ("",)),
        ("[a,b", ("[a,b",)),
    ],
)  # fmt: skip
def test_globs_are_separated_by_commas_outside_of_brackets(text: str, globs: tuple[str, ...]) -> None:
    assert split(text) == globs


@pytest.mark.parametrize("sources", [[], [("a", ())], [("a", ("",))], [(" ", ("x",))]])
def test_sources_without_a_place_or_a_glob(sources: list[tuple[str, tuple[str, ...]]]) -> None:
    with pytest.raises(UsageError):
        graft_request(sources)


def test_a_request_names_globs_in_their_order_and_no_places() -> None:
    """The identity of a source is what it holds, not where it lies."""
    one = graft_request([("a", ("x",)), ("b", ("y", "z"))])
    assert one.json()["graft"] == [["x"], ["y", "z"]] and "as_base" not in one.json()
    assert one == graft_request([("c", ("x",)), ("d", ("y", "z"))])
    assert one.json() != graft_request([("b", ("y", "z")), ("a", ("x",))]).json()
    assert graft_request([("a", ("x",))], "base").json()["as_base"] is True
    assert Request("keep").json().keys().isdisjoint({"graft", "as_base"})


def test_names_are_folded_by_layers_and_experts() -> None:
    experts = Family("model.layers.{layer}.e.{expert}.w", (1,), "x", layers=(3, 4, 5, 7), experts=4)
    held = [*experts.params()]
    assert folded(held) == ["model.layers.{3-5,7}.e.{0-3}.w"]
    some = [param for param in held if param.layer != 4 or param.expert in (0, 2)]
    assert folded(some) == ["model.layers.{3,5,7}.e.{0-3}.w", "model.layers.4.e.{0,2}.w"]
    assert folded([Param("head", Family("head", (1,), "x"), None, None)]) == ["head"]
