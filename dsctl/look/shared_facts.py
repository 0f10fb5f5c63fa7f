"""The facts behind V4.1's meanings: shared caches, halves, n-gram tables, smaller blocks. As in
`dsctl.look.diff_facts`, each function finds one difference and its numbers, or None."""

from __future__ import annotations

from typing import Any

from dsctl.checkpoint.groups import Group
from dsctl.core.amounts import count, size
from dsctl.look.cache_formats import FP4, FP8
from dsctl.look.capacity import nbytes
from dsctl.look.costs import Attention
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.halves import passed_layers, prompt_values
from dsctl.look.meaning import Facts
from dsctl.look.shared_costs import SharedAttention

# The ending of the router biases for image tokens.
IMAGE_BIAS = ".bias_vl"

# The tensors that reduce V4's residual streams to one for the head.
_STREAMS_HEAD = "hc_head_fn"


def shared(attention: Attention | None) -> SharedAttention | None:
    """The costs of attention if its layers share caches, or None."""
    return attention if isinstance(attention, SharedAttention) else None


def caches_shared(diff: Diff) -> Facts | None:
    """Layers use a cache that an earlier layer keeps, in B only."""
    before, after = diff.attention
    now = shared(after)
    if before is None or shared(before) or now is None:
        return None
    one = now.sizes
    using = sum(map(bool, one.ratios))
    return {
        "owners": _layers(one.caches), "using": using, "own": len(before.owners), "window": one.window,
        "topk": f"{one.topk:,}", "kinds": _kinds(now), "indexers": len(one.indexers), "heads": one.index_heads,
        "alone": f" {one.ratios.count(0)} layers attend only to the window." if 0 in one.ratios else "",
    }  # fmt: skip


def caches_own(diff: Diff) -> Facts | None:
    """Every layer with a cache keeps its own in B, layers share caches in A."""
    found = caches_shared(Diff(diff.b, diff.a))
    return found and {"own": found["own"], "many": len(found["owners"].split(", ")), "using": found["using"]}


def _kinds(attention: SharedAttention) -> str:
    """The number of tokens that an entry stands for, by owner."""
    one, said = attention.sizes, []
    for ratio in dict.fromkeys(one.ratios[layer] for layer in one.caches):
        layers = [layer for layer in one.caches if one.ratios[layer] == ratio]
        tokens = "one token" if ratio == 1 else f"{ratio} tokens"
        said.append(f"{tokens} in the cache{'s' * (len(layers) > 1)} of layer{_plural(layers)}")
    return " and for ".join(said)


def _plural(layers: list[int]) -> str:
    return f"{'s' * (len(layers) > 1)} {_layers(tuple(layers))}"


