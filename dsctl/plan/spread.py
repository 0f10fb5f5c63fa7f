"""The layout of a request for a model, and whether its formats can be cut so. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from dsctl import models
from dsctl.codecs.codec import Codec
from dsctl.core.choices import choose
from dsctl.core.errors import PlanError, UsageError
from dsctl.core.params import Family, Unit
from dsctl.layouts import LAYOUTS, SAID_OF_EXPERTS, follows
from dsctl.layouts.layout import Layout
from dsctl.layouts.naming import DIALECTS
from dsctl.layouts.ranks import Ranks, Shares, check, main_layers
from dsctl.plan.cuts import Cut, illegal, legal_sizes
from dsctl.plan.experts import dealt_out
from dsctl.plan.request import DROPPED, KEPT, ONLY, USUAL, Request

# Layouts whose loader does not load a drafter.
_WITHOUT_DRAFTERS = ("vllm", "transformers")
# The most parts of a kind.
MOST = 4096


class Subject(NamedTuple):
    """A model to shard: its name for people, its families, and the units that no cut may go through."""

    place: str
    families: tuple[Family, ...]
    units: tuple[Unit, ...]


def known_layout(request: Request) -> Layout:
    """The layout that a request names.

    Raises:
        UsageError: there is no layout of this name.
    """
    return LAYOUTS[choose(request.layout, LAYOUTS, "layout", "--layout")]


def settled(request: Request, families: Iterable[Family]) -> Request:
    """The request with the usual choice for the drafter replaced by keep or drop."""
    if request.mtp != USUAL:
        return request
    families = tuple(families)
    drops = known_layout(request).drops_drafter(families) and not all(family.mtp for family in families)
    return replace(request, mtp=DROPPED if drops else KEPT)


def arrangement(subject: Subject, request: Request) -> Layout:
    """The layout of the target.

    Raises:
        UsageError: an unknown layout, a size out of range, or a rank that these sizes do not have.
        PlanError: sizes that do not fit together or the model.
        FormatError: a map of experts that is not of this model.
    """
    layout = known_layout(request)
    if request.mtp == ONLY and request.layout in _WITHOUT_DRAFTERS:
        hint = "choose --layout published, whose names the engines read"
        raise UsageError(f"--mtp only: layout {request.layout} has no names for a drafter alone", hint=hint)
    if request.mtp == ONLY and request.pp > 1:
        hint = "leave --pp out: engines keep a drafter in the last stage"
        raise UsageError(f"--mtp only: a drafter is not split into {request.pp} pipeline stages", hint=hint)
    if not request.tp:
        return layout.arranged(subject.families, None)
    if not subject.families:
        raise PlanError(f"{subject.place}: ranks need a config.json of a known architecture", hint=models.known())
    ranks = Ranks(request.tp, request.ep, request.pp)
    if not all(1 <= number <= MOST for number in (ranks.tp, ranks.ep, ranks.pp)):
        raise UsageError(f"TP {ranks.tp}, EP {ranks.ep}, PP {ranks.pp}: sizes are from 1 to {MOST:,}")
    check(subject.families, ranks, subject.place)
    none = [rank for rank in request.ranks if not 0 <= rank < ranks.world]
    if none:
        raise UsageError(f"no rank {none[0]}: there are {ranks.world} ranks, numbered from 0")
    shares = Shares.of(subject.families, ranks, request.ranks, _placed(subject, request))
    return layout.arranged(subject.families, shares)


def _placed(subject: Subject, request: Request) -> dict[int, tuple[frozenset[int], ...]]:
    """The experts of every part, by layer, if a map places them."""
    families = [family for family in subject.families if family.experts]
    if not request.placed or not families:
        return {}
    layers = tuple(sorted({layer for family in families for layer in family.layers}))
    main = len(main_layers(subject.families))
    return dealt_out(request.placed, layers, main, families[0].experts, request.ep)


def check_names(layout: Layout, stored: Iterable[tuple[Family, Codec]]) -> list[str]:
    """Refuse formats that the layout has no names for, and return notes on the others.

    Raises:
        PlanError: naming the format.
    """
    known, experts = layout.dialects or tuple(DIALECTS), False
    for family, codec in stored:
        if codec.quantized and codec.dialect not in known:
            hint = "use --bf16, a format of the releases (--to published, --fp8), or keep the stored formats"
            raise PlanError(f"layout {layout.name} has no names for {codec.name}", hint=hint)
        experts = experts or (bool(family.experts) and codec.quantized)
    said = SAID_OF_EXPERTS.get(layout.name) if experts else None
    return [f"warning: {said}"] if said else []


def check_cuts(subject: Subject, request: Request, layout: Layout, stored: Iterable[tuple[Family, Codec]]) -> list[int]:
    """Refuse sizes at which the target's format cannot be cut; with `recode` only those at which a length is uneven.

    Returns the tensor-parallel sizes that cut no block; empty if the target has no ranks.

    Raises:
        PlanError: with every family whose cut is impossible, and the sizes that fit.
    """
    if layout.shares is None:
        return []
    pairs, ranks = list(dict.fromkeys(stored)), layout.shares.ranks
    cuts = [cut for cut in illegal(pairs, ranks, subject.units) if not (cut.blocks and request.recode)]
    sizes = legal_sizes(pairs, None if follows(layout.name, ranks) else ranks.ep, subject.units)
    if cuts:
        raise _refusal(cuts, sizes, ranks)
    return sizes


def _refusal(cuts: Sequence[Cut], sizes: Sequence[int], ranks: Ranks) -> PlanError:
    """The refusal of these sizes, with the sizes that fit. Uneven lengths are reported before cuts through blocks."""
    uneven = [cut for cut in cuts if not cut.blocks]
    refused = uneven or cuts
    issues = [f"{cut.template}: {cut.length:,} into {cut.parts} parts: {cut.why}" for cut in refused]
    hint = f"--tp {', '.join(map(str, sizes))} would fit" if sizes else "no size fits"
    if not uneven:
        hint += "; --recode quantizes these again"
    what = "cannot be split" if uneven else "would be cut through quantization blocks"
    first = f": {issues[0]}" if len(issues) == 1 else ""
    kinds = f"{len(refused)} kind{'s' * (len(refused) > 1)} of parameters"
    return PlanError(f"TP {ranks.tp}, EP {ranks.ep}: {kinds} {what}{first}", hint=hint, issues=issues)
