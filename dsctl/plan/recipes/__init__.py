"""The format of each parameter: ordered rules from a TOML file; the first matching rule decides."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.dress import METHOD
from dsctl.codecs.fp8_block import CT_BLOCKS
from dsctl.codecs.plain import Plain
from dsctl.core.choices import suggestion
from dsctl.core.errors import PlanError, UsageError, words_of
from dsctl.core.files import read_small
from dsctl.core.params import ROLES, Family, Param, in_order
from dsctl.plan.notes import WARNING

KEEP = "keep"
# Formats that loaders expect only in routed experts: all other parameters are kept.
FOR_EXPERTS = ("nvfp4-modelopt",)
# Earlier names of recipes, which still work: the name of today, and why it changed.
RENAMED = {
    "w4a8-experts": ("int4-experts-fp8", "its experts are W4A16, INT4 weights with BF16 activations"),
}
MAX_BYTES = 1 << 20
# The glob that is not about any name in particular.
EVERYTHING = "*"
_FOLDER = Path(__file__).parent


class Rule(NamedTuple):
    """`format` for the parameters of a role, or for names that match a glob; role `mtp` is a whole MTP layer.

    A rule for everything leaves tables whose rows are looked up as they are stored: loaders keep them in FP8.
    """

    role: str
    match: str
    format: str

    def __str__(self) -> str:
        which = f"role {self.role!r}" if self.role else f"match {self.match!r}"
        return f"{which} -> {self.format}"

    def fits(self, param: Param) -> bool:
        if self.match == EVERYTHING:
            return not param.family.table
        if self.match:
            return fnmatchcase(param.name, self.match)
        return self.role in (param.role, param.family.group)


class Recipe(NamedTuple):
    """Rules under a name. Parameters without a matching rule keep their format. `note` is a remark on the name."""

    name: str
    about: str
    rules: tuple[Rule, ...]
    note: str = ""


class _Rule(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    role: str = ""
    match: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    rule: list[_Rule]
    about: str = ""


@cache
def ready() -> dict[str, Recipe]:
    """The recipes that come with dsctl."""
    return {path.stem: parse(path.read_text(), path.stem, path.name) for path in sorted(_FOLDER.glob("*.toml"))}


def recipe(text: str) -> Recipe:
    """A ready recipe by its name, or the recipe in a file.

    Raises:
        UsageError: there is neither, or the file is not a recipe.
    """
    if text in ready():
        return ready()[text]
    if text in RENAMED:
        name, why = RENAMED[text]
        return ready()[name]._replace(note=f"{WARNING}recipe {text} is now called {name}: {why}")
    path = Path(text)
    try:
        return parse(read_small(path, MAX_BYTES).decode(), path.stem, text)
    except (OSError, ValueError) as error:
        why = words_of(error) if isinstance(error, OSError) else "is not text"
        if "/" in text or path.suffix == ".toml":
            raise UsageError(f"--recipe: {text}: {why}", hint=f"known: {', '.join(ready())}; or a TOML file") from None
        raise UsageError(f"--recipe: unknown recipe {text!r}", hint=suggestion(text, ready())) from None


def parse(text: str, name: str, where: str) -> Recipe:
    """A recipe from TOML.

    Raises:
        UsageError: it is not a recipe; `issues` lists every wrong rule.
    """
    try:
        file = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise UsageError(
            f"{where}: not a recipe: {error}", hint="write [[rule]] with role or match, and format"
        ) from None
    issues = [f"{where}: rule {n}: {why}" for n, rule in enumerate(file.rule, 1) if (why := _wrong(rule))]
    if not file.rule:
        issues = [f"{where}: holds no [[rule]]"]
    if issues:
        first = issues[0] if len(issues) == 1 else f"{where}: {len(issues)} rules are wrong"
        raise UsageError(first, issues=issues, hint=f"formats: {KEEP}, {', '.join(CODECS)}; roles: {', '.join(ROLES)}")
    return Recipe(name, file.about, tuple(Rule(rule.role, rule.match, rule.format) for rule in file.rule))


def _wrong(rule: _Rule) -> str:
    if bool(rule.role) == bool(rule.match):
        return "needs either role or match"
    if rule.format != KEEP and rule.format not in CODECS:
        return f"unknown format {rule.format!r}"
    return ""


def takes(codec: Codec, family: Family) -> bool:
    """Whether a format is for parameters of this family.

    Loaders read the indexer's matrices as FP8 blocks, under either name, or unquantized only: they dequantize
    `indexer.wk` while loading and join it with `weights_proj` (vllm-project/vllm, model_executor/models/deepseek_v2.py;
    sgl-project/sglang, models/deepseek_common/deepseek_weight_loader.py).
    """
    if codec.name in FOR_EXPERTS and not family.experts:
        return False
    return family.quantizable and ((codec.form.codes == "e4m3" and codec.block[0] > 1) or family.role != "indexer")


def chosen(rules: Iterable[Rule], param: Param) -> str:
    """A recipe's format for a parameter, or `KEEP`. Parameters that are never quantized are kept."""
    rule = next((rule for rule in rules if rule.fits(param)), None)
    if rule is None or rule.format == KEEP:
        return KEEP
    plain = not CODECS[rule.format].quantized
    return rule.format if param.quantizable or (plain and param.family.dtype != "F32") else KEEP


