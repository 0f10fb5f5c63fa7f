"""The descriptions against what the releases publish: counts and bytes, exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest

from dsctl.codecs import CODECS, in_dialect
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.config_fields import edited, text_fields
from dsctl.core.errors import FormatError
from dsctl.core.params import Family
from dsctl.models import MODELS, recognise
from dsctl.releases import find

RELEASES: dict[str, dict[str, Any]] = {
    file.name.removesuffix(".json"): json.loads(file.read_text())
    for file in resources.files("dsctl.releases").iterdir()
    if file.name.endswith(".json")
}


def families(name: str) -> tuple[Family, ...]:
    release = find(RELEASES[name]["name"])
    return recognise(release.config).families(release.config, release.storage.traits)


def test_v3_is_the_audited_inventory() -> None:
    """NVIDIA-NeMo/Megatron-Bridge pull request 5822 counted the same tensors in the files."""
    v3 = families("v3")
    assert sum(family.count for family in v3) == 46_183
    assert sum(family.count * family.values for family in v3) == 684_489_845_504
    assert sum(family.count for family in v3 if family.quantizable) == 45_808
    main = [family for family in v3 if not family.mtp]
    assert sum(family.count * family.values for family in main) == 671_026_419_200
    assert sum(family.count for family in main) == 45_395


def test_v32_adds_62_indexers() -> None:
    before, after = families("v3"), families("v3.2")
    added = [family for family in after if family.role == "indexer"]
    assert sum(family.count for family in added) == 5 * 62
    assert sum(family.count for family in after) - sum(family.count for family in before) == 5 * 62
    shapes = {family.template.rpartition("indexer.")[2]: family.shape for family in added}
    assert shapes == {
        "wq_b.weight": (8192, 1536),
        "wk.weight": (128, 7168),
        "k_norm.weight": (128,),
        "k_norm.bias": (128,),
        "weights_proj.weight": (64, 7168),
    }


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_every_release_has_the_tensors_and_bytes_it_publishes(name: str) -> None:
    release = RELEASES[name]
    assert recognise(release["config"]).name == release["architecture"]
    tensors = nbytes = 0
    for family in families(name):
        stored = _stored(family, release["storage"]["formats"])
        if name == "v4.1-flash" and isinstance(stored, Fp8Block) and not family.table:
            stored = replace(stored, block=(32, 32))
        specs = stored.specs(family.shape)
        tensors += family.count * len(specs)
        nbytes += family.count * sum(spec.nbytes for spec in specs.values())
    assert release["storage"]["stored_tensors"] in (None, tensors)
    assert release["storage"]["total_size"] in (None, nbytes)


def _stored(family: Family, formats: list[str]) -> Codec:
    """Four bits for routed experts where a release has them, FP8 blocks for whatever else it quantizes."""
    if "int4-group-32" in formats and family.role == "routed experts":
        # Kimi K2 Thinking and its successors state shapes in I32.
        return replace(CODECS["int4-group-32"], shape_dtype="I32")  # type: ignore[type-var]
    if family.role == "engram tables":
        return Fp8Block((1, 32), "ue8m0", "F8_E8M0", "v4")
    four_bits = in_dialect(CODECS["mxfp4"], "v4")
    blocks = next((CODECS[name] for name in ("fp8-block", "fp8-block-e8m0") if name in formats), None)
    if family.quantizable and "mxfp4" in formats and family.role == "routed experts":
        return four_bits
    return blocks if family.quantizable and blocks is not None else Plain(family.dtype)


def test_v41_flash_is_the_audited_inventory() -> None:
    """A public audit of the headers of all 48 files at revision dba1be0a: elements by dtype, and all parameters."""
    values: dict[str, int] = {}
    found = families("v4.1-flash")
    for family in found:
        stored = _stored(family, RELEASES["v4.1-flash"]["storage"]["formats"])
        if isinstance(stored, Fp8Block) and not family.table:
            stored = replace(stored, block=(32, 32))
        for spec in stored.specs(family.shape).values():
            values[spec.dtype] = values.get(spec.dtype, 0) + family.count * spec.values
    assert values == {
        "I8": 278_585_671_680, "F8_E4M3": 204_015_223_296, "F8_E8M0": 23_563_015_184, "BF16": 1_976_441_856,
        "F32": 42_307_282,
    }  # fmt: skip
    assert sum(family.count * family.values for family in found) == 763_205_315_794
    tables = sum(family.count * family.values for family in found if family.table)
    drafter = sum(family.count * family.values for family in found if family.mtp)
    assert (tables, drafter) == (196_613_849_600, 14_225_362_530)


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_names_are_unique_and_twins_exist_with_the_same_shape(name: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for family in families(name):
        for param in family.params():
            assert param.name not in shapes
            shapes[param.name] = param.shape
    for family in families(name):
        assert family.twin is None or shapes[family.twin] == family.shape


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("value", [None, -1, 0, 10**9, "many", 1.5, []])
@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "a rank"])
def test_an_absurd_field_is_named(model: str, field: str, value: object) -> None:
    config = next(r["config"] for r in RELEASES.values() if r["architecture"] == model)
    known = text_fields(config)
    field = next(name for name in ("kv_lora_rank", "o_lora_rank") if name in known) if field == "a rank" else field
    field = field if field in known else {"hidden_size": "dim", "num_hidden_layers": "n_layers"}[field]
    config = edited(config, {field: value})
    with pytest.raises(FormatError, match=field):
        MODELS[model].families(config)
