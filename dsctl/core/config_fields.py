"""Fields of config.json that several rooms know by name, and where a config nests the language model's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# They describe the stored weights, not the computation.
STORAGE_FIELDS = frozenset({"quantization_config", "torch_dtype", "dtype"})
# They say who wrote the file and where its code lies; they do not change the computation.
CLERICAL_FIELDS = frozenset({"transformers_version", "auto_map", "_name_or_path"})
# Keys of `quantization_config` that list unquantized modules, for any method.
SPARED_FIELDS = ("modules_to_not_convert", "ignored_layers", "ignore")
# The field in which configs of models that also read images nest the fields of the language model.
TEXT = "text_config"
QUANTIZATION = "quantization_config"
# The fields that name the whole model, not the language model in it.
_NAMES = ("architectures", "model_type")


def text_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of the language model at one level, wherever the config nests them.

    A config without `text_config` is returned as it is. A field of `text_config` counts more than one of the same name
    beside it, except for the names of the whole model.
    """
    inner = config.get(TEXT)
    if not isinstance(inner, dict):
        return dict(config)
    flat = {name: value for name, value in config.items() if name != TEXT} | inner
    return flat | {name: config[name] for name in _NAMES if name in config}


def edited(config: Mapping[str, Any], changes: Mapping[str, Any], removed: Iterable[str] = ()) -> dict[str, Any]:
    """The same config with changed and without removed fields, each wherever the config has it.

    A new field is added beside `text_config`.
    """
    gone = frozenset(removed)
    inner = config.get(TEXT)
    nested = inner if isinstance(inner, dict) else {}
    made = {name: changes.get(name, value) for name, value in config.items() if name not in gone}
    if nested:
        kept = {name: value for name, value in nested.items() if name not in gone}
        made[TEXT] = {name: value if name in _NAMES else changes.get(name, value) for name, value in kept.items()}
    return made | {name: value for name, value in changes.items() if name not in made and name not in nested}


def resized(config: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """The config whose `text_fields` are `flat`: fields that `flat` lacks are removed, others are set."""
    before = text_fields(config)
    changes = {name: value for name, value in flat.items() if name not in before or before[name] != value}
    return edited(config, changes, before.keys() - flat.keys())


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config's `quantization_config`, or None if it has none or something else under this name."""
    said = text_fields(config).get(QUANTIZATION)
    return said if isinstance(said, dict) else None


def value_at(config: Mapping[str, Any], path: str) -> Any:
    """The value of a field of the language model or, after a point, of an object in such a field; None if absent."""
    value: Any = text_fields(config)
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def with_value(config: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The config with a changed field, or without it if the value is None. An absent outer object is not added."""
    field, _, inner = path.partition(".")
    if not inner:
        return edited(config, {}, [field]) if value is None else edited(config, {field: value})
    said = text_fields(config).get(field)
    if not isinstance(said, dict):
        return dict(config)
    rest = {name: one for name, one in said.items() if name != inner or value is not None}
    return edited(config, {field: rest if value is None else {**rest, inner: value}})


def with_quantization(config: Mapping[str, Any], quantization: Mapping[str, Any] | None) -> dict[str, Any]:
    """The config with this `quantization_config` in the place of its own, or at the end; without any if it is None."""
    if quantization is not None and isinstance(config.get(TEXT), dict) and QUANTIZATION in config[TEXT]:
        return edited(config, {QUANTIZATION: quantization})
    return edited(config, {}, [QUANTIZATION]) | ({} if quantization is None else {QUANTIZATION: quantization})
