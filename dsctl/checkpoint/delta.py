"""An opened delta: which tensors it changes, where their frames are, and what it says of both sides. No torch.

Everything in a delta is hostile until it is checked: names, sizes, metadata, the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from dsctl.checkpoint.delta_form import (
    BASE,
    CHECKSUM,
    CHECKSUMS,
    COMPRESSION,
    ENCODING,
    ENCODINGS,
    OWN,
    SHARED,
    SIDES,
    VERSION,
    ZSTD,
    is_checksum,
)
from dsctl.checkpoint.delta_record import Record, read_record, unpacked_header
from dsctl.checkpoint.reading import read_headers, read_json
from dsctl.core import digests
from dsctl.core.errors import FormatError, SourceError
from dsctl.core.header import Header, TensorRef
from dsctl.stores import INDEX, SIGNED, Store

_NO_DELTA = "`dsctl delta make OLD NEW DST` makes a delta"


class Changed(msgspec.Struct, frozen=True, gc=False):
    """A changed tensor: its frame in a file of the delta, the checksum of the whole new tensor, and whether the frame
    holds the new tensor itself."""

    ref: TensorRef
    checksum: str
    whole: bool = False


@dataclass(frozen=True)
class Delta:
    """A delta in a store. `encoding` is one of `ENCODINGS`, `checksum` one of `CHECKSUMS`.

    `shared`: engines and trainers can read it. `tensors` are by file and name; `record` is None if dsctl did not make
    the delta.
    """

    store: Store
    version: str
    base_version: str
    encoding: str
    checksum: str
    shared: bool
    headers: dict[str, Header]
    tensors: dict[tuple[str, str], Changed]
    record: Record | None
    sizes: dict[str, int]
    identity: str
    _by_name: dict[str, Changed] = field(default_factory=dict)

    def of(self, file: str, name: str) -> Changed | None:
        """The change of a tensor of a file of the result, or None if there is none."""
        if self.record is not None:
            return self.tensors.get((file, name))
        return self._by_name.get(name)

    @cached_property
    def stored_bytes(self) -> int:
        """The bytes of all frames."""
        return sum(one.ref.nbytes for one in self.tensors.values())

    @property
    def total_bytes(self) -> int:
        """The bytes of the whole folder."""
        return sum(self.sizes.values())

    def header(self, file: str, base: Mapping[str, Header]) -> bytes:
        """The header of a result's file with its length bytes: the base's own unless the delta has another.

        Raises:
            FormatError: the delta's is damaged, or neither has one.
        """
        stored = self.record.headers.get(file) if self.record else None
        if stored is None:
            if file not in base:
                raise FormatError(f"{self.store.place}/{SIGNED}: has no header for {file}, which the base lacks")
            raw = base[file].raw
            return len(raw).to_bytes(8, "little") + raw
        return unpacked_header(stored, f"{self.store.place}/{SIGNED}: header of {file}")


def open_delta(store: Store) -> Delta:
    """Open a delta: its index, its files' headers and its record.

    Raises:
        SourceError: it cannot be read, or the folder has no index. FormatError: it is not a delta, or is damaged.
    """
    sizes = store.files()
    index = read_json(store, INDEX, sizes)
    if index is None:
        raise SourceError(f"{store.place}: has no {INDEX}: it is not a delta", hint=_NO_DELTA)
    said, weight_map = _metadata(index, store.place)
    record = read_record(store, sizes)
    _check_record(record, said, store.place)
    files = {name: size for name, size in sizes.items() if name.endswith(".safetensors") and not _is_side(name)}
    headers = read_headers(store, files)
    whole = {*record.whole} if record else set()
    tensors: dict[tuple[str, str], Changed] = {}
    for file, header in headers.items():
        for name, ref in header.tensors.items():
            if ref.spec.dtype != "U8" or len(ref.spec.shape) != 1:
                what = f"is {ref.spec.dtype} {list(ref.spec.shape)}; the tensors of a delta are U8 of one dimension"
                raise FormatError(f"{store.place}/{file}: {name}: {what}", hint=_NO_DELTA)
            check = header.metadata.get(name, "")
            if not is_checksum(check, said[CHECKSUM]):
                what = f"its header has no {said[CHECKSUM]} checksum for {name}"
                raise FormatError(f"{store.place}/{file}: {what}")
            tensors[file, name] = Changed(ref, check, (file, name) in whole)
    if missing := sorted(whole - tensors.keys()):
        raise FormatError(f"{store.place}/{SIGNED}: names {missing[0][1]}, which no file of the delta holds")
    by_name = {name: one for (_, name), one in tensors.items()}
    own = said[ENCODING].startswith(OWN)
    if not own:
        _check_map(weight_map, tensors, by_name, store.place)
    return Delta(
        store, said[VERSION], said[BASE], said[ENCODING].removeprefix(OWN), said[CHECKSUM], not own, headers, tensors,
        record, sizes, _identity(store, sizes, headers), by_name,
    )  # fmt: skip


def is_delta(index: Mapping[str, Any] | None) -> bool:
    """Whether an index is that of a delta."""
    said = (index or {}).get("metadata")
    return isinstance(said, dict) and ENCODING in said


def _metadata(index: Mapping[str, Any], place: str) -> tuple[dict[str, str], dict[str, str]]:
    said, weight_map = index.get("metadata"), index.get("weight_map")
    where = f"{place}/{INDEX}"
    if not is_delta(index) or not isinstance(said, dict):
        raise FormatError(
            f"{where}: has no {ENCODING}: it is the index of a checkpoint, not of a delta", hint=_NO_DELTA
        )
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise FormatError(f"{where}: its weight_map is not an object of file names")
    for key in (VERSION, BASE, ENCODING, COMPRESSION, CHECKSUM):
        if not isinstance(said.get(key), str) or not said[key] or not said[key].isprintable():
            raise FormatError(f"{where}: metadata: {key} is missing, or is not a text")
    if said[ENCODING].removeprefix(OWN) not in ENCODINGS or (said[ENCODING] not in SHARED and not _is_own(said)):
        raise FormatError(f"{where}: unknown {ENCODING} {said[ENCODING]!r}", hint=f"known: {', '.join(SHARED)}")
    for key, known in ((COMPRESSION, (ZSTD,)), (CHECKSUM, CHECKSUMS)):
        if said[key] not in known:
            raise FormatError(f"{where}: unknown {key} {said[key]!r}", hint=f"known: {', '.join(known)}")
    return said, weight_map


def _is_own(said: Mapping[str, str]) -> bool:
    return said[ENCODING].startswith(OWN)


def _check_map(
    weight_map: Mapping[str, str],
    tensors: Mapping[tuple[str, str], Changed],
    by_name: Mapping[str, Changed],
    place: str,
) -> None:
    """Refuse a delta whose index and files disagree: readers take its tensors from one or from the other."""
    if len(by_name) != len(tensors):
        twice, _ = Counter(name for _, name in tensors).most_common(1)[0]
        raise FormatError(f"{place}: two of its files hold {twice}")
    for name, file in weight_map.items():
        if (file, name) not in tensors:
            where = by_name[name].ref.file if name in by_name else "no file"
            raise FormatError(f"{place}/{INDEX}: says that {name} is in {file!r}, but {where} holds it")
    if left := by_name.keys() - weight_map.keys():
        name = min(left)
        raise FormatError(f"{place}/{INDEX}: does not name {name}, which {by_name[name].ref.file} holds")


def _check_record(record: Record | None, said: Mapping[str, str], place: str) -> None:
    """Refuse a record that is of another delta than the index."""
    where = f"{place}/{SIGNED}"
    if record is None:
        if _is_own(said):
            what = f"is missing: a delta of {said[ENCODING]} cannot be applied without it"
            raise FormatError(f"{where}: {what}", hint="the delta is not complete: make it, or fetch it, again")
        return
    for key, found in ((VERSION, record.version), (BASE, record.base_version)):
        if found != said[key]:
            raise FormatError(f"{where}: its {key} is {found!r}, but {INDEX} says {said[key]!r}")
    if record.encoding != said[ENCODING].removeprefix(OWN):
        raise FormatError(f"{where}: its encoding is {record.encoding!r}, but {INDEX} says {said[ENCODING]!r}")


def _is_side(name: str) -> bool:
    return name.startswith(f"{SIDES}/")


def _identity(store: Store, sizes: Mapping[str, int], headers: Mapping[str, Header]) -> str:
    """A digest that tells this delta from every other: of its index, its record and its headers with the checksums."""
    whole = digests.hasher()
    for name in (INDEX, SIGNED):
        whole.update(store.read(name, 0, sizes[name]) if name in sizes else b"")
    for file, header in sorted(headers.items()):
        whole.update(f"\n{file}\0{sizes[file]}".encode() + header.raw)
    return whole.digest().hex()
