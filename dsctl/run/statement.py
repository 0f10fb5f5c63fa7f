"""The statement of a finished run: the files that it read, with the digests that are known of them. No torch.

Nothing here depends on the machine, the time, the workers or an interruption, and no place on a machine is named.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.reading import MAX_JSON_BYTES, strict_json
from dsctl.checkpoint.side_files import WHOLE
from dsctl.checkpoint.signed_files import SignedFile, entries_of
from dsctl.checkpoint.statement import (
    BLAKE3,
    JSON_TYPE,
    SAMPLE,
    SHA256,
    Descriptor,
    digest_set,
    is_valid,
    make,
)
from dsctl.core import digests
from dsctl.core.errors import FormatError
from dsctl.layouts import layout_name
from dsctl.plan.model_card import SOURCE_README, Card, base_of, markdown, relation
from dsctl.plan.plan import Plan
from dsctl.run.consume import Remembered
from dsctl.run.identity import HeldFile
from dsctl.stores import SIGNED, STATEMENT, Store
from dsctl.stores.hub import SCHEME, HubRepository
from dsctl.stores.joined import Joined
from dsctl.stores.local import LocalFolder
from dsctl.stores.sums import stated_sums
from dsctl.version import __version__

# The name of the entry for a whole repository, before it the prefix of its files.
SOURCE = "source"
# Where the digest of a source file comes from: the hub's listing, the source's own dsctl.json, the bytes, a sample.
BY_HUB, BY_RECORD, BY_BYTES, BY_SAMPLE = "hub", SIGNED, "bytes", "sample"
# A file of the source that is read for its digest is not longer.
READ_BYTES = 64 << 20
# What a plan records of a file with tensors.
_WEIGHTS = re.compile(r"(\d+) bytes, header sha256 ([0-9a-f]{64})")
# The folder of a commit in the hub's cache (huggingface_hub.file_download.repo_folder_name).
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})")


class _Base(NamedTuple):
    """A store that is not joined, the prefix of its files, its repository with the commit if it is on a hub, and what
    is recorded of its files: the hub's digests, and the entries of its own `dsctl.json`."""

    prefix: str
    store: Store
    sizes: dict[str, int]
    repository: str
    stated: dict[str, dict[str, str]]
    recorded: dict[str, SignedFile]


@dataclass(frozen=True, slots=True)
class Made:
    """A finished target: its plan, the source's identity, its files and the counts of its audit."""

    plan: Plan
    store: Store
    held: Mapping[str, HeldFile]
    files: Mapping[str, SignedFile]
    counts: Mapping[str, int]

    def statement(self) -> bytes:
        """The statement about the files.

        Raises:
            SourceError: a file of the source cannot be read.
        """
        return make(self.files, self.plan.request.json(), list(self._dependencies()), self.counts, __version__)

    def card(self) -> bytes:
        """The model card for the repository that the plan names; all other files are known.

        Raises:
            SourceError: a file of the source cannot be read.
        """
        request, dependencies = self.plan.request.json(), list(self._dependencies())
        base, commit = base_of(dependencies)
        weights = [entry.size for name, entry in self.files.items() if name.endswith(".safetensors")]
        card = Card(
            place=self.plan.card,
            version=__version__,
            base=base,
            commit=commit,
            base_given=False,
            relation=relation(request, self.counts) if base else "",
            to=self.plan.request.to,
            layout=layout_name(self.plan.request.layout),
            weights=len(weights),
            weight_bytes=sum(weights),
            files=0,
            nbytes=0,
            counts=dict(self.counts),
            stated=True,
        )
        source = SOURCE_README if SOURCE_README in self.files else ""
        return markdown(card, self.plan.card, source).encode()

    def _dependencies(self) -> Iterator[Descriptor]:
        bases = [_described(prefix, store) for prefix, store in _bases(self.store)]
        for base in bases:
            if base.repository:
                commit = base.repository.rpartition("@")[2]
                yield Descriptor(f"{base.prefix}{SOURCE}", SCHEME + base.repository, {"gitCommit": commit})
        for base in bases:
            yield from _records(base)
        used = sorted({*self.held, *self.plan.source_files})
        for file in used:
            base = max((one for one in bases if file.startswith(one.prefix)), key=lambda one: len(one.prefix))
            found = self._file(base, file, file.removeprefix(base.prefix))
            # Of a remote file that the plan does not read, nothing may be known.
            if found.digest or found.uri:
                yield found

    def _file(self, base: _Base, file: str, name: str) -> Descriptor:
        """A file of the source: `file` as the plan calls it, `name` in its own store."""
        # A file that this run consumed is not there any more.
        known = _WEIGHTS.fullmatch(self.plan.source_files.get(file, ""))
        size = int(known[1]) if known else base.sizes.get(name)
        notes: dict[str, str | int] = {"size": size} if size is not None else {}
        notes |= {"headerSha256": known[2]} if known else {}
        digest, by = self._digest(base, file, name, size)
        uri = f"{SCHEME}{base.repository}/{name}" if base.repository else ""
        return Descriptor(file, uri, digest, annotations={**notes, "digestFrom": by})

    def _digest(self, base: _Base, file: str, name: str, size: int | None) -> tuple[dict[str, str], str]:
        """The best digest of a source file that is known, and where it comes from."""
        if name in base.stated:
            return base.stated[name], BY_HUB
        entry = base.recorded.get(name)
        if entry is not None and entry.size == size:
            return digest_set(entry), BY_RECORD
        copied = self.plan.renamed.get(file, file)
        if file in self.plan.carried and copied in self.files:
            return digest_set(self.files[copied]), BY_BYTES
        weights = file in self.plan.source_files or name in (ORIGINAL, WHOLE, ODD)
        if not weights and size is not None and size <= READ_BYTES:
            return _sums(base.store.read(name, 0, size)), BY_BYTES
        return ({SAMPLE: self.held[file].sample} if file in self.held else {}), BY_SAMPLE


