"""The form of a delta that trainers and engines share, and what dsctl adds to it. Constants and checksums, no torch.

A folder: safetensors files in which every changed tensor is a U8 tensor that holds one zstd frame of its difference,
and an index whose metadata says how. Written by slime (slime/utils/disk_delta.py) and miles, read by SGLang
(sglang/srt/weight_sync/local_checkpoint.py), vime and ModelExpress (docs/S3_DELTA_WEIGHT_REFIT.md).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dsctl.core.digests import Bytes, hasher
from dsctl.core.errors import FormatError

# The folder of the other files that differ, which no other reader looks into.
SIDES = "side"
# In dsctl's own folder: the mark of a folder in which a delta is being applied.
IN_PLACE = "delta.json"
# The keys of the index's metadata.
VERSION, BASE, ENCODING, COMPRESSION, CHECKSUM = (
    "version", "base_version", "delta_encoding", "compression_format", "checksum_format",
)  # fmt: skip
ZSTD = "zstd"
# The encodings: bytes of the new tensor XOR those of the old one; positions and values of the bytes that differ; and
# the XOR with the bytes of equal place in their elements together, in blocks.
XOR, OVERWRITE, SHUFFLED = ENCODINGS = ("xor", "overwrite", "shuffled")
SHARED = (XOR, OVERWRITE)
# Before the name of an encoding in a delta that only dsctl can apply.
OWN = "dsctl-"
SHUFFLED_BYTES = 1 << 20
# An overwriting delta has positions of 32 bits.
OVERWRITE_MOST = 1 << 32
ADLER32, XXH3, BLAKE3 = CHECKSUMS = ("adler32", "xxh3-128", "blake3")
_HEX_DIGITS = {ADLER32: 8, XXH3: 32, BLAKE3: 64}


class Checksum(Protocol):
    """A checksum in the making."""

    def update(self, data: Bytes, /) -> object: ...

    def hexdigest(self) -> str: ...


class _Adler32:
    def __init__(self) -> None:
        self._value = 1

    def update(self, data: Bytes, /) -> None:
        self._value = zlib.adler32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def checksum(kind: str) -> Checksum:
    """A checksum of no bytes yet, of one of `CHECKSUMS`."""
    made: dict[str, Callable[[], Any]] = {ADLER32: _Adler32, XXH3: _xxh3, BLAKE3: hasher}
    found: Checksum = made[kind]()
    return found


def _xxh3() -> Any:
    # Loaded late: most deltas have a different checksum.
    import xxhash

    return xxhash.xxh3_128()


def is_checksum(text: str, kind: str) -> bool:
    """Whether a text is a checksum of this kind: lower-case hexadecimal digits."""
    return len(text) == _HEX_DIGITS[kind] and set(text) <= set("0123456789abcdef")


def stored_encoding(encoding: str, own: bool) -> str:
    """The index's `delta_encoding`: with `own`, one that no other reader takes for its own."""
    return OWN + encoding if own or encoding not in SHARED else encoding


def refuse_delta(metadata: object, place: str) -> None:
    """Refuse an index's metadata that is a delta's, where a checkpoint is needed.

    Raises:
        FormatError: naming the place.
    """
    if isinstance(metadata, Mapping) and ENCODING in metadata:
        hint = "`dsctl delta verify` checks it, `dsctl delta apply` makes a checkpoint from it and its base"
        raise FormatError(f"{place}: is a delta, not a checkpoint", hint=hint)
