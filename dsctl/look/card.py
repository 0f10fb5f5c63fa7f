"""Read the facts of a model card from `dsctl.json` and the statement of a folder. No weights are read, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl.checkpoint.delta_record import RECORD
from dsctl.checkpoint.reading import read_json
from dsctl.checkpoint.signed_files import entries_of
from dsctl.checkpoint.statement import parse, read_raw
from dsctl.core.errors import FormatError, SourceError, UsageError
from dsctl.layouts import layout_name
from dsctl.plan.model_card import Card, base_of, is_made, is_repository_name, relation
from dsctl.stores import SIGNED, STATEMENT, Store


def card(store: Store, base: str = "") -> Card:
    """The facts of a folder that dsctl made; `base` names the repository of the source if the folder does not say it.

    Raises:
        SourceError: there is no `dsctl.json`. FormatError: it, or the statement, is not valid.
        UsageError: `base` is not a repository's name, or is not the one that the statement names.
    """
    files = store.files()
    audit = read_json(store, SIGNED, files)
    if audit is None:
        hint = "`dsctl convert` and the other verbs that write make one"
        raise SourceError(f"{store.place}: has no {SIGNED}: dsctl did not make this folder", hint=hint)
    request, counts = audit.get("request"), _counts(audit.get("audit"))
    try:
        entries = entries_of(audit.get("files"))
    except ValueError as error:
        raise FormatError(f"{SIGNED}: {error}") from None
    if not isinstance(request, dict):
        raise FormatError(f"{SIGNED}: its request is missing")
    statement = parse(read_raw(store, files)) if STATEMENT in files else None
    known, commit = base_of(statement.dependencies) if statement else ("", "")
    if base and not is_repository_name(base):
        raise UsageError(f"--base-model: {base!r} is not a repository", hint="write it as org/name")
    if base and known and base != known:
        raise UsageError(f"--base-model: {base} is given, but {STATEMENT} says {known}", hint="leave the option out")
    sizes = {name: entry.size for name, entry in entries.items()}
    weights = [size for name, size in sizes.items() if name.endswith(".safetensors")]
    # What a person names is the source's repository only if the source was not made by an earlier conversion.
    is_source = bool(known) or bool(base and statement and not is_made(statement.dependencies))
    return Card(
        place=store.place,
        version=_text(audit, "dsctl"),
        base=known or base,
        commit=commit,
        base_given=bool(base) and not known,
        relation=relation(request, counts) if is_source else "",
        to=_text(request, "to"),
        layout=layout_name(_text(request, "layout")),
        weights=len(weights),
        weight_bytes=sum(weights),
        files=len(sizes) + 1,
        nbytes=sum(sizes.values()) + files[SIGNED],
        counts=counts,
        stated=statement is not None,
        delta=_versions(audit),
    )


def _versions(audit: Mapping[str, Any]) -> str:
    """The versions between which a delta leads; empty if the folder is none."""
    said = audit.get(RECORD)
    if said is None:
        return ""
    if not isinstance(said, dict):
        raise FormatError(f"{SIGNED}: {RECORD} is not an object")
    return f"from version {_text(said, 'base_version')} to {_text(said, 'version')}"


def _counts(said: Any) -> dict[str, int]:
    if not isinstance(said, dict) or not all(type(number) is int and number >= 0 for number in said.values()):
        raise FormatError(f"{SIGNED}: its audit is missing, or a count is not a number")
    return said


def _text(said: Mapping[str, Any], name: str) -> str:
    found = said.get(name)
    if not isinstance(found, str):
        raise FormatError(f"{SIGNED}: {name} is not a text")
    return found