def _bases(store: Store, prefix: str = "") -> Iterator[tuple[str, Store]]:
    """The stores that are not joined, each with the prefix of its files."""
    if isinstance(store, Joined):
        yield from _bases(store.store, prefix)
        yield from _bases(store.beside, prefix + store.prefix)
    else:
        yield prefix, store


def _described(prefix: str, store: Store) -> _Base:
    folder = store.store if isinstance(store, Remembered) else store
    stated = {name: {SHA256: digest} for name, digest in stated_sums(folder).items()}
    if isinstance(folder, HubRepository):
        stated |= {one.name: {"gitBlob": one.blob} for one in folder.listing if one.blob and one.name not in stated}
    sizes = store.files()
    stated = {name: digest for name, digest in stated.items() if is_valid(digest)}
    return _Base(prefix, store, sizes, _repository(folder), stated, _recorded(store, sizes))


def _repository(store: Store) -> str:
    """`org/name@commit` of a repository on a hub, or of its folder in the hub's cache; empty for all else."""
    if isinstance(store, HubRepository):
        return f"{store.repository}@{store.commit}"
    if isinstance(store, LocalFolder):
        found = _CACHED.fullmatch("/".join(Path(store.root).parts[-3:]))
        return f"{found[1]}/{found[2]}@{found[3]}" if found else ""
    return ""


def _recorded(store: Store, sizes: Mapping[str, int]) -> dict[str, SignedFile]:
    """The entries of a source's own `dsctl.json`; empty if it has none that can be read."""
    size = sizes.get(SIGNED, MAX_JSON_BYTES + 1)
    if size > MAX_JSON_BYTES:
        return {}
    try:
        found = entries_of(strict_json(store.read(SIGNED, 0, size), SIGNED)["files"])
    except (ValueError, TypeError, KeyError, RecursionError, FormatError):
        return {}
    return found if all(is_valid(digest_set(entry)) for entry in found.values()) else {}


def _records(base: _Base) -> Iterator[Descriptor]:
    """The source's own statement, or its `dsctl.json` if it has none: with it, statements are a chain."""
    files = base.sizes
    name = next((one for one in (STATEMENT, SIGNED) if one in files and base.recorded), None)
    if name is None or files[name] > MAX_JSON_BYTES:
        return
    uri = f"{SCHEME}{base.repository}/{name}" if base.repository else ""
    digest = base.stated.get(name, {}) | _sums(base.store.read(name, 0, files[name]))
    notes = {"size": files[name], "digestFrom": BY_BYTES}
    yield Descriptor(f"{base.prefix}{name}", uri, digest, mediaType=JSON_TYPE, annotations=notes)


def _sums(data: bytes) -> dict[str, str]:
    return {BLAKE3: digests.digest(data).hex(), SHA256: hashlib.sha256(data).hexdigest()}
