"""The `quantization_config` of a slice: unquantized modules and groups under their new names. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.pieces import Survey
from dsctl.checkpoint.quantization import LINEAR, is_named, linear, module_of, modules, patterns, texts
from dsctl.codecs import dress
from dsctl.codecs.codec import Codec
from dsctl.core.config_fields import QUANTIZATION, SPARED_FIELDS, edited
from dsctl.core.errors import FormatError
from dsctl.core.params import Param


def quantization_of_slice(
    config: dict[str, Any],
    checkpoint: Checkpoint,
    cut: Sequence[tuple[Param, Param]],
    survey: Survey,
    planned: bool,
) -> dict[str, Any]:
    """The small config; its quantization_config lists unquantized modules by their new names.

    `cut` has the small model's parameters, each with the one from which it is cut. Removed modules are not listed.
    Patterns stay, if they are as true of the new names: under a plan of experts, most say nothing about experts.
    """
    if checkpoint.quantization is None:
        return config
    known = {name for param in checkpoint.params for name in _modules(param)}
    renamed = {old: new for param, source in cut for old, new in zip(_modules(source), _modules(param), strict=True)}
    said = dict(checkpoint.quantization)
    for spared in SPARED_FIELDS:
        if isinstance(said.get(spared), list):
            if not all(isinstance(name, str) for name in said[spared]):
                what = f"config.json: quantization_config.{spared} holds something that is not a module's name"
                raise FormatError(what, hint="`dsctl verify` checks the config, and --fix rewrites it")
            names = [renamed.get(name, name) for name in said[spared] if name not in known or name in renamed]
            said[spared] = list(dict.fromkeys(names))
    stored = [(param, source, pieces[0].codec) for param, source in cut if (pieces := survey.pieces.get(param.name))]
    if stored and not any(codec.quantized for _, _, codec in stored):
        return edited(config, {}, [QUANTIZATION])
    if said.get("quant_method") == dress.METHOD and not (planned and _as_true(checkpoint.quantization, said, stored)):
        said |= _targeted(checkpoint.quantization, stored)
    return edited(config, {QUANTIZATION: said})


def _as_true(before: Mapping[str, Any], after: Mapping[str, Any], stored: Sequence[tuple[Param, Param, Codec]]) -> bool:
    """Whether exceptions and groups of compressed-tensors say the same of these parameters as of the original ones."""

    def said(of: Mapping[str, Any], param: Param) -> list[bool]:
        entries = [of.get("ignore"), *(group.get("targets") for group in (of.get("config_groups") or {}).values())]
        return [any(is_named(text, module_of(param), param) for text in texts(one)) for one in entries]

    return all(said(after, new) == said(before, old) for new, old, _ in stored if linear(new))


def _targeted(said: Mapping[str, Any], stored: Sequence[tuple[Param, Param, Codec]]) -> dict[str, Any]:
    """The groups and exceptions of compressed-tensors for these parameters, from those of the original parameters.

    Patterns contain layer numbers, and a group without remaining modules must be dropped.
    """

    def patterned(entries: Any) -> list[str]:
        wanted = texts(entries)
        marked = [(new, any(is_named(text, module_of(old), old) for text in wanted)) for new, old, _ in linears]
        return list(patterns(marked))

    linears = [one for one in stored if linear(one[0])]
    groups = {}
    for name, group in (said.get("config_groups") or {}).items():
        targets = texts(group.get("targets"))
        held = (
            any(is_named(text, module_of(old), old) for text in targets) for _, old, codec in linears if codec.quantized
        )
        if any(held):
            groups[name] = group if LINEAR in targets else {**group, "targets": patterned(group.get("targets"))}
    # An entry without a number is not about a removed layer; it may name modules as a loader does, not as the files do.
    general = [text for text in texts(said.get("ignore")) if not any(map(str.isdigit, text))]
    unmatched = [text for text in general if not any(is_named(text, module_of(old), old) for _, old, _ in linears)]
    return {"config_groups": groups, "ignore": [*unmatched, *patterned(said.get("ignore"))]}


def _modules(param: Param) -> tuple[str, ...]:
    """Every name under which a config may list a parameter's module as unquantized; experts may be listed singly."""
    return (module_of(param), *modules(param))
