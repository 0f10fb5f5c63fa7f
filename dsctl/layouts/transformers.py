"""transformers' names for the parameters of DeepSeek V4: whole tensors, with the experts of a layer stacked.

huggingface/transformers 5.24: models/deepseek_v4/modeling_deepseek_v4.py (modules, `gate_up_proj` [experts, 2 * inner,
hidden] and `down_proj` [experts, hidden, inner]), integrations/finegrained_fp8.py (scales: `weight_scale_inv`,
`gate_up_proj_scale_inv`), conversion_mapping.py (`deepseek_v4`: renaming on loading). On saving it undoes a renaming
only if a tensor needed it on loading, and undoes one wrongly: its folders mix its own names with the releases' names.
For other models it keeps the published names and stacks experts.
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
from dsctl.layouts.layout import Slot, refuse_own_experts
from dsctl.layouts.naming import DIALECTS
from dsctl.layouts.ranks import Shares

NAME, MIXED = "transformers", "transformers-mixed"
# Warning about quantized experts in this layout.
UNSCALED = (
    "transformers 5.24 reads quantized experts under its own names only on a GPU: without one it ignores their "
    "scales. There, load the published layout, or convert to bf16"
)
_OURS, _THEIRS = "v4", "deepseek"
_CODES, _SCALE = "codes", "scale"


class _Module(NamedTuple):
    """Parameters with a common prefix, in releases and in transformers: transformers' prefixes, its modules' first, and
    its endings by the releases' endings.
    """

    released: str
    names: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]

    def spellings(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Every name in a release, with all names that it may have in transformers' files, its own first."""
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


# The templates of V4's releases, and every template that transformers' files may use for them, its own first.
SPELLINGS: dict[str, tuple[str, ...]] = dict(_spellings())
# Parts of names in such a folder that releases never have after this prefix.
_MARKS = (("hc", "model."), ("_hc.", "layers."), (".self_attn.", "layers."), (".attn.norm.", "layers."))


@dataclass(frozen=True, slots=True)
class Transformers(RankFolders):
    """One name space with transformers' own names, or those of a folder that it saved; parameters that it does not have
    keep the release's names.
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
            raise PlanError("layout transformers holds a whole checkpoint, not ranks", hint=hint)
        if any(family.table for family in families):
            what = "layout transformers: transformers 5.24 does not have DeepSeek V4.1, so it has no names for it"
            raise PlanError(what, hint="choose --layout published or deepseek")
        own = {family.template: SPELLINGS[family.template][0] for family in families if family.template in SPELLINGS}
        if not own:
            refuse_own_experts(self.name, families)
        return replace(self, joins=_joins(families, own or stacked_names(families)))

    def slots(self, param: Param) -> tuple[Slot, ...]:
        join = self.joins.get((param.template, param.family.mtp), Join(param.template))
        return (joined_slot(join, param, None, "", 0, Box.whole(param.shape)),)


def _joins(families: Sequence[Family], names: Mapping[str, str]) -> dict[tuple[str, bool], Join]:
    """The shared tensors of families with these names; experts of a family share one name."""
    stacked = {
        family.template: names[family.template] for family in families if family.template in names and family.experts
    }
    return {(template, False): Join(name) for template, name in names.items()} | joined(families, stacked)


def is_marked(name: str) -> bool:
    """Whether a tensor of this name suggests such a folder, so that all names should be checked."""
    return any(mark in name and name.startswith(begin) for mark, begin in _MARKS)


def met(families: Iterable[Family], stored: Collection[str]) -> Transformers | None:
    """The arrangement of a folder with these tensors; None if they have the releases' names."""
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
    """The first of a family's templates that is present."""
    for template in SPELLINGS[family.template]:
        if any(_has(family, template, stored, dialect, _CODES) for dialect in DIALECTS):
            return template
    return None


def _has(family: Family, template: str, stored: Collection[str], dialect: str, part: str) -> bool:
    """Whether a part of one of a family's parameters is present."""
    tensors = (family.named(template, layer, 0) for layer in family.layers or (None,))
    return any(DIALECTS[dialect].tensor(tensor, part) in stored for tensor in tensors)


def first_expert(stored: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The first matrix of the first expert, under its names in a release: it shows how experts are coded."""
    template = "layers.{layer}.ffn.experts.{expert}.w1.weight"
    released = template.format(layer=0, expert=0)
    for name in (one.format(layer=0, expert=0) for one in SPELLINGS[template]):
        if name in stored:
            scales = (DIALECTS[dialect].tensor(name, _SCALE) for dialect in (_THEIRS, _OURS))
            found = {DIALECTS[_OURS].tensor(released, _SCALE): stored[scale] for scale in scales if scale in stored}
            return {released: stored[name], **found}
    return {}
