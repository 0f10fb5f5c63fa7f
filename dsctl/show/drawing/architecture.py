"""A model as a drawing shows it: stages from embedding to head, and the parameters of each with their differences.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dsctl.checkpoint.groups import Group, folded
from dsctl.core.params import OTHER, Traits
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.wording import form, ranges

EMBEDDING, PREDICTION, VISION = "Embedding", "Multi-token prediction", "Vision"
STAGES = (VISION, EMBEDDING, "Dense layers", "Mixture-of-experts layers", PREDICTION, "Head", "Other")
# A drawing ends with the stages that branch off.
DRAWN = (VISION, EMBEDDING, "Dense layers", "Mixture-of-experts layers", "Head", PREDICTION, "Other")
# The names of stages with a different kind of drafter.
CALLED = {(PREDICTION, "dspark"): "Block drafter"}
# Modules whose name is needed beside the last name of their parameters.
MODULES = frozenset({"aligner", "compressor", "confidence_head", "patch_embed"})


class Element(NamedTuple):
    """One parameter of a stage: its last name, shape and stored format, the layers of the stage that have it (empty:
    all of them), and its difference from the other side. `kind` is added, removed or changed, and `words` describe the
    change. A different stored format is not a difference here. `variant` distinguishes it from others of its template;
    with `storage`, its box shows the stored format."""

    template: str
    role: str
    name: str
    shape: tuple[int, ...]
    stored: str
    experts: int
    some: str = ""
    kind: str = ""
    words: tuple[str, ...] = ()
    variant: str = ""
    storage: bool = True

    @property
    def key(self) -> str:
        """Its name, which is unique within the stage."""
        return keyed(self.template, self.variant)


def keyed(template: str, variant: str) -> str:
    """A template and its variant as one name."""
    return f"{template} ({variant})" if variant else template


class Stage(NamedTuple):
    """One stage of one side: the embedding, layers of one kind, or the head. `layers` are their numbers in names.
    `kind` is added or removed if the other side lacks the stage, and changed if the numbers of layers differ. `called`
    is its printed name, which depends on the kind of drafter; `unit` is the noun for one of its layers."""

    title: str
    layers: tuple[int, ...]
    pieces: tuple[Element, ...]
    config: Mapping[str, Any]
    kind: str = ""
    words: str = ""
    called: str = ""
    unit: str = "layer"


def stages(diff: Diff, storage: bool = True) -> list[tuple[Stage | None, Stage | None]]:
    """Both sides stage by stage, in the order of the drawing; None if a side lacks a stage."""
    a, b = (_stages(side, storage) for side in (diff.a, diff.b))
    return [_marked(a.get(title), b.get(title)) for title in DRAWN if title in a or title in b]


def _stages(side: Description, storage: bool) -> dict[str, Stage]:
    found = {}
    for title, groups in staged(side.groups).items():
        layers = tuple(sorted({number for group in groups for number in group.numbers}))
        unit = "stage" if any(group.family.first_layer for group in groups) else "layer"
        named = {"called": called(title, side.traits), "unit": unit}
        pieces = tuple(piece._replace(storage=storage) for piece in _pieces(groups, layers))
        found[title] = Stage(title, layers, pieces, side.config, **named)
    return found


def called(title: str, traits: Traits) -> str:
    """The name of a stage in a checkpoint with these traits."""
    return CALLED.get((title, traits.drafter), title)


def _pieces(groups: Iterable[Group], layers: tuple[int, ...]) -> Iterator[Element]:
    """One piece per template and variant; if it is stored in several formats, it lists all of them. Vision blocks,
    whose parameters differ only in a number, share a piece."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        template, variant = group.family.template, group.family.variant
        template = folded(template)[0] if group.family.role == "vision" else template
        found.setdefault((template, variant), []).append(group)
    for (template, variant), members in found.items():
        family = members[0].family
        held = {number for group in members for number in group.numbers}
        what = ("stage" if family.first_layer else "layer") + "s" * (len(held) > 1)
        some = f"in {what} {ranges(held)}" if held and held != set(layers) else ""
        stored = " or ".join(dict.fromkeys(form(group.codec) for group in members))
        name = template if family.role == OTHER else last_name(template)
        yield Element(template, family.role, name, family.shape, stored, family.experts, some, variant=variant)


