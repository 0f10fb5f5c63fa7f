"""The tree digest of a safetensors file, computed anew from docs/on-disk.md: nothing of dsctl is used."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

from blake3 import blake3


def entry(path: Path, cuts: dict[str, list[list[int]]] | None = None) -> dict[str, Any]:
    """The entry of a weight file in `dsctl.json`; `cuts` are those of its joined tensors."""
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    tensors = json.loads(raw[8:begin])
    tensors.pop("__metadata__", None)
    found = []
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = (begin + offset for offset in tensor["data_offsets"])
        if first == last:
            continue
        parts = []
        for length in [length for count, length in (cuts or {}).get(name, [[1, last - first]]) for _ in range(count)]:
            parts.append(blake3(raw[first : first + length]).digest())
            first += length
        assert first == last
        found.append(parts[0] if len(parts) == 1 else blake3(b"".join(parts)).digest())
    tree = blake3(b"".join([blake3(raw[:begin]).digest(), *found])).hexdigest()
    said = {"size": len(raw), "tree": tree, "tensors": b64encode(b"".join(found)).decode()}
    return said | ({"cuts": cuts} if cuts else {})
