"""The `quantization_config` of a checkpoint whose parameters are stored in these formats. Pure, no torch.

Requirements of loaders: vllm-project/vllm, model_executor/layers/quantization (compressed_tensors, fp8: modules fused
at loading must share a format, and unquantized modules must be listed); sgl-project/sglang, layers/quantization.

Two dialects name modules. compressed-tensors accepts names, and regular expressions after `re:`. `fp8` and
`blockwise_int8` accept only names, and loaders look for a layer's routed experts as one module, `mlp.experts` (vLLM and
SGLang, `is_layer_skipped`; transformers, `should_convert_module`). Some loaders look for a joined module's own name, so
it is listed beside the names of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from msgspec import structs

from dsctl.codecs import dress
from dsctl.codecs.codec import Codec
from dsctl.core.errors import PlanError
from dsctl.core.params import Param

_WEIGHT = ".weight"
# Classes of modules that may be targets.
LINEAR = "Linear"
# Patterns without repeated groups and with at most two repetitions take at most cubic time in a name's length.
_LONGEST_PATTERN = 4096
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_INT8 = "blockwise_int8"
_NEXTN, _DECODER = "model.layers.{layer}.", "model.decoder."
# vLLM and SGLang read the first key (older versions only this one); transformers reads the second.
LISTED = {"fp8": ("ignored_layers", "modules_to_not_convert"), _INT8: ("ignored_layers",)}
# SGLang's name for the module that vLLM and a family's `fused` call by a shorter one (both: models/deepseek_v2.py).
_ALSO_JOINED = {"fused_qkv_a_proj": "fused_qkv_a_proj_with_mqa"}


def quantization_config(stored: Sequence[tuple[Param, Codec]]) -> dict[str, Any] | None:
    """The `quantization_config` for these parameters, or None if none is quantized.

    Tables whose rows are looked up are not modules that it covers.

    Raises:
        PlanError: one `quantization_config` cannot declare them, or loaders would not read it.
    """
    stored = [(param, codec) for param, codec in stored if not param.family.table]
    configs = {codec: config for codec in dict.fromkeys(codec for _, codec in stored) if (config := codec.config())}
    if not configs:
        return None
    _refuse_mixed_fusions(stored)
    if all(config["quant_method"] == dress.METHOD for config in configs.values()):
        return _dressed(stored, configs)
    told = [config for codec, config in configs.items() if codec.scale_fmt] or list(configs.values())
    if any(config != told[0] for config in told) or len({config["quant_method"] for config in configs.values()}) > 1:
        names = " and ".join(sorted(f"{codec.name}{_scales_of(codec, configs)}" for codec in configs))
        hint = "fp8-block-ct can be combined with the other formats of compressed-tensors"
        raise PlanError(f"one quantization_config cannot declare {names}", hint=hint)
    config, method = told[0], told[0]["quant_method"]
    nvfp4 = next((one for one in configs.values() if dress.MOE_ALGORITHM in one), None)
    if nvfp4 is not None:
        # ModelOpt's additions are those of V4, whose FP8 scales are powers of two; a V3's need not be.
        added = {key: value for key, value in nvfp4.items() if key != "scale_fmt" or key in config}
        config = added | config | _of_experts(stored)
    spared = _spared(stored, method)
    if spared and method not in LISTED:
        what = f"{next(iter(configs)).name}: a quantization_config of {method} cannot leave out {spared[0]}"
        raise PlanError(what, hint="use this format for every quantizable matrix")
    return config | {key: spared for key in LISTED.get(method, ()) if spared}


def in_drafts(stored: Sequence[tuple[Param, Codec]]) -> Iterator[tuple[Param, Codec]]:
    """The same parameters of an MTP layer under the names that SGLang gives its modules, if it loads the drafter alone.

    It loads one layer, as `model.decoder` (sgl-project/sglang, models/deepseek_nextn.py).
    """
    if len({param.layer for param, _ in stored}) != 1:
        return
    for param, codec in stored:
        family = param.family
        if not family.mtp or not family.template.startswith(_NEXTN):
            continue
        template, fused = (_DECODER + name.removeprefix(_NEXTN) for name in (family.template, family.fused))
        moved = replace(family, template=template, fused=family.fused and fused, layers=())
        yield structs.replace(param, name=moved.named(template, None, param.expert), family=moved), codec


def _scales_of(codec: Codec, all_: Iterable[Codec]) -> str:
    """What tells a codec from another one of the same name."""
    same = [one for one in all_ if one.name == codec.name]
    return f" with {codec.scale_fmt} scales" if len(same) > 1 and codec.scale_fmt else ""


def _of_experts(stored: Sequence[tuple[Param, Codec]]) -> dict[str, Any]:
    """The modules in ModelOpt's NVFP4, by layer, and globs of all others.

    Raises:
        PlanError: a module in NVFP4 is not a routed expert; loaders expect only those.
    """
    ours = [param for param, codec in stored if (codec.config() or {}).get(dress.MOE_ALGORITHM)]
    if other := next((param for param in ours if not param.family.experts), None):
        hint = "--recipe nvfp4-modelopt-experts, or nvfp4 for every matrix"
        raise PlanError(f"nvfp4-modelopt supports only routed experts, not {other.name}", hint=hint)
    size = next(codec.block[1] for param, codec in stored if param is ours[0])
    layers = dict.fromkeys(name for param in ours for name in modules(param))
    held = {param.template.partition("{layer}")[0] for param in ours}
    globs: dict[str, None] = {}
    for param, _ in stored:
        head, mark, _ = param.template.partition("{layer}")
        if linear(param) and param not in ours and mark and head not in held:
            globs[f"{head}*"] = None
        elif linear(param) and not param.family.experts:
            globs[module_of(structs.replace(param, name=param.template.format(layer="*")))] = None
    quantized = {name: {"quant_algo": "NVFP4", "group_size": size} for name in layers}
    return {"quantized_layers": quantized, "ignore": list(globs)}


def _spared(stored: Sequence[tuple[Param, Codec]], method: str) -> list[str]:
    """The modules that `fp8` or `blockwise_int8` must skip, if modules that a release quantizes are among them.

    transformers skips the head by itself only without a list, so the list for `fp8` has every linear module.
    """
    plain = [param for param, codec in stored if not codec.quantized]
    asked = [param for param in plain if param.quantizable]
    if method == _INT8 and any(param.family.experts for param in asked):
        what = "int8-block: its only loader, SGLang, needs routed experts in the same format"
        raise PlanError(
            what, hint="use int8-block for them too, or a different format for the rest: int8-channel, fp8-block"
        )
    wanted = asked if method == _INT8 else [param for param in plain if asked and linear(param)]
    return list(dict.fromkeys(name for param in wanted for name in modules(param)))


def modules(param: Param) -> Iterator[str]:
    """The modules under which loaders may look for a parameter: its own or its layer's experts, and the joined module.

    Listing single experts would add tens of thousands of names without information.
    """
    if param.family.experts:
        yield param.family.named(param.template.partition(".{expert}")[0], param.layer)
        return
    yield module_of(param)
    yield from _joined(param)


def _joined(param: Param) -> Iterator[str]:
    """The names of the module into which loaders join a parameter, except experts."""
    if param.family.experts or not param.family.fused:
        return
    name = param.family.named(param.family.fused, param.layer)
    head, dot, last = name.rpartition(".")
    yield name
    if last in _ALSO_JOINED:
        yield head + dot + _ALSO_JOINED[last]


def _dressed(stored: Sequence[tuple[Param, Codec]], configs: Mapping[Codec, dict[str, Any]]) -> dict[str, Any]:
    config = dict(next(iter(configs.values())))
    config["ignore"] = list(patterns((param, codec not in configs) for param, codec in stored if linear(param)))
    if len(configs) == 1:
        return config
    config["format"] = "mixed-precision"
    config["config_groups"] = {
        f"group_{number}": said["config_groups"]["group_0"]
        | {"targets": list(patterns((param, codec == one) for param, codec in stored if linear(param)))}
        for number, (one, said) in enumerate(configs.items())
    }
    return config


def linear(param: Param) -> bool:
    """Whether loaders store a parameter as the weight of a linear module."""
    named = param.quantizable or param.name.endswith(_WEIGHT)
    return len(param.shape) == 2 and param.role != "embedding" and not param.family.table and named


def module_of(param: Param) -> str:
    """The module of a weight; for other parameters their own name."""
    return param.name.rpartition(".")[0] if linear(param) else param.name


def patterns(told: Iterable[tuple[Param, bool]]) -> Iterator[str]:
    """Entries for the marked modules alone, in compressed-tensors' dialect: experts as `re:` patterns."""
    families: dict[str, list[tuple[Param, bool]]] = {}
    joined: list[str] = []
    for param, mark in told:
        families.setdefault(param.template, []).append((param, mark))
        joined += _joined(param) if mark else ()
    for template, members in families.items():
        marked = [param for param, mark in members if mark]
        if not marked:
            continue
        if not marked[0].family.experts:
            yield from map(module_of, marked)
            continue
        layers = sorted({param.number for param in marked if param.number is not None})
        if any(param.number in layers for param, mark in members if not mark):
            yield from map(module_of, marked)
        else:
            everywhere = len(marked) == len(members)
            yield _pattern(template, r"\d+" if everywhere else f"(?:{'|'.join(map(str, layers))})")
    yield from dict.fromkeys(joined)


