"""The in-toto statement beside `dsctl.json`: which files were made from which, by which request. No torch.

A statement of https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md with SLSA's predicate for builds,
https://slsa.dev/spec/v1.1/provenance. docs/attestation.md explains every field.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

import msgspec

from dsctl.checkpoint.reading import strict_json
from dsctl.checkpoint.signed_files import SignedFile
from dsctl.core.errors import FormatError
from dsctl.stores import SIGNED, STATEMENT, Store

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
# Names that nobody else uses, without a domain (RFC 9562); docs/attestation.md is their description.
BUILD_TYPE = "urn:uuid:bb6cfe6a-1a66-4ff1-8303-34b383abc2e1#dsctl-conversion-v1"
BUILDER = "urn:uuid:d946257a-5594-44a9-8217-d3b749b5082c#dsctl-v1"
JSON_TYPE = "application/json"
# BLAKE3 as `b3sum` prints it, SHA-256, and the tree digest of `dsctl.core.digests`, in lower-case hexadecimal.
BLAKE3, SHA256, TREE = "blake3", "sha256", "dsctlBlake3Tree"
# The digest of a sample of a file's bytes (`dsctl.run.identity`): it recognizes a file, and is not the file's digest.
SAMPLE = "dsctlSample"
# What the statement says instead of a value that may be a place on somebody's machine.
WITHHELD = f"withheld: {SIGNED} has it"
# The fields of a request that never hold a place. Others are withheld.
_OPEN = frozenset({
    "to", "layout", "scale_fmt", "shard_size", "only", "skip", "mtp", "allow_missing", "allow_extra", "keep_scales",
    "layers", "experts", "slice", "rules", "search", "tp", "ep", "pp", "ranks", "recode", "placed", "allow_inexact",
    "graft", "as_base", "delta",
})  # fmt: skip
# More bytes than a statement about 100,000 files has.
MOST_BYTES = 256 << 20
_HEXADECIMAL = frozenset("0123456789abcdef")
_LENGTHS = {BLAKE3: (64,), SHA256: (64,), TREE: (64,), SAMPLE: (64,), "gitCommit": (40, 64), "gitBlob": (40, 64)}


class Descriptor(msgspec.Struct, omit_defaults=True):
    """A file or a record: in-toto's ResourceDescriptor. `content` is base64."""

    name: str = ""
    uri: str = ""
    digest: dict[str, str] = {}
    content: str = ""
    mediaType: str = ""  # noqa: N815  the name that in-toto gives it
    annotations: dict[str, Any] = {}


class _Definition(msgspec.Struct):
    buildType: str  # noqa: N815
    externalParameters: dict[str, Any]  # noqa: N815
    resolvedDependencies: list[Descriptor] = []  # noqa: N815


class _Builder(msgspec.Struct):
    id: str
    version: dict[str, str] = {}


class _Details(msgspec.Struct):
    builder: _Builder
    byproducts: list[Descriptor] = []


class _Predicate(msgspec.Struct):
    buildDefinition: _Definition  # noqa: N815
    runDetails: _Details  # noqa: N815


class Statement(msgspec.Struct):
    """A statement as it is read. Unknown fields are ignored, as in-toto demands."""

    type: str = msgspec.field(name="_type")
    subject: list[Descriptor]
    predicateType: str  # noqa: N815
    predicate: _Predicate

    @property
    def request(self) -> dict[str, Any]:
        """The request, without places."""
        found = self.predicate.buildDefinition.externalParameters.get("request")
        return found if isinstance(found, dict) else {}

    @property
    def dependencies(self) -> list[Descriptor]:
        return self.predicate.buildDefinition.resolvedDependencies

    @property
    def version(self) -> str:
        """The version of dsctl."""
        return self.predicate.runDetails.builder.version.get("dsctl", "")

    @property
    def audit(self) -> Any:
        """The counts of the audit; None if they are not there or cannot be read."""
        for one in self.predicate.runDetails.byproducts:
            if one.name == "audit":
                try:
                    return strict_json(b64decode(one.content, validate=True), STATEMENT)
                except (ValueError, RecursionError, FormatError):
                    return None
        return None


