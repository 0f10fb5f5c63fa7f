"""A role that `ROLES` does not list counts in every table, sum, chart and JSON: that table orders and never filters."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from dsctl.checkpoint.groups import whole
from dsctl.codecs.plain import Plain
from dsctl.core.params import OTHER, ROLES, Family
from dsctl.look import capacity
from dsctl.look.comparison import Compared, Comparison, Sums
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.inspection import Inspection
from dsctl.models import MODELS
from dsctl.plan.formats import known_formats
from dsctl.plan.request import KEEP, Request
from dsctl.releases import find
from dsctl.show.differences import sections
from dsctl.show.drawing.architecture import staged
from dsctl.show.output import Output
from dsctl.show.pages.comparison import comparison
from dsctl.show.pages.difference import difference
from dsctl.show.pages.inspection import inspection
from dsctl.show.sections import Section, show
from tests.support.command import dsctl

LAYER = "model.layers.{layer}."
KNOWN = (
    Family("model.embed_tokens.weight", (64, 16), "embedding"),
    Family(f"{LAYER}input_layernorm.weight", (16,), "norm", layers=(0, 1)),
    Family("lm_head.weight", (64, 16), "head"),
)
# In layers and outside of them, and in a multi-token-prediction layer.
INVENTED = (
    Family(f"{LAYER}gauge.weight", (32, 16), "gauge", layers=(0, 1)),
    Family("beacon.weight", (8, 16), "beacon"),
    Family(f"{LAYER}lamp.weight", (4, 16), "lamp", layers=(2,), mtp=True),
)
CONFIG = {"num_hidden_layers": 2, "hidden_size": 16}


def described(*families: Family) -> Description:
    groups = tuple(whole(family, Plain("BF16")) for family in families)
    return Description("made", "/made", None, CONFIG, "deepseek_v3", groups)


ALL = described(*KNOWN, *INVENTED)


def test_the_roles_are_invented() -> None:
    assert not {"gauge", "beacon", "lamp"} & {*ROLES, OTHER}


def test_inspect_has_every_role_and_the_whole_sum() -> None:
    roles = Inspection(ALL, {}, (), (), True).roles
    assert [one.name for one in roles] == ["embedding", "norm", "head", "mtp", "gauge", "beacon"]
    values = sum(family.values * family.count for family in (*KNOWN, *INVENTED))
    assert sum(one.nbytes for one in roles) == ALL.nbytes == 2 * values
    assert sum(one.values for one in roles) == ALL.values == values
    assert sum(one.number for one in roles) == ALL.parameters == 8
    assert sum(one.active for one in roles) == ALL.active_values == ALL.main_values - 64 * 16


def test_the_tree_and_the_drawing_have_every_group() -> None:
    stages = staged(ALL.groups)
    assert sum(group.nbytes for groups in stages.values() for group in groups) == ALL.nbytes
    assert {group.family.role for groups in stages.values() for group in groups} >= {"gauge", "beacon", "lamp"}


def test_a_difference_has_every_role() -> None:
    diff = Diff(described(*KNOWN), ALL)
    assert [template.role for template in diff.added] == ["gauge", "beacon", "lamp"]
    totals = {(total.key, total.context): (total.before, total.after) for total in diff.totals}
    assert totals["nbytes", None] == (described(*KNOWN).nbytes, ALL.nbytes)
    assert totals["parameters", None] == (4, 8)
    text = printed(list(sections(diff, None, True)))
    assert all(name in text for name in ("gauge", "beacon", "lamp"))
    changed = Diff(ALL, described(*KNOWN, *(replace(family, shape=(family.shape[0], 32)) for family in INVENTED)))
    assert [change.after.role for change in changed.changed] == ["gauge", "beacon", "lamp"]


def test_a_plan_has_every_role() -> None:
    kept = known_formats(ALL.contents, Request(KEEP))
    roles = capacity.roles(ALL, kept)
    assert {"gauge": {"bf16": 2048}, "beacon": {"bf16": 256}, "mtp": {"bf16": 128}}.items() <= roles.items()
    assert sum(each for formats in roles.values() for each in formats.values()) == ALL.nbytes
    assert capacity.disk(ALL, kept) == ALL.nbytes
    cache = capacity.Cache.of(ALL, 1, 1, "bf16")
    assert capacity.load(ALL, capacity.Ranks(), kept, cache).weights == ALL.nbytes


def test_a_comparison_has_every_role() -> None:
    found = compared()
    assert list(found.roles) == ["norm", "gauge", "beacon", "other"]
    assert sum(sums.values for _, sums in found.roles.values()) == found.total.values == 4


def test_pages_have_every_role() -> None:
    pages = (
        inspection(Inspection(ALL, {}, (), (), True), []),
        difference(Diff(described(*KNOWN), ALL), (), None),
        comparison(compared(), ("a", "b"), 3),
    )
    assert all("gauge" in page and "beacon" in page for page in pages)
    # The chart's numbers, with their shares of all bytes.
    assert f"<td>{204800 / ALL.nbytes:.1f} %</td>" in pages[0].replace(' class="right"', "")


@pytest.mark.parametrize("line", ["inspect v3", "inspect v3 --tree", "plan v3 --recipe int4-experts"])
def test_a_command_shows_the_role(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    invent(monkeypatch)
    assert "gauge" in dsctl(*line.split())


def test_json_counts_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads(dsctl("inspect", "v3", "--json"))
    invent(monkeypatch)
    seen = json.loads(dsctl("inspect", "v3", "--json"))
    assert "gauge" in {role["role"] for role in seen["roles"]}
    assert sum(role["bytes"] for role in seen["roles"]) == seen["bytes"] == before["bytes"]
    planned = json.loads(dsctl("plan", "v3", "--json"))["formats"]["as stored"]
    assert sum(each for formats in planned["roles"].values() for each in formats.values()) == planned["disk_bytes"]
    assert "gauge" in planned["roles"]
    differing = json.loads(dsctl("diff", "v3", "v2", "--json"))
    assert "gauge" in {one["role"] for one in differing["templates"]["removed"]}


def compared() -> Comparison:
    sums = Sums(values=1, identical=1)
    roles = ("other", "gauge", "norm", "beacon")
    parts = tuple(Compared(role, role, (1,), ("bf16", "bf16"), sums) for role in roles)
    return Comparison(("a", "b"), parts, (), (), (), ())


def printed(parts: list[Section]) -> str:
    output = Output()
    output.out = Console(width=200, file=io.StringIO(), highlight=False)
    show(parts, output)
    return str(output.out.file.getvalue())  # type: ignore[attr-defined]


def invent(monkeypatch: pytest.MonkeyPatch) -> None:
    """V3's routers have an invented role."""
    known = MODELS["deepseek_v3"].families(find("v3").config)
    renamed = tuple(replace(family, role="gauge") if family.role == "router" else family for family in known)
    monkeypatch.setattr(MODELS["deepseek_v3"], "families", lambda config, traits: renamed)
