"""Show the known releases, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsctl.look.description import Description
from dsctl.look.wording import forms
from dsctl.show.output import count, size
from dsctl.show.sections import Column, Row, Section


def as_json(one: Description) -> dict[str, Any]:
    """Format a release as stable JSON; fields without a source are null."""
    release = one.release
    assert release is not None
    fields = one.config
    return {
        "alias": list(release.alias),
        "name": release.name,
        "repository": release.repository,
        "date": release.date,
        "licence": release.licence,
        "architecture": release.architecture,
        "parameters": one.parameters,
        "values": one.values,
        "main_values": one.main_values,
        "active_values": one.active_values,
        "layers": fields.get("num_hidden_layers", fields.get("n_layers")),
        "mtp_layers": one.draft_layers,
        "drafter": _drafter(one),
        "context": fields.get("max_position_embeddings"),
        "published_context": release.context,
        "formats": list(release.storage.formats),
        "scale_fmt": release.storage.scale_fmt,
        "stored_tensors": one.tensors,
        "stored_bytes": one.nbytes,
        "stored_values": release.storage.values,
        "index_total": release.storage.index_total,
        "files": release.storage.files,
        "notes": release.notes,
        "sources": {field: list(sources) for field, sources in release.sources.items()},
        "unknown": list(release.unknown),
        "derived": list(release.derived),
    }


def _drafter(one: Description) -> str | None:
    """The kind of layers that draft further tokens: mtp or dspark; None if there are no such layers."""
    return (one.traits.drafter or "mtp") if one.draft_layers else None


def table(known: Sequence[Description]) -> Section:
    """Make a row per release, and lines that explain the signs."""
    columns = (
        Column("release"), Column("published", rank=2), Column("values", True), Column("active", True),
        Column("layers", True, 1), Column("context", True), Column("stored as"), Column("bytes", True, 3),
        Column("licence", rank=4), Column("repository", rank=5),
    )  # fmt: skip
    rows = [Row(_cells(one)) for one in known]
    rows.append(Row(("context: as published (in brackets: max_position_embeddings of config.json)",), "note"))
    rows.append(Row(("*: the config was derived from a different release, which --json names",), "note"))
    drafting = "+1: the MTP layer; +3: a block drafter; not counted in values"
    rows.append(Row((drafting,), "note"))
    return Section("", "", columns, tuple(rows))


def _cells(one: Description) -> tuple[str, ...]:
    facts, release = as_json(one), one.release
    return (
        release.alias[0] + "*" * release.config_derived if release else "",
        facts["date"] or "not known",
        count(one.main_values),
        count(one.active_values),
        f"{facts['layers']}" + (f"+{facts['mtp_layers']}" if facts["mtp_layers"] else ""),
        _context(facts["published_context"], facts["context"]),
        forms(one.known),
        size(one.nbytes),
        facts["licence"] or "not known",
        facts["repository"],
    )


def _context(published: int | None, positions: int | None) -> str:
    """Format 128K (160K): the published context, and that of config.json if it is different."""
    known = [
        f"{tokens // 1024:,}K" if tokens % 1024 == 0 else f"{tokens:,}" for tokens in (published, positions) if tokens
    ]
    if not known:
        return "not known"
    if published == positions or not positions:
        return known[0]
    return f"{known[0]} ({known[1]})" if published else f"({known[0]})"
