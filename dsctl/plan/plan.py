"""A plan: steps in source order, output files with their headers, and everything else a target will hold. Data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import msgspec

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.pieces import Piece
from dsctl.codecs.codec import Codec
from dsctl.codecs.renumbered import NUMBERS
from dsctl.core.header import TensorSpec
from dsctl.core.params import Param
from dsctl.layouts.layout import Slot
from dsctl.plan.request import Request
from dsctl.plan.steps import Step

BAND_BYTES = 24 << 20
# What a header says of one tensor, at most.
GATHERED_NAME = 256
MISSING = "missing in the source"
ELSEWHERE = "in other ranks"
NOWHERE = "no place in layout "
# What every audit counts.
COUNTED = (
    "parameters", "values", "dequantized", "quantized", "requantized", "recast", "cast", "moved", "dropped",
    "unexplained",
)  # fmt: skip


class Want(msgspec.Struct, frozen=True, gc=False):
    """A parameter that the target shall hold, the pieces that it is made from, and the codec that stores it.

    `held` are all pieces of it that the source holds, copies included; `slots` its places in the target's layout.
    """

    param: Param
    pieces: tuple[Piece, ...]
    codec: Codec
    held: tuple[Piece, ...] = ()
    slots: tuple[Slot, ...] = ()


class Recoded(NamedTuple):
    """Parameters of a kind that are decoded and encoded anew because moving them would cut through blocks."""

    template: str
    parameters: int
    why: str


class PlacedPart(msgspec.Struct, frozen=True, gc=False):
    """One stored tensor of the target: the codec's name for it, the tensor's, its file, what it is, and its bytes where
    these are known."""

    name: str
    tensor: str
    file: str
    spec: TensorSpec
    stated: bytes | None = None


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A slot of the target and its stored tensors."""

    slot: Slot
    parts: tuple[PlacedPart, ...]


class OutFile(NamedTuple):
    """One output file: its name, its header, its size, and the bytes of it that are known already, by offset."""

    name: str
    header: bytes
    size: int
    literals: tuple[tuple[int, bytes], ...] = ()


class Dropped(NamedTuple):
    """A parameter that the output will not have, and why."""

    name: str
    why: str
    values: int


class Job(NamedTuple):
    """A run of steps handed to one worker."""

    number: int
    steps: tuple[Step, ...]
    files: tuple[str, ...]


@dataclass
class Plan:
    """Steps in source order, output files, and everything else the target folder will hold.

    `folders` are those of ranks, each of which is to be complete in itself; `recoded` is what a cut has encoded anew.
    """

    request: Request
    source: str
    steps: list[Step]
    files: list[OutFile]
    texts: dict[str, bytes]
    carried: dict[str, int]
    dropped: list[Dropped]
    counts: dict[str, int]
    notes: list[str]
    fingerprint: str
    source_files: dict[str, str]
    roles: dict[str, str] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    folders: tuple[str, ...] = ()
    recoded: list[Recoded] = field(default_factory=list)

    @property
    def gathers(self) -> bool:
        """Whether scales are gathered in a file of their own, whose size is known at the end alone."""
        return any(step.gathers for step in self.steps)

    @cached_property
    def gathered_most(self) -> int:
        """The most bytes that the file of gathered scales may take."""
        return gathered_most(self.steps)

    @cached_property
    def bytes_in(self) -> int:
        return sum(step.read_bytes for step in self.steps) + sum(self.carried.values())

    @property
    def bytes_out(self) -> int:
        rest = sum(map(len, self.texts.values())) + sum(self.carried.values())
        rest += len(self.folders) * sum(self.carried[name] for name in self.repeated)
        return sum(file.size for file in self.files) + rest + self.gathered_most

    @property
    def repeated(self) -> list[str]:
        """The carried files that every one of `folders` gets too: all but what tells of the source as a whole."""
        return [name for name in self.carried if self.folders and not name.endswith(".dsctl")]

    def peak_bytes(self, band_bytes: int) -> int:
        """The most that a worker's buffers take, in bytes, with bands of `band_bytes` of float32."""
        held: dict[str, int] = {}
        for step in {_shape(step): step for step in self.steps}.values():
            for name, nbytes in step.buffers(band_bytes).items():
                held[name] = max(held.get(name, 0), nbytes)
        return sum(held.values())


def gathered_most(steps: Iterable[Step]) -> int:
    """The most bytes that the gathered scales of some steps may take: all of them, and their names."""
    return sum(step.reads[0].parts[1].spec.nbytes + GATHERED_NAME for step in steps if step.gathers)


def _shape(step: Step) -> Hashable:
    """What a step's buffers follow from, the same for parameters that are stored alike."""
    regions = tuple((one.box, one.codec, one.container, len(one.parts)) for one in (*step.reads, *step.writes))
    stored = step.reads[0].parts[0].spec.dtype
    besides = bool(step.kept), len(step.copies), len(step.twins), step.measured, step.gathers, step.odd is not None
    return step.how, step.shape, step.decoded, stored, regions, besides


def kind(step: Step) -> str:
    """What happens to a parameter, in one word of the audit."""
    if step.how != "recode":
        return {"move": "moved", "recast": "recast"}[step.how]
    before, after = step.reads[0].codec, step.writes[0].codec
    if before.quantized:
        return "requantized" if after.quantized else "dequantized"
    if before.form.codes == NUMBERS:
        return "renumbered"
    return "quantized" if after.quantized else "cast"


def fingerprint(checkpoint: Checkpoint, request: Request) -> str:
    """A digest of the request, the source's headers, config and file sizes: what a resumed run must share."""
    digest = hashlib.sha256(json.dumps(request.json(), sort_keys=True).encode())
    digest.update(checkpoint.store.revision.encode())
    for file, size in sorted(checkpoint.files.items()):
        digest.update(f"\n{file}\0{size}".encode())
        if file in checkpoint.headers:
            digest.update(checkpoint.headers[file].raw)
    digest.update(json.dumps(checkpoint.config, sort_keys=True).encode())
    return digest.hexdigest()


def files_read(job: Job) -> set[str]:
    """The files that a job reads."""
    return {part.file for step in job.steps for part in step.parts_read}
