"""A plan: steps in source order, output files with their headers, and the target's other files. Data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from dsctl.checkpoint.adapters import Adapter
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.low_rank import ADAPTER
from dsctl.checkpoint.originals import Elsewhere
from dsctl.checkpoint.pieces import Piece
from dsctl.codecs.codec import Codec
from dsctl.codecs.renumbered import NUMBERS
from dsctl.core.amounts import size
from dsctl.core.header import TensorSpec
from dsctl.core.params import Param
from dsctl.core.tables import html, table, text_table
from dsctl.core.visible import shortened, visible
from dsctl.layouts.layout import Slot
from dsctl.plan.notes import labelled
from dsctl.plan.request import Request
from dsctl.plan.steps import Step

BAND_BYTES = 8 << 20
# The most bytes of a header's entry for one tensor.
GATHERED_NAME = 256
MISSING = "missing in the source"
ELSEWHERE = "in other ranks"
NOWHERE = "no place in layout "
# The counts of every audit.
COUNTED = (
    "parameters", "values", "dequantized", "quantized", "requantized", "recast", "cast", "moved", "dropped",
    "unexplained",
)  # fmt: skip


class Want(msgspec.Struct, frozen=True, gc=False):
    """A parameter of the target, the pieces to make it from, and the codec to store it.

    `held` are all of its pieces in the source, copies included; `slots` are its places in the target's layout.
    """

    param: Param
    pieces: tuple[Piece, ...]
    codec: Codec
    held: tuple[Piece, ...] = ()
    slots: tuple[Slot, ...] = ()


class Recoded(NamedTuple):
    """Parameters of a kind that are decoded and encoded again because moving them would cut through blocks."""

    template: str
    parameters: int
    why: str


class PlacedPart(msgspec.Struct, frozen=True, gc=False):
    """One stored tensor of the target: the codec's part, the tensor's name, its file, dtype and shape, and its bytes if
    the codec states them."""

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
    """One output file: its name, its header, its size, and the bytes that are already known, by offset."""

    name: str
    header: bytes
    size: int
    literals: tuple[tuple[int, bytes], ...] = ()


class Dropped(NamedTuple):
    """A parameter that the output leaves out, and the reason."""

    name: str
    why: str
    values: int


class Merge(NamedTuple):
    """The adapter of a plan: its place and settings, and by role how many parameters it changes and replaces.

    `modules` is its number of pairs of factors, `left_out` the number of its parameters that the target does not hold.
    """

    place: str
    revision: str
    r: int
    alpha: float
    rslora: bool
    dora: bool
    modules: int
    changed: dict[str, int]
    replaced: dict[str, int]
    left_out: int


class Job(NamedTuple):
    """A run of steps handed to one worker."""

    number: int
    steps: tuple[Step, ...]
    files: tuple[str, ...]


@dataclass
class Plan:
    """Steps in source order, output files, and the other files of the target folder.

    `folders` are those of ranks, each complete in itself; `recoded` are the parameters that a cut makes encode again.
    `released` has the SHA-256 of files that should come back as they were released; `merge` describes the adapter.
    `grafts` say what is taken from other checkpoints, as JSON. `as_bytes`: all steps move or patch whole tensors.
    `trees` has the tree digest that a file of weights must have, where it is known.
    `renamed` has the new names of copied files that get one, and `card` the repository that gets a model card as its
    README.md.
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
    released: dict[str, str] = field(default_factory=dict)
    merge: Merge | None = None
    grafts: list[dict[str, Any]] = field(default_factory=list)
    as_bytes: bool = False
    trees: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    card: str = ""

    def __repr__(self) -> str:
        what = f"{len(self.steps):,} parameters, {size(self.bytes_in)} to {size(self.bytes_out)}"
        return f"<Plan {shortened(self.source)}, {self.request.towards}: {what}>"

    def __str__(self) -> str:
        """Return the text that `print` shows: numbers of parameters by kind of work, bytes, files, and notes."""
        return "\n".join([*text_table(*self._table), *(visible(labelled(note)) for note in self.notes)])

    def _repr_html_(self) -> str:
        """Return the same as HTML for a notebook."""
        return table(*self._table) + "".join(f"<p>{html(labelled(note))}</p>" for note in self.notes)

    @property
    def _table(self) -> tuple[str, tuple[str, ...], list[tuple[str, str]]]:
        """The title, columns and rows of the printed table."""
        counts = [(name, f"{number:,}") for name, number in self.counts.items() if number or name == "unexplained"]
        rows = [("read", size(self.bytes_in)), ("written", size(self.bytes_out)), ("files", f"{len(self.files):,}")]
        title = f"{visible(self.source)}, {self.request.towards}, layout {visible(self.request.layout)}"
        return title, ("what", "amount"), [*counts, *rows]

    @property
    def gathers(self) -> bool:
        """Whether scales are gathered in a file of their own, whose size is known only at the end."""
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
        """The copied files that each of `folders` gets too: all except side files, which describe the whole source."""
        return [name for name in self.carried if self.folders and not name.endswith(".dsctl")]

    def peak_bytes(self, band_bytes: int) -> int:
        """The most bytes of a worker's buffers, with bands of `band_bytes` of float32."""
        held: dict[str, int] = {}
        for step in {_shape(step): step for job in self.jobs for step in job.steps}.values():
            for name, nbytes in step.buffers(band_bytes).items():
                held[name] = max(held.get(name, 0), nbytes)
        return sum(held.values())


