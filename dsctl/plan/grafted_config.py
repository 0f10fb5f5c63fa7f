"""The config.json of a graft: the base's as long as it is true, else with formats and exceptions adapted. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dsctl.checkpoint.generic_config import generic_config
from dsctl.checkpoint.quantization import (
    LINEAR,
    LISTED,
    is_named,
    linear,
    module_of,
    modules,
    quantization_config,
    texts,
)
from dsctl.codecs import dress
from dsctl.codecs.codec import Codec
from dsctl.core.config_fields import SPARED_FIELDS, value_at, with_quantization, with_value
from dsctl.core.errors import PlanError
from dsctl.core.params import Param
from dsctl.plan.plan import Want
from dsctl.plan.target import Target
from dsctl.stores import CONFIG

_FP8 = "fp8"
_HINT = "--as base converts the grafted parameters to the forms that the base uses"


def grafted_config(target: Target, wants: Sequence[Want]) -> dict[str, Any]:
    """The config of the target.

    Raises:
        PlanError: one config cannot declare how the parameters are stored.
    """
    config = _of_roles(target, wants, target.checkpoint.config or {})
    if is_true(target, wants):
        return config
    try:
        made = _made(target, wants)
    except PlanError as error:
        raise PlanError(error.message, hint=_HINT, issues=error.issues) from None
    return with_quantization(config, made)


def known_text(target: Target, config: Mapping[str, Any]) -> bytes | None:
    """The config.json of the base, or of another checkpoint, byte for byte, if it says the same."""
    checkpoint = target.checkpoint
    places = [(CONFIG, checkpoint.files.get(CONFIG))]
    places += [(graft.prefix + CONFIG, graft.files[CONFIG]) for graft in checkpoint.grafts if CONFIG in graft.texts]
    for file, size in places:
        known = checkpoint.store.read(file, 0, size) if size is not None else b"{}"
        if json.loads(known) == config:
            return known
    return None


def is_true(target: Target, wants: Sequence[Want]) -> bool:
    """Whether the base's `quantization_config` is as true of the grafted parameters as it is of the base."""
    had = target.checkpoint.view.had if target.checkpoint.view is not None else {}
    grafted = [want for want in wants if want.param.name in target.grafted]
    new = [(want.param, want.codec) for want in grafted if want.param.name not in had]
    return all(had.get(want.param.name, want.codec) == want.codec for want in grafted) and _covers(target, wants, new)


def _covers(target: Target, wants: Sequence[Want], new: Sequence[tuple[Param, Codec]]) -> bool:
    """Whether the base's `quantization_config` declares parameters that the base does not have."""
    said = target.checkpoint.quantization
    if said is None or target.checkpoint.generic is not None:
        return target.checkpoint.generic is not None or not any(codec.quantized for _, codec in new)
    names = {param.name for param, _ in new}
    stored = {want.codec for want in wants if want.codec.quantized and want.param.name not in names}
    if any(codec.quantized and codec not in stored for _, codec in new):
        return False
    method = said.get("quant_method")
    if method == _FP8 and dress.MOE_ALGORITHM not in said:
        spared = {text for name in SPARED_FIELDS for text in texts(said.get(name))}
        return all(codec.quantized != _is_spared(param, spared) for param, codec in new if param.quantizable)
    if method == dress.METHOD:
        return all(codec.quantized == _is_targeted(said, param) for param, codec in new if linear(param))
    return not any(codec.quantized or param.quantizable for param, codec in new)


def _is_spared(param: Param, spared: set[str]) -> bool:
    """Whether a list of modules names a parameter's module, or a module that contains it."""
    return any(is_named(text, name, param) for text in spared for name in (module_of(param), *modules(param)))


def _is_targeted(said: Mapping[str, Any], param: Param) -> bool:
    """Whether groups of compressed-tensors quantize a parameter."""
    module, groups = module_of(param), said.get("config_groups")
    if any(is_named(text, module, param) for text in texts(said.get("ignore"))):
        return False
    targets = (texts(one.get("targets")) for one in groups.values()) if isinstance(groups, dict) else ()
    return any(is_named(text, module, param) for held in targets for text in held)


def _made(target: Target, wants: Sequence[Want]) -> dict[str, Any] | None:
    """A new `quantization_config`, with what the base's says of other things."""
    checkpoint, stored = target.checkpoint, [(want.param, want.codec) for want in wants]
    said = checkpoint.quantization
    if checkpoint.generic is not None:
        had = checkpoint.view.had if checkpoint.view is not None else {}
        before = [(param, had.get(param.name, codec), codec) for param, codec in stored]
        return generic_config(before, said, checkpoint.generic.unread)
    made = quantization_config(stored)
    if made is None or said is None or said.get("quant_method") != made.get("quant_method"):
        return made
    rest = {name: value for name, value in said.items() if name not in SPARED_FIELDS and name not in made}
    kept = list(_kept_entries(said, stored))
    fields = [name for name in SPARED_FIELDS if name in made] or (kept and LISTED.get(str(made["quant_method"]), ()))
    return made | rest | {name: list(dict.fromkeys((*texts(made.get(name)), *kept))) for name in fields or ()}


def _kept_entries(said: Mapping[str, Any], stored: Sequence[tuple[Param, Codec]]) -> Iterator[str]:
    """The modules that the base's config lists as unquantized, and that the files do not have under such a name: a
    loader may have its own names for them."""
    params = [param for param, _ in stored]
    known = {name for param in params for name in _around(param)}
    for text in dict.fromkeys(text for name in SPARED_FIELDS for text in texts(said.get(name))):
        patterned = text.startswith("re:") and any(
            is_named(text, module_of(one), one) is not False for one, _ in stored
        )
        if text not in known and text != LINEAR and not patterned:
            yield text


def _around(param: Param) -> Iterator[str]:
    """A parameter's modules, and the modules that contain it."""
    yield from modules(param)
    parts = param.name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _of_roles(target: Target, wants: Iterable[Want], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with true fields outside `quantization_config` that declare the form of a whole role, such as
    `expert_dtype`.

    A field that the base leaves out for its own parameters stays out.

    Raises:
        PlanError: a field would have to declare several forms, naming the role.
    """
    made, held, own = dict(config), dict[str, dict[str, Codec]](), dict[str, set[str]]()
    for want in wants:
        codes = want.codec.form.codes
        held.setdefault(want.param.role, {}).setdefault(codes, want.codec)
        if want.param.name not in target.grafted:
            own.setdefault(want.param.role, set()).add(codes)
    for role, published in target.formats.published.items():
        for name, values in published.fields:
            found, said = held.get(role, {}), value_at(config, name)
            if len(found) > 1:
                forms = " and ".join(sorted(codec.name for codec in found.values()))
                raise PlanError(f"one {name} of config.json cannot declare {role} in {forms}", hint=_HINT)
            value = next((dict(values).get(one) for one in found), None)
            if said != value and (said is not None or role not in own):
                made = with_value(made, name, value)
    return made
