"""The facts behind V4's meanings: compression, residual streams, routing by token, four-bit experts, drafters. As in
`dsctl.look.diff_facts`, each function finds one difference and its numbers, or None."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from dsctl import models
from dsctl.checkpoint.groups import Group
from dsctl.core.amounts import size
from dsctl.look.costs import Attention, CompressedAttention, costs, kept
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.shared_costs import SharedAttention
from dsctl.look.shared_facts import IMAGE_BIAS
from dsctl.look.totals import CONTEXTS, MILLION, token_work
from dsctl.releases import find

Facts = dict[str, Any]

# Figures of the DeepSeek-V4 report (arXiv 2606.19348, section 1) for a million tokens of context, in percent of
# DeepSeek-V3.2: operations for one token, and bytes of cache.
REPORTED = {"v4-pro": (27, 10), "v4-flash": (10, 7)}
_BEFORE = "v3.2"


def _newer(attention: Attention | None) -> bool:
    """Whether attention has a window and compressed entries, with caches of layers' own or shared ones."""
    return isinstance(attention, (CompressedAttention, SharedAttention))


def compressed(attention: Attention | None) -> CompressedAttention | None:
    """The costs of attention if it is compressed attention, or None."""
    return attention if isinstance(attention, CompressedAttention) else None


def compression_gained(diff: Diff) -> Facts | None:
    """Cache entries stand for several tokens in B, for one in A: by kind of layer."""
    before, after = diff.attention
    now = compressed(after)
    if before is None or _newer(before) or now is None:
        return None
    one = now.sizes
    return {"window": one.window, "kinds": _kinds(now), "heads": one.heads, "size": one.size}


def compression_lost(diff: Diff) -> Facts | None:
    """Cache entries stand for one token in B, for several in A."""
    return compression_gained(Diff(diff.b, diff.a))


def _kinds(attention: CompressedAttention) -> str:
    """The entries that layers attend to besides the window, by ratio."""
    one = attention.sizes
    said = []
    for ratio in sorted({*one.ratios} - {0}):
        which, by = "all", ""
        if ratio == one.chosen:
            which, by = f"the {one.topk:,} best", f", chosen by a lightning indexer of {one.index_heads} small heads"
        many = one.counted(ratio)
        layers = f"{many} layer{'s' * (many != 1)}"
        said.append(f"in {layers} a query attends to {which} of the entries that stand for {ratio} tokens each{by}")
    if one.counted(0):
        said.append(f"{one.counted(0)} layers attend only to the window")
    return "; ".join(said)


def compression_changed(diff: Diff) -> Facts | None:
    """Layers have different compression, or the indexer chooses a different number of entries."""
    before, after = map(compressed, diff.attention)
    if not before or not after:
        return None
    sides = [(one.sizes.ratios, one.sizes.topk, one.sizes.window) for one in (before, after)]
    return {"before": _kinds(before), "after": _kinds(after)} if sides[0] != sides[1] else None


def cache_per_token(diff: Diff) -> Facts | None:
    """Bytes that a token adds to the cache, and that a sequence keeps in any case, if attention is compressed."""
    before, after = diff.attention
    if before is None or after is None or not (_newer(before) or _newer(after)):
        return None
    formats = diff.cache_formats
    each = [_per_token(one, format_) for one, format_ in zip((before, after), formats, strict=True)]
    if each[0] == each[1]:
        return None
    fixed = kept(after, MILLION, formats[1])
    beside = f" Each sequence also keeps {size(fixed.window)} for the window" if fixed.window else ""
    beside += f" and {size(fixed.state)} of compressor state." if beside else ""
    return {
        "before": f"{each[0]:,.0f}", "after": f"{each[1]:,.0f}", "share": _share(each[1], each[0]),
        "format": " → ".join(dict.fromkeys(formats)).upper(), "fixed": beside, "reported": _reported(diff, 1),
    }  # fmt: skip


