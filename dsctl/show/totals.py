"""The totals of a diff as sections: counts and sizes, and the cache and arithmetic that a token takes."""

from __future__ import annotations

from collections.abc import Iterator

from dsctl.look.cache_formats import BF16
from dsctl.look.diff import Diff
from dsctl.look.diff_facts import BLOCKS
from dsctl.look.totals import TotalChange
from dsctl.look.wording import ratio
from dsctl.show.output import size
from dsctl.show.sections import Column, Row, Section

# The name of each total, and its heading.
TOTALS = {
    "parameters": ("parameters", "Totals"),
    "values": ("values", "Totals"),
    "main_values": ("  without MTP", "Totals"),
    "active_values": ("  active per token", "Totals"),
    "prompt_values": ("  active in a prompt", "Totals"),
    "quantized": ("quantized parameters", "Totals"),
    "tensors": ("stored tensors", "Totals"),
    "nbytes": ("stored bytes", "Totals"),
    "files": ("weight files", "Totals"),
    "cache_bytes": ("KV cache", "KV cache per token"),
    "index_bytes": ("indexer keys", "KV cache per token"),
    "fixed_bytes": ("window, compressor state", "KV cache per sequence"),
    "token_work": ("whole token", "Arithmetic of one new token"),
    "work": ("  attention", "Arithmetic of one new token"),
    "read_bytes": ("cache read", "Cache read by one new token"),
}


def totals(diff: Diff, titles: tuple[str, str]) -> Iterator[Section]:
    """Sums of both sides, and the cost of a token; `titles` are the column titles of the sides."""
    columns = (Column(), *(Column(title, True) for title in titles), Column("difference", True))
    keys = dict.fromkeys(one.keys.upper() for one in diff.attention if one)
    formats = dict.fromkeys(diff.cache_formats)
    kept = "latents in BF16" if BF16 in formats else f"entries in {' and '.join(map(str.upper, formats))}"
    form = "; attention in MLA's multi-query form" * (BF16 in formats)
    summaries = {
        "KV cache per token": f"{kept}, indexer keys in {' and '.join(keys)}",
        "Arithmetic of one new token": f"while decoding, by context length{form} (docs/costs.md)",
        "Cache read by one new token": "while decoding, by context length",
    }
    blocks = any(side.traits.drafter == BLOCKS for side in (diff.a, diff.b))
    names = {key: name for key, (name, _) in TOTALS.items()} | ({"main_values": "  without drafter"} if blocks else {})
    for heading in dict.fromkeys(heading for _, heading in TOTALS.values()):
        held = [total for total in diff.totals if TOTALS[total.key][1] == heading and (total.before or total.after)]
        if held and heading != "Totals" and all(total.before == total.after for total in held):
            yield Section(heading, "no difference")
        elif held:
            yield Section(
                heading, summaries.get(heading, ""), columns, tuple(_total(total, names[total.key]) for total in held)
            )


def _total(total: TotalChange, name: str) -> Row:
    name += f" at {total.context:,}" if total.context else ""
    before, after = (_amount(value, total.unit) for value in (total.before, total.after))
    return Row((name, before, after, _difference(total)))


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "not known"
    if unit == "bytes":
        return size(value) if value >= 100_000 else f"{value:,.0f} B"
    return f"{value:,.0f}" if unit == "count" else flop(value)


def flop(number: float) -> str:
    """Floating-point operations for people: 556.7 GFLOP."""
    for unit, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}FLOP"
    return f"{number:,.0f} FLOP"


def _difference(total: TotalChange) -> str:
    before, after = total.before, total.after
    if before is None or after is None:
        return ""
    if before == after:
        return "same"
    if total.context and before and after:
        return _times(max(before, after) / min(before, after)) + (" less" if before > after else " more")
    change = after - before
    judged = "" if total.differs else " (not judged)"
    return ("+" if change > 0 else "-") + _amount(abs(change), total.unit) + judged


def _times(times: float) -> str:
    """A factor, or a percentage if the factor is close to 1."""
    return f"{ratio(times)}x" if times >= 1.05 else f"{100 * (times - 1):.1f}%"
