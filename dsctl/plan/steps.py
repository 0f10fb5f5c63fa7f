"""The regions that are read and written for one parameter, their stored tensors, and the step over them. Data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import lcm, prod

import msgspec

from dsctl.checkpoint.delta_change import Change
from dsctl.checkpoint.low_rank import ROWS, LowRank
from dsctl.checkpoint.pieces import Piece
from dsctl.codecs import restoring
from dsctl.codecs.codec import CODES, VALUES, Codec, moves_to
from dsctl.codecs.recasts import Recast
from dsctl.core.boxes import Box
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.layouts.naming import DIALECTS

# Factors of a change of low rank are read in pieces of about this many bytes, and sums are over this many rows.
FACTOR_BYTES, SUMMED_ROWS = 2 << 20, 16


class Part(msgspec.Struct, frozen=True, gc=False):
    """One stored tensor of a region: the codec's part, the file, the offset of its bytes, and its dtype and shape, with
    whole bytes as elements."""

    name: str
    file: str
    offset: int
    spec: TensorSpec


class Region(msgspec.Struct, frozen=True, gc=False):
    """A region of a parameter and its stored tensors. `container` and `at` place it, in the parameter's elements."""

    box: Box
    codec: Codec
    parts: tuple[Part, ...]
    container: tuple[int, ...]
    at: tuple[int, ...]

    def place(self, part: str, box: Box) -> Box:
        """The place of a sub-box of the parameter in one of the stored tensors.

        Raises:
            Misaligned: the sub-box cuts through a block or packed word of the codec.
        """
        inner = box.relative_to(self.box.start).moved(self.at)
        return self.codec.box(part, inner, self.container)

    def ending(self, part: Part) -> str:
        """The ending that the codec's dialect appends to a parameter's name for a part."""
        return DIALECTS[self.codec.dialect].tensor("", part.name)

    def ref(self, name: str, part: Part) -> TensorRef:
        """A stored tensor of the parameter of this name."""
        tensor = DIALECTS[self.codec.dialect].tensor(name, part.name)
        return TensorRef(tensor, part.spec, part.file, part.offset, part.offset + part.spec.nbytes)


class Copy(msgspec.Struct, frozen=True, gc=False):
    """Bytes that are also copied unchanged to a second place: a kept scale."""

    read: Part
    write: Part


class Twin(msgspec.Struct, frozen=True, gc=False):
    """A second copy of the region `reads[of]`, which must hold the same bytes."""

    of: int
    region: Region


