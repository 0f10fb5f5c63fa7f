"""Print a comparison of values, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsctl.checkpoint.scales import ScaleCounts
from dsctl.look.comparison import Comparison, Sums, histogram
from dsctl.show.output import Output, count, plural
from dsctl.show.sections import Column, Row, Section, show

# Relative errors below 2 to this power share a line.
FINEST = -16
BAR = 40
NAMED = 10


def as_json(found: Comparison) -> dict[str, Any]:
    """Format a comparison as stable JSON; infinities and NaN are null."""
    return {
        "a": found.places[0],
        "b": found.places[1],
        "total": {"parameters": len(found.compared), **_numbers(found.total), "histogram": _histogram(found.total)},
        "scales": {side: _scales(counts) for side, counts in zip("ab", found.scales, strict=True)},
        "roles": {role: {"parameters": number, **_numbers(sums)} for role, (number, sums) in found.roles.items()},
        "parameters": [
            {
                "name": one.name,
                "role": one.role,
                "shape": list(one.shape),
                "a_format": one.formats[0],
                "b_format": one.formats[1],
                **_numbers(one.sums),
            }
            for one in found.compared
        ],
        "only_a": list(found.only_ours),
        "only_b": list(found.only_theirs),
        "other_shape": [{"name": one.name, "a": list(one.ours), "b": list(one.theirs)} for one in found.reshaped],
        "not_numbers": list(found.not_numbers),
    }


def _numbers(sums: Sums) -> dict[str, Any]:
    return {
        "values": sums.values,
        "identical": sums.same,
        "identical_values": sums.identical,
        "not_finite": sums.not_finite,
        "snr_db": sums.snr,
        "cosine": sums.cosine,
        "max_abs": sums.max_abs,
        "max_rel": sums.max_rel,
    }


def _histogram(sums: Sums) -> list[dict[str, Any]]:
    return [{"from": 2.0**power, "to": 2.0 ** (power + 1), "values": number} for power, number in histogram(sums)]


def _scales(counts: ScaleCounts) -> dict[str, Any]:
    bins = sorted(counts.bins.items())
    histogram = [{"from": 2.0**power, "to": 2.0 ** (power + 1), "scales": number} for power, number in bins]
    return {"scales": counts.number, "powers_of_two": counts.powers, "histogram": histogram}


def show_comparison(found: Comparison, names: tuple[str, str], worst: int, output: Output) -> None:
    """Print the error of all values, by role, of the `worst` parameters, and a histogram."""
    total = found.total
    for side, name in zip("AB", names, strict=True):
        output.text(f"{side}  {name}")
    compared = f"{plural(len(found.compared), 'parameter')}, {count(total.values)} values compared"
    output.text(f"{compared}: {'all identical' if total.same else f'{total.share:.2%} identical'}")
    for section in (_by_role(found), *_largest(found, worst)):
        output.text("")
        show([section], output)
    if not total.same:
        _show_histogram(total, output)
    _show_rest(found, output)


_MEASURES = (
    Column("SNR dB", True), Column("cosine", True, 3), Column("max abs", True, 1), Column("max rel", True, 2),
    Column("identical", True),
)  # fmt: skip


def _row(sums: Sums) -> tuple[str, ...]:
    snr = "inf" if sums.same else "-" if sums.snr is None else f"{sums.snr:.2f}"
    cosine = "-" if sums.cosine is None else f"{sums.cosine:.6f}"
    return snr, cosine, f"{sums.max_abs:.3g}", f"{sums.max_rel:.3g}", f"{sums.share:.2%}"


def _by_role(found: Comparison) -> Section:
    rows = [Row((role, f"{number:,}", count(s.values), *_row(s))) for role, (number, s) in found.roles.items()]
    rows.append(Row(("all", f"{len(found.compared):,}", count(found.total.values), *_row(found.total))))
    columns = Column("role"), Column("parameters", True, 4), Column("values", True), *_MEASURES
    return Section("By role", "", columns, tuple(rows))


def _largest(found: Comparison, worst: int) -> Iterator[Section]:
    """The `worst` parameters, if any differ. Names come last: there they may be longer than the line."""
    if furthest := found.worst(worst):
        rows = tuple(Row((*_row(one.sums), one.name)) for one in furthest)
        yield Section("Largest differences", "", (*_MEASURES, Column("parameter")), rows)


def _show_histogram(sums: Sums, output: Output) -> None:
    lines = {"identical": sums.identical - _odd(sums), f"< 2^{FINEST}": 0}
    for power, number in histogram(sums):
        label = f"< 2^{FINEST}" if power < FINEST else f"2^{power}"
        lines[label] = lines.get(label, 0) + number
    most = max(lines.values())
    output.text("")
    output.text(("Relative error histogram", "bold"), "   bin = power of two")
    for label, number in lines.items():
        if not number:
            continue
        bar = "#" * round(BAR * number / most)
        output.text(f"{label:>10}  {number / sums.values:7.2%}  {bar}".rstrip())
    if sums.not_finite:
        output.text(f"{plural(sums.not_finite, 'value')} NaN or infinite on one side")


def _odd(sums: Sums) -> int:
    """The number of identical values that are NaN or infinite."""
    return sums.identical - sums.bins.get(0, 0)


def _show_rest(found: Comparison, output: Output) -> None:
    for what, names in (("only in A", found.only_ours), ("only in B", found.only_theirs)):
        _show_names(what, names, output)
    shapes = tuple(f"{one.name} {list(one.ours)} and {list(one.theirs)}" for one in found.reshaped)
    _show_names("different shapes", shapes, output)
    _show_names("not compared (no codec decodes them)", found.not_numbers, output)


def _show_names(what: str, names: tuple[str, ...], output: Output) -> None:
    if not names:
        return
    output.text("")
    output.text((f"{what}: {len(names):,}", "yellow"))
    for name in names[:NAMED]:
        output.text(f"  {name}")
    if len(names) > NAMED:
        output.text(f"  ... and {len(names) - NAMED:,} more")
