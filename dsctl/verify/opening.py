"""Open a broken checkpoint: report and set aside the files that cannot be read, and open the others as usual."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.reading import MAX_JSON_BYTES, check_name, read_header, read_json
from dsctl.core.errors import FormatError, SourceError
from dsctl.core.header import parse
from dsctl.stores import INDEX, SIGNED, Store
from dsctl.stores.local import LocalFolder
from dsctl.verify.findings import Finding

# The first bytes of the pointer that Git LFS leaves in place of a file (git-lfs/git-lfs docs/spec.md).
_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Without:
    """A store that hides some of its files."""

    store: Store
    hidden: frozenset[str]

    @property
    def place(self) -> str:
        return self.store.place

    @property
    def remote(self) -> bool:
        return self.store.remote

    @property
    def revision(self) -> str:
        return self.store.revision

    def files(self) -> dict[str, int]:
        return {file: size for file, size in self.store.files().items() if file not in self.hidden}

    def head(self, file: str, size: int) -> bytes:
        return self.store.head(file, size)

    def read(self, file: str, begin: int, end: int) -> bytes:
        return self.store.read(file, begin, end)

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        self.store.read_into(file, begin, buffer)


class Opened(NamedTuple):
    """A checkpoint as far as it opens, the findings from opening it, and the files that were set aside."""

    checkpoint: Checkpoint | None
    findings: list[Finding]
    lost: frozenset[str]


def open_anyhow(store: Store) -> Opened:
    """Open a checkpoint without its broken files.

    Raises:
        SourceError: the store has nothing to open.
    """
    store, unreachable = reachable(store)
    files = store.files()
    findings = [*unreachable, *_pointers(store, files), *_texts(store, files)]
    lost = {finding.where for finding in findings}
    for side in (ORIGINAL, ODD):
        if side in files:
            findings += _weights(store, side, files[side])
    try:
        checkpoint = open_checkpoint(Without(store, frozenset(lost)) if lost else store)
    except (FormatError, SourceError):
        found = [f for file in files if file not in lost for f in _broken(store, file, files[file])]
        findings += found
        lost |= {finding.where for finding in found}
        if not any(file.endswith(".safetensors") and file not in lost for file in files):
            if not lost:
                raise
            return Opened(None, findings, frozenset(lost))
        checkpoint = open_checkpoint(Without(store, frozenset(lost)))
    findings += [Finding(*fault) for fault in checkpoint.faults if not _known(fault.code, fault.where, lost)]
    return Opened(checkpoint, findings, frozenset(lost))


def reachable(store: Store) -> tuple[Store, list[Finding]]:
    """The store without the files that cannot be reached, and a finding for each of these."""
    if not isinstance(store, LocalFolder):
        return store, []
    lost = store.unreachable()
    return replace(store, lenient=True), [Finding("unreadable-file", file, why) for file, why in lost.items()]


def _known(code: str, where: str, lost: set[str]) -> bool:
    hidden = {"no-config": "config.json", "no-index": INDEX, "missing-shard": where}
    return hidden.get(code) in lost


def _pointers(store: Store, files: dict[str, int]) -> list[Finding]:
    small = [file for file, size in files.items() if size < _POINTER_BYTES and not store.remote]
    return [
        Finding("lfs-pointer", file, "is a Git LFS pointer instead of the file: run git lfs pull, or download the file")
        for file in small
        if store.read(file, 0, files[file]).startswith(_POINTER)
    ]


def _texts(store: Store, files: dict[str, int]) -> list[Finding]:
    """Files beside the weights that are named .json and do not parse."""
    findings = []
    for file, size in files.items():
        if not file.endswith(".json") or "/" in file or file in ("config.json", INDEX) or store.remote:
            continue
        if file == SIGNED or size <= MAX_JSON_BYTES:
            try:
                msgspec.json.decode(store.read(file, 0, size))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                findings.append(Finding("broken-json", file, f"not valid JSON: {error}"))
            except SourceError as error:
                findings.append(Finding("unreadable-file", file, error.message))
    return findings


def _broken(store: Store, file: str, size: int) -> list[Finding]:
    """The problem in one file that keeps a checkpoint from being opened."""
    try:
        if file == "config.json":
            read_json(store, file, {file: size})
        elif file == INDEX:
            _read_index(store, size)
        elif file.endswith(".safetensors"):
            return _weights(store, file, size)
    except FormatError as error:
        return [Finding("broken-json", file, _after(error, file))]
    except SourceError as error:
        return [Finding("unreadable-file", file, error.message)]
    return []


class _ShardIndex(msgspec.Struct):
    weight_map: dict[str, str]


def _read_index(store: Store, size: int) -> None:
    value = read_json(store, INDEX, {INDEX: size})
    try:
        index = msgspec.convert(value, _ShardIndex)
    except msgspec.ValidationError as error:
        raise FormatError(f"{INDEX}: not a valid index: {error}") from None
    for file in dict.fromkeys(index.weight_map.values()):
        check_name(file, INDEX)


def _weights(store: Store, file: str, size: int) -> list[Finding]:
    try:
        read_header(store, file, size)
    except FormatError as error:
        code = "wrong-size" if _is_size(store, file, size) else "broken-header"
        return [Finding(code, file, _after(error, file))]
    except SourceError as error:
        return [Finding("unreadable-file", file, error.message)]
    return []


def _is_size(store: Store, file: str, size: int) -> bool:
    """Whether the length is the only problem of a weight file."""
    try:
        head = store.head(file, size)
    except FormatError as error:
        return error.hint is not None
    try:
        parse(head[8:], file, None)
    except FormatError:
        return False
    return True


def _after(error: FormatError, file: str) -> str:
    return error.message.removeprefix(f"{file}: ")