def work_per_token(diff: Diff) -> Facts | None:
    """All arithmetic of a token, at a million tokens of context and at few, if attention is compressed."""
    before, after = diff.attention
    if before is None or after is None or not (_newer(before) or _newer(after)):
        return None
    if before.work(MILLION) == after.work(MILLION):
        return None
    sides, short = ((diff.a, before), (diff.b, after)), CONTEXTS[0]
    whole, early = ([token_work(side.active_values, cost, n) for side, cost in sides] for n in (MILLION, short))
    return {
        "before": _giga(whole[0]), "after": _giga(whole[1]), "share": _share(whole[1], whole[0]),
        "attention_before": _giga(before.work(MILLION)), "attention": _giga(after.work(MILLION)),
        "context": f"{MILLION:,}", "reported": _reported(diff, 0),
        "short": f"{short:,}", "early_before": _giga(early[0]), "early": _giga(early[1]),
        "early_attention_before": _giga(before.work(short)), "early_attention": _giga(after.work(short)),
    }  # fmt: skip


def _per_token(cost: Attention, format_: str) -> float:
    return cost.cache_bytes(format_) + cost.index_bytes()


def _reported(diff: Diff, place: int) -> str:
    """The report's figure for two models of these sizes, in percent, or nothing."""
    if diff.attention[0] != _costs(_BEFORE):
        return ""
    found = [said[place] for alias, said in REPORTED.items() if diff.attention[1] == _costs(alias)]
    unit = "" if place else ", an estimate in equivalent FP8 operations; here all operations count the same"
    return f" The report says {found[0]} %{unit}." if found else ""


@cache
def _costs(alias: str) -> Attention | None:
    """The costs of a release's attention."""
    config = find(alias).config
    return costs(models.recognise(config).attention(config))


def _share(after: float, before: float) -> str:
    """10.5 % of A; 3.8 times A."""
    if not before:
        return "not known"
    return f"{100 * after / before:.1f} % of A" if after < before else f"{after / before:.1f} times A"


def _giga(number: float) -> str:
    return f"{number / 1e9:,.1f} GFLOP"


def _with_role(side: Description, role: str) -> list[Group]:
    return [group for group in side.known if group.family.role == role]


def streams_gained(diff: Diff) -> Facts | None:
    """Hyper-connections in B, one residual stream in A."""
    if _with_role(diff.a, "hyper-connections") or diff.a.model is None:
        return None
    groups, many = _with_role(diff.b, "hyper-connections"), diff.b.config.get("hc_mult")
    if not groups or type(many) is not int:
        return None
    values = sum(group.values for group in groups)
    tensors = sum(group.count for group in groups)
    return {"streams": many, "numbers": many * (many + 2), "tensors": f"{tensors:,}", "values": f"{values / 1e6:.1f}"}


def streams_lost(diff: Diff) -> Facts | None:
    """One residual stream in B, several in A."""
    return streams_gained(Diff(diff.b, diff.a))


def grouped_output(diff: Diff) -> Facts | None:
    """The output projection is split into groups in B, one matrix in A."""
    before, after = ([side.config.get(field) for field in ("o_groups", "o_lora_rank")] for side in (diff.a, diff.b))
    if diff.a.model is None or before != [None, None] or not all(type(value) is int for value in after):
        return None
    return {"groups": after[0], "rank": f"{after[1]:,}"}


def routed_by_token(diff: Diff) -> Facts | None:
    """Layers that look up the experts of a token, in B only."""
    tables = [[group for group in side.known if group.family.below] for side in (diff.a, diff.b)]
    if tables[0] or not tables[1]:
        return None
    layers = len({layer for group in tables[1] for layer in group.layers})
    return {"layers": layers, "chosen": tables[1][0].family.shape[-1]}


def _experts(side: Description) -> set[str]:
    """The codes of routed experts."""
    return {group.codec.form.codes for group in _with_role(side, "routed experts")}


def experts_narrowed(diff: Diff) -> Facts | None:
    """Routed experts take four bits in B, more in A."""
    if not _experts(diff.a) or "e2m1" in _experts(diff.a) or _experts(diff.b) != {"e2m1"}:
        return None
    groups = [group for group in _with_role(diff.b, "routed experts") if not group.family.mtp]
    nbytes = sum(group.nbytes for group in groups)
    bits = 8 * nbytes / sum(group.values for group in groups)
    group = groups[0].codec.form.group
    return {"columns": group[1], "bits": f"{bits:.2f}", "share": f"{100 * nbytes / diff.b.nbytes:.0f}"}


