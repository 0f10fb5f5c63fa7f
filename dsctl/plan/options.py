"""The options of a conversion as keywords, and the request that they make. Pure, no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple, TypedDict

from dsctl.codecs import CODECS
from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.core.lists import globs, numbers
from dsctl.layouts import LAYOUTS, layout_name, usual_ep
from dsctl.plan.recipes import recipe as named
from dsctl.plan.request import KEEP, PUBLISHED, RECIPE, USUAL, Request


class ConversionOptions(TypedDict, total=False):
    """The options of `dsctl convert` and `dsctl shard`, all optional; sizes are in bytes.

    `only` and `skip` are one glob or several. `mtp` keeps the MTP layer or drops it; the default is to drop it in
    layouts that have no place for it. With `tp`, `ep` or `pp` the target is sharded, as by `dsctl shard`, and only
    `ranks`, if given, are written. `original` is a folder to take the original scales from.
    """

    recipe: str | None
    scale_fmt: str
    search: bool
    only: str | Iterable[str]
    skip: str | Iterable[str]
    mtp: bool | None
    shard_size: int | None
    keep_scales: bool
    allow_missing: bool
    allow_extra: bool
    allow_inexact: bool
    layout: str
    tp: int
    ep: int
    pp: int
    ranks: Iterable[int]
    recode: bool
    original: str


class Kept(NamedTuple):
    """The part of a checkpoint that a slice keeps: layers and experts by number, None for all of them.

    `mtp` None keeps the MTP layer if all layers are kept.
    """

    layers: tuple[int, ...] | None = None
    experts: tuple[int, ...] = ()
    mtp: bool | None = None


def request_of(codec: str, options: ConversionOptions) -> Request:
    """The request for a format and options.

    Raises:
        UsageError: an unknown format, recipe or layout, or a member of `only`, `skip` or `ranks` has a wrong type.
        TypeError: an unknown option.
    """
    unknown = options.keys() - ConversionOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option {min(unknown)!r}")
    recipe = options.get("recipe")
    choose(codec, (*CODECS, PUBLISHED, KEEP), "format")
    if recipe and codec != KEEP:
        raise UsageError(f"recipe and {codec} are both asked for", hint="a recipe names every format itself")
    chosen = named(recipe) if recipe else None
    layout = choose(layout_name(options.get("layout", "published")), LAYOUTS, "layout")
    tp, ep, pp = (options.get("tp") or 0, options.get("ep") or 0, options.get("pp") or 0)
    mtp = options.get("mtp")
    return Request(
        to=RECIPE if recipe else codec,
        rules=tuple((rule.role, rule.match, rule.format) for rule in chosen.rules) if chosen else (),
        notes=(chosen.note,) if chosen and chosen.note else (),
        search=options.get("search", False),
        scale_fmt=options.get("scale_fmt", "auto"),
        shard_size=options.get("shard_size"),
        only=globs("only", options.get("only", ())),
        skip=globs("skip", options.get("skip", ())),
        allow_missing=options.get("allow_missing", False),
        allow_extra=options.get("allow_extra", False),
        allow_inexact=options.get("allow_inexact", False),
        keep_scales=options.get("keep_scales", True),
        layout=layout,
        recode=options.get("recode", False),
        original=os.fspath(options.get("original", "")),
        ranks=tuple(sorted(set(numbers("ranks", options.get("ranks", ()))))),
        mtp=USUAL if mtp is None else "keep" if mtp else "drop",
        tp=(tp or 1) if tp or ep or pp else 0,
        ep=ep or usual_ep(layout, tp or 1),
        pp=pp or 1,
    )