def gathered_most(steps: Iterable[Step]) -> int:
    """The most bytes of the gathered scales of these steps: all of their scales, and names."""
    return sum(step.reads[0].parts[1].spec.nbytes + GATHERED_NAME for step in steps if step.gathers)


def _shape(step: Step) -> Hashable:
    """The properties that determine a step's buffers, equal for parameters stored the same way."""
    regions = tuple((one.box, one.codec, one.container, len(one.parts)) for one in (*step.reads, *step.writes))
    stored = step.reads[0].parts[0].spec.dtype
    besides: tuple[Hashable, ...] = bool(step.kept), len(step.copies), len(step.twins), step.measured, step.gathers
    besides += step.odd is not None, tuple(ref.spec for ref in step.low_rank.refs) if step.low_rank else None
    return step.how, step.shape, step.decoded, stored, regions, besides


def is_replaced(step: Step) -> bool:
    """Whether a parameter is made from an adapter's own tensor."""
    return any(part.file.startswith(ADAPTER) for part in step.reads[0].parts)


def kind(step: Step) -> str:
    """The audit's word for the work on a parameter."""
    if step.low_rank is not None:
        return "merged"
    if is_replaced(step):
        return "replaced"
    if step.how != "recode":
        return {"move": "moved", "recast": "recast", "patch": "patched"}[step.how]
    before, after = step.reads[0].codec, step.writes[0].codec
    if before.quantized:
        return "requantized" if after.quantized else "dequantized"
    if before.form.codes == NUMBERS:
        return "renumbered"
    return "quantized" if after.quantized else "cast"


def fingerprint(
    checkpoint: Checkpoint, request: Request, original: Elsewhere | None = None, adapter: Adapter | None = None
) -> str:
    """A digest of the request and the source's headers, config and file sizes; a resumed run must have the same."""
    digest = hashlib.sha256(json.dumps(request.json(), sort_keys=True).encode())
    digest.update(checkpoint.store.revision.encode())
    for file, nbytes in sorted(checkpoint.files.items()):
        digest.update(f"\n{file}\0{nbytes}".encode())
        if file in checkpoint.headers:
            digest.update(checkpoint.headers[file].raw)
    digest.update(json.dumps(checkpoint.config, sort_keys=True).encode())
    for beside in (original, adapter):
        for file, (nbytes, raw) in sorted(beside.files.items()) if beside else ():
            digest.update(f"\n{file}\0{nbytes}".encode() + raw)
    for text in sorted(original.side.texts.items()) if original else ():
        digest.update(repr(text).encode())
    for graft in checkpoint.grafts:
        digest.update(f"\n{graft.revision}\0{json.dumps(graft.config, sort_keys=True)}".encode())
        for file, header in sorted(graft.headers.items()):
            digest.update(f"\n{file}\0{graft.files[file]}".encode() + header.raw)
    return digest.hexdigest()


def files_read(job: Job) -> set[str]:
    """The files that a job reads."""
    return {part.file for step in job.steps for part in step.parts_read}
