"""What spreading a release over ranks would write, from its description alone: no headers, no weights, no network."""

from __future__ import annotations

from dataclasses import dataclass

from dsctl.arrangement import refusal
from dsctl.codecs import CODECS, Codec
from dsctl.description import Description
from dsctl.errors import PlanError
from dsctl.layouts import LAYOUTS
from dsctl.layouts.cuts import illegal, legal_sizes
from dsctl.layouts.ranks import Ranks, Shares, check
from dsctl.models import Family
from dsctl.request import KEEP, Request
from dsctl.sizing import base_dtype, codec_of


@dataclass(frozen=True, slots=True)
class Outline:
    """Bytes and tensors of every rank; how many parameters are moved, converted and, because of a cut, recoded; the
    powers of two that TP could be without a cut through blocks."""

    source: str
    moved: int
    converted: int
    recoded: int
    nbytes: dict[int, int]
    tensors: dict[int, int]
    legal: tuple[int, ...]


def outline(description: Description, request: Request) -> Outline:
    """Plan a release's parts family by family.

    Raises:
        UsageError, PlanError: the sizes do not fit together, the model or its blocks; experts placed by a map.
    """
    if request.placed:
        raise PlanError("a map of experts is looked at with the checkpoint it is for", hint="leave --expert-map out")
    base, to = base_dtype(description), None if request.to == KEEP else CODECS[request.to]
    groups = [group for group in description.known if not (request.mtp == "drop" and group.family.mtp)]
    families = tuple(group.family for group in groups)
    ranks, heads = Ranks(request.tp, request.ep, request.pp), description.config.get("num_attention_heads")
    check(families, ranks, description.name)
    shares = Shares.of(families, ranks, request.ranks)
    LAYOUTS[request.layout].arranged(families, shares)
    stored = [(group.family, codec_of(group, to, base)) for group in groups]
    heads = heads if type(heads) is int else None
    cuts = list(illegal(stored, ranks, heads))
    if [cut for cut in cuts if not (cut.blocks and request.recode)]:
        raise refusal(cuts, stored, ranks, heads)
    recoded = {cut.template for cut in cuts}
    same = {group.family for group, (_, codec) in zip(groups, stored, strict=True) if group.codec.moves_to(codec)}
    nbytes, tensors = _loads(stored, shares)
    return Outline(
        description.name,
        sum(family.count for family in families if family in same and family.template not in recoded),
        sum(family.count for family in families if family not in same),
        sum(family.count for family in families if family.template in recoded and family in same),
        nbytes,
        tensors,
        tuple(legal_sizes(stored, None if request.layout == "deepseek" else request.ep, heads)),
    )


def _loads(stored: list[tuple[Family, Codec]], shares: Shares) -> tuple[dict[int, int], dict[int, int]]:
    """Bytes and tensors of every rank."""
    nbytes, tensors = dict.fromkeys(shares.present, 0), dict.fromkeys(shares.present, 0)
    for family, codec in stored:
        sizes: dict[tuple[int, ...], int] = {}
        for param in family.params():
            for rank, box in shares.boxes(param):
                shape = box.shape
                if shape not in sizes:
                    sizes[shape] = sum(spec.nbytes for spec in codec.specs(shape).values())
                nbytes[rank] += sizes[shape]
                tensors[rank] += len(codec.suffixes)
    return nbytes, tensors
