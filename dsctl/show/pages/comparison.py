"""The page of a comparison: error by layer and role, its histogram, scales of both sides, the largest differences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from dsctl.look.comparison import Comparison, Sums, histogram
from dsctl.show.drawing import page
from dsctl.show.drawing.charts import Chart, bars
from dsctl.show.output import count, plural
from dsctl.show.pages.cards import Card
from dsctl.show.sections import Column, Row, Section, printable

# The decibels at which each colour begins; below the least one the error is as large as the value.
HEAT = (60.0, 45.0, 30.0, 20.0, 10.0, 0.0)

LINEAR = " The axis of shares is linear, that of powers of two logarithmic."


class Cell(NamedTuple):
    """A cell of a heat map: its text, and its heat from 0 to 6."""

    text: str
    heat: int


def comparison(found: Comparison, names: tuple[str, str], worst: int) -> str:
    """The whole page."""
    return page(
        "compare",
        f"Comparison of {names[0]} and {names[1]}",
        [printable(section) for section in (_by_role(found), _furthest(found, worst))],
        names=names,
        lead=_lead(found),
        cards=list(_cards(found)),
        charts=[] if found.total.same else list(_charts(found)),
        roles=list(found.roles),
        # Without an error, the map would be empty.
        heat=[] if found.total.same else list(_heat(found)),
        key=list(_key()),
    )


def _lead(found: Comparison) -> str:
    """The answer in a sentence."""
    total, many = found.total, plural(len(found.compared), "parameter")
    if total.same:
        return f"All {count(total.values)} values of {many} are identical."
    role, _ = min(found.roles.items(), key=lambda one: _least(one[1][1]))
    differ = f"{1 - total.share:.2%} of {count(total.values)} values in {many} differ"
    return f"{differ}. Signal to noise: {_decibels(total)}. The {role} parameters differ most."


def _least(sums: Sums) -> float:
    """Signal to noise as a sort key: undefined is the worst, identical the best."""
    return math.inf if sums.same else -math.inf if sums.snr is None else sums.snr


def _cards(found: Comparison) -> Iterator[Card]:
    total = found.total
    yield Card("signal to noise", _decibels(total), f"over {count(total.values)} values")
    yield Card("identical values", f"{total.share:.2%}", plural(len(found.compared), "parameter"))
    yield Card("largest error", f"{total.max_abs:.3g}", f"relative: {total.max_rel:.3g}")
    missing = len(found.only_ours) + len(found.only_theirs) + len(found.reshaped)
    if missing:
        yield Card(
            "not compared", plural(missing, "parameter"), "on one side only, or with a different shape", "removed"
        )
    for side, counts in zip("AB", found.scales, strict=True):
        if counts.number:
            share = f"{counts.powers * 100 // counts.number}% are powers of two"
            yield Card(f"block scales of {side}", count(counts.number), share)


def _charts(found: Comparison) -> Iterator[Chart]:
    total = found.total
    shares = {"same": total.share} | _filled(dict(histogram(total)), total.values)
    told = f"{total.share:.2%} are identical. The bars group the rest by the power of two below their relative error."
    told += LINEAR
    if not total.same:
        yield bars("Values by relative error", {"values": shares}, _percent, "relative error", told)
    sides = {
        side: _filled(counts.bins, counts.number)
        for side, counts in zip("AB", found.scales, strict=True)
        if counts.bins
    }
    if sides:
        told = "; ".join(
            f"{side}: {count(counts.number)} scales, {counts.powers * 100 // counts.number}% of them powers of two"
            for side, counts in zip("AB", found.scales, strict=True)
            if counts.number
        )
        places = _filled({int(place[2:]): 0 for held in sides.values() for place in held}, 1)
        aligned = {side: {place: held.get(place, 0.0) for place in places} for side, held in sides.items()}
        yield bars("Block scales by the power of two below them", aligned, _percent, "scale", f"{told}.{LINEAR}")


def _filled(bins: dict[int, int], whole: int) -> dict[str, float]:
    """Shares by power of two, including empty ones in between."""
    if not bins:
        return {}
    return {f"2^{power}": bins.get(power, 0) / whole for power in range(min(bins), max(bins) + 1)}


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or not share else f"{share:.1e}"


def _heat(found: Comparison) -> Iterator[tuple[str, list[Cell]]]:
    """One row per layer, one cell per role: the sums over its parameters."""
    sums: dict[int | None, dict[str, Sums]] = {}
    for one in found.compared:
        sums.setdefault(one.layer, {}).setdefault(one.role, Sums()).add(one.sums)
    for layer in sorted(sums, key=lambda layer: -1 if layer is None else layer):
        name = "outside of layers" if layer is None else f"layer {layer}"
        yield name, [_cell(sums[layer].get(role)) for role in found.roles]


def _cell(sums: Sums | None) -> Cell:
    if sums is None:
        return Cell("", 0)
    snr = None if sums.same else sums.snr
    if snr is None:
        return Cell("same" if sums.same else "not a number", 0 if sums.same else len(HEAT))
    return Cell(f"{snr:.1f}", sum(snr < edge for edge in HEAT))


def _key() -> Iterator[Cell]:
    """The meaning of the heat map's colours."""
    yield Cell(f"{HEAT[0]:.0f} dB and more, or identical", 0)
    for heat, (upper, lower) in enumerate(zip(HEAT, HEAT[1:], strict=False), 1):
        yield Cell(f"{lower:.0f} to {upper:.0f}", heat)
    yield Cell(f"less than {HEAT[-1]:.0f}, or not a number", len(HEAT))


def _decibels(sums: Sums) -> str:
    return "identical" if sums.same else "not a number" if sums.snr is None else f"{sums.snr:.1f} dB"


def _by_role(found: Comparison) -> Section:
    columns = (
        Column("role"),
        Column("parameters", True),
        Column("SNR", True),
        Column("identical", True),
        Column("largest error", True),
    )
    rows = [
        Row((role, f"{number:,}", _decibels(sums), f"{sums.share:.2%}", f"{sums.max_abs:.3g}"))
        for role, (number, sums) in sorted(found.roles.items(), key=lambda one: _least(one[1][1]))
    ]
    return Section("By role", "largest difference first", columns, tuple(rows))


def _furthest(found: Comparison, worst: int) -> Section:
    columns = (Column("parameter"), Column("SNR", True), Column("largest error", True), Column("stored as"))
    rows = [
        Row((one.name, _decibels(one.sums), f"{one.sums.max_abs:.3g}", " and ".join(dict.fromkeys(one.formats))))
        for one in found.worst(worst)
    ]
    return Section("Largest differences", "" if rows else "all parameters are identical", columns, tuple(rows))