def last_name(template: str) -> str:
    """The name of a parameter within its module: q_a_proj, k_norm.bias, compressor.ape."""
    parts = template.removesuffix(".weight").split(".")
    return ".".join(parts[-2:] if parts[-1] == "bias" or (parts[-2:-1] and parts[-2] in MODULES) else parts[-1:])


def _marked(before: Stage | None, after: Stage | None) -> tuple[Stage | None, Stage | None]:
    if before is None or after is None:
        return before and _all(before, "removed"), after and _all(after, "added")
    a, b = ({piece.key: piece for piece in stage.pieces} for stage in (before, after))
    many = tuple(len(stage.layers) for stage in (before, after))
    kind, words = ("changed", f"{many[0]} → {many[1]} {after.unit}s") if many[0] != many[1] else ("", "")
    sides = (
        (before, tuple(_mark(piece, piece, b.get(piece.key), "removed") for piece in before.pieces)),
        (after, tuple(_mark(piece, a.get(piece.key), piece, "added") for piece in after.pieces)),
    )
    marked = [stage._replace(pieces=pieces, kind=kind, words=words) for stage, pieces in sides]
    return marked[0], marked[1]


def _all(stage: Stage, kind: str) -> Stage:
    pieces = tuple(piece._replace(kind=kind, words=(kind,)) for piece in stage.pieces)
    return stage._replace(pieces=pieces, kind=kind, words=kind)


def _mark(piece: Element, before: Element | None, after: Element | None, alone: str) -> Element:
    if before is None or after is None:
        return piece._replace(kind=alone, words=(alone,))
    words = tuple(_changes(before, after))
    return piece._replace(kind="changed", words=words) if words else piece


def _changes(before: Element, after: Element) -> Iterator[str]:
    """The differences of one parameter, each as before → after."""
    if before.shape != after.shape:
        yield f"{_times(before.shape)} → {_times(after.shape)}"
    if before.experts != after.experts:
        yield f"{before.experts:,} → {after.experts:,} experts"
    if bool(before.some) != bool(after.some):
        everywhere = "in all stages" if "stage" in before.some + after.some else "in all layers"
        yield f"{before.some or everywhere} → {after.some or everywhere}"


def _times(shape: tuple[int, ...]) -> str:
    """5,120 x 1,536."""
    return " x ".join(f"{size:,}" for size in shape)


def staged(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Groups by their stage, in the order of the stages. A group that belongs to two stages is divided."""
    groups = list(groups)
    routed = {layer for group in groups if group.family.role == "router" for layer in group.layers}
    found: dict[str, list[Group]] = {name: [] for name in STAGES}
    for group in groups:
        family = group.family
        if family.role == OTHER:
            found["Other"].append(group)
        elif family.role == "vision":
            found[VISION].append(group)
        elif family.mtp:
            found[PREDICTION].append(group)
        elif not family.layers:
            found[EMBEDDING if family.role == "embedding" else "Head"].append(group)
        else:
            for name, inside in (("Dense layers", False), ("Mixture-of-experts layers", True)):
                if any((layer in routed) is inside for layer in group.layers):
                    found[name].append(_within(group, routed, inside))
    return {name: members for name, members in found.items() if members}


def _within(group: Group, routed: set[int], inside: bool) -> Group:
    """The part of a group in layers with experts, or in layers without."""
    layers = tuple(layer for layer in group.layers if (layer in routed) is inside)
    # All layers of a family have equal shares of it.
    share = [number * len(layers) // len(group.layers) for number in (group.count, group.tensors, group.nbytes)]
    return Group(group.family, group.codec, layers, share[0], share[1], share[2], group.some)
