"""What a plan of experts makes of a checkpoint, said again from the raw bytes of its tensors, without dsctl's code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Lists = Mapping[str, Sequence[int]]
# A layer by the beginning of its tensors' names, and an expert in it.
_LAYER = re.compile(r"^(?:.*\.)?(?:layers\.(\d+)|(mtp\.\d+))\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_GATES = (".gate.weight", ".gate.bias", ".gate.bias_vl", ".gate.e_score_correction_bias")


class Stored(NamedTuple):
    """A tensor as its file has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder's safetensors files, by name."""
    return dict(_stored(folder))


def _stored(folder: Path) -> Iterator[tuple[str, Stored]]:
    for file in sorted(folder.glob("*.safetensors")):
        raw = file.read_bytes()
        begin = 8 + int.from_bytes(raw[:8], "little")
        for name, said in json.loads(raw[8:begin]).items():
            if name != "__metadata__":
                first, last = said["data_offsets"]
                yield name, Stored(said["dtype"], tuple(said["shape"]), raw[begin + first : begin + last])


def pruned(tensors: Mapping[str, Stored], lists: Lists) -> dict[str, Stored]:
    """The tensors that remain, under their new names; `lists` are the kept experts by "3" or "mtp.0", in order."""
    found = {}
    for name, one in tensors.items():
        layer = _LAYER.match(name)
        kept = lists.get(layer[1] or layer[2]) if layer else None
        if kept is None:
            found[name] = one
            continue
        expert = _EXPERT.search(name)
        if expert and "shared_experts" not in name:
            if int(expert[1]) in kept:
                at = f".experts.{[*kept].index(int(expert[1]))}."
                found[name[: expert.start()] + at + name[expert.end() :]] = one
        elif name.endswith(_GATES):
            rows = np.frombuffer(one.data, np.uint8).reshape(one.shape[0], -1)[list(kept)]
            found[name] = Stored(one.dtype, (len(kept), *one.shape[1:]), rows.tobytes())
        elif name.endswith("tid2eid"):
            table = np.frombuffer(one.data, np.int64).reshape(one.shape)
            found[name] = one._replace(data=np.array([renumbered(row, kept) for row in table.tolist()]).tobytes())
        else:
            found[name] = one
    return found


def renumbered(row: Sequence[int], kept: Sequence[int]) -> list[int]:
    """A token's experts by their new numbers; for each removed one, in order, the next kept one that is still free."""
    old = [expert if expert in kept else None for expert in row]
    for place, expert in enumerate(row):
        if old[place] is None:
            near = sorted(kept, key=lambda one: (one < expert, one))
            old[place] = next(one for one in near if one not in old)
    return [[*kept].index(one) for one in old if one is not None]


def config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json, those of the language model at the top."""
    said = json.loads((folder / "config.json").read_text())
    return said | said.pop("text_config", {})
