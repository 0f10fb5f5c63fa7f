"""`dsctl models` and the releases behind it: found by any name, described exactly, every field with its source."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from dsctl.core.errors import UsageError
from dsctl.core.params import Family, in_order
from dsctl.look.comparison import Compared, Comparison, Sums
from dsctl.look.description import active, of_release
from dsctl.look.inspection import inspect
from dsctl.look.source import describe
from dsctl.models import MODELS, recognise
from dsctl.releases import Release, find, nearest, releases
from tests.support.command import dsctl

ISSUED = {
    "v2", "v2-lite", "v3-base", "v3", "v3-0324", "r1-zero", "r1", "r1-0528", "v3.1-base", "v3.1", "v3.1-terminus",
    "v3.2-exp", "v3.2", "v3.2-speciale", "kimi-k2", "glm-5",
}  # fmt: skip
SOURCED = ("alias", "name", "repository", "date", "licence", "architecture", "config", "storage", "notes")
NAMED = re.compile(r"\bby analogy\b")


def families(release: Release) -> tuple[Family, ...]:
    return recognise(release.config).families(release.config)


def test_every_release_asked_for_is_there() -> None:
    assert {release.alias[0] for release in releases()} >= ISSUED


@pytest.mark.parametrize(
    "text", ["v3.2", "V3.2", "deepseek-v3.2", "DeepSeek-V3.2", "deepseek-ai/DeepSeek-V3.2", " v3.2 "]
)
def test_names_are_forgiving(text: str) -> None:
    assert find(text).repository == "deepseek-ai/DeepSeek-V3.2"


def test_no_name_belongs_to_two() -> None:
    names = [name for release in releases() for name in set(release.names)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "near"),
    [("v3.3", "v3.2"), ("deepseek-v3.20", "v3.2"), ("r1-zro", "r1-zero"), ("kimi", "kimi-k2"), ("k2", "kimi-k2")],
)
def test_unknown_names_get_the_nearest(text: str, near: str) -> None:
    assert near in nearest(text)
    with pytest.raises(UsageError) as error:
        find(text)
    assert near in (error.value.hint or "")


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.alias[0])
def test_every_field_has_a_source_or_is_named_unknown(release: Release) -> None:
    assert set(release.sources) | {field.partition(".")[0] for field in release.unknown} >= set(SOURCED)
    assert all(sources and all(sources) for sources in release.sources.values())
    assert ("context" in release.sources) == (release.context is not None)
    for field in ("date", "licence"):
        assert (getattr(release, field) is None) == (field in release.unknown)
    for field in ("files", "total_size", "stored_tensors"):
        assert (getattr(release.storage, field) is None) == (f"storage.{field}" in release.unknown)


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.alias[0])
def test_what_was_not_read_is_named_derived(release: Release) -> None:
    said = any(source.startswith("derived: ") for source in release.sources["config"])
    assert said == ("config" in release.derived)
    assert any(map(NAMED.search, release.sources["storage"])) == any("storage." in field for field in release.derived)
    assert set(release.storage.scales_apart) <= {family.template for family in families(release)}


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.alias[0])
def test_descriptions_have_the_bytes_that_releases_publish(release: Release) -> None:
    described = of_release(release)
    assert release.storage.total_size in (None, described.nbytes)
    assert release.storage.stored_tensors in (None, described.tensors)
    specs = [(group.count, group.codec.specs(group.family.shape)) for group in described.known]
    stored = sum(count * spec.values for count, by_suffix in specs for spec in by_suffix.values())
    assert release.storage.values in (None, stored)


def test_v3_is_the_audited_inventory() -> None:
    """NVIDIA-NeMo/Megatron-Bridge pull request 5822."""
    v3 = describe("v3")
    assert (v3.parameters, v3.values, v3.quantized, v3.tensors) == (46_183, 684_489_845_504, 45_808, 91_991)


@pytest.mark.parametrize(
    ("name", "billions"), [("v2", 21), ("v2-lite", 2.4), ("v3", 37), ("r1", 37), ("kimi-k2", 32), ("glm-5", 40)]
)
def test_active_values_are_what_model_cards_say(name: str, billions: float) -> None:
    described = describe(name)
    assert described.active_values == sum(map(active, described.groups))
    assert described.active_values / 1e9 == pytest.approx(billions, rel=0.025)


def test_the_table_names_every_release_once() -> None:
    table = dsctl("models").splitlines()
    starred = [release.alias[0] + "*" * ("config" in release.derived) for release in releases()]
    assert [line.split()[0] for line in table[1:-3]] == starred
    assert any(line.startswith("  *: the config was derived") for line in table[-3:])


def test_json_has_every_release_with_its_sources() -> None:
    found = json.loads(dsctl("models", "--json"))
    assert [one["name"] for one in found] == [release.name for release in releases()]
    v32 = next(one for one in found if "v3.2" in one["alias"])
    assert (v32["layers"], v32["mtp_layers"], v32["context"], v32["published_context"]) == (61, 1, 163_840, 131_072)
    assert (v32["stored_tensors"], v32["stored_bytes"], v32["files"]) == (92_425, 689_471_107_200, 163)
    assert all(one["sources"]["config"] for one in found)
    v3 = next(one for one in found if "v3" in one["alias"])
    assert v3["index_total"] == 2 * v3["stored_values"] == 1_369_062_772_000 and v32["index_total"] is None


@pytest.mark.parametrize(
    ("name", "stages", "drafter", "active"),
    [
        ("v4-flash", 1, "mtp", 13.27), ("v4-flash-base", 1, "mtp", 13.27), ("v4-flash-dspark", 3, "dspark", 13.27),
        ("v4-flash-0731", 3, "dspark", 13.27), ("v4-flash-vision-exp", 3, "dspark", 13.27), ("v4-pro", 1, "mtp", 48.85),
        ("v4-pro-base", 1, "mtp", 48.85), ("v4-pro-dspark", 3, "dspark", 48.85), ("v4-pro-0813", 3, "dspark", 48.85),
    ],
)  # fmt: skip
def test_stages_of_v4_s_drafters_are_counted_by_tensors(name: str, stages: int, drafter: str, active: float) -> None:
    """num_nextn_predict_layers is 1 in releases with three. Published: 13 and 49 billion active parameters."""
    one = next(one for one in json.loads(dsctl("models", "--json")) if name in one["alias"])
    layers = 61 if "pro" in name else 43
    assert (one["layers"], one["mtp_layers"], one["drafter"]) == (layers, stages, drafter)
    assert round(one["active_values"] / 1e9, 2) == active
    row = next(line.split() for line in dsctl("models").splitlines() if line.split()[0] in (name, f"{name}*"))
    assert row[6] == f"{layers}+{stages}" and one["published_context"] == 1_048_576


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("v4-flash", {"BF16": 433, "F32": 417, "F8_E4M3": 375, "F8_E8M0": 34_167, "I64": 3, "I8": 33_792}),
        ("v4-flash-0731", {"BF16": 445, "F32": 433, "F8_E4M3": 390, "F8_E8M0": 35_718, "I64": 3, "I8": 35_328}),
        ("v4-pro", {"BF16": 619, "F32": 590, "F8_E4M3": 528, "F8_E8M0": 71_952, "I64": 3, "I8": 71_424}),
    ],
)
def test_tensors_of_v4_by_dtype(name: str, dtypes: dict[str, int]) -> None:
    assert {total.name: total.number for total in inspect(name).dtypes} == dtypes


def test_what_is_looked_up_or_sees_images_is_not_multiplied_with_a_token() -> None:
    groups = describe("v4-flash-vision-exp").groups
    idle = {g.family.template for g in groups if not active(g) and not g.family.mtp and g.family.role != "vision"}
    assert idle == {"embed.weight", "layers.{layer}.ffn.gate.tid2eid"}
    assert not any(active(group) for group in groups if group.family.role == "vision")


def test_a_role_of_no_known_architecture_keeps_its_place_in_every_sum(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture may have roles that `ROLES`, which only orders tables, does not list."""
    known = families(find("v3"))
    norm = [one for one in known if one.role == "norm"]
    renamed = tuple(replace(one, role="gauge") if one.role == "norm" else one for one in known)
    before = inspect("v3")
    monkeypatch.setattr(MODELS["deepseek_v3"], "families", lambda config, traits: renamed)
    seen = inspect("v3")
    roles = {total.name: total for total in seen.roles}
    assert list(roles)[-1] == "gauge" and "norm" not in roles
    assert roles["gauge"].number == sum(one.count for one in norm if not one.mtp)
    for total in ("nbytes", "values", "number"):
        assert sum(getattr(one, total) for one in seen.roles) == sum(getattr(one, total) for one in before.roles)
    described = json.loads(dsctl("inspect", "v3", "--json"))
    assert sum(one["bytes"] for one in described["roles"]) == described["bytes"] == seen.description.nbytes
    assert "gauge" in dsctl("inspect", "v3") and "gauge" in dsctl("inspect", "v3", "--tree")
    assert "gauge" in json.loads(dsctl("plan", "v3", "--json"))["formats"]["as stored"]["roles"]