class Step(msgspec.Struct, frozen=True, gc=False):
    """The regions read once and written for one parameter. `how` is move, recast (by `way`), recode or patch.

    `gathers`: odd scales, which do not follow from the values, are collected. `odd` are such scales of an earlier
    encoding. `surveyed` are the parameters, this one among them, whose largest magnitude is read first. `twins` are
    further copies to compare with the regions read. `measured`: the largest error of the new codes is reported.
    `low_rank` is added to the decoded values, and reported under `role`. A patch, of one tensor as bytes, makes the new
    ones by `change`.
    """

    name: str
    shape: tuple[int, ...]
    how: str
    reads: tuple[Region, ...]
    writes: tuple[Region, ...]
    kept: Region | None = None
    copies: tuple[Copy, ...] = ()
    surveyed: tuple[Step, ...] = ()
    twins: tuple[Twin, ...] = ()
    measured: bool = False
    way: Recast | None = None
    gathers: bool = False
    odd: Part | None = None
    low_rank: LowRank | None = None
    role: str = ""
    change: Change | None = None

    @property
    def regions_read(self) -> tuple[Region, ...]:
        """Every region that is read, including the compared copies."""
        return *self.reads, *(twin.region for twin in self.twins)

    @property
    def parts_read(self) -> Iterator[Part]:
        """Every stored tensor that is read, including those of the steps that share a survey."""
        for step in (self, *self.surveyed):
            yield from (copy.read for copy in step.copies)
            for region in (*step.regions_read, *((step.kept,) if step.kept else ())):
                yield from region.parts
            yield from (step.odd,) if step.odd else ()
            yield from map(part_of, step.low_rank.refs if step.low_rank else ())
            if one := step.change:
                yield Part("", one.file, one.offset, TensorSpec("U8", (one.stored,)))

    @property
    def is_uncut(self) -> bool:
        """Whether it is read in one piece, and written in one piece at every place."""
        return len(self.reads) == 1 and are_all(self.reads[0].box, self.writes)

    @property
    def exact(self) -> bool:
        """Whether encoding the decoded values unchanged gives them back: the target has the source's form."""
        return all(moves_to(read.codec, write.codec) for read in self.reads for write in self.writes)

    @property
    def read_bytes(self) -> int:
        if self.is_uncut and not self.twins:
            return _own_bytes(self.reads[0])
        return sum(share(self.span, region) for region in self.regions_read)

    @property
    def span(self) -> Box:
        """The rows that the written regions need, from whole blocks to whole blocks; all columns."""
        if not self.shape:
            return Box.whole(self.shape)
        first = min(region.box.start[0] for region in self.writes)
        last = max(region.box.stop[0] for region in self.writes)
        rows = self.row_step
        rest = self.shape[1:]
        return Box((first // rows * rows, *(0,) * len(rest)), (min(-(-last // rows) * rows, self.shape[0]), *rest))

    @property
    def row_step(self) -> int:
        """Rows that cut no block, neither of a whole parameter nor of a part with blocks of its own."""
        regions = (*self.reads, *self.writes)
        ragged = {region.box.shape[0] for region in regions if region.box.start[0] % region.codec.block[0]}
        return lcm(*{region.codec.block[0] for region in regions}, *ragged, ROWS if self.low_rank else 1)

    @property
    def written_bytes(self) -> int:
        return sum([copy.write.spec.nbytes for copy in self.copies]) + sum(map(_own_bytes, self.writes))

    def band_rows(self, band_bytes: int) -> int:
        """Rows per band: a multiple of every codec's block, at most about `band_bytes` of float32."""
        if len(self.shape) < 2:
            return max(1, band_bytes // 4)
        step = self.row_step
        row_bytes = max(1, 4 * prod(self.shape[1:]))
        if self.low_rank:
            # A band is held three times, before and after and the change, or four times.
            band_bytes //= 4
        return max(step, band_bytes // row_bytes // step * step)

    @property
    def decoded(self) -> str | None:
        """The dtype to which values are decoded before they are encoded; None if they are used as stored."""
        source, target = self.reads[0].codec, self.writes[0].codec
        if self.low_rank:
            return "F32"
        if len(self.reads) == 1 and source.plain:
            return None
        return target.plain if target.plain in ("BF16", "F32") else "F32"

    def buffers(self, band_bytes: int) -> dict[str, int]:
        """The most bytes that a worker holds for a band: each buffer by its name, and `room` for the codecs.

        Buffers with the same name are one buffer, for all steps of a run.
        """
        rows = min(self.band_rows(band_bytes), self.shape[0]) if self.shape else 1
        held: dict[str, int] = {}
        made = {"move": self._moved, "recast": self._recast, "recode": self._recoded}[self.how](rows)
        for name, nbytes in (*self._read(rows), *made, *(merging(self, rows) if self.low_rank else ())):
            held[name] = max(held.get(name, 0), nbytes)
        return held

    def _read(self, rows: int) -> Iterator[tuple[str, int]]:
        for copy in self.copies:
            yield "copy", copy.read.spec.nbytes
        for twin in self.twins:
            yield "twin", max(_rows_bytes(part, twin.region, rows) for part in twin.region.parts)
        for place, region in enumerate(self.reads):
            for part in region.parts:
                nbytes = _rows_bytes(part, region, rows)
                yield moved(place if self.how == "move" else 0, part), nbytes
                if region.box.shape[1:] != region.container[1:]:
                    yield "cut", nbytes

    def _moved(self, rows: int) -> Iterator[tuple[str, int]]:
        if len(self.reads) > 1 or len(self.writes) > 1:
            yield "joined", max(_rows_bytes(part, one, rows) for one in self.writes for part in one.parts)

    def _recast(self, rows: int) -> Iterator[tuple[str, int]]:
        assert self.way is not None
        for region in self.writes:
            shape = min(rows, region.box.shape[0]), *region.box.shape[1:]
            yield "room", self.way.room(shape)
            for name, spec in region.codec.specs(shape).items():
                yield f"out:{held_as(name)}", spec.nbytes
        if self.gathers:
            yield "odd", 2 * prod(self.shape) // 32

    def _recoded(self, rows: int) -> Iterator[tuple[str, int]]:
        band = (rows, *self.shape[1:]) if self.shape else ()
        before = self.decoded or self.reads[0].parts[0].spec.dtype
        width = TensorSpec(before, (1,)).nbytes
        if self.decoded:
            yield "values", width * prod(band)
            yield "piece", width * prod(band) if len(self.reads) > 1 else 0
            yield "room", max(region.codec.room(band, width, False) for region in self.reads)
        for region in self.writes:
            shape = (min(rows, region.box.shape[0]), *region.box.shape[1:]) if self.shape else ()
            restoring_ = restoring.room(region.codec, shape, width) if self.kept and not region.codec.scale_fmt else 0
            yield "room", region.codec.room(shape, width, True) + restoring_
            yield "again", 4 * prod(shape) if self.measured else 0
            if region.codec.plain != before:
                for name, spec in region.codec.specs(shape).items():
                    yield f"out:{held_as(name)}", spec.nbytes
        for part in self.kept.parts if self.kept else ():
            yield f"kept:{part.name}", _rows_bytes(part, self.kept, rows) if self.kept else 0
        if self.odd:
            yield "odd", self.odd.spec.nbytes
        if self.gathers:
            yield "odd", 2 * prod(self.shape) // 32


def merging(step: Step, rows: int) -> Iterator[tuple[str, int]]:
    """The buffers of a change of low rank beside those of recoding: see dsctl/work/merging.py."""
    assert step.low_rank is not None
    rank, shape = step.low_rank.left.rank, (rows, *step.shape[1:])
    yield "lora:left", 4 * rank * rows
    yield "lora:right", 4 * rank * step.shape[1]
    for ref in (step.low_rank.left.ref, step.low_rank.right.ref):
        yield "lora:raw", max(min(ref.nbytes, FACTOR_BYTES), ref.nbytes // ref.spec.shape[0])
    if step.low_rank.magnitude is not None:
        yield "lora:magnitude", 4 * rows
    for name in ("lora:asked", "lora:merged"):
        yield name, 4 * prod(shape)
    whole = len(step.writes) == 1 and step.writes[0].box.shape[1:] == step.shape[1:]
    yield "again", 0 if whole else 4 * prod(shape)
    # Differences of a few rows, their squares and masks.
    yield "lora:room", 24 * SUMMED_ROWS * step.shape[1]
    for codec in {region.codec for region in step.writes} if not step.exact else ():
        yield "lora:without", 4 * prod(shape)
        for name, spec in codec.specs(shape).items() if codec.quantized else ():
            yield f"lora:out:{held_as(name)}", spec.nbytes


def are_all(box: Box, regions: Sequence[Region]) -> bool:
    """Whether regions are of this box, all of them."""
    return [region.box for region in regions].count(box) == len(regions)


def region_of(piece: Piece) -> Region:
    """The region of a parameter in a checkpoint's piece, without the tensors that only state its shape."""
    slot, codec = piece.slot, piece.codec
    stated = codec.stated(slot.container)
    parts = [
        Part(name, ref.file, ref.begin, ref.spec.in_bytes)
        for name, ref in zip(codec.parts, piece.refs, strict=True)
        if name not in stated
    ]
    return Region(slot.region, codec, tuple(parts), slot.container, slot.at)


def part_of(ref: TensorRef) -> Part:
    """A stored tensor as a part without a name, to read from."""
    return Part("", ref.file, ref.begin, ref.spec)


def _own_bytes(region: Region) -> int:
    """The bytes of a region in its stored tensors, which may hold more than it."""
    if region.container == region.box.shape:
        return sum([part.spec.nbytes for part in region.parts])
    specs = region.codec.specs(region.box.shape)
    return sum(specs[part.name].nbytes for part in region.parts)


def moved(place: int, part: Part) -> str:
    """The name of the read buffer for a stored tensor; all decoded regions share the first region's buffer."""
    return f"in{place or ''}:{held_as(part.name)}"


def held_as(part: str) -> str:
    """The part whose buffer a part shares: no codec stores both plain values and codes."""
    return CODES if part == VALUES else part


def _rows_bytes(part: Part, region: Region, rows: int) -> int:
    """The bytes of a stored tensor's whole rows for a band of `rows` rows of the parameter."""
    if not region.container or not region.container[0]:
        return part.spec.nbytes
    return -(-part.spec.nbytes * min(rows, region.box.shape[0]) // region.container[0])


def share(band: Box, region: Region) -> int:
    """The bytes of a region's stored tensors that belong to a band of the parameter."""
    both = band.intersect(region.box)
    size = max(region.box.size, 1)
    return _own_bytes(region) * (both.size if both else 0) // size
