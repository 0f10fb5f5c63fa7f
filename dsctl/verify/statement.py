"""Compare a folder's statement with `dsctl.json`: files and digests, request, version, audit, source. No signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dsctl.checkpoint.reading import MAX_JSON_BYTES, strict_json
from dsctl.checkpoint.signed_files import SignedFile
from dsctl.checkpoint.statement import WITHHELD, Statement, parse, read_raw, subjects, text_of
from dsctl.core.amounts import plural
from dsctl.core.errors import FormatError
from dsctl.core.visible import visible
from dsctl.stores import SIGNED, STATEMENT, Store
from dsctl.verify.findings import Finding
from dsctl.verify.signed import read_signed

# The annotation of a subject that `dsctl verify --fix` has changed since the run.
FIXED = "changedByFix"
# Names that a finding lists.
NAMED = 3


class Seen(NamedTuple):
    """The findings about a statement, and the number of its subjects that were compared with `dsctl.json`; None if
    there is no statement."""

    findings: tuple[Finding, ...] = ()
    compared: int | None = None


def seen(store: Store, files: Mapping[str, int], entries: Mapping[str, SignedFile] | None) -> Seen:
    """Check the statement of a folder; `entries` are those of `dsctl.json`, if there is one that can be read.

    Nothing is found if there is no statement: earlier versions did not write one.

    Raises:
        SourceError: a file cannot be read.
    """
    if STATEMENT not in files:
        return Seen()
    try:
        statement = parse(read_raw(store, files))
    except FormatError as error:
        return Seen((Finding("statement-broken", STATEMENT, error.message.removeprefix(f"{STATEMENT}: ")),), 0)
    if entries is None:
        return Seen(compared=0)
    said = {one.name: one.digest for one in statement.subject}
    found = [*_subjects(said, subjects(entries)), *_rest(statement, _audit(store, files))]
    return Seen(tuple(found), len(said))


def renewed(store: Store) -> bytes:
    """The statement with the subjects that `dsctl.json` has now; subjects that change are marked as fixed.

    Raises:
        FormatError: one of both cannot be read.
    """
    files = store.files()
    raw = read_raw(store, files)
    parse(raw)
    statement, true = strict_json(raw, STATEMENT), subjects(read_signed(store, files) or {})
    known = {one["name"]: one for one in statement["subject"]}
    statement["subject"] = [
        known[name]
        if name in known and known[name].get("digest") == digest
        else {"name": name, "digest": digest, "annotations": {FIXED: True}}
        for name, digest in true.items()
    ]
    return text_of(statement)


def _subjects(said: Mapping[str, Mapping[str, str]], true: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """A finding about subjects that are not the files of `dsctl.json`, with their digests."""
    unlike = sorted(name for name in said.keys() | true.keys() if said.get(name) != true.get(name))
    if unlike:
        names = ", ".join(map(visible, unlike[:NAMED])) + f" and {len(unlike) - NAMED:,} more" * (len(unlike) > NAMED)
        what = f"{plural(len(unlike), 'subject')} not as in {SIGNED}: {names}"
        yield Finding("statement-subjects", STATEMENT, what, tuple(map(visible, unlike)))


def _audit(store: Store, files: Mapping[str, int]) -> dict[str, Any]:
    """The contents of `dsctl.json`, whose entries were read before; empty if a strict reader refuses it."""
    if files[SIGNED] > MAX_JSON_BYTES:
        return {}
    try:
        found = strict_json(store.read(SIGNED, 0, files[SIGNED]), SIGNED)
    except (ValueError, RecursionError, FormatError):
        return {}
    return found if isinstance(found, dict) else {}


def _rest(statement: Statement, audit: Mapping[str, Any]) -> Iterator[Finding]:
    """A finding about a request, version, audit or source that are not those of `dsctl.json`."""
    differ = []
    request = audit.get("request")
    if not isinstance(request, dict) or not _same_request(statement.request, request):
        differ.append("the request")
    if statement.version != audit.get("dsctl"):
        differ.append("the version of dsctl")
    if statement.audit is None or statement.audit != audit.get("audit"):
        differ.append("the audit")
    source = audit.get("source")
    if not isinstance(source, dict) or not _same_source(statement, source.get("files")):
        differ.append("the source's files")
    if differ:
        what = f"{', '.join(differ)}: not as in {SIGNED}"
        yield Finding("statement-differs", STATEMENT, what)


def _same_request(said: Mapping[str, Any], true: Mapping[str, Any]) -> bool:
    """Whether a statement has a request's fields with their values; a value may be withheld."""
    return said.keys() == true.keys() and all(said[name] in (true[name], WITHHELD) for name in said)


def _same_source(statement: Statement, files: Any) -> bool:
    """Whether the dependencies have the sizes and headers of the weight files that `dsctl.json` records."""
    if not isinstance(files, dict):
        return False
    known = {one.name: one.annotations for one in statement.dependencies if "headerSha256" in one.annotations}
    true = {name: f"{notes.get('size')} bytes, header sha256 {notes['headerSha256']}" for name, notes in known.items()}
    return true == files
