"""The words of a block diagram for layers that share caches: which keep them, which choose, what a prompt passes.

deepseek-ai/DeepSeek-V4.1-Flash, config.json and inference/model.py. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dsctl.look.wording import ranges


class Kinds(NamedTuple):
    """Main layers by what their attention does: a window alone, own caches, a choice among entries of an earlier
    cache, or neither."""

    alone: tuple[int, ...]
    owners: tuple[int, ...]
    choosers: tuple[int, ...]
    reusing: tuple[int, ...]


def kinds(config: Mapping[str, Any]) -> Kinds | None:
    """The kinds of layers, or None if layers do not share caches."""
    ratios, count = config.get("compress_ratios"), config.get("num_hidden_layers")
    owners, choosers = _numbers(config, "kv_source_layer_ids"), _numbers(config, "index_source_layer_ids")
    if not owners or not isinstance(ratios, list) or type(count) is not int:
        return None
    shown = range(min(count, len(ratios)))
    alone = tuple(layer for layer in shown if not ratios[layer])
    named = {*alone, *owners, *choosers}
    own, rest = tuple(sorted(owners)), tuple(layer for layer in choosers if layer not in owners)
    return Kinds(alone, own, rest, tuple(layer for layer in shown if layer not in named))


def _numbers(config: Mapping[str, Any], field: str) -> tuple[int, ...]:
    found = config.get(field)
    return tuple(number for number in found if type(number) is int) if isinstance(found, list) else ()


def layers(config: Mapping[str, Any]) -> list[str]:
    """A line for each kind of layer, and the layers that a prompt passes."""
    found, source = kinds(config), config.get("candidate_source_layer_id")
    if found is None:
        return []
    said = [
        (found.alone, "the window alone"),
        (found.owners, "own cache and choice of entries"),
        (found.choosers, "earlier cache, own choice"),
        (found.reusing, "earlier cache and choice"),
    ]
    lines = [f"{len(some)} x {what}: {ranges(some)}" for some, what in said if some and len(some) <= _MOST]
    lines += [f"{len(some)} x {what}: the others" for some, what in said if len(some) > _MOST]
    if type(source) is int and 0 < source < (config.get("num_hidden_layers") or 0):
        lines.append(f"a prompt passes 0-{source - 1}, generated tokens all")
    return lines


# More layers than these are not listed.
_MOST = 8


def pressed(config: Mapping[str, Any]) -> str:
    """The number of tokens of an entry, by owner: 2 tokens → 1; in layer 20: each token."""
    found, ratios = kinds(config), config.get("compress_ratios")
    if found is None or not isinstance(ratios, list):
        return ""
    said = []
    for ratio in dict.fromkeys(ratios[layer] for layer in found.owners):
        some = [layer for layer in found.owners if ratios[layer] == ratio]
        said.append(f"{ratio} tokens → 1" if ratio != 1 else f"layer {ranges(some)}: each token")
    return "; ".join(said)


def chosen(config: Mapping[str, Any], topk: str) -> str:
    """The entries that an indexer chooses."""
    source, blocks, each = (
        config.get(f"candidate_{name}") for name in ("source_layer_id", "topk_blocks", "block_size")
    )
    keeps = f"keeps the top {topk}"
    if kinds(config) is None or type(source) is not int or type(blocks) is not int or type(each) is not int:
        return f"scores every entry, {keeps}"
    return f"scores every entry (after layer {source}: {blocks * each:,}), {keeps}"


def attended(config: Mapping[str, Any], topk: str) -> str:
    """The entries to which a query attends besides the window."""
    found = kinds(config)
    if found is None:
        return ""
    many = len(found.owners) + len(found.choosers) + len(found.reusing)
    owners = ", ".join(map(str, found.owners))
    return f"in {many} layers also to the top {topk} entries of the last cache before it, of layers {owners}"
