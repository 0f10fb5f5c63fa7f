"""The notes of a plan that carry a label: warnings, and the remark on a partial result. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dsctl.codecs.codec import Codec
from dsctl.codecs.renumbered import Renumbered
from dsctl.core.amounts import plural
from dsctl.core.params import MTP, Family, drafter_of
from dsctl.plan.request import KEEP, ONLY, PUBLISHED, RECIPE, Request

# A note with the first label goes to stderr before the work begins; one with the second stands at the end.
WARNING, PARTIAL = "warning: ", "partial: "
# The reason of `why_dropped` for a parameter of the model, if only its drafter is asked for.
MODEL = "not the drafter"
# The same for a drafter's copy of the model's embedding or head, which loaders take from the model.
COPY = "in --skip, a copy of the model's"
# Reasons of `why_dropped` after which loaders miss parameters.
UNASKED = ("not in --only", "in --skip", "not in --layers", "not in --experts")


def labelled(note: str) -> str:
    """A note as a line for people: its own label, or "note"."""
    return note if note.startswith((WARNING, PARTIAL)) else f"note: {note}"


def copied(request: Request, codecs: Iterable[tuple[Codec, Codec]], relaid: bool) -> Iterator[str]:
    """The warning that a conversion to a format changes no weight.

    `codecs` are those before and after, of every parameter or group; `relaid` is whether the layout changes.
    """
    if request.to == KEEP or request.tp or relaid or request.slice or request.lora:
        return
    if all(before == after for before, after in codecs):
        already = {PUBLISHED: "stored as published", RECIPE: "stored as the recipe says"}.get(request.to, request.to)
        yield f"{WARNING}already {already}: this only copies"


def drafting(request: Request, kind: str, written: Iterable[tuple[Family, int, int]]) -> Iterator[str]:
    """Notes on a target that holds the drafter alone, of a kind of drafter; `written` are its families, each with
    numbers of tensors and bytes."""
    if request.mtp != ONLY:
        return
    written = list(written)
    drafter = drafter_of((family for family, _, _ in written), kind or MTP)
    tensors, nbytes = sum(number for _, number, _ in written), sum(size for _, _, size in written)
    yield f"the target holds the drafter alone: {drafter}, {plural(tensors, 'tensor')}, {nbytes:,} bytes"
    copies = [(family, size) for family, _, size in written if family.twin]
    if copies:
        skipped = dict.fromkeys(f"--skip '{family.template.format(layer='*')}'" for family, _ in copies)
        what = f"{sum(size for _, size in copies):,} bytes of it are copies of the model's embedding and head"
        only = "only vLLM with pipeline stages reads the embedding"
        yield f"{what}; {only}; without them: {' '.join(skipped)}"


def apart(folders: Iterable[str]) -> Iterator[str]:
    """Notes on subfolders that hold a drafter with a config of its own."""
    for folder in folders:
        yield f"{folder}/ holds a drafter of its own, which is left out: `dsctl convert SRC/{folder} DST/{folder}`"


def partial(request: Request, whys: Iterable[str], known: bool = True) -> Iterator[str]:
    """The remark that loaders cannot open the result; `whys` are the reasons for which parameters are left out.

    A slice, which loaders can open, needs a `known` architecture.
    """
    if not request.slice and any(why in UNASKED for why in whys):
        yield f"{PARTIAL}loaders cannot open it" + "; `dsctl slice` makes one they can" * known
    world = max(request.tp, request.ep) * request.pp
    if request.tp and request.ranks and len(request.ranks) < world:
        yield f"{PARTIAL}{len(request.ranks):,} of {world:,} ranks; loaders need all of them"


def renumbered(codecs: Iterable[Codec]) -> Iterator[str]:
    """The note on tables of experts by token of which a slice changes the numbers; `codecs` are those that read."""
    rules = [codec.rule for codec in codecs if isinstance(codec, Renumbered)]
    if rules:
        tables = (
            f"{len(rules):,} tables of experts by token hold the new numbers"
            if len(rules) > 1
            else "1 table of experts by token holds the new numbers"
        )
        yield "; ".join(filter(None, (tables, max(rules))))
