"""Show formats and built-in recipes, as tables and as JSON."""

from __future__ import annotations

from typing import Any

from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.facts import FORMATS, bits
from dsctl.layouts.naming import tensors
from dsctl.plan.recipes import ready
from dsctl.show.sections import Column, Row, Section


def _tensors(codec: Codec) -> dict[str, str]:
    """The dtype of every stored part, by its suffix to the parameter's name."""
    specs = codec.specs((1024, 1024))
    return dict(zip(tensors(codec.dialect, "", specs), (spec.dtype for spec in specs.values()), strict=True))


def as_json() -> dict[str, Any]:
    """Formats and recipes as stable JSON; a null SNR means lossless, or that --search does not apply."""
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


def formats_section() -> Section:
    """The table of formats, and warnings about loaders."""
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


def recipes_section() -> Section:
    """The table of built-in recipes."""
    rows = [Row((name, recipe.about)) for name, recipe in ready().items()]
    return Section("Recipes", "", (Column("recipe"), Column("description")), tuple(rows))
