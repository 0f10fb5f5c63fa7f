"""Charts for a page: pygal's SVG in the page's own colours, without script, with the numbers as a table below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dsctl.show.drawing.lengths import Bar, Rule, Words

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 520, 300
# Colours are variables of the page, which differ in light and dark mode; `base.html` defines them.
COLOURS = tuple(f"var(--c{number})" for number in range(13))
SIDES = "var(--before)", "var(--after)"


class Chart(NamedTuple):
    """A chart: a drawing, or None if there is nothing to draw, a summary, its numbers, and its colours by name. In
    place of a drawing it can have horizontal `bars`, with `rules` at certain values, or `upright` bars, with `ticks`
    below them and labels for the first and the last bar (`ends`)."""

    title: str
    summary: str
    drawing: Markup | None
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    colours: Mapping[str, str] = {}
    bars: tuple[Bar, ...] = ()
    rules: tuple[Rule, ...] = ()
    upright: tuple[Bar, ...] = ()
    ticks: tuple[Rule, ...] = ()
    ends: tuple[str, str] = ("", "")


def curves(
    title: str, places: Sequence[int], series: Mapping[str, Sequence[float]], words: Words, axis: str, at: int
) -> Chart:
    """One curve per series over numbers of tokens; both axes are linear and begin at 0. The summary gives the values at
    index `at`."""
    import pygal

    rows = tuple((f"{place:,}", *(words(values[n]) for values in series.values())) for n, place in enumerate(places))
    columns = (axis, *series)
    curves = list(series.values())
    if all(curve == curves[0] for curve in curves[1:]):
        return Chart(title, f"The same on both sides: {rows[at][1]} at {rows[at][0]} {axis}.", None, columns, rows)
    chart = pygal.XY(_config(words, SIDES), dots_size=3.5, stroke_style={"width": 3}, x_title=axis)
    chart.x_labels = [{"label": _thousands(tick), "value": tick} for tick in ticks(places[-1])]
    chart.x_value_formatter = lambda place: f"{place:,.0f} tokens"
    highest = max(max(values) for values in curves)
    marks = levels(highest)
    chart.y_labels = [{"label": words(mark) if mark else "0", "value": mark} for mark in marks]
    chart.range, chart.xrange = (0, highest), (0, places[-1])
    for name, values in series.items():
        points = zip(places, values, strict=True)
        chart.add(name, [{"value": (place, value), "label": name} for place, value in points])
    ends = ", ".join(f"{name} {words(values[at])}" for name, values in series.items())
    told = f"At {places[at]:,} tokens: {ends}. Both axes are linear."
    return Chart(title, told, _svg(chart, title), columns, rows, dict(zip(series, SIDES, strict=True)))


def ticks(longest: int) -> list[int]:
    """Evenly spaced ticks on a linear axis of tokens, at multiples of a power of two: 0, 32,768, 65,536 and so on."""
    step = 1 << max((longest // 4).bit_length() - 1, 0)
    return list(range(0, longest + 1, step))


def levels(highest: float) -> list[float]:
    """Four to seven evenly spaced round numbers on a linear axis from 0."""
    power = 10.0 ** math.floor(math.log10(highest or 1))
    step = next(power * factor for factor in (0.2, 0.25, 0.5, 1.0, 2.0) if highest <= 6 * power * factor)
    return [step * number for number in range(int(highest / step) + 1)]


def _thousands(tokens: int) -> str:
    """128K and 1M, of 1,024 and 1,048,576 tokens."""
    if tokens and tokens % (1 << 20) == 0:
        return f"{tokens >> 20}M"
    return f"{tokens >> 10}K" if tokens and tokens % (1 << 10) == 0 else f"{tokens:,}"


def bars(title: str, series: Mapping[str, Mapping[str, float]], words: Words, axis: str, summary: str = "") -> Chart:
    """Bars side by side, one colour per series, at every place that any series has."""
    import pygal

    places = list(dict.fromkeys(place for members in series.values() for place in members))
    colours = SIDES if len(series) == 2 else ("var(--after)",)
    chart = pygal.Bar(_config(words, colours), x_title=axis)
    chart.x_labels, chart.x_labels_major = places, places[:: 1 + len(places) // 9]
    chart.show_minor_x_labels = False
    for name, members in series.items():
        chart.add(name, [members.get(place, 0) for place in places])
    rows = tuple((place, *(words(members.get(place, 0)) for members in series.values())) for place in places)
    key = dict(zip(series, SIDES, strict=False)) if len(series) > 1 else {}
    return Chart(title, summary, _svg(chart, title), (axis, *series), rows, key)


def _config(words: Words, colours: tuple[str, ...]) -> Any:
    from pygal import Config
    from pygal.style import Style

    style = Style(
        background="transparent", plot_background="transparent", foreground="var(--ink)",
        foreground_strong="var(--ink)", foreground_subtle="var(--soft)", guide_stroke_color="var(--line)",
        major_guide_stroke_color="var(--line)", guide_stroke_dasharray="1,0", major_guide_stroke_dasharray="1,0",
        colors=colours, font_family="inherit", opacity="1", opacity_hover=".8", stroke_opacity="1",
        stroke_width="3", label_font_size=17, major_label_font_size=17, value_font_size=17,
        title_font_size=17,
    )  # fmt: skip
    return Config(
        style=style, js=[], height=HEIGHT, width=WIDTH, show_legend=False,
        value_formatter=words, disable_xml_declaration=True, truncate_label=-1, margin=8, margin_right=26,
        show_minor_x_labels=True, max_scale=7,
    )  # fmt: skip


def _svg(chart: Any, title: str) -> Markup:
    """The chart without scripts and without values that change from run to run. Its values are titles, which browsers
    show."""
    from markupsafe import Markup
    from pygal.etree import etree

    # Only the chart's own rules refer to this identifier. It is the same in every run.
    chart.uuid = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in list(parent):
            tag = str(child.tag).rpartition("}")[2]
            if tag in ("script", "title") or not isinstance(child.tag, str):
                parent.remove(child)
    for parent in list(root.iter()):
        words = [child.text for child in parent if child.tag == "desc" and child.get("class") in ("label", "value")]
        if words:
            etree.SubElement(parent, "title").text = ": ".join(filter(None, words))
    root.set("role", "img")
    root.set("aria-label", f"{title}; its numbers are in the table below")
    # Escaped by pygal's own tree.
    return Markup(etree.tostring(root, encoding="unicode"))  # noqa: S704