def named(name: str, stored: Iterable[Codec]) -> Codec:
    """A format by its name, with the stored scales if they can stay."""
    stored, codec = tuple(stored), CODECS[name]
    if name == "fp8-block":
        return next((one for one in stored if one.name == name and one.form.scale == "F32"), codec)
    if name == CT_BLOCKS.name and any(one.scale_fmt and one.block == codec.block for one in stored):
        return replace(CT_BLOCKS, scale_dtype="F32")
    return codec


def kept(rules: Iterable[Rule], codec: Codec) -> Codec:
    """The codec of a kept parameter: DeepSeek's blocks get the names that the other formats' loaders read."""
    formats = [CODECS[rule.format] for rule in rules if rule.format != KEEP]
    dressed = any((codec.config() or {}).get("quant_method") == METHOD for codec in formats)
    if dressed and codec.scale_fmt and codec.block == CT_BLOCKS.block:
        return replace(CT_BLOCKS, scale_dtype="F32")
    return codec


def check(rules: Sequence[Rule], params: Iterable[Param]) -> list[str]:
    """Refuse rules without a parameter that matches and can have the format; return notes on parameters left out.

    A role that only other models have yields a note, because recipes are written for several models. Rules of the
    recipes that come with dsctl may match nothing, without a note.

    Raises:
        UsageError: a role that neither this model nor `ROLES` has. PlanError: with every such rule in `issues`.
    """
    known, issues, notes = list(params), [], []
    roles = in_order((*ROLES, *dict.fromkeys(param.role for param in known)))
    if unknown := [rule.role for rule in rules if rule.role and rule.role not in roles]:
        raise UsageError(f"recipe: unknown role {unknown[0]!r}", hint=suggestion(unknown[0], roles))
    several = tuple(rules) in {one.rules for one in ready().values()}
    for rule in rules:
        fitting = [param for param in known if rule.fits(param)]
        codec = Plain() if rule.format == KEEP else CODECS[rule.format]
        taken = [not codec.quantized or takes(codec, param.family) for param in fitting]
        left = next((param for param, fits in zip(fitting, taken, strict=True) if param.quantizable and not fits), None)
        if not fitting and several:
            continue
        if not fitting and rule.match:
            issues.append(f"recipe: {rule}: no parameter matches")
        elif not fitting:
            notes.append(f"recipe: {rule}: the model has no such parameter")
        elif not any(taken):
            why = _READ_AS if left else f"{fitting[0].name} is never quantized"
            issues.append(f"recipe: {rule}: {why}")
        elif left and chosen(rules, left) == rule.format:
            notes.append(f"recipe: {rule}: the indexer is left unquantized; {_READ_AS}")
    if issues:
        first = issues[0] if len(issues) == 1 else f"recipe: {len(issues)} rules cannot be applied"
        raise PlanError(first, issues=issues, hint=_HINT)
    return notes


_READ_AS = "loaders read the indexer in FP8 blocks or unquantized"
_HINT = "globs match whole names; give such parameters keep or bf16, and the indexer FP8 blocks if it is quantized"
