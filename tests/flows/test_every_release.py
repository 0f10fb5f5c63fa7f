"""`inspect`, `plan` and `diff` on every known release: they end well, and the page of each is complete."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from dsctl.releases import releases
from tests.support.command import dsctl

# What Kimi Delta Attention keeps of a sequence is not known.
UNKNOWN_CACHE = ("kimi-k3",)
NAMES = [release.alias[0] for release in releases()]


@pytest.mark.parametrize("name", NAMES)
def test_a_release_is_looked_at(name: str, tmp_path: Path) -> None:
    assert json.loads(dsctl("inspect", name, "--json"))["bytes"] > 0
    facts = json.loads(dsctl("plan", name, "--json"))
    held = facts["formats"]["as stored"]
    assert any(not rank["cuts"] for rank in held["ranks"])
    assert facts["cache"] is None if name in UNKNOWN_CACHE else facts["cache"]["bytes"] > 0
    assert (facts["tables"] is None) == (held["tables_bytes"] == 0)
    page = tmp_path / "plan.html"
    assert "Weights" in dsctl("plan", name, "--html", page).title()
    assert page.read_text().endswith("</html>")


@pytest.mark.parametrize(("a", "b"), [*pairwise(NAMES), *((name, name) for name in NAMES)])
def test_neighbours_are_compared(a: str, b: str) -> None:
    there = json.loads(dsctl("diff", a, b, "--json"))
    assert (there["verdict"] == "nothing") is (not there["differs"])
    assert there["origins"]["same"] is (a == b)


@pytest.mark.parametrize("name", NAMES)
def test_v41_is_compared_with_every_release_in_both_directions(name: str) -> None:
    there, back = (json.loads(dsctl("diff", a, b, "--json")) for a, b in ((name, "v4.1-flash"), ("v4.1-flash", name)))
    assert there["verdict"] == back["verdict"]
    for key, (before, after) in ((key, both) for key, both in there["totals"].items() if isinstance(both, list)):
        assert back["totals"][key] == [after, before]