def test_a_role_of_no_known_architecture_is_compared() -> None:
    compared = [
        Compared(name, name, (1,), ("bf16", "bf16"), Sums(values=1, identical=1)) for name in ("other", "gauge", "norm")
    ]
    found = Comparison(("a", "b"), tuple(compared), (), (), (), ())
    assert list(found.roles) == ["norm", "gauge", "other"]
    assert sum(sums.values for _, sums in found.roles.values()) == found.total.values == 3
    assert in_order(["z", "other", "head", "a", "z", "embedding"]) == ["embedding", "head", "z", "a", "other"]


def test_what_was_found_out_is_said_and_what_was_not_stays_open() -> None:
    assert find("v3.1-base").date == "2025-08-19"
    assert "config" not in find("v3.2-exp").derived and "config.transformers_version" in find("v3.2-exp").unknown
    assert "config" in find("r1-zero").derived and "is not known" in find("r1-zero").notes
    assert find("v3-base").storage.files == 163
    counted = {release.alias[0]: release.storage.values for release in releases() if release.storage.values}
    v3 = dict.fromkeys(("v3", "r1", "v3-0324", "v3.1", "v3.1-terminus"), 684_531_386_000)
    relatives = {
        "glm-5.1-fp8": 753_910_024_032, "glm-5.2-fp8": 753_375_793_584, "glm-5.3": 753_375_793_584,
        "mai-ds-r1": 671_026_419_200, "moonlight": 15_960_111_936, "prover-v2-671b": 684_531_386_000,
        "math-v2": 685_396_921_376,
    }  # fmt: skip
    kimi = dict.fromkeys(("kimi-k2.5", "kimi-k2.6", "kimi-k2.7-code"), 170_738_182_128) | {"kimi-k3": 1_503_647_073_024}
    assert counted == v3 | dict.fromkeys(("v3.2", "v3.2-speciale"), 685_396_921_376) | relatives | kimi
