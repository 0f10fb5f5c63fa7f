"""The model card of a target: its facts, and its text with the front matter that a hub reads. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dsctl.checkpoint.statement import Descriptor
from dsctl.core.amounts import plural, size
from dsctl.core.visible import visible
from dsctl.plan.request import KEEP, PUBLISHED, RECIPE
from dsctl.stores import SIGNED, STATEMENT
from dsctl.stores.hub import SCHEME

# The card of a repository, and the name that the source's own README.md gets beside it.
README, SOURCE_README = "README.md", "README.source.md"
# The counts of an audit that a card lists, in their order.
COUNTS = ("dequantized", "quantized", "requantized", "recast", "cast", "renumbered", "patched", "moved", "dropped")
QUANTIZED = "quantized"
# A repository of models on a hub (huggingface_hub.utils.validate_repo_id), and a commit.
_REPOSITORY = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?/[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Formats of a request that are not the name of a format.
_FORMATS = {KEEP: "as in the source", PUBLISHED: "as the release stores it", RECIPE: "chosen by a recipe"}
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&])")


@dataclass(frozen=True, slots=True)
class Card:
    """The facts of a card. `base` and `commit` are the repository of the source; empty if it is not known.

    `base_given` says that a person named the base, `relation` is one of the hub's values or empty, `to` and `layout`
    are those of the request. `weights` and `weight_bytes` are those of the weight files, `files` and `nbytes` of all
    files; 0 if the card is one of them itself. `counts` are the audit's, `stated` says whether there is a statement.
    `delta` names the versions between which a delta leads; empty for a checkpoint.
    """

    place: str
    version: str
    base: str
    commit: str
    base_given: bool
    relation: str
    to: str
    layout: str
    weights: int
    weight_bytes: int
    files: int
    nbytes: int
    counts: dict[str, int]
    stated: bool
    delta: str = ""


def is_repository_name(text: str) -> bool:
    """Whether a text is the name of a repository on a hub: `org/name`."""
    return bool(_REPOSITORY.fullmatch(text))


def base_of(dependencies: Iterable[Descriptor]) -> tuple[str, str]:
    """The repository and the commit of the source; empty if the files that a target was made from do not name one."""
    for one in dependencies:
        if one.name == "source" and one.uri.startswith(SCHEME):
            repository, _, commit = one.uri.removeprefix(SCHEME).partition("@")
            if is_repository_name(repository) and _COMMIT.fullmatch(commit):
                return repository, commit
    return "", ""


def is_made(dependencies: Iterable[Descriptor]) -> bool:
    """Whether the source was itself made by dsctl."""
    return any(one.name in (STATEMENT, SIGNED) for one in dependencies)


def relation(request: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """`quantized` if a format was asked for in which matrices were encoded.

    Decoding FP8 is none of the hub's four relations, and neither is another form of the same values, a new layout or a
    part. Parameters of other checkpoints or an adapter make another model, for which the card claims nothing.
    """
    if request.get("graft") or request.get("lora"):
        return ""
    encoded = counts.get("quantized") or counts.get("requantized")
    return QUANTIZED if encoded and request.get("to") != KEEP else ""


def markdown(card: Card, repository: str = "", readme: str = "") -> str:
    """The text of the card.

    `repository` is the place of the repository that gets it as README.md, and `readme` the name that the source's own
    README.md has there.
    """
    return "\n".join(_lines(card, repository, readme)) + "\n"


def _lines(card: Card, repository: str, readme: str) -> Iterator[str]:
    if card.base:
        yield from ("---", f"base_model: {card.base}")
        if card.relation:
            yield f"base_model_relation: {card.relation}"
        yield from ("---", "")
    yield from (f"# {_plain(os.path.basename(card.place.rstrip('/')))}", "")
    yield from (_made(card), "")
    yield from ("| what | amount |", "|---|---|")
    if card.delta:
        yield f"| delta | {_plain(card.delta)} |"
    else:
        yield f"| format | {_FORMATS.get(card.to, _plain(card.to))} |"
        yield f"| layout | {_plain(card.layout)} |"
    yield f"| weights | {plural(card.weights, 'file')}, {size(card.weight_bytes)} |"
    if card.files:
        yield f"| everything | {plural(card.files, 'file')}, {size(card.nbytes)} |"
    yield from ("", _audit(card), "")
    if readme:
        yield from (f"The README of the source is [{readme}]({readme}).", "")
    if card.delta:
        here, base = repository or ".", card.base or "BASE"
        yield from ("This is not a checkpoint: it holds what changed.", "")
        yield from (
            "```sh",
            f"dsctl delta verify {here} --base {base}",
            f"dsctl delta apply {base} {here} DST",
            "```",
            "",
        )
    else:
        yield from ("## Check", "", "```sh", f"dsctl verify {repository or '.'} --deep", "```", "")
    yield from _checks(card)


def _made(card: Card) -> str:
    link, by = f"[{_plain(card.base)}](https://huggingface.co/{card.base})", f"by dsctl {_plain(card.version)}"
    if card.base_given:
        return f"Base model: {link}. Made {by}."
    return f"Made from {link}, commit `{card.commit}`, {by}." if card.base else f"Made {by}."


def _audit(card: Card) -> str:
    if card.delta:
        changed = card.counts.get("tensors_changed", 0)
        return f"{changed:,} of {plural(card.counts.get('parameters', 0), 'tensor')} changed."
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
