"""The names that transformers gives to the parameters of DeepSeek V4, whole, with a layer's experts stacked.

huggingface/transformers 5.24: models/deepseek_v4/modeling_deepseek_v4.py (modules, `gate_up_proj` [experts, 2 * inner,
hidden] and `down_proj` [experts, hidden, inner]), integrations/finegrained_fp8.py (scales: `weight_scale_inv`,
`gate_up_proj_scale_inv`), conversion_mapping.py (`deepseek_v4`: what it renames on loading). Saving undoes a renaming
where some tensor needed it on loading, and one of them wrongly, so that its folders mix its names with those of the
releases. Of other models' published names it renames nothing and stacks experts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar, NamedTuple

from dsctl.core.boxes import Box
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorSpec
from dsctl.core.params import Family, Param
from dsctl.layouts.folders import RankFolders
from dsctl.layouts.fused import joined_slot, stacked_names
from dsctl.layouts.joins import Join, joined
from dsctl.layouts.layout import Slot
from dsctl.layouts.naming import DIALECTS
from dsctl.layouts.ranks import Shares

NAME, MIXED = "transformers", "transformers-mixed"
# What is to be said of quantized experts in this layout.
UNSCALED = (
    "transformers 5.24 reads quantized experts under its own names on a GPU only: without one it leaves their scales "
    "out. There, load the published layout, or convert to bf16"
)
_OURS, _THEIRS = "v4", "deepseek"
_CODES, _SCALE = "codes", "scale"


class _Module(NamedTuple):
    """Parameters with a common beginning, in releases and in transformers: its own beginnings, the one of its modules
    first, and by the ends of names those of its own.
    """

    released: str
    names: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]

    def spellings(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Every name in a release, with all that it may have, transformers' own first."""
        for part, others in self.parts.items():
            yield f"{self.released}{part}", tuple(map("".join, product(self.names, (*others, part))))


_COMPRESSOR = {
    "wkv.weight": ("kv_proj.weight",), "wgate.weight": ("gate_proj.weight",), "ape": ("position_bias",),
    "norm.weight": ("kv_norm.weight",),
}  # fmt: skip
_GATED = {"w1.weight": ("gate_proj.weight",), "w3.weight": ("up_proj.weight",), "w2.weight": ("down_proj.weight",)}
_STREAMS = {
    f"hc_{site}_{part}": (f"{site}_hc.{part}",) for site in ("attn", "ffn") for part in ("fn", "base", "scale")
}  # fmt: skip
_INDEXER = ("self_attn.compressor.indexer.", "self_attn.indexer.", "attn.compressor.indexer.", "attn.indexer.")
_LAYER = (
    _Module("", ("",), {
        "attn_norm.weight": ("input_layernorm.weight",), "ffn_norm.weight": ("post_attention_layernorm.weight",),
        **_STREAMS,
    }),
    _Module("attn.", ("self_attn.", "attn."), {
        "wq_a.weight": ("q_a_proj.weight",), "q_norm.weight": ("q_a_norm.weight",), "wq_b.weight": ("q_b_proj.weight",),
        "wkv.weight": ("kv_proj.weight",), "kv_norm.weight": ("kv_norm.weight", "norm.weight"),
        "wo_a.weight": ("o_a_proj.weight",), "wo_b.weight": ("o_b_proj.weight",), "attn_sink": ("sinks",),
    }),
    _Module("attn.compressor.", ("self_attn.compressor.", "attn.compressor."), _COMPRESSOR),
    _Module("attn.indexer.", _INDEXER, {
        "wq_b.weight": ("q_b_proj.weight",), "weights_proj.weight": ("scorer.weights_proj.weight",),
    }),
    _Module("attn.indexer.compressor.", (
        *_INDEXER[:3], "self_attn.indexer.compressor.", "attn.indexer.compressor."), _COMPRESSOR),
    _Module("ffn.gate.", ("mlp.gate.", "ffn.gate."), {
        "weight": (), "tid2eid": (), "bias": ("e_score_correction_bias",),
    }),
    _Module("ffn.shared_experts.", ("mlp.shared_experts.", "ffn.shared_experts."), _GATED),
)  # fmt: skip
_EXPERTS = _Module("ffn.experts.{expert}.", ("mlp.experts.{expert}.", "ffn.experts.{expert}."), _GATED)
_STACKED = {"w1.weight": "gate_up_proj", "w3.weight": "gate_up_proj", "w2.weight": "down_proj"}
_TOP = (
    _Module("", ("model.", ""), {
        "embed.weight": ("embed_tokens.weight",), "norm.weight": (),
        **{f"hc_head_{part}": (f"hc_head.hc_{part}",) for part in ("fn", "base", "scale")},
    }),
    _Module("", ("",), {"head.weight": ("lm_head.weight",)}),
)  # fmt: skip


