"""The layout that a request asks for on a checkpoint, and whether the formats can be cut so. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dsctl.checkpoint import Checkpoint
from dsctl.codecs import Codec
from dsctl.codecs.plain import Plain
from dsctl.errors import PlanError
from dsctl.layouts import LAYOUTS, Layout
from dsctl.layouts.cuts import Cut, illegal, legal_sizes
from dsctl.layouts.experts import dealt_out
from dsctl.layouts.ranks import Ranks, Shares, check, main_layers
from dsctl.models import Family, Param
from dsctl.request import Request

# The most parts of a kind.
MOST = 4096


def arrangement(checkpoint: Checkpoint, request: Request) -> Layout:
    """The layout of the target.

    Raises:
        UsageError, PlanError: an unknown layout, or sizes that do not fit together or the model.
    """
    if request.layout not in LAYOUTS:
        raise PlanError(f"unknown layout {request.layout!r}", hint=f"known: {', '.join(LAYOUTS)}")
    layout = LAYOUTS[request.layout]
    if not request.tp:
        return layout.arranged(checkpoint.families, None)
    if checkpoint.model is None:
        raise PlanError(f"{checkpoint.store.place}: ranks need a config.json of a known architecture")
    ranks = Ranks(request.tp, request.ep, request.pp)
    if not all(1 <= number <= MOST for number in (ranks.tp, ranks.ep, ranks.pp)):
        raise PlanError(f"TP {ranks.tp}, EP {ranks.ep}, PP {ranks.pp}: sizes are from 1 to {MOST:,}")
    check(checkpoint.families, ranks, checkpoint.store.place)
    none = [rank for rank in request.ranks if not 0 <= rank < ranks.world]
    if none:
        raise PlanError(f"no rank {none[0]}: there are {ranks.world}, numbered from 0")
    plain = [(family, Plain(family.dtype)) for family in checkpoint.families]
    uneven = list(illegal(plain, ranks, heads_of(checkpoint)))
    if uneven:
        raise refusal(uneven, plain, ranks, heads_of(checkpoint))
    shares = Shares.of(checkpoint.families, ranks, request.ranks, _placed(checkpoint, request))
    return layout.arranged(checkpoint.families, shares)


def _placed(checkpoint: Checkpoint, request: Request) -> dict[int, tuple[frozenset[int], ...]]:
    """The experts of every part, by layer, where a map places them."""
    families = [family for family in checkpoint.families if family.experts]
    if not request.placed or not families:
        return {}
    layers = tuple(sorted({layer for family in families for layer in family.layers}))
    main = len(main_layers(checkpoint.families))
    return dealt_out(request.placed, layers, main, families[0].experts, request.ep)


def heads_of(checkpoint: Checkpoint) -> int | None:
    """The attention heads that a rank must not cut through."""
    heads = (checkpoint.config or {}).get("num_attention_heads")
    return heads if type(heads) is int else None


def check_cuts(
    checkpoint: Checkpoint, request: Request, layout: Layout, stored: Iterable[tuple[Param, Codec]]
) -> list[int]:
    """Refuse sizes at which the target's format cannot be cut; with `recode` only those that divide no length.

    Gives the tensor-parallel sizes that cut no block, none where the target has no ranks.

    Raises:
        PlanError: with every family whose cut cannot be made, and the sizes that would fit.
    """
    if layout.shares is None:
        return []
    pairs = list(dict.fromkeys((param.family, codec) for param, codec in stored))
    ranks = layout.shares.ranks
    cuts = [cut for cut in illegal(pairs, ranks, heads_of(checkpoint)) if not (cut.blocks and request.recode)]
    if cuts:
        raise refusal(cuts, pairs, ranks, heads_of(checkpoint))
    return legal_sizes(pairs, None if request.layout == "deepseek" else ranks.ep, heads_of(checkpoint))


def refusal(cuts: list[Cut], pairs: Sequence[tuple[Family, Codec]], ranks: Ranks, heads: int | None) -> PlanError:
    """Why these sizes are refused, and which would not be."""
    issues = [f"{cut.template}: {cut.length:,} into {cut.parts} parts: {cut.why}" for cut in cuts]
    sizes = legal_sizes(pairs, None if ranks.ep == ranks.tp else ranks.ep, heads)
    hint = f"--tp {', '.join(map(str, sizes))} would fit" if sizes else "no size fits"
    if all(cut.blocks for cut in cuts):
        hint += "; --recode encodes these anew"
    what = "cut through blocks" if all(cut.blocks for cut in cuts) else "cannot be cut"
    first = f": {issues[0]}" if len(issues) == 1 else ""
    kinds = f"{len(cuts)} kind{'s' * (len(cuts) > 1)} of parameters"
    return PlanError(f"TP {ranks.tp}, EP {ranks.ep}: {kinds} {what}{first}", hint=hint, issues=issues)
