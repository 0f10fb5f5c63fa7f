"""Charts as SVG for a page: no script, no font, no colours of paper or ink, a tooltip on every value. By pygal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

# Both can be told apart on white and on black, and by people who do not see red or green.
BEFORE, AFTER = "#8c8c9a", "#2f81f7"
_OTHERS = ("#2f81f7", "#e3872d", "#3fa266", "#a371d6", "#d6568a", "#4fb3bf", "#b8a12f", "#8c8c9a", "#c2574b", "#6c7bd9")
_GREY = "#808890"

Words = Callable[[float], str]


def lines(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float | None]], words: Words) -> Markup:
    """One line per series over labelled places, such as cost against context length."""
    import pygal

    chart = pygal.Line(_config(title, words, (BEFORE, AFTER)), dots_size=4, stroke_style={"width": 2.5})
    chart.x_labels = list(labels)
    for name, values in series.items():
        chart.add(name, list(values))
    return _svg(chart)


def areas(title: str, parts: Mapping[str, Mapping[str, float]], words: Words) -> Markup:
    """A treemap: one colour per group, one rectangle per part, its area its value."""
    import pygal

    chart = pygal.Treemap(_config(title, words, _OTHERS))
    for group, members in parts.items():
        chart.add(group, [{"value": value, "label": name} for name, value in members.items() if value > 0])
    return _svg(chart)


def bars(title: str, parts: Mapping[str, float], words: Words) -> Markup:
    """Horizontal bars, in the order given."""
    import pygal

    chart = pygal.HorizontalBar(_config(title, words, (AFTER,)), show_legend=False)
    chart.x_labels = list(parts)
    chart.add("", list(parts.values()))
    return _svg(chart)


def groups(title: str, parts: Mapping[str, Mapping[str, float]], words: Words) -> Markup:
    """Bars side by side, one colour per group."""
    import pygal

    chart = pygal.Bar(_config(title, words, _OTHERS))
    chart.x_labels = list(next(iter(parts.values()), {}))
    for name, members in parts.items():
        chart.add(name, list(members.values()))
    return _svg(chart)


def _config(title: str, words: Words, colours: tuple[str, ...]) -> Any:
    from pygal import Config
    from pygal.style import Style

    style = Style(
        background="transparent", plot_background="transparent", foreground=_GREY, foreground_strong=_GREY,
        foreground_subtle="rgba(128, 136, 144, .35)", guide_stroke_color="rgba(128, 136, 144, .3)",
        major_guide_stroke_color="rgba(128, 136, 144, .3)", guide_stroke_dasharray="1,0",
        major_guide_stroke_dasharray="1,0", colors=colours, font_family="inherit", opacity=".85",
        title_font_size=15, label_font_size=12, major_label_font_size=12, legend_font_size=13, value_font_size=12,
    )  # fmt: skip
    return Config(
        title=title, style=style, js=[], height=330, width=640, legend_at_bottom=True, formatter=words,
        value_formatter=words, disable_xml_declaration=True, truncate_label=-1, margin=12, show_minor_x_labels=True,
    )  # fmt: skip


def _svg(chart: Any) -> Markup:
    """The chart without script, its values as titles, which browsers show and screen readers read."""
    from markupsafe import Markup
    from pygal.etree import etree

    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in list(parent):
            name = str(child.tag).rpartition("}")[2]
            if name == "script" or not isinstance(child.tag, str):
                parent.remove(child)
            elif name == "desc" and child.get("class") in ("value", "label"):
                _titled(parent, child)
    root.set("role", "img")
    # Escaped by pygal's own tree.
    return Markup(etree.tostring(root, encoding="unicode"))  # noqa: S704


def _titled(parent: Any, description: Any) -> None:
    from pygal.etree import etree

    title = parent.find("title")
    if title is None:
        title = etree.SubElement(parent, "title")
        title.text = description.text
    else:
        title.text = f"{title.text}: {description.text}"
