"""The facts behind meanings: each function finds one difference and its numbers, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsctl.core.config_fields import CLERICAL_FIELDS
from dsctl.look.costs import Attention, LatentAttention
from dsctl.look.description import Description, active
from dsctl.look.diff import Diff
from dsctl.look.totals import CONTEXTS, token_work
from dsctl.look.wording import ratio, times

Facts = dict[str, Any]
# The block drafter, which `newer_facts` covers.
BLOCKS = "dspark"


def latent(attention: Attention | None) -> LatentAttention | None:
    """The costs of attention if it is latent attention, or None."""
    return attention if isinstance(attention, LatentAttention) else None


def indexer_gained(diff: Diff) -> Facts | None:
    """B has an indexer that chooses the tokens to attend to, A has full attention: the sizes of the indexer and its
    savings."""
    before, after = map(latent, diff.attention)
    if before is None or after is None or before.indexers or not after.indexers:
        return None
    saved = _saved(after, diff.b, gained=True)
    own = "" if before == after.full() else ", compared with full attention in the same sizes,"
    return saved and saved | {"own": own, "shared": _shared(after), "cache": _cache(before, after)}


def indexer_lost(diff: Diff) -> Facts | None:
    """B has full attention, A has an indexer: the sizes of the indexer and its savings."""
    before, after = map(latent, diff.attention)
    if before is None or after is None or not before.indexers or after.indexers:
        return None
    own = "" if after == before.full() else " and in the sizes of A"
    saved = _saved(before, diff.a, gained=False)
    return saved and saved | {"own": own}


def _saved(sparse: LatentAttention, side: Description, gained: bool) -> Facts | None:
    """The sizes of a side's indexer, and its effect beside full attention in the same sizes: on the arithmetic of
    attention and of the whole token, and on the cache read, at a long and a short context."""
    full, short, longest = sparse.full(), CONTEXTS[0], CONTEXTS[-1]
    if full.work(longest) <= sparse.work(longest) or full.read_bytes(longest) <= sparse.read_bytes(longest):
        return None
    indexer = sum(active(group) for group in side.known if group.family.role == "indexer")

    def whole(context: int) -> tuple[int, int]:
        without = token_work(side.active_values - indexer, full, context)
        return without, token_work(side.active_values, sparse, context)

    def said(pair: tuple[int, int]) -> str:
        return times(*pair) if gained else times(*reversed(pair))

    return {
        "layers": sparse.indexers,
        "heads": sparse.sizes.index_heads,
        "topk": f"{sparse.sizes.topk:,}",
        "context": f"{longest:,}",
        "work": ratio(full.work(longest) / sparse.work(longest)),
        "read": ratio(full.read_bytes(longest) / sparse.read_bytes(longest)),
        "whole": said(whole(longest)),
        "short": f"{short:,}",
        "short_work": said((full.work(short), sparse.work(short))),
        "short_whole": said(whole(short)),
    }


def _shared(after: LatentAttention) -> str:
    if after.indexers == after.layers:
        return ""
    return f" The other {after.layers - after.indexers} layers use the tokens that an earlier layer chose."


def _cache(before: LatentAttention, after: LatentAttention) -> str:
    kept, keys = (before.cache_bytes(), after.cache_bytes()), f"{after.index_bytes():,}"
    if kept[0] == kept[1]:
        return f"The KV cache is unchanged; the indexer keys add {keys} bytes per token."
    return f"KV cache: {kept[0]:,} → {kept[1]:,} bytes per token; the indexer keys add {keys}."


def indexers_shared(diff: Diff) -> Facts | None:
    """The number of layers with an indexer of their own, if it changed."""
    before, after = map(latent, diff.attention)
    if not before or not after or not before.indexers or not after.indexers:
        return None
    shared = before.indexers < before.layers, after.indexers < after.layers
    if not any(shared) or before.indexers == after.indexers:
        return None
    return {"before": before.indexers, "after": after.indexers, "layers": after.layers}


def _scales(description: Description) -> set[str]:
    return {group.codec.scale_fmt for group in description.groups if group.codec.scale_fmt}


def scales_rounded(diff: Diff) -> Facts | None:
    """FP8 scales are powers of two in B and any float32 numbers in A."""
    return {} if _scales(diff.a) == {"float32"} and _scales(diff.b) == {"ue8m0"} else None


def scales_free(diff: Diff) -> Facts | None:
    """FP8 scales are any float32 numbers in B and powers of two in A."""
    return scales_rounded(Diff(diff.b, diff.a))


def quantized(diff: Diff) -> Facts | None:
    """The number and the formats of the quantized matrices in B, if none is quantized in A."""
    if diff.a.quantized or not diff.b.quantized:
        return None
    return {"count": f"{diff.b.quantized:,}", "share": _share(diff), "format": _formats(diff.b)}


def dequantized(diff: Diff) -> Facts | None:
    """The number and the formats of the quantized matrices in A, if none is quantized in B."""
    if not diff.a.quantized or diff.b.quantized:
        return None
    return {"count": f"{diff.a.quantized:,}", "share": _share(diff), "format": _formats(diff.a)}


def _share(diff: Diff) -> str:
    share = diff.b.nbytes / diff.a.nbytes if diff.a.nbytes and diff.same_parameters else None
    return f", in {share:.2f} times the bytes" if share else ""


def _formats(description: Description) -> str:
    codecs = [group.codec for group in description.known if group.codec.quantized]
    return " and ".join(dict.fromkeys("FP8" if codec.scale_fmt else codec.name for codec in codecs))


def _norm_dtypes(description: Description) -> set[str]:
    return {spec.dtype for group in description.known if group.family.role == "norm" for spec in group.specs.values()}


def norms_widened(diff: Diff) -> Facts | None:
    """Norms are float32 in B and BF16 in A."""
    return {} if _norm_dtypes(diff.a) == {"BF16"} and _norm_dtypes(diff.b) == {"F32"} else None


def _mtp(description: Description) -> int:
    """Values of the MTP layers, without their copies of the main embedding and head."""
    return sum(group.values for group in description.known if group.family.mtp and not group.family.twin)


def _many(number: int) -> str:
    """A number in words: 11.5 billion; 350,720."""
    for unit, factor in (("billion", 1e9), ("million", 1e6)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:,}"


def mtp_gained(diff: Diff) -> Facts | None:
    """MTP layers in B and none in A: how many, and their values."""
    had, groups = ([group for group in side.known if group.family.mtp] for side in (diff.a, diff.b))
    if had or not groups or diff.b.traits.drafter == BLOCKS:
        return None
    layers = len({layer for group in groups for layer in group.layers})
    what = "one more layer" if layers == 1 else f"{layers} more layers"
    return {"values": _many(_mtp(diff.b)), "layers": what}


def mtp_lost(diff: Diff) -> Facts | None:
    """MTP layers in A and none in B: how many, and their values."""
    return mtp_gained(Diff(diff.b, diff.a))


def router_bias(diff: Diff) -> Facts | None:
    """The router has a correction bias, one number per expert, in B and not in A."""

    def has(description: Description) -> bool:
        routers = (group.family for group in description.known if group.family.role == "router")
        return any(len(family.shape) == 1 for family in routers)

    return {} if has(diff.b) and not has(diff.a) else None


def numbers_of(*names: str) -> Callable[[Diff], Facts | None]:
    """A finder of changes in fields of config.json: the value on both sides for each of `names`.

    It finds nothing unless at least one differs and both sides have all of them as whole numbers.
    """

    def facts(diff: Diff) -> Facts | None:
        before, after = ([side.config.get(name) for name in names] for side in (diff.a, diff.b))
        if before == after or not all(type(value) is int for value in (*before, *after)):
            return None
        sides = zip(names, before, after, strict=True)
        return {name: f"{x:,} → {y:,}" if x != y else f"{x:,} (unchanged)" for name, x, y in sides}

    return facts


def experts(diff: Diff) -> Facts | None:
    """The numbers of routed experts of a main layer and of active ones, on both sides."""
    before, after = (
        next(((one.family.experts, one.family.active) for one in side.known if one.family.experts), None)
        for side in (diff.a, diff.b)
    )
    if before is None or after is None or before == after:
        return None
    pairs = zip(("many", "active"), before, after, strict=True)
    return {name: f"{x:,} → {y:,}" if x != y else f"{x:,} (unchanged)" for name, x, y in pairs}


def heads(diff: Diff) -> Facts | None:
    """The numbers of attention heads, if what attention costs is known on both sides."""
    return numbers_of("num_attention_heads")(diff) if None not in diff.attention else None


def queries_compressed(diff: Diff) -> Facts | None:
    """The width that queries are compressed to in B, if they are not compressed in A."""
    before, after = (side.config.get("q_lora_rank") for side in (diff.a, diff.b))
    if diff.a.model is None or diff.b.model is None or before is not None or type(after) is not int:
        return None
    return {"rank": f"{after:,}", "as": ", like keys and values" * (latent(diff.attention[1]) is not None)}


def training_only(diff: Diff) -> Facts | None:
    """Two releases that are equal in all compared parts: the compared parts, and the others."""
    releases = diff.a.release, diff.b.release
    if None in releases or releases[0] == releases[1] or not diff.same_storage:
        return None
    if diff.differs_in("files") or any(change.top not in CLERICAL_FIELDS for change in diff.config):
        return None
    return {"compared": _listed(diff.compared), "not_compared": _listed(diff.not_compared)}


def chat_template(diff: Diff) -> Facts | None:
    """The chat template differs: its place and form on both sides."""
    for one in diff.texts.changes:
        if one.kind == "chat template" and one.sign == "changed":
            lost = f"{one.after}".startswith("Python") and f"{one.before}".startswith("Jinja")
            note = " Without a Jinja template, apply_chat_template of transformers does not work." if lost else ""
            return {"before": one.before, "after": one.after, "note": note}
    return None


def tokens_renumbered(diff: Diff) -> Facts | None:
    """Special tokens that have different numbers on the two sides."""
    moved = [
        f"{one.what} {one.before} → {one.after}"
        for one in diff.texts.changes
        if one.kind == "special tokens" and type(one.before) is int and type(one.after) is int
    ]
    more = f" and {len(moved) - 4:,} more" if len(moved) > 4 else ""
    return {"tokens": ", ".join(moved[:4]) + more} if moved else None


def _listed(words: tuple[str, ...]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
