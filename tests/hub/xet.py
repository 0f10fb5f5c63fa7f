"""The storage of a hub with Xet: xorbs and shards as hf_xet sends them, and the files that they make.

Written from what hf_xet 1.8 sends, and checked by it: a file is kept only if the chunks that its shard names have the
SHA-256 that the shard says. A xorb is a run of chunks, each behind eight bytes: version, compressed length (3 bytes),
kind of compression, length (3 bytes). A shard has a header of 48 bytes, and then files: 48 bytes with hash, flags and
the number of entries, as many entries of 48 bytes (xorb, flags, length, first and last chunk), as many digests of them
if the highest bit of the flags is set, and the file's SHA-256 if the next one is.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

ROW = 48
VERIFIED, DESCRIBED = 1 << 31, 1 << 30
LAST = b"\xff" * 32


class Cas:
    """Xorbs by their hash, each as its chunks; `keep` takes the bytes of a whole file and gives its SHA-256."""

    def __init__(self, keep: Callable[[bytes], str]) -> None:
        self.keep = keep
        self.xorbs: dict[str, list[bytes]] = {}
        self.files: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of the answer to a request."""
        if method == "POST" and path.startswith("/v1/xorbs/default/"):
            new = path.rpartition("/")[2]
            self.xorbs[new] = list(chunks(body))
            return 200, {"was_inserted": True}
        if method == "POST" and path == "/v1/shards":
            for sha256, terms in files_of(body):
                data = b"".join(b"".join(self.xorbs[xorb][first:last]) for xorb, first, last in terms)
                if hashlib.sha256(data).hexdigest() != sha256:
                    return 400, {"error": "the chunks are not the file"}
                self.files.append(self.keep(data))
            return 200, {"result": 1}
        return 404, {}


def chunks(xorb: bytes) -> Any:
    """The chunks of a xorb."""
    at = 0
    while at < len(xorb) and not xorb.startswith(b"XETBLOB", at):
        version, kind = xorb[at], xorb[at + 4]
        packed, length = (
            int.from_bytes(xorb[at + 1 : at + 4], "little"),
            int.from_bytes(xorb[at + 5 : at + 8], "little"),
        )
        data = xorb[at + 8 : at + 8 + packed]
        assert version == 0 and len(data) == packed, (version, packed, len(data))
        data = data if kind == 0 else unpacked(data)
        data = interleaved(data) if kind == 2 else data
        assert len(data) == length, (kind, len(data), length)
        yield data
        at += 8 + packed


def interleaved(data: bytes) -> bytes:
    """Bytes that were sorted into four groups by their place modulo four, in their order."""
    out, at = bytearray(len(data)), 0
    for group in range(4):
        count = len(range(group, len(data), 4))
        out[group::4] = data[at : at + count]
        at += count
    return bytes(out)


def files_of(shard: bytes) -> list[tuple[str, list[tuple[str, int, int]]]]:
    """The SHA-256 of every file that a shard describes, with its xorbs and their chunks."""
    found, at = [], ROW
    while shard[at : at + 32] != LAST:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        rows = [shard[at + ROW * (number + 1) :][:ROW] for number in range(count)]
        terms = [(spelled(row[:32]), *struct.unpack_from("<II", row, 40)) for row in rows]
        at += ROW * (1 + count + (count if flags & VERIFIED else 0))
        sha256 = ""
        if flags & DESCRIBED:
            sha256 = spelled(shard[at : at + 32])
            at += ROW
        found.append((sha256, terms))
    return found


def spelled(digest: bytes) -> str:
    """A digest in the order in which Xet spells it: eight bytes at a time, the last of them first."""
    return "".join(digest[at : at + 8][::-1].hex() for at in range(0, 32, 8))


def unpacked(frame: bytes) -> bytes:
    """The bytes of an LZ4 frame (lz4_Frame_format.md, lz4_Block_format.md)."""
    assert frame[:4] == b"\x04\x22\x4d\x18"
    flags, at = frame[4], 7 + 8 * bool(frame[4] & 8)
    out = bytearray()
    while (size := int.from_bytes(frame[at : at + 4], "little")) != 0:
        block = frame[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
        if size >> 31:
            out += block
        else:
            _block(block, out)
        at += 4 + len(block) + 4 * bool(flags & 16)
    return bytes(out)


def _block(block: bytes, out: bytearray) -> None:
    at = 0
    while at < len(block):
        token = block[at]
        length, at = _length(block, at + 1, token >> 4)
        out += block[at : at + length]
        at += length
        if at >= len(block):
            return
        offset = int.from_bytes(block[at : at + 2], "little")
        length, at = _length(block, at + 2, token & 15)
        for _ in range(0, length + 4, offset):
            taken = out[-offset:]
            out += taken[: min(offset, length + 4)]
            length -= len(taken)


def _length(block: bytes, at: int, length: int) -> tuple[int, int]:
    if length == 15:
        while True:
            length, at = length + block[at], at + 1
            if block[at - 1] != 255:
                break
    return length, at
