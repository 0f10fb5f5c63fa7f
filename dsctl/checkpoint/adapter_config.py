"""The `adapter_config.json` of a PEFT adapter: read, checked, and refused if its merge would not be plain LoRA's.

Fields and their meaning: huggingface/peft 0.21.2, tuners/lora/config.py, tuners/lora/layer.py (`update_layer`: the
scaling), utils/other.py (`get_pattern_key`: the first pattern that matches counts). Pure, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

from dsctl.checkpoint.reading import read_json
from dsctl.core.errors import FormatError, PlanError, SourceError
from dsctl.core.visible import shortened
from dsctl.stores import Store

CONFIG = "adapter_config.json"
# Regular expressions and the values for what they match, in the order of the config.
Patterns = tuple[tuple[re.Pattern[str], float], ...]
MOST_RANK = 1 << 16
# Patterns without repeated groups and with at most two repetitions take at most cubic time in a name's length.
_LONGEST_PATTERN = 512
_REPEATED_GROUP = re.compile(r"\)[*+{?]")
MOST_MATCHES = 10_000_000
# The most patterns with repetitions: each can take a millisecond for every module.
_MOST_REPEATING = 8
# Settings that change what a merge is, with the only values that dsctl merges.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": (None, "none"), "fan_in_fan_out": (None, False), "lora_bias": (None, False), "use_qalora": (None, False),
    "layer_replication": (None, []), "trainable_token_indices": (None, [], {}), "alora_invocation_tokens": (None, []),
    "arrow_config": (None,), "kasa_config": (None,), "velora_config": (None,), "monteclora_config": (None,),
    "use_bdlora": (None,),
}  # fmt: skip
# Initializations that leave the base model's weights as they are.
_INITIAL = ("gaussian", "eva", "orthogonal")
# Settings without a meaning for a merge.
_SILENT = frozenset({
    "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora",
})  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter that its merge depends on; `unknown` are names of further settings."""

    r: int
    alpha: float
    rslora: bool
    dora: bool
    ranks: Patterns
    alphas: Patterns
    saved: tuple[str, ...]
    parameters: tuple[str, ...]
    revision: str
    unknown: tuple[str, ...]

    def rank(self, path: str) -> int:
        """The rank of a module or parameter."""
        return int(_first(self.ranks, path, self.r))

    def scaling(self, path: str) -> float:
        """The factor of its change: alpha / r, with rsLoRA alpha / sqrt(r)."""
        rank = self.rank(path)
        return _first(self.alphas, path, self.alpha) / (sqrt(rank) if self.rslora else rank)


def read_config(store: Store, files: Mapping[str, int]) -> AdapterConfig:
    """The settings of the adapter in a folder.

    Raises:
        SourceError: there are none. FormatError: they are not valid. PlanError: dsctl does not merge such an adapter.
    """
    said = read_json(store, CONFIG, files)
    if said is None:
        hint = "name the folder that `save_pretrained` of PEFT wrote"
        raise SourceError(f"--lora: {store.place}: has no {CONFIG}", hint=hint)
    _refuse_other_kinds(said)
    return AdapterConfig(
        r=int(_number(said.get("r"), "r", True)),
        alpha=_number(said.get("lora_alpha"), "lora_alpha"),
        rslora=_flag(said, "use_rslora"),
        dora=_flag(said, "use_dora"),
        ranks=_patterns(said, "rank_pattern", True),
        alphas=_patterns(said, "alpha_pattern", False),
        saved=_names(said, "modules_to_save"),
        parameters=_names(said, "target_parameters"),
        revision=_text(said.get("revision")),
        unknown=tuple(sorted(shortened(name) for name, value in said.items() if value and not _is_known(name))),
    )


def _is_known(name: str) -> bool:
    return name in _SILENT or name in _PLAIN


def _refuse_other_kinds(said: Mapping[str, Any]) -> None:
    """Refuse adapters whose merge is not W + D, or whose base is not the released one.

    Raises:
        PlanError: naming the setting.
    """
    kind = said.get("peft_type")
    if kind != "LORA":
        raise PlanError(f"{CONFIG}: peft_type {_shown(kind)} is not supported", hint="--lora merges adapters of LORA")
    for name, plain in _PLAIN.items():
        if (value := said.get(name)) not in plain:
            hint = "merge it with PEFT, or train without this setting"
            raise PlanError(f"{CONFIG}: {name} {_shown(value)} is not supported", hint=hint)
    initial = said.get("init_lora_weights", True)
    if not isinstance(initial, bool) and initial is not None and initial not in _INITIAL:
        what = f"{CONFIG}: init_lora_weights {_shown(initial)}: training began from a changed base model"
        hint = "save it with path_initial_model_for_weight_conversion, which makes it an adapter of the original model"
        raise PlanError(what, hint=hint)


def _number(value: Any, name: str, whole: bool = False) -> float:
    """A positive finite number; `whole`: a rank.

    Raises:
        FormatError: it is not.
    """
    usual = type(value) is int or (type(value) is float and not whole)
    if not usual or not 0 < value < 1 << 63 or not isfinite(value) or (whole and value > MOST_RANK):
        hint = f"a whole number from 1 to {MOST_RANK:,}" if whole else "a number above 0"
        raise FormatError(f"{CONFIG}: {name} {_shown(value)} is not valid", hint=f"it must be {hint}")
    return value  # type: ignore[no-any-return]


def _flag(said: Mapping[str, Any], name: str) -> bool:
    value = said.get(name)
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{CONFIG}: {name} {_shown(value)} is not true or false")
    return bool(value)


def _text(value: Any) -> str:
    return shortened(value) if isinstance(value, str) else ""


def _names(said: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = said.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise FormatError(f"{CONFIG}: {name} {_shown(value)} is not a list of names")
    return tuple(value)


def _patterns(said: Mapping[str, Any], name: str, whole: bool) -> Patterns:
    value = said.get(name)
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise FormatError(f"{CONFIG}: {name} {_shown(value)} is not an object")
    numbers = {key: _number(one, f"{name} {_shown(key)}", whole) for key, one in value.items()}
    return _compiled(numbers, name)


def _compiled(patterns: Mapping[str, float], name: str) -> Patterns:
    """Patterns as PEFT matches them, with their values.

    Raises:
        FormatError: one is not a regular expression, or could take too long.
    """
    found = []
    if sum(any(sign in key for sign in "*+{") for key in patterns) > _MOST_REPEATING:
        what = f"{CONFIG}: {name} has more than {_MOST_REPEATING} patterns with repetitions"
        raise FormatError(what, hint="name modules without * and +")
    for key, value in patterns.items():
        hint = "use names of modules, with at most two repetitions"
        if len(key) > _LONGEST_PATTERN or sum(map(key.count, "*+{")) > 2 or _REPEATED_GROUP.search(key):
            raise FormatError(f"{CONFIG}: {name} {_shown(key)}: the pattern could take too long", hint=hint)
        try:
            found.append((re.compile(rf"(.*\.)?({key})$"), value))
        except (re.error, OverflowError, RecursionError) as error:
            what = f"{CONFIG}: {name} {_shown(key)} is not a pattern: {shortened(str(error))}"
            raise FormatError(what, hint=hint) from None
    return tuple(found)


def _first(patterns: Patterns, path: str, usual: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(path)), usual)


def _shown(value: Any) -> str:
    return shortened(repr(value))
