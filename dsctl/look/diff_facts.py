"""The facts behind meanings: each function finds one difference and its numbers, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsctl.core.config_fields import CLERICAL_FIELDS
from dsctl.look.costs import Attention, LatentAttention
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.totals import CONTEXTS

Facts = dict[str, Any]
# A drafter of another kind, of which other facts tell.
BLOCKS = "dspark"


def latent(attention: Attention | None) -> LatentAttention | None:
    """The costs of latent attention, where they are that."""
    return attention if isinstance(attention, LatentAttention) else None


def indexer_gained(diff: Diff) -> Facts | None:
    """An indexer chooses the tokens to attend to, where attention was full: its sizes and what it saves."""
    before, after = map(latent, diff.attention)
    if before is None or after is None or before.indexers or not after.indexers:
        return None
    saved = _saved(after)
    own = "" if before == after.full() else ", beside full attention in its own sizes,"
    return saved and saved | {"own": own, "shared": _shared(after), "cache": _cache(before, after)}


def indexer_lost(diff: Diff) -> Facts | None:
    """Attention is full where an indexer chose tokens: its sizes and what it saved."""
    before, after = map(latent, diff.attention)
    if before is None or after is None or not before.indexers or after.indexers:
        return None
    saved = _saved(before)
    return saved and saved | {"own": "" if after == before.full() else " and in the sizes of the side that had one,"}


def _saved(sparse: LatentAttention) -> Facts | None:
    """An indexer's sizes, and what it saves beside full attention in the same sizes."""
    full, longest = sparse.full(), CONTEXTS[-1]
    if full.work(longest) <= sparse.work(longest) or full.read_bytes(longest) <= sparse.read_bytes(longest):
        return None
    return {
        "layers": sparse.indexers,
        "heads": sparse.sizes.index_heads,
        "topk": f"{sparse.sizes.topk:,}",
        "context": f"{longest:,}",
        "work": f"{full.work(longest) / sparse.work(longest):.1f}",
        "read": f"{full.read_bytes(longest) / sparse.read_bytes(longest):.1f}",
    }


def _shared(after: LatentAttention) -> str:
    if after.indexers == after.layers:
        return ""
    return f" The other {after.layers - after.indexers} layers attend to the tokens that an earlier one chose."


def _cache(before: LatentAttention, after: LatentAttention) -> str:
    kept, keys = (before.cache_bytes(), after.cache_bytes()), f"{after.index_bytes():,}"
    if kept[0] == kept[1]:
        return f"The KV cache stays, and the indexer's keys add {keys} bytes per token."
    return f"The KV cache takes {kept[1]:,} bytes per token, {kept[0]:,} before; the indexer's keys add {keys}."


def indexers_shared(diff: Diff) -> Facts | None:
    """How many layers choose tokens with an indexer of their own, if that changed."""
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
    """FP8 scales are powers of two and were any numbers."""
    return {} if _scales(diff.a) == {"float32"} and _scales(diff.b) == {"ue8m0"} else None


def scales_free(diff: Diff) -> Facts | None:
    """FP8 scales are any numbers and were powers of two."""
    return scales_rounded(Diff(diff.b, diff.a))


def quantized(diff: Diff) -> Facts | None:
    """How many matrices are quantized where none was, and in which formats."""
    if diff.a.quantized or not diff.b.quantized:
        return None
    return {"count": f"{diff.b.quantized:,}", "share": _share(diff), "format": _formats(diff.b)}


def dequantized(diff: Diff) -> Facts | None:
    """How many matrices were quantized where none is now, and in which formats."""
    if not diff.a.quantized or diff.b.quantized:
        return None
    return {"count": f"{diff.a.quantized:,}", "share": _share(diff), "format": _formats(diff.a)}


def _share(diff: Diff) -> str:
    share = diff.b.nbytes / diff.a.nbytes if diff.a.nbytes and diff.same_parameters else None
    return f" in {share:.2f} times the bytes" if share else ""


def _formats(description: Description) -> str:
    codecs = [group.codec for group in description.known if group.codec.quantized]
    return " and ".join(dict.fromkeys("FP8" if codec.scale_fmt else codec.name for codec in codecs))


def _norm_dtypes(description: Description) -> set[str]:
    return {spec.dtype for group in description.known if group.family.role == "norm" for spec in group.specs.values()}


def norms_widened(diff: Diff) -> Facts | None:
    """Norms are float32 and were BF16."""
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
    """Multi-token-prediction layers where there were none: how many, and their values."""
    had, groups = ([group for group in side.known if group.family.mtp] for side in (diff.a, diff.b))
    if had or not groups or diff.b.traits.drafter == BLOCKS:
        return None
    layers = len({layer for group in groups for layer in group.layers})
    what = "a further layer" if layers == 1 else f"{layers} further layers"
    return {"values": _many(_mtp(diff.b)), "layers": what}


def mtp_lost(diff: Diff) -> Facts | None:
    """No multi-token-prediction layers where there were some: how many, and their values."""
    return mtp_gained(Diff(diff.b, diff.a))


def router_bias(diff: Diff) -> Facts | None:
    """The router has a correction bias, one number for each expert, and had none."""

    def has(description: Description) -> bool:
        routers = (group.family for group in description.known if group.family.role == "router")
        return any(len(family.shape) == 1 for family in routers)

    return {} if has(diff.b) and not has(diff.a) else None


def numbers_of(*names: str) -> Callable[[Diff], Facts | None]:
    """Facts of config fields where at least one differs; both sides must have them all as numbers."""

    def facts(diff: Diff) -> Facts | None:
        before, after = ([side.config.get(name) for name in names] for side in (diff.a, diff.b))
        if before == after or not all(type(value) is int for value in (*before, *after)):
            return None
        sides = (("a", before), ("b", after))
        return {f"{n}_{side}": f"{value:,}" for side, values in sides for n, value in zip(names, values, strict=True)}

    return facts


def queries_compressed(diff: Diff) -> Facts | None:
    """The width that queries are compressed to, where they were not."""
    before, after = (side.config.get("q_lora_rank") for side in (diff.a, diff.b))
    if diff.a.model is None or diff.b.model is None or before is not None or type(after) is not int:
        return None
    return {"rank": f"{after:,}", "as": ", as keys and values are" * (latent(diff.attention[1]) is not None)}


def training_only(diff: Diff) -> Facts | None:
    """Two releases of which all that was compared is equal: what was compared, and what was not."""
    releases = diff.a.release, diff.b.release
    if None in releases or releases[0] == releases[1] or not diff.same_storage:
        return None
    if any(change.top not in CLERICAL_FIELDS for change in diff.config):
        return None
    return {"compared": _listed(diff.compared), "not_compared": _listed(diff.not_compared)}


def _listed(words: tuple[str, ...]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
