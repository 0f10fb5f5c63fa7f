"""A model as a drawing shows it: stages from embedding to head, blocks in them, projections with their sizes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dsctl.description import OTHER, Description, Group
from dsctl.diff import Diff, form, ranges

_ORDER = (
    "embedding", "norm", "attention", "indexer", "router", "routed experts", "shared experts", "dense mlp", "head",
)  # fmt: skip


class Piece(NamedTuple):
    """One parameter: its last name, what goes in and comes out, how it is stored, and how it differs, in words."""

    name: str
    sizes: str
    stored: str
    kind: str = ""
    words: str = ""


class Block(NamedTuple):
    """What works together in a layer; `kind` is added or removed where all of it is."""

    title: str
    note: str
    pieces: tuple[Piece, ...]

    @property
    def kind(self) -> str:
        kinds = {piece.kind for piece in self.pieces}
        return kinds.pop() if len(kinds) == 1 and kinds <= {"added", "removed"} else ""


class Stage(NamedTuple):
    """A step of the way: the embedding, layers of one kind, the head."""

    title: str
    note: str
    blocks: tuple[Block, ...]


def stages(diff: Diff, side: Description) -> tuple[Stage, ...]:
    """One side of a diff, its pieces marked: on the first what is removed, on the second what is added or changed."""
    marks = _marks(diff, side is diff.b)
    groups = [group for group in side.groups if group.family.role != OTHER]
    found = []
    for title, members in staged(groups).items():
        layers = sorted({layer for group in members for layer in group.layers})
        note = f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}, {len(layers)} of them" if layers else ""
        found.append(Stage(title, note, tuple(_blocks(members, side.config, marks, layers))))
    return tuple(found)


def staged(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Groups by the step of the way that they belong to, in its order; one that lies in two is taken apart."""
    groups = list(groups)
    routed = {layer for group in groups if group.family.role == "router" for layer in group.layers}
    names = ("Embedding", "Dense layers", "Mixture-of-experts layers", "Multi-token prediction", "Head", "Other")
    found: dict[str, list[Group]] = {name: [] for name in names}
    for group in groups:
        family = group.family
        if family.role == OTHER:
            found["Other"].append(group)
        elif family.mtp:
            found["Multi-token prediction"].append(group)
        elif not family.layers:
            found["Embedding" if family.role == "embedding" else "Head"].append(group)
        else:
            for name, inside in (("Dense layers", False), ("Mixture-of-experts layers", True)):
                if any((layer in routed) is inside for layer in group.layers):
                    found[name].append(_within(group, routed, inside))
    return {name: members for name, members in found.items() if members}


def _within(group: Group, routed: set[int], inside: bool) -> Group:
    """The part of a group that lies in layers with experts, or without."""
    layers = tuple(layer for layer in group.layers if (layer in routed) is inside)
    # Every layer of a family has as much of it as any other.
    share = [number * len(layers) // len(group.layers) for number in (group.count, group.tensors, group.nbytes)]
    return Group(group.family, group.codec, layers, share[0], share[1], share[2], group.some)


def _blocks(
    groups: list[Group], config: Mapping[str, Any], marks: Mapping[str, tuple[str, str]], layers: list[int]
) -> Iterator[Block]:
    for role in _ORDER:
        pieces = [_piece(group, marks, layers) for group in groups if group.family.role == role]
        if pieces:
            yield Block(_TITLES.get(role, role), _note(role, config), tuple(dict.fromkeys(pieces)))


_TITLES = {
    "norm": "Norms", "attention": "Latent attention", "indexer": "Indexer", "router": "Router", "head": "Output",
    "routed experts": "Routed experts", "shared experts": "Shared experts", "dense mlp": "Dense MLP",
    "embedding": "Token embedding",
}  # fmt: skip
# What a block does, from config.json; said only where all its fields are there.
_NOTES = {
    "attention": "{num_attention_heads} heads over one cached latent of {kv_lora_rank}, and {qk_rope_head_dim} rotary",
    "indexer": "{index_n_heads} heads of {index_head_dim} score earlier tokens; attention sees the top {index_topk}",
    "router": "chooses {num_experts_per_tok} of {n_routed_experts} experts per token",
    "routed experts": "{n_routed_experts} experts, {num_experts_per_tok} per token",
}


def _note(role: str, config: Mapping[str, Any]) -> str:
    numbers = {key: f"{value:,}" for key, value in config.items() if type(value) is int}
    try:
        return _NOTES.get(role, "").format_map(numbers)
    except KeyError:
        return ""


def _piece(group: Group, marks: Mapping[str, tuple[str, str]], layers: list[int]) -> Piece:
    family = group.family
    parts = family.template.removesuffix(".weight").split(".")
    name = ".".join(parts[-2:] if parts[-1] == "bias" else parts[-1:])
    # A matrix [out, in] takes its input from the last dimension; an embedding is looked up by its first.
    shape = family.shape if family.role == "embedding" else family.shape[::-1]
    sizes = " → ".join(f"{size:,}" for size in shape)
    kind, words = marks.get(family.template, ("", ""))
    some = f"in layers {ranges(group.layers)}" if group.layers and set(group.layers) != set(layers) else ""
    return Piece(name, sizes, form(group.codec), kind, ", ".join(filter(None, (words, some))))


def _marks(diff: Diff, after: bool) -> dict[str, tuple[str, str]]:
    marks = {change.after.name: ("changed", f"{', '.join(change.aspects)} changed") for change in diff.changed}
    if after:
        return marks | {template.name: ("added", "added") for template in diff.added}
    return {template.name: ("removed", "removed") for template in diff.removed}