def experts_widened(diff: Diff) -> Facts | None:
    """Routed experts take more than four bits in B, four in A."""
    if experts_narrowed(Diff(diff.b, diff.a)) is None:
        return None
    share = diff.b.nbytes / diff.a.nbytes if diff.same_parameters else None
    told = " expert_dtype in config.json must match." if _experts(diff.b) == {"e4m3"} else ""
    return {"share": f", in {share:.2f} times the bytes" if share else "", "told": told}


def _e8m0(side: Description) -> bool:
    specs = (spec for group in side.known if group.codec.quantized for spec in group.specs.values())
    return any(spec.dtype == "F8_E8M0" for spec in specs)


def scales_as_bytes(diff: Diff) -> Facts | None:
    """Scales are stored as exponents in B, as float32 in A."""
    return {} if diff.a.quantized and not _e8m0(diff.a) and _e8m0(diff.b) else None


def _blocks(side: Description) -> bool:
    return side.traits.drafter == "dspark" and bool(side.draft_layers)


def drafter_gained(diff: Diff) -> Facts | None:
    """A block drafter in B; in A an MTP layer or no drafter."""
    if _blocks(diff.a) or not _blocks(diff.b) or diff.a.model is None:
        return None
    config, stages = diff.b.config, diff.b.draft_layers
    said = config.get("num_nextn_predict_layers")
    told = f" num_nextn_predict_layers still says {said}." if type(said) is int and said != stages else ""
    values = sum(group.values for group in diff.b.known if group.family.mtp)
    return {
        "instead": "replaces the MTP layer" if diff.a.draft_layers else "is added",
        "stages": stages, "values": f"{values / 1e9:.1f}", "block": _block(config), "told": told,
    }  # fmt: skip


def _block(config: Mapping[str, Any]) -> str:
    size, layers = config.get("dspark_block_size"), config.get("dspark_target_layer_ids")
    where = f" from the states of layers {', '.join(map(str, layers))}" if isinstance(layers, list) else ""
    return f"{size if type(size) is int else 'several'} tokens at a time{where}"


def drafter_lost(diff: Diff) -> Facts | None:
    """A block drafter in A and none in B."""
    if not _blocks(diff.a) or _blocks(diff.b) or diff.b.model is None:
        return None
    left = "An MTP layer drafts the next token." if diff.b.draft_layers else "Without it, B does not draft tokens."
    return {"stages": diff.a.draft_layers, "left": left}


def _own(side: Description) -> bool:
    return any(group.family.twin for group in side.known)


def copies_gone(diff: Diff) -> Facts | None:
    """The MTP layer has copies of embedding and head in A, not in B."""
    if not _own(diff.a) or _own(diff.b) or not diff.b.draft_layers:
        return None
    return {"bytes": f"{sum(group.nbytes for group in diff.a.known if group.family.twin) / 1e9:.1f} GB"}


def prefixed(diff: Diff) -> Facts | None:
    """A prefix that the names of a language model have on one side."""
    before, after = diff.prefixes
    if not before and not after:
        return None
    return {"prefix": before or after, "change": "no longer begin" if before else "begin"}


def state_gained(diff: Diff) -> Facts | None:
    """Layers of B that keep a state per sequence, if A has none."""
    before, after = (side.config.get("linear_attn_config") for side in (diff.a, diff.b))
    if before is not None or diff.a.model is None or not isinstance(after, dict):
        return None
    layers, every = after.get("kda_layers"), diff.b.config.get("num_hidden_layers")
    return {"layers": len(layers), "all": every} if isinstance(layers, list) and type(every) is int else None


def vision_gained(diff: Diff) -> Facts | None:
    """Parts that read images, in B only."""
    before, after = (_with_role(side, "vision") for side in (diff.a, diff.b))
    if before or not after or diff.a.model is None:
        return None
    biased = any(group.family.template.endswith(IMAGE_BIAS) for group in _with_role(diff.b, "router"))
    routers = ", and every router has a second bias for them, which chooses their experts" if biased else ""
    named = " The architecture's name in config.json stays the same." if diff.a.model == diff.b.model else ""
    values, many = sum(group.values for group in after), sum(group.count for group in after)
    return {"values": f"{values / 1e6:.0f}", "count": f"{many:,}", "routers": routers, "named": named}
