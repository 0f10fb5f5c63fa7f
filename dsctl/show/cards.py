"""Draw the stub of a model card as Markdown with the front matter that a hub reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dsctl.core.amounts import plural, size
from dsctl.core.visible import visible
from dsctl.look.card import COUNTS, Card
from dsctl.plan.request import KEEP, PUBLISHED, RECIPE
from dsctl.stores import SIGNED, STATEMENT

# Formats of a request that are not the name of a format.
_FORMATS = {KEEP: "as in the source", PUBLISHED: "as the release stores it", RECIPE: "chosen by a recipe"}
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def as_json(card: Card) -> dict[str, Any]:
    """The facts and the text as stable JSON."""
    return asdict(card) | {"base": card.base or None, "commit": card.commit or None,
                           "relation": card.relation or None, "text": markdown(card)}  # fmt: skip


def markdown(card: Card) -> str:
    """The text of the card."""
    return "\n".join(_lines(card)) + "\n"


def _lines(card: Card) -> Iterator[str]:
    if card.base:
        yield from ("---", f"base_model: {card.base}")
        if card.relation:
            yield f"base_model_relation: {card.relation}"
        yield from ("---", "")
    yield from (f"# {_plain(os.path.basename(card.place.rstrip('/')))}", "")
    yield from (_made(card), "")
    yield from ("| what | amount |", "|---|---|")
    yield f"| format | {_FORMATS.get(card.to, _plain(card.to))} |"
    yield f"| layout | {_plain(card.layout)} |"
    yield f"| weights | {plural(card.weights, 'file')}, {size(card.weight_bytes)} |"
    yield f"| everything | {plural(card.files, 'file')}, {size(card.nbytes)} |"
    yield from ("", _audit(card), "", "## Check", "", "```sh", "dsctl verify . --deep", "```", "")
    yield from _checks(card)


def _made(card: Card) -> str:
    link, by = f"[{_plain(card.base)}](https://huggingface.co/{card.base})", f"by dsctl {_plain(card.version)}"
    if card.base_given:
        return f"Base model: {link}. Made {by}."
    return f"Made from {link}, commit `{card.commit}`, {by}." if card.base else f"Made {by}."


def _audit(card: Card) -> str:
    done = [f"{card.counts[name]:,} {name}" for name in COUNTS if card.counts.get(name)]
    unexplained = f"{card.counts['unexplained']:,} unexplained" if "unexplained" in card.counts else ""
    said = "; ".join(filter(None, (", ".join(done), unexplained)))
    return f"Audit of {plural(card.counts.get('parameters', 0), 'parameter')}: {said}."


def _checks(card: Card) -> Iterator[str]:
    yield f"This compares every byte with the digests in `{SIGNED}`, which dsctl wrote when it made the files."
    if card.stated:
        yield f"`{STATEMENT}` is an in-toto statement: these files, their digests, the files that they were made from,"
        yield "and the request. It is not a signature."


def _plain(text: str) -> str:
    """Text without markup, in one line."""
    return _MARKUP.sub(r"\\\1", visible(text))