def digest_set(entry: SignedFile) -> dict[str, str]:
    """A file's digests under the names that a statement has for them."""
    found = {BLAKE3: entry.blake3, TREE: entry.tree, SHA256: entry.sha256}
    return {name: digest for name, digest in found.items() if digest}


def is_valid(digests: Mapping[str, str]) -> bool:
    """Whether digests that a statement may have are hexadecimal numbers of the right length; others may be anything."""
    return all(
        len(digest) in _LENGTHS[name] and _HEXADECIMAL.issuperset(digest)
        for name, digest in digests.items()
        if name in _LENGTHS
    )


def subjects(files: Mapping[str, SignedFile]) -> dict[str, dict[str, str]]:
    """The names and digests of the subjects: all files in `dsctl.json` except the statement itself."""
    return {name: digest_set(entry) for name, entry in sorted(files.items()) if name != STATEMENT}


def open_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request in JSON without values that may be a place on somebody's machine."""
    return {name: value if name in _OPEN or not value else WITHHELD for name, value in request.items()}


def make(
    files: Mapping[str, SignedFile],
    request: Mapping[str, Any],
    dependencies: list[Descriptor],
    counts: Mapping[str, int],
    version: str,
) -> bytes:
    """The bytes of the statement about a target's files. Equal arguments give equal bytes."""
    audit = b64encode(json.dumps(dict(counts), separators=(",", ":"), sort_keys=True).encode()).decode()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": digest} for name, digest in subjects(files).items()],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"request": open_request(request)},
                "resolvedDependencies": msgspec.to_builtins(dependencies),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"dsctl": version}},
                "byproducts": [{"name": "audit", "content": audit, "mediaType": JSON_TYPE}],
            },
        },
    }
    return text_of(statement)


def text_of(statement: Any) -> bytes:
    """A statement as it is written."""
    return (json.dumps(statement, indent=1, ensure_ascii=False) + "\n").encode()


def read_raw(store: Store, files: Mapping[str, int]) -> bytes:
    """The bytes of a folder's statement, which is there.

    Raises:
        FormatError: it is absurdly long. SourceError: it cannot be read.
    """
    if files[STATEMENT] > MOST_BYTES:
        raise FormatError(f"{STATEMENT}: {files[STATEMENT]:,} bytes is too long for a statement")
    return store.read(STATEMENT, 0, files[STATEMENT])


def parse(raw: bytes) -> Statement:
    """A statement of the form that dsctl writes.

    Raises:
        FormatError: it is not JSON, has a key twice, lacks a field, has one of a wrong type, or describes no files.
    """
    try:
        found = msgspec.convert(strict_json(raw, STATEMENT), Statement)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{STATEMENT}: not a valid statement: {error}") from None
    made = found.predicate
    for what, said, known in (
        ("_type", found.type, STATEMENT_TYPE),
        ("predicateType", found.predicateType, PREDICATE_TYPE),
        ("buildType", made.buildDefinition.buildType, BUILD_TYPE),
        ("builder", made.runDetails.builder.id, BUILDER),
    ):
        if said != known:
            raise FormatError(f"{STATEMENT}: its {what} is {said[:80]!r}, dsctl writes {known}")
    if not found.subject:
        raise FormatError(f"{STATEMENT}: it has no subject")
    names: set[str] = set()
    for one in found.subject:
        _refuse_odd(one, "subject")
        if one.name in names:
            raise FormatError(f"{STATEMENT}: subject {one.name!r} appears twice")
        names.add(one.name)
    for one in found.dependencies:
        _refuse_odd(one, "dependency")
    return found


def _refuse_odd(one: Descriptor, what: str) -> None:
    parts = one.name.split("/")
    if what == "subject" and (not one.name or one.name.startswith("/") or ".." in parts or "\\" in one.name):
        raise FormatError(f"{STATEMENT}: {what} {one.name[:80]!r} is not a file inside the folder")
    if not one.digest and (what == "subject" or not one.uri):
        raise FormatError(f"{STATEMENT}: {what} {one.name[:80]!r} has no digest")
    for name in one.digest:
        if not is_valid({name: one.digest[name]}):
            raise FormatError(f"{STATEMENT}: {what} {one.name[:80]!r}: its {name[:80]} is not hexadecimal digits")