def _spellings() -> Iterator[tuple[str, tuple[str, ...]]]:
    for module in _TOP:
        yield from module.spellings()
    heads = ("model.layers.{layer}.", "layers.{layer}.")
    for module in _LAYER:
        for released, names in module.spellings():
            yield f"layers.{{layer}}.{released}", tuple(map("".join, product(heads, names)))
    for (released, names), part in zip(_EXPERTS.spellings(), _STACKED.values(), strict=True):
        together = tuple(f"{module}.experts.{part}" for module in ("mlp", "ffn"))
        yield f"layers.{{layer}}.{released}", tuple(map("".join, product(heads, (*together, *names))))


# The templates of V4's releases, and every template under which transformers' files may have them, its own first.
SPELLINGS: dict[str, tuple[str, ...]] = dict(_spellings())
# What names of such a folder have in them that none of a release has beside this beginning.
_MARKS = (("hc", "model."), ("_hc.", "layers."), (".self_attn.", "layers."), (".attn.norm.", "layers."))


@dataclass(frozen=True, slots=True)
class Transformers(RankFolders):
    """One name space with transformers' own names, or those of a folder that it has saved; what it has no name for
    keeps that of the release.
    """

    name: str = NAME
    joins: Mapping[tuple[str, bool], Join] = field(default_factory=dict)
    respelled: Mapping[str, str] = field(default_factory=lambda: {_OURS: _THEIRS})
    published: ClassVar[bool] = False
    dialects: ClassVar[tuple[str, ...]] = (_OURS, _THEIRS)

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> Transformers:
        families = tuple(families)
        if shares is not None:
            hint = "dsctl convert SRC DST --layout transformers"
            raise PlanError("layout transformers is of a whole checkpoint, not of ranks", hint=hint)
        own = {family.template: SPELLINGS[family.template][0] for family in families if family.template in SPELLINGS}
        return replace(self, joins=_joins(families, own or stacked_names(families)))

    def slots(self, param: Param) -> tuple[Slot, ...]:
        join = self.joins.get((param.template, param.family.mtp), Join(param.template))
        return (joined_slot(join, param, None, "", 0, Box.whole(param.shape)),)


def _joins(families: Sequence[Family], names: Mapping[str, str]) -> dict[tuple[str, bool], Join]:
    """Where families of these names are; those with experts share a name that does not tell them apart."""
    stacked = {
        family.template: names[family.template] for family in families if family.template in names and family.experts
    }
    return {(template, False): Join(name) for template, name in names.items()} | joined(families, stacked)


def is_marked(name: str) -> bool:
    """Whether a tensor of this name makes it worth a look at all others."""
    return any(mark in name and name.startswith(begin) for mark, begin in _MARKS)


def met(families: Iterable[Family], stored: Collection[str]) -> Transformers | None:
    """The arrangement of a folder with tensors of these names; None where they are those of a release."""
    known = [family for family in families if family.template in SPELLINGS]
    found: dict[str, str | None] = {}
    for family in known:
        found[family.template] = found.get(family.template) or _spelling(family, stored)
    if all(name in (None, template) for template, name in found.items()):
        return None
    names = {template: name or SPELLINGS[template][0] for template, name in found.items()}
    scaled = [(family, names[family.template]) for family in known if family.quantizable]
    theirs, ours = (any(_has(*one, stored, dialect, _SCALE) for one in scaled) for dialect in (_THEIRS, _OURS))
    own = theirs >= ours and all(name == SPELLINGS[template][0] for template, name in names.items())
    respelled = {_OURS: _THEIRS} if theirs >= ours else {}
    return Transformers(name=NAME if own else MIXED, joins=_joins(known, names), respelled=respelled)


def _spelling(family: Family, stored: Collection[str]) -> str | None:
    """The first of a family's templates under which it is there."""
    for template in SPELLINGS[family.template]:
        if any(_has(family, template, stored, dialect, _CODES) for dialect in DIALECTS):
            return template
    return None


def _has(family: Family, template: str, stored: Collection[str], dialect: str, part: str) -> bool:
    """Whether a part of some layer's parameter of a family is there."""
    tensors = (family.named(template, layer, 0) for layer in family.layers or (None,))
    return any(DIALECTS[dialect].tensor(tensor, part) in stored for tensor in tensors)


def first_expert(stored: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """What tells how experts are coded, the first matrix of the first one, under its names in a release."""
    template = "layers.{layer}.ffn.experts.{expert}.w1.weight"
    released = template.format(layer=0, expert=0)
    for name in (one.format(layer=0, expert=0) for one in SPELLINGS[template]):
        if name in stored:
            scales = (DIALECTS[dialect].tensor(name, _SCALE) for dialect in (_THEIRS, _OURS))
            found = {DIALECTS[_OURS].tensor(released, _SCALE): stored[scale] for scale in scales if scale in stored}
            return {released: stored[name], **found}
    return {}
