"""A drafter's fields: `with_mtp` brings back what `without_mtp` removes, and replaces those of another drafter."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl import models, releases
from dsctl.core.config_fields import text_fields


def families(config: dict[str, Any], traits: Any) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    found = models.recognise(config).families(config, traits)
    return {(one.template, one.shape, one.layers) for one in found}


@pytest.mark.parametrize("release", releases.releases(), ids=lambda one: one.alias[0])
def test_it_is_the_inverse_of_without_mtp(release: Any) -> None:
    model, config = models.recognise(release.config), release.config
    traits = release.storage.traits
    bare = model.without_mtp(config)
    back = model.with_mtp(bare, config, traits)
    assert back == config or text_fields(back) == text_fields(config) | {"num_nextn_predict_layers": 0}
    assert families(back, traits) == families(config, traits)


@pytest.mark.parametrize(("base", "other"), [("v4-flash", "v4-flash-0731"), ("v4-flash-0731", "v4-flash")])
def test_a_different_drafter_replaces_the_fields_of_the_first(base: str, other: str) -> None:
    """The two releases have the same main model."""
    one, two = releases.find(base), releases.find(other)
    made = models.recognise(one.config).with_mtp(one.config, two.config, two.storage.traits)
    told, wanted = ({name for name in config if name.startswith("dspark_")} for config in (made, two.config))
    assert told == wanted
    assert made["compress_ratios"] == two.config["compress_ratios"]
    assert families(made, two.storage.traits) == families(two.config, two.storage.traits)


def test_fields_of_v4_1_go_where_loaders_look_for_them() -> None:
    release = releases.find("v4.1-flash")
    model = models.recognise(release.config)
    back = model.with_mtp(model.without_mtp(release.config), release.config, release.storage.traits)
    assert not [name for name in back if name.startswith("dspark_")]
    assert back["text_config"]["dspark_block_size"] == 5 and back == release.config
