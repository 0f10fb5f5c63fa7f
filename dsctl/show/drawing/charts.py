"""Charts for a page: pygal's SVG in the page's own colours, without script, with the numbers as a table beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 520, 300
# Colours are variables of the page, that differ in light and dark; `base.html` gives them.
COLOURS = tuple(f"var(--c{number})" for number in range(11))
SIDES = "var(--before)", "var(--after)"
# A treemap's cell is named where the name has room, at so many pixels a letter.
LETTER, LEAST_HEIGHT = 7.2, 14

Words = Callable[[float], str]


class Chart(NamedTuple):
    """A drawing, or none where there is nothing to draw, what is to be seen in it, its numbers, its colours by name."""

    title: str
    summary: str
    drawing: Markup | None
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    colours: Mapping[str, str] = {}


def curves(
    title: str,
    places: Sequence[tuple[float, str]],
    series: Mapping[str, Sequence[float]],
    words: Words,
    axis: str,
    at: int,
) -> Chart:
    """A curve per series over numbered places, whose distance is that of their logarithms; the summary is of place
    number `at`."""
    import pygal

    rows = tuple((label, *(words(values[n]) for values in series.values())) for n, (_, label) in enumerate(places))
    columns = (axis, *series)
    curves = list(series.values())
    if all(curve == curves[0] for curve in curves[1:]):
        return Chart(title, f"The same on both sides: {rows[at][1]} at {rows[at][0]}.", None, columns, rows)
    chart = pygal.XY(_config(words, SIDES), dots_size=3.5, stroke_style={"width": 3}, x_title=axis)
    chart.x_labels = [{"label": label, "value": math.log2(place)} for place, label in places[:: 1 + len(places) // 9]]
    chart.x_value_formatter = lambda power: f"{2**power:,.0f} tokens"
    for name, values in series.items():
        points = zip(places, values, strict=True)
        chart.add(name, [{"value": (math.log2(place), value), "label": name} for (place, _), value in points])
    ends = ", ".join(f"{name} {words(values[at])}" for name, values in series.items())
    return Chart(
        title, f"At {places[at][1]}: {ends}.", _svg(chart, title), columns, rows, dict(zip(series, SIDES, strict=True))
    )


def areas(title: str, parts: Mapping[str, Mapping[str, float]], words: Words, summary: str = "") -> Chart:
    """A treemap: one colour per group, one rectangle per part, its area its value, its name where there is room."""
    import pygal

    held = {group: {name: value for name, value in members.items() if value > 0} for group, members in parts.items()}
    whole = sum(sum(members.values()) for members in held.values()) or 1
    # Tensors may be of more dtypes than there are colours; pygal ends in an error where a group has none.
    colours = tuple(COLOURS[number % len(COLOURS)] for number in range(len(held)))
    chart = pygal.Treemap(_config(words, colours))
    for group, members in held.items():
        chart.add(group, [{"value": value, "label": name} for name, value in members.items()])
    parts_of = [(group, name, value) for group, found in held.items() for name, value in found.items()]
    rows = tuple((group, name, words(value), f"{value / whole:.1%}") for group, name, value in parts_of)
    if not rows:
        return Chart(title, "Nothing.", None)
    most = max(held, key=lambda group: sum(held[group].values()))
    told = summary or f"Most is {most}: {words(sum(held[most].values()))} of {words(whole)}."
    key = dict(zip(held, colours, strict=True)) if len(held) > 1 else {}
    return Chart(title, told, _svg(chart, title, named=True), ("group", "part", "size", "share"), rows, key)


def bars(title: str, series: Mapping[str, Mapping[str, float]], words: Words, axis: str, summary: str = "") -> Chart:
    """Bars side by side, one colour per series, over the places that any of them has."""
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


def stacks(
    title: str, series: Mapping[str, Mapping[str, float]], marks: Mapping[str, float], words: Words, summary: str = ""
) -> Chart:
    """Bars of parts on each other, one colour per part; `marks` are the values that lines across them stand at."""
    import pygal

    places = list(next(iter(series.values()), {}))
    chart = pygal.StackedBar(_config(words, COLOURS[:2], "var(--edge)"))
    chart.x_labels = places
    highest = max([sum(members[place] for members in series.values()) for place in places], default=0)
    shown = _apart({label: value for label, value in marks.items() if value <= highest * 1.6}, max(highest, 1) / 18)
    shown = _apart(shown | {words(highest): highest}, max(highest, 1) / 18)
    chart.y_labels = [{"label": "0", "value": 0}, *({"label": label, "value": value} for label, value in shown.items())]
    chart.range = (0, max([highest, *shown.values()]))
    for name, members in series.items():
        chart.add(name, [members[place] for place in places])
    rows = tuple((place, *(words(members[place]) for members in series.values())) for place in places)
    return Chart(title, summary, _svg(chart, title), ("", *series), rows, dict(zip(series, COLOURS, strict=False)))


def _apart(marks: Mapping[str, float], least: float) -> dict[str, float]:
    """Marks from the lowest up, without those that would stand on the label of the one below."""
    found: dict[str, float] = {}
    for label, value in sorted(marks.items(), key=lambda item: item[1]):
        if not found or value - list(found.values())[-1] >= least:
            found[label] = value
    return found


def _config(words: Words, colours: tuple[str, ...], guide: str = "var(--line)") -> Any:
    from pygal import Config
    from pygal.style import Style

    style = Style(
        background="transparent", plot_background="transparent", foreground="var(--ink)",
        foreground_strong="var(--ink)", foreground_subtle="var(--soft)", guide_stroke_color=guide,
        major_guide_stroke_color=guide, guide_stroke_dasharray="1,0", major_guide_stroke_dasharray="1,0",
        colors=colours, font_family="inherit", opacity="1", opacity_hover=".8", stroke_opacity="1",
        stroke_width="3", label_font_size=13, major_label_font_size=13, value_font_size=13,
        title_font_size=13,
    )  # fmt: skip
    return Config(
        style=style, js=[], height=HEIGHT, width=WIDTH, show_legend=False,
        value_formatter=words, disable_xml_declaration=True, truncate_label=-1, margin=8,
        show_minor_x_labels=True, max_scale=7,
    )  # fmt: skip


def _svg(chart: Any, title: str, named: bool = False) -> Markup:
    """The chart without script or what differs from run to run, its values as titles, which browsers show."""
    from markupsafe import Markup
    from pygal.etree import etree

    # Found again by the chart's own rules only, and the same at every run.
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
            if named:
                _named(parent, words[0] or "")
    root.set("role", "img")
    root.set("aria-label", f"{title}; its numbers are in the table below")
    # Escaped by pygal's own tree.
    return Markup(etree.tostring(root, encoding="unicode"))  # noqa: S704


def _named(parent: Any, name: str) -> None:
    """A treemap's cell with its name in it, where that has room."""
    from pygal.etree import etree

    for cell in [child for child in parent if child.tag == "rect"]:
        x, y, width, height = (float(cell.get(key)) for key in ("x", "y", "width", "height"))
        if width >= LETTER * len(name) + 6 and height >= LEAST_HEIGHT:
            place = {"x": f"{x + width / 2:.1f}", "y": f"{y + height / 2 + 4:.1f}", "class": "cell"}
            etree.SubElement(parent, "text", place | {"style": "fill: #fff"}).text = name
