"""The form of weight deltas that trainers and engines share, written and read once more, for tests to compare with.

Nothing of dsctl is used here. Facts, and where they are said: a changed tensor is a U8 tensor of one zstd frame, whose
content is the XOR of its old and new bytes, or a count, byte positions and new bytes (slime/utils/disk_delta.py,
overwrite_encode); the file's metadata has the checksum of each whole new tensor, in lower-case hex; the index's
metadata has five keys (THUDM/slime, update_weight_from_disk_delta.py). Readers differ in what they refuse. This one
refuses what any of them does: SGLang (srt/weight_sync/local_checkpoint.py), its version in slime's docker/patch,
ModelExpress (modelexpress_rl/inference/receiver.py), SkyRL (weight_sync/delta_checkpoint.py).
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from tests.support.raw_tensors import INDEX, METADATA, Raw, RawPlace, RawTensor, header_of, places_in, places_of, save

FIVE = ("version", "base_version", "delta_encoding", "compression_format", "checksum_format")
ENCODINGS = ("xor", "overwrite")
DIGITS = {"adler32": 8, "xxh3-128": 32, "blake3": 64}
# Readers decompress with a library's default limit: a window of 128 MB (zstd's ZSTD_WINDOWLOG_LIMIT_DEFAULT).
WINDOW_LOG = 27


class BadDelta(ValueError):
    """A delta, or its base, is not as most readers need it. Nothing was written."""


class Version(NamedTuple):
    """What a delta makes, of what: six digits each."""

    version: int = 1
    base: int = 0


class _Item(NamedTuple):
    place: RawPlace
    checksum: str


def checksum(kind: str, data: Raw | bytes) -> str:
    """The checksum of bytes in lower-case hex, by the name that the index's metadata has for it."""
    if kind == "adler32":
        return f"{zlib.adler32(data):08x}"
    if kind == "blake3":
        import blake3

        return blake3.blake3(data).hexdigest()
    if kind == "xxh3-128":
        import xxhash

        return xxhash.xxh3_128_hexdigest(data)
    raise BadDelta(f"no checksum of readers is called {kind!r}")


def write(
    old: Path,
    new: Path,
    folder: Path,
    *,
    encoding: str = "xor",
    kind: str = "xxh3-128",
    version: Version = Version(),  # noqa: B008 - it cannot change
    files: int = 1,
) -> Path:
    """Write the delta of two folders with the same tensors, in as many files as asked for, if tensors suffice.

    Raises:
        BadDelta: a tensor was added, removed or has a different dtype or shape, which this form cannot say.
    """
    before, after = places_of(old), places_of(new)
    for name in sorted(before.keys() | after.keys()):
        one, two = before.get(name), after.get(name)
        if one is None or two is None or (one.dtype, one.shape) != (two.dtype, two.shape):
            raise BadDelta(f"{name}: {one} before, {two} after")
    folder.mkdir(parents=True)
    frames, sums = {}, {}
    for name, place in after.items():
        was, now = before[name].read(), place.read()
        if not np.array_equal(was, now):
            frames[name] = zstd.compress(_difference(was, now, encoding), 1)
            sums[name] = checksum(kind, now)
    count = min(files, len(frames))
    weights: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        held = {name: np.frombuffer(frames[name], np.uint8) for name in islice(frames, number, None, count)}
        tensors = {name: RawTensor("U8", data.shape, data) for name, data in held.items()}
        save(folder / file, tensors, {name: sums[name] for name in held})
        weights |= dict.fromkeys(held, file)
    said = (f"{version.version:06d}", f"{version.base:06d}", encoding, "zstd", kind)
    index = {"metadata": dict(zip(FIVE, said, strict=True)), "weight_map": weights}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def _difference(was: Raw, now: Raw, encoding: str) -> bytes:
    if encoding == "xor":
        return (was ^ now).tobytes()
    if encoding == "overwrite":
        at = np.flatnonzero(was != now)
        return struct.pack("<I", at.size) + at.astype("<u4").tobytes() + now[at].tobytes()
    raise BadDelta(f"no encoding of readers is called {encoding!r}")


def check(folder: Path) -> None:
    """Assert all that most readers need of a delta's folder: SGLang's two, ModelExpress and SkyRL.

    Not the choice of `xor` and `adler32`, without which ModelExpress refuses.
    """
    metadata, weights = _index(folder)
    for key in ("version", "base_version"):
        assert isinstance(metadata[key], str) and len(metadata[key]) == 6 and metadata[key].isdecimal(), metadata[key]
    assert int(metadata["version"]) > int(metadata["base_version"])
    assert metadata["delta_encoding"] in ENCODINGS
    assert metadata["compression_format"] == "zstd"
    digits = DIGITS[metadata["checksum_format"]]
    assert {path.name for path in folder.rglob("*.safetensors")} == set(weights.values()), "a file that no name is in"
    found: set[str] = set()
    for file in sorted(set(weights.values())):
        header, start = header_of(folder / file)
        sums, entries = header.pop(METADATA), header
        assert all(isinstance(value, str) for value in sums.values()), "metadata that is not text"
        assert entries.keys() == {name for name, at in weights.items() if at == file}, file
        assert not found & entries.keys(), "a name in two files"
        found |= entries.keys()
        end = start
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            begin, until = entry["data_offsets"]
            assert start + begin == end, f"{name}: bytes before it that are no tensor's"
            assert entry["dtype"] == "U8" and entry["shape"] == [until - begin], name
            assert len(sums[name]) == digits and set(sums[name]) <= set("0123456789abcdef"), name
            _check_frame((folder / file).read_bytes()[start + begin : start + until], name)
            end = start + until
        assert end == (folder / file).stat().st_size, f"{file}: bytes behind the last tensor"


