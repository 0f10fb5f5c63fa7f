"""`dsctl formats`: the formats that a checkpoint can be converted to, and the ready recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from dsctl.cli.options import Debug, Json, Quiet
from dsctl.codecs.codec import Codec
from dsctl.layouts.naming import tensors
from dsctl.show.output import Output

if TYPE_CHECKING:
    from dsctl.show.sections import Section


def formats(json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List the formats that --to takes: bits per value, who loads them, on what, and what they lose.

    The signal-to-noise ratio is that of normally distributed values, in decibels, with --search where there are two.
    `Hopper+` is Hopper and what came after it. Lossless is what such a format holds exactly, of which others.
    Below are the recipes that --recipe takes by name.

    Examples:

        dsctl formats

        dsctl formats --json
    """
    from dsctl.show.sections import show

    output = Output(json, quiet)
    output.data(as_json())
    show([_formats(), _recipes()], output)


def _tensors(codec: Codec) -> dict[str, str]:
    """The dtype of every part that is stored, by what is put behind a parameter's name for it."""
    specs = codec.specs((1024, 1024))
    return dict(zip(tensors(codec.dialect, "", specs), (spec.dtype for spec in specs.values()), strict=True))


def as_json() -> dict[str, Any]:
    """Formats and recipes as stable JSON; null where nothing is lost, or there is nothing to search."""
    from dsctl.codecs import CODECS
    from dsctl.codecs.facts import FORMATS, bits
    from dsctl.plan.recipes import ready

    return {
        "formats": [
            {
                "name": name,
                "bits_per_value": round(bits(name), 4),
                "tensors": _tensors(CODECS[name]),
                "snr_db": known.snr,
                "searched_snr_db": known.searched,
                "lossless_from": known.lossless,
                "loaders": known.loaders,
                "hardware": known.hardware,
                "warning": known.warning,
            }
            for name, known in FORMATS.items()
        ],
        "recipes": [
            {
                "name": name,
                "about": recipe.about,
                "rules": [{"role": rule.role, "match": rule.match, "format": rule.format} for rule in recipe.rules],
            }
            for name, recipe in ready().items()
        ],
    }


def _formats() -> Section:
    from dsctl.codecs.facts import FORMATS, bits
    from dsctl.show.sections import Column, Row, Section

    columns = (
        Column("format"), Column("bits", True), Column("SNR dB", True), Column("loaders"), Column("hardware", rank=1),
        Column("lossless from", rank=2),
    )  # fmt: skip
    rows = []
    for name, known in FORMATS.items():
        snr = "exact" if known.snr is None else f"{known.snr:.1f}"
        searched = f" ({known.searched:.1f})" if known.searched else ""
        rows.append(Row((name, f"{bits(name):.2f}", snr + searched, known.loaders, known.hardware, known.lossless)))
    warnings = tuple([f"Warning, {name}: {known.warning}" for name, known in FORMATS.items() if known.warning])
    return Section("", "", columns, tuple(rows), paragraphs=warnings, whole=True)


def _recipes() -> Section:
    from dsctl.plan.recipes import ready
    from dsctl.show.sections import Column, Row, Section

    rows = [Row((name, recipe.about)) for name, recipe in ready().items()]
    return Section("Recipes", "", (Column("recipe"), Column("what it does")), tuple(rows))


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(formats)