def _pattern(template: str, layers: str) -> str:
    """A regular expression for the modules of a family, in these layers and for every expert."""
    head, mark, tail = template.rpartition(".")[0].partition("{layer}")
    before, _, after = (tail if mark else head).partition("{expert}")
    where = f"{re.escape(head)}{layers}" if mark else ""
    return f"re:^{where}{re.escape(before)}\\d+{re.escape(after)}$"


def fused(params: Iterable[Param]) -> dict[tuple[str, int | None, int | None], list[Param]]:
    """Parameters that loaders join into one module, by the module's name, layer and expert."""
    together: dict[tuple[str, int | None, int | None], list[Param]] = {}
    for param in params:
        if param.family.fused:
            together.setdefault((param.family.fused, param.layer, param.expert), []).append(param)
    return together


def _refuse_mixed_fusions(stored: Sequence[tuple[Param, Codec]]) -> None:
    """Refuse different formats within a fused module: pairs of projections, and a layer's routed experts."""
    codecs = {param.name: codec for param, codec in stored}
    issues = []
    for (module, layer, expert), params in fused(param for param, _ in stored).items():
        if len({codecs[param.name] for param in params}) > 1:
            where = params[0].family.named(module, layer, expert)
            said = ", ".join(f"{param.name} {codecs[param.name].name}" for param in params)
            issues.append(f"{where}: loaders fuse {said}")
    experts: dict[int | None, set[Codec]] = {}
    for param, codec in stored:
        if param.family.experts:
            experts.setdefault(param.layer, set()).add(codec)
    for layer, found in experts.items():
        if len(found) > 1:
            names = ", ".join(sorted(codec.name for codec in found))
            issues.append(f"layer {layer}: loaders need its routed experts in one format, not in {names}")
    if issues:
        first = issues[0] if len(issues) == 1 else f"{len(issues)} fused modules would have several formats"
        raise PlanError(first, issues=issues, hint="use one rule of the recipe for all members of a fused module")


def is_named(text: str, module: str, param: Param) -> bool | None:
    """Whether an entry matches a module: by its name, a parent, its class, or a pattern after `re:`.

    None if a pattern is invalid or could take too long.
    """
    if text == LINEAR:
        return linear(param)
    if text.startswith("re:"):
        pattern = _compiled(text.removeprefix("re:"))
        return None if pattern is None else pattern.match(module) is not None
    return module == text or param.name.startswith(f"{text}.")


@cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    if len(pattern) > _LONGEST_PATTERN or sum(map(pattern.count, "*+{")) > 2 or _REPEATED_GROUP.search(pattern):
        return None
    try:
        return re.compile(pattern)
    except re.error:
        return None


def texts(value: object) -> tuple[str, ...]:
    """The strings of a value that should be a list of strings."""
    return tuple(entry for entry in value if isinstance(entry, str)) if isinstance(value, list) else ()