def _check_frame(frame: bytes, name: str) -> None:
    assert frame[:4] == b"\x28\xb5\x2f\xfd", f"{name}: not a zstd frame"
    assert zstd.get_frame_size(frame) == len(frame), f"{name}: something behind its frame"
    info = zstd.get_frame_info(frame)
    assert info.decompressed_size is not None, f"{name}: its frame has no content size"
    assert not info.dictionary_id, f"{name}: its frame needs a dictionary"
    assert len(_content(frame, name)) == info.decompressed_size


def _content(frame: bytes, name: str) -> bytes:
    reader = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
    try:
        content = reader.decompress(frame)
    except zstd.ZstdError as error:
        raise BadDelta(f"{name}: {error}") from error
    if not reader.eof or reader.unused_data:
        raise BadDelta(f"{name}: not one whole frame")
    return content


def apply_in_place(base: Path, folder: Path) -> list[str]:
    """Make the new tensors of the old ones in a checkpoint's own files, and return the names of those that changed.

    Raises:
        BadDelta: for whatever a reader refuses. All is checked before anything is written, the results' checksums
            included, which real readers learn as they write.
    """
    metadata, weights = _index(folder)
    if metadata["compression_format"] != "zstd":
        raise BadDelta(f"compressed by {metadata['compression_format']!r}")
    if metadata["delta_encoding"] not in ENCODINGS:
        raise BadDelta(f"no encoding of readers is called {metadata['delta_encoding']!r}")
    here = places_of(base)
    changed: dict[str, Raw] = {}
    for name, item in _items(folder, weights).items():
        if name not in here:
            raise BadDelta(f"{name} is not in the base")
        frame = item.place.read().tobytes()
        if zstd.get_frame_info(frame).decompressed_size is None:
            raise BadDelta(f"{name}: its frame has no content size")
        was, delta = here[name].read(), np.frombuffer(_content(frame, name), np.uint8)
        now = was ^ delta if metadata["delta_encoding"] == "xor" and delta.size == was.size else None
        if metadata["delta_encoding"] == "overwrite":
            now = _overwritten(was, delta, name)
        if now is None:
            raise BadDelta(f"{name}: {delta.size} bytes of difference for {was.size}")
        if checksum(metadata["checksum_format"], now) != item.checksum:
            raise BadDelta(f"{name}: not what the delta was made for")
        changed[name] = now
    for name, now in changed.items():
        here[name].write(now)
    return sorted(changed)


def _overwritten(was: Raw, delta: Raw, name: str) -> Raw:
    if delta.size < 4:
        raise BadDelta(f"{name}: no count of positions")
    count = int.from_bytes(delta[:4].tobytes(), "little")
    at = np.frombuffer(delta[4 : 4 + 4 * count].tobytes(), "<u4")
    if delta.size != 4 + 5 * count or (count and int(at.max()) >= was.size):
        raise BadDelta(f"{name}: {count} positions do not fit")
    now = was.copy()
    now[at] = delta[4 + 4 * count :]
    return now


def _index(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    index = json.loads((folder / INDEX).read_text())
    metadata, weights = index.get("metadata"), index.get("weight_map")
    if not isinstance(metadata, dict) or not isinstance(weights, dict) or not metadata.keys() >= set(FIVE):
        raise BadDelta(f"{INDEX} is not a delta's")
    for name, file in weights.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise BadDelta(f"{name} is said to be in {file!r}")
    return metadata, weights


def _items(folder: Path, weights: Mapping[str, str]) -> dict[str, _Item]:
    """The place and checksum of every tensor; the files hold those that the index names and no others."""
    found: dict[str, _Item] = {}
    for file in sorted(set(weights.values())):
        try:
            sums = header_of(folder / file)[0].get(METADATA, {})
            places = places_in([folder / file])
        except OSError as error:
            raise BadDelta(f"{file}: {error}") from error
        if places.keys() != {name for name, at in weights.items() if at == file}:
            raise BadDelta(f"{file} holds other tensors than the index says")
        for name, place in places.items():
            if not isinstance(sums.get(name), str):
                raise BadDelta(f"{name} has no checksum")
            if place.dtype != "U8":
                raise BadDelta(f"{name} has the dtype {place.dtype}")
            found[name] = _Item(place, sums[name])
    return found
