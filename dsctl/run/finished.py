"""A finished folder to upload: its files, what `dsctl.json` says of them, and the digests of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dsctl.checkpoint.reading import read_header, read_json
from dsctl.checkpoint.signed_files import SignedFile, Signer, differences, entries_of
from dsctl.core.errors import FormatError, PlanError, SourceError, VerifyFailed, WorkError
from dsctl.core.file_names import problem_of
from dsctl.core.files import refusal
from dsctl.core.header import Header
from dsctl.core.progress import Advance
from dsctl.stores import INDEX, PARAMS_INDEX, SIGNED, WORKING
from dsctl.stores.local import LocalFolder
from dsctl.stores.repositories import SAMPLE_BYTES, Unsorted
from dsctl.verify.structure import folder as structure

README = "README.md"
CHUNK = 4 << 20
# Files up to this size get the digest that git has of them as well, because a hub lists only that one of small files.
SMALL = 64 << 20


class Digests(NamedTuple):
    """The SHA-256 of a file's bytes, and the SHA-1 that git has of a small file, else empty."""

    sha256: str
    blob: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A folder with its files and their sizes, and the entries of `dsctl.json`; None if it has none."""

    store: LocalFolder
    files: dict[str, int]
    entries: dict[str, SignedFile] | None

    @property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(self.files.values())

    def path(self, name: str) -> Path:
        """The place of a file."""
        return Path(self.store.path(name))

    def sample(self, name: str) -> Unsorted:
        """A file as a hub wants to see it before it says how it stores it.

        Raises:
            WorkError: it cannot be read.
        """
        try:
            with open(self.path(name), "rb", buffering=0) as file:
                return Unsorted(name, self.files[name], file.read(SAMPLE_BYTES))
        except OSError as error:
            raise refusal(self.path(name), error, WorkError) from None

    def known(self, name: str) -> str:
        """The SHA-256 that `dsctl.json` says a file has; empty if it does not say it."""
        entry = (self.entries or {}).get(name)
        return entry.sha256 if entry is not None else ""

    def digests(self, name: str, going: Callable[[], bool], advance: Advance) -> Digests:
        """Read a file: its digests, after the comparison with `dsctl.json`.

        A README.md may differ, because its owner describes the model there.

        Raises:
            VerifyFailed: it differs. WorkError: it cannot be read, or `going` returned false.
        """
        entry, path, size = (self.entries or {}).get(name), self.path(name), self.files[name]
        found = hashlib.sha256()
        git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if size <= SMALL else None
        signer = Signer(entry, self._header(name) if entry.tree else None) if entry else None
        try:
            with open(path, "rb", buffering=0) as file:
                buffer = bytearray(CHUNK)
                while count := file.readinto(buffer):
                    data = memoryview(buffer)[:count]
                    found.update(data)
                    if git is not None:
                        git.update(data)
                    if signer is not None:
                        signer.update(data)
                    advance(count)
                    if not going():
                        raise WorkError("the run has ended")
        except OSError as error:
            raise refusal(path, error, WorkError) from None
        if entry and signer and name != README and (unlike := differences(entry, signer.entry(), None)):
            raise VerifyFailed(f"{path}: {unlike[0]} differs from {SIGNED}", hint=_DIFFERS)
        return Digests(found.hexdigest(), git.hexdigest() if git else "")

    def _header(self, name: str) -> Header | None:
        try:
            return read_header(self.store, name, self.files[name])
        except FormatError:
            return None


_DIFFERS = f"`dsctl verify --deep` names every difference; to upload the folder all the same, remove {SIGNED}"


def finished(text: str) -> Finished:
    """The folder at a path, if it can be uploaded. Sizes are compared with `dsctl.json`, contents are not read.

    Raises:
        SourceError: it is not a folder, or cannot be read.
        PlanError: it is empty or unfinished, or a file has a name that a repository cannot have.
        FormatError: `dsctl.json` is not valid. VerifyFailed: a file is missing or has a different size than it says.
    """
    if not Path(text).is_dir():
        raise SourceError(f"{text}: no such folder on this machine", hint="name a folder that a verb of dsctl wrote")
    store = LocalFolder.at(text)
    # A working folder beside a finished result is harmless; it is not uploaded.
    unfinished = [
        one.where
        for one in structure(store)
        if one.code == "unfinished" or (one.code == "leftover" and one.where != WORKING)
    ]
    if unfinished:
        what = f"{text}: is not finished ({unfinished[0]})"
        raise PlanError(what, hint="finish it first: the command that wrote it resumes")
    files = store.files()
    if not files:
        raise PlanError(f"{text}: has no files to upload", hint="name the folder that holds the checkpoint")
    if problem := problem_of(files):
        raise PlanError(f"{text}: {problem}", hint="rename the file")
    entries = _entries(store, files)
    _refuse_missing(text, store, files, entries)
    return Finished(store, files, entries)


def _entries(store: LocalFolder, files: dict[str, int]) -> dict[str, SignedFile] | None:
    said = read_json(store, SIGNED, files)
    if said is None:
        return None
    try:
        return entries_of(said.get("files"))
    except ValueError as error:
        hint = "make the folder again, or remove the file to upload the folder without its digests"
        raise FormatError(f"{store.place}/{SIGNED}: {error}", hint=hint) from None


def _refuse_missing(
    text: str, store: LocalFolder, files: dict[str, int], entries: dict[str, SignedFile] | None
) -> None:
    wrong = [
        f"{name}: missing" if name not in files else f"{name}: {files[name]:,} bytes, {SIGNED} says {entry.size:,}"
        for name, entry in sorted((entries or {}).items())
        if files.get(name) != entry.size and name != README
    ]
    for index in (INDEX, PARAMS_INDEX) if entries is None else ():
        said = (read_json(store, index, files) or {}).get("weight_map")
        named = {str(name) for name in said.values()} if isinstance(said, dict) else set()
        wrong += [f"{name}: missing, {index} names it" for name in sorted(named - files.keys())]
    if wrong:
        what = f"{text}: {wrong[0]}" if len(wrong) == 1 else f"{text}: {len(wrong):,} files are missing or wrong"
        raise VerifyFailed(what, issues=wrong, hint="`dsctl verify` lists every problem of the folder")