def _layers(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def candidates_gained(diff: Diff) -> Facts | None:
    """Later indexers score only candidates that an earlier one chose, in B only."""
    before, now = map(shared, diff.attention)
    if before is not None or now is None or diff.attention[0] is None:
        return None
    one = now.sizes
    later = [layer for layer in one.indexers if layer > one.pool_source]
    if not later or not one.pool:
        return None
    first = len(one.indexers) - len(later)
    return {"pool": f"{one.pool:,}", "source": one.pool_source, "later": _layers(tuple(later)), "first": first}


def entries_narrowed(diff: Diff) -> Facts | None:
    """Engines store cache entries in four bits in B, in more in A."""
    (before, after), now = diff.attention, shared(diff.attention[1])
    if before is None or after is None or before.usual == FP4 or after.usual != FP4 or now is None:
        return None
    return {"entry": now.entry_bytes(FP4), "window": now.window_bytes(FP4), "wider": now.entry_bytes(FP8)}


def halves_gained(diff: Diff) -> Facts | None:
    """A prompt passes only the first layers in B, all of them in A."""
    passed, prompt = passed_layers(diff.b), prompt_values(diff.b)
    after = diff.attention[1]
    if passed_layers(diff.a) is not None or diff.attention[0] is None or passed is None or after is None:
        return None
    now = shared(after)
    last = f" The last {now.sizes.window} tokens of a prompt pass all layers." if now else ""
    return {
        "passed": passed, "layers": after.layers, "prompt": count(prompt or 0), "active": count(diff.b.active_values),
        "last": last,
    }  # fmt: skip


def halves_lost(diff: Diff) -> Facts | None:
    """A prompt passes all layers in B, only the first ones in A."""
    return halves_gained(Diff(diff.b, diff.a))


def _tables(side: Description) -> list[Group]:
    return [group for group in side.known if group.family.table]


def tables_gained(diff: Diff) -> Facts | None:
    """N-gram tables in B only: their rows, bytes and layers, and the rows that a token looks up."""
    groups = _tables(diff.b)
    if _tables(diff.a) or not groups or diff.a.model is None:
        return None
    longest, heads = (diff.b.config.get(f"engram_{name}") for name in ("max_ngram_size", "n_heads"))
    if type(longest) is not int or type(heads) is not int:
        return None
    rows, width = (longest - 1) * heads, groups[0].family.shape[1]
    read = sum(rows * nbytes(group.codec, (1, width)) for group in groups)
    whole = sum(group.nbytes for group in groups)
    return {
        "layers": _layers(tuple(sorted(layer for group in groups for layer in group.numbers))),
        "rows": " and ".join(f"{group.family.shape[0]:,}" for group in sorted(groups, key=lambda group: group.layers)),
        "each": rows, "width": width, "longest": longest, "read": f"{read:,}", "bytes": size(whole),
        "share": f"{100 * whole / diff.b.nbytes:.0f}",
    }  # fmt: skip


def tables_lost(diff: Diff) -> Facts | None:
    """N-gram tables in A only."""
    return tables_gained(Diff(diff.b, diff.a))


def routed_by_score(diff: Diff) -> Facts | None:
    """Layers look up the experts of a token in A; in B all routers choose by score."""
    tables = [[group for group in side.known if group.family.below] for side in (diff.a, diff.b)]
    if not tables[0] or tables[1] or not any(group.family.role == "router" for group in diff.b.known):
        return None
    return {"layers": len({layer for group in tables[0] for layer in group.layers})}


def _block(side: Description) -> tuple[int, int] | None:
    """The block of quantized matrices other than routed experts and tables, if it is the same for all."""
    found = {
        group.codec.form.group
        for group in side.known
        if group.codec.scale_fmt and not group.family.table and not group.family.experts
    }
    return found.pop() if len(found) == 1 else None


def blocks_changed(diff: Diff) -> Facts | None:
    """FP8 matrices have a scale for blocks of a different size."""
    before, after = map(_block, (diff.a, diff.b))
    if before is None or after is None or before == after or diff.a.model == diff.b.model:
        return None
    sides = [f"{rows} x {columns}" for rows, columns in (before, after)]
    return {"before": sides[0], "after": sides[1], "rows": after[0]}


def _experts(side: Description) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Numbers of routed experts and of active ones, of main layers and of layers that draft."""
    routed = [group.family for group in side.known if group.family.experts]
    main, draft = ({(one.experts, one.active) for one in routed if one.mtp is mtp} for mtp in (False, True))
    return main, draft


def drafter_experts(diff: Diff) -> Facts | None:
    """Layers that draft have a different number of experts, in one of the sides not that of its main layers."""
    (main, had), (others, has) = map(_experts, (diff.a, diff.b))
    if len(had) != 1 or len(has) != 1 or had == has or (main == had and others == has):
        return None
    (before, active), (after, now) = next(iter(had)), next(iter(has))
    told = f"{active} → {now}" if active != now else f"{now} (unchanged)"
    said = ", ".join(f"{experts} with {chosen} active" for experts, chosen in sorted(others))
    return {"before": before, "after": after, "active": told, "main": said}


def _end(side: Description) -> list[Group]:
    return [group for group in side.known if group.family.template == _STREAMS_HEAD]


def head_streams_lost(diff: Diff) -> Facts | None:
    """Residual streams on both sides, which A reduces to one with weights of their own before the head."""
    many = diff.b.config.get("hc_mult")
    if not _end(diff.a) or _end(diff.b) or diff.b.model is None or type(many) is not int:
        return None
    return {"streams": many}


def head_streams_gained(diff: Diff) -> Facts | None:
    """Residual streams on both sides, which B reduces to one with weights of their own before the head."""
    return head_streams_lost(Diff(diff.b, diff.a))


def vision_lost(diff: Diff) -> dict[str, Any] | None:
    """Parts that read images, in A only."""
    before, after = ([group for group in side.known if group.family.role == "vision"] for side in (diff.a, diff.b))
    if not before or after or diff.b.model is None:
        return None
    biased = any(group.family.template.endswith(IMAGE_BIAS) for group in diff.a.known)
    routers = ", and the second bias of every router" if biased else ""
    return {"values": f"{sum(group.values for group in before) / 1e6:.0f}", "routers": routers}
