"""The facts of a model card: what `dsctl.json` and the statement say about a folder. No weights are read, no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsctl.checkpoint.reading import read_json
from dsctl.checkpoint.signed_files import entries_of
from dsctl.checkpoint.statement import Statement, parse, read_raw
from dsctl.core.errors import FormatError, SourceError, UsageError
from dsctl.layouts import layout_name
from dsctl.plan.request import KEEP
from dsctl.stores import SIGNED, STATEMENT, Store
from dsctl.stores.hub import SCHEME

# The counts of an audit that a card lists, in their order.
COUNTS = ("dequantized", "quantized", "requantized", "recast", "cast", "renumbered", "moved", "dropped")
QUANTIZED = "quantized"
# A repository of models on a hub (huggingface_hub.utils.validate_repo_id), and a commit.
_REPOSITORY = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?/[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Card:
    """The facts of a card. `base` and `commit` are the repository of the source; empty if it is not known.

    `base_given` says that a person named the base, `relation` is one of the hub's values or empty, `to` and `layout`
    are those of the request. `weights` and `weight_bytes` are those of the weight files, `files` and `nbytes` of all
    files. `counts` are the audit's, `stated` says whether there is a statement.
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
    known, commit = _source(statement) if statement else ("", "")
    if base and not _REPOSITORY.fullmatch(base):
        raise UsageError(f"--base-model: {base!r} is not a repository", hint="write it as org/name")
    if base and known and base != known:
        raise UsageError(f"--base-model: {base} is given, but {STATEMENT} says {known}", hint="leave the option out")
    sizes = {name: entry.size for name, entry in entries.items()}
    weights = [size for name, size in sizes.items() if name.endswith(".safetensors")]
    # What a person names is the source's repository only if the source was not made by an earlier conversion.
    is_source = bool(known) or bool(base and statement and not _is_made(statement))
    return Card(
        place=store.place,
        version=_text(audit, "dsctl"),
        base=known or base,
        commit=commit,
        base_given=bool(base) and not known,
        relation=_relation(request, counts) if is_source else "",
        to=_text(request, "to"),
        layout=layout_name(_text(request, "layout")),
        weights=len(weights),
        weight_bytes=sum(weights),
        files=len(sizes) + 1,
        nbytes=sum(sizes.values()) + files[SIGNED],
        counts=counts,
        stated=statement is not None,
    )


def _counts(said: Any) -> dict[str, int]:
    if not isinstance(said, dict) or not all(type(number) is int and number >= 0 for number in said.values()):
        raise FormatError(f"{SIGNED}: its audit is missing, or a count is not a number")
    return said


def _text(said: Mapping[str, Any], name: str) -> str:
    found = said.get(name)
    if not isinstance(found, str):
        raise FormatError(f"{SIGNED}: {name} is not a text")
    return found


def _source(statement: Statement) -> tuple[str, str]:
    """The repository and the commit of the source; empty if the statement does not name one."""
    for one in statement.dependencies:
        if one.name == "source" and one.uri.startswith(SCHEME):
            repository, _, commit = one.uri.removeprefix(SCHEME).partition("@")
            if _REPOSITORY.fullmatch(repository) and _COMMIT.fullmatch(commit):
                return repository, commit
    return "", ""


def _is_made(statement: Statement) -> bool:
    """Whether the source was itself made by dsctl."""
    return any(one.name in (STATEMENT, SIGNED) for one in statement.dependencies)


def _relation(request: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """`quantized` if a format was asked for in which matrices were encoded.

    Decoding FP8 is none of the hub's four relations, and neither is another form of the same values, a new layout or a
    part. Parameters of other checkpoints or an adapter make another model, for which the stub claims nothing.
    """
    if request.get("graft") or request.get("lora"):
        return ""
    encoded = counts.get("quantized") or counts.get("requantized")
    return QUANTIZED if encoded and request.get("to") != KEEP else ""
