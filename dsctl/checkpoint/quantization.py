"""The `quantization_config` of a checkpoint whose parameters are stored in these formats. Pure, no torch.

What loaders ask of it: vllm-project/vllm, model_executor/layers/quantization (compressed_tensors, fp8: modules fused at
loading must share a format, and modules left out must be named); sgl-project/sglang, layers/quantization.

Two dialects name modules. compressed-tensors takes names, and after `re:` regular expressions. `fp8` and
`blockwise_int8` take names alone, and hold a layer's routed experts as one module, `mlp.experts`: that is what is
looked for (vLLM and SGLang, `is_layer_skipped`; transformers, `should_convert_module`). Loaders that do not take a
joined module apart again look for its own name, so that is given beside those of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from msgspec import structs

from dsctl.codecs import dress
from dsctl.codecs.codec import Codec
from dsctl.core.errors import PlanError
from dsctl.core.params import Param

_WEIGHT = ".weight"
# Classes of modules that a target may name.
LINEAR = "Linear"
# Patterns that repeat no group and hold at most two repetitions take time that grows with the cube of a name at most.
_LONGEST_PATTERN = 4096
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_INT8 = "blockwise_int8"
# vLLM and SGLang read the first key, their older versions it alone; transformers reads the second.
_SPARED = {"fp8": ("ignored_layers", "modules_to_not_convert"), _INT8: ("ignored_layers",)}
# SGLang's name for what vLLM, and a family's `fused`, calls by the shorter one (models/deepseek_v2.py of both).
_ALSO_JOINED = {"fused_qkv_a_proj": "fused_qkv_a_proj_with_mqa"}


def quantization_config(stored: Sequence[tuple[Param, Codec]]) -> dict[str, Any] | None:
    """What `config.json` says of these parameters, or None where none is quantized.

    Raises:
        PlanError: no one `quantization_config` can say it, or loaders would not read it.
    """
    configs = {codec: config for codec in dict.fromkeys(codec for _, codec in stored) if (config := codec.config())}
    if not configs:
        return None
    _refuse_mixed_fusions(stored)
    if all(config["quant_method"] == dress.METHOD for config in configs.values()):
        return _dressed(stored, configs)
    told = [config for codec, config in configs.items() if codec.scale_fmt] or list(configs.values())
    if any(config != told[0] for config in told) or len({config["quant_method"] for config in configs.values()}) > 1:
        names = " and ".join(sorted(codec.name for codec in configs))
        hint = "fp8-block-ct goes with the other formats of compressed-tensors"
        raise PlanError(f"one quantization_config cannot declare {names}", hint=hint)
    config, method = told[0], told[0]["quant_method"]
    nvfp4 = next((one for one in configs.values() if dress.MOE_ALGORITHM in one), None)
    if nvfp4 is not None:
        config = config | nvfp4 | _of_experts(stored)
    spared = _spared(stored, method)
    if spared and method not in _SPARED:
        what = f"{next(iter(configs)).name}: a quantization_config of {method} cannot leave out {spared[0]}"
        raise PlanError(what, hint="give every matrix that can be quantized this format")
    return config | {key: spared for key in _SPARED.get(method, ()) if spared}


def _of_experts(stored: Sequence[tuple[Param, Codec]]) -> dict[str, Any]:
    """Which modules ModelOpt's NVFP4 is for, by layer, and globs of those that it is not for.

    Raises:
        PlanError: it is for others than routed experts, which its loaders do not look for.
    """
    ours = [param for param, codec in stored if (codec.config() or {}).get(dress.MOE_ALGORITHM)]
    if other := next((param for param in ours if not param.family.experts), None):
        hint = "--recipe nvfp4-modelopt-experts, or nvfp4 for every matrix"
        raise PlanError(f"nvfp4-modelopt is for routed experts alone, not for {other.name}", hint=hint)
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
    """The modules left out of `fp8` or `blockwise_int8`, where what a release quantizes is among them.

    transformers leaves the head out by itself only where no list is given, so that for `fp8` it has every linear one.
    """
    plain = [param for param, codec in stored if not codec.quantized]
    asked = [param for param in plain if param.quantizable]
    if method == _INT8 and any(param.family.experts for param in asked):
        what = "int8-block: its one loader, SGLang, takes routed experts in no other format beside it"
        raise PlanError(what, hint="give them int8-block too, or the rest another format: int8-channel, fp8-block")
    wanted = asked if method == _INT8 else [param for param in plain if asked and linear(param)]
    return list(dict.fromkeys(name for param in wanted for name in modules(param)))


def modules(param: Param) -> Iterator[str]:
    """The modules as which loaders may look for a parameter: its own, or all experts' of its layer; and the joined one.

    Naming experts one by one would say nothing more, in tens of thousands of names.
    """
    if param.family.experts:
        yield param.family.named(param.template.partition(".{expert}")[0], param.layer)
        return
    yield module_of(param)
    yield from _joined(param)


def _joined(param: Param) -> Iterator[str]:
    """The names of the module into which loaders join a parameter, experts' apart."""
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
    """Whether loaders hold a parameter as the weight of a linear module."""
    named = param.quantizable or param.name.endswith(_WEIGHT)
    return len(param.shape) == 2 and param.role != "embedding" and named


def module_of(param: Param) -> str:
    """The module whose weight a parameter is; of others, their own name."""
    return param.name.rpartition(".")[0] if linear(param) else param.name


def patterns(told: Iterable[tuple[Param, bool]]) -> Iterator[str]:
    """Names of the modules marked, and of no other told, in compressed-tensors' dialect: experts as `re:` patterns."""
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
    head, _, tail = template.rpartition(".")[0].partition("{layer}")
    before, _, after = tail.partition("{expert}")
    return f"re:^{re.escape(head)}{layers}{re.escape(before)}\\d+{re.escape(after)}$"


def fused(params: Iterable[Param]) -> dict[tuple[str, int | None, int | None], list[Param]]:
    """Parameters that loaders join into one module, by that module's name, layer and expert."""
    together: dict[tuple[str, int | None, int | None], list[Param]] = {}
    for param in params:
        if param.family.fused:
            together.setdefault((param.family.fused, param.layer, param.expert), []).append(param)
    return together


def _refuse_mixed_fusions(stored: Sequence[tuple[Param, Codec]]) -> None:
    """Refuse formats that differ within what loaders fuse: pairs of projections, and a layer's routed experts."""
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
            issues.append(f"layer {layer}: loaders hold its routed experts in one format, not in {names}")
    if issues:
        first = issues[0] if len(issues) == 1 else f"{len(issues)} fused modules would be of several formats"
        raise PlanError(first, issues=issues, hint="let one rule of the recipe cover what is fused")


def is_named(text: str, module: str, param: Param) -> bool | None:
    """Whether an entry names a module: itself, what it lies in, its class, or a pattern after `re:`.

    None where a pattern might take forever, or is none.
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
    """The texts of what should be a list of them."""
    return tuple(entry for entry in value if isinstance(entry, str)) if isinstance(value, list) else ()
