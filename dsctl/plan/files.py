"""The file and the offset of every tensor of a target. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import structs

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.side_files import WHOLE
from dsctl.codecs.codec import SCALE, Codec
from dsctl.codecs.fp4 import SILENT
from dsctl.core.errors import PlanError
from dsctl.core.header import PT, TensorSpec, build
from dsctl.layouts.folders import folder
from dsctl.layouts.naming import DIALECTS, Ending, endings
from dsctl.plan.blocks import check_filled, check_joined
from dsctl.plan.kept import scales_of
from dsctl.plan.plan import OutFile, Placed, PlacedPart, Want
from dsctl.plan.request import ONLY
from dsctl.plan.target import Target
from dsctl.plan.whole import whole_side

# Size limit, in bytes, of files for tensors whose file the source does not give.
USUAL_SHARD = 5_000_000_000
# The number 1 as a scale.
_ONE = {"F8_E8M0": b"\x7f", "F32": b"\0\0\x80\x3f", "BF16": b"\x80\x3f"}


class _Stored(NamedTuple):
    """The tensors that a codec stores for a container: part, ending, dtype and shape, and bytes if they are stated."""

    parts: tuple[tuple[str, Ending, TensorSpec, bytes | None], ...]


@dataclass
class _Placing:
    """The places given so far for shared tensors, and the tensors of shapes seen before.

    `lost` is whether the source gives no file for some tensor.
    """

    target: Target
    shared: dict[str, str] = field(default_factory=dict)
    known: dict[tuple[Codec, tuple[int, ...]], _Stored] = field(default_factory=dict)
    lost: bool = False

    def placed(self, want: Want) -> Iterator[Placed]:
        """Every slot of a parameter with its stored tensors."""
        layout = self.target.layout
        own: dict[str, str] = {}
        for slot in want.slots:
            shares = slot.stack is not None or slot.container != slot.region.shape
            if shares:
                check_joined(want.param.name, want.codec, slot)
            homes, parts = self.shared if shares else own, []
            for name, (off, on), spec, stated in self._stored(want.codec, slot.container).parts:
                tensor = slot.tensor.removesuffix(off) + on
                if (home := homes.get(tensor)) is None:
                    home = homes[tensor] = self._home(want, tensor, name)
                    self.lost = self.lost or not home
                parts.append(PlacedPart(name, tensor, layout.file(slot.shard, home), slot.stacked(spec), stated))
            yield Placed(slot, tuple(parts))

    def _stored(self, codec: Codec, container: tuple[int, ...]) -> _Stored:
        found = self.known.get((codec, container))
        if found is None:
            specs, stated = codec.specs(container), codec.stated(container)
            named = endings(self.target.layout, codec.dialect, codec.parts)
            parts = tuple((part, ending, specs[part], stated.get(part)) for part, ending in named)
            found = self.known[codec, container] = _Stored(parts)
        return found

    def _home(self, want: Want, tensor: str, part: str) -> str:
        """The file in which a whole checkpoint keeps a tensor; empty if it is unknown."""
        target, piece = self.target, want.pieces[0]
        if (homes := target.homes) and want.param.name in homes:
            return homes.get(tensor) or homes[want.param.name]
        if target.restores and target.original and tensor in target.original.files:
            return target.original.files[tensor]
        source = piece.codec
        before, after = DIALECTS[source.dialect], DIALECTS[want.codec.dialect]
        if target.whole:
            names = after.tensor(want.param.name, part), before.tensor(want.param.name, source.parts[0])
            known = next((file for name in names if (file := target.whole.files.get(name))), None)
            if known:
                return known
        same = before.endings.get(part) == after.endings.get(part) and part in (parts := source.parts)
        ref = piece.refs[parts.index(part) if same else 0]
        return target.checkpoint.layout.home(ref.file) or ""


def place(target: Target, wants: Sequence[Want]) -> tuple[dict[str, tuple[Placed, ...]], list[str]]:
    """Name every stored tensor of the target and choose its file; gives the places by parameter, and notes.

    Raises:
        PlanError: tensors cannot be joined, or a joined tensor would be only partly filled.
    """
    placing = _Placing(target)
    notes = [f"warning: {SILENT}"] if any(w.param.family.experts and w.codec.name == "nvfp4" for w in wants) else []
    placed = {want.param.name: tuple(placing.placed(want)) for want in wants}
    check_filled((one.slot for places in placed.values() for one in places), target.layout.name)
    regrouped = placing.lost or target.request.mtp == ONLY
    limit = target.request.shard_size or (USUAL_SHARD if regrouped else 0)
    if not limit:
        return placed, notes
    placed, larger = _regrouped(target, placed, limit)
    if larger:
        notes.append(f"{larger:,} files exceed --shard-size: each holds one parameter that is larger than the limit")
    return placed, notes


def _regrouped(
    target: Target, placed: dict[str, tuple[Placed, ...]], limit: int
) -> tuple[dict[str, tuple[Placed, ...]], int]:
    """The same places in files of at most `limit` bytes, and the number of files whose one parameter is larger."""
    groups: dict[str, list[int]] = {}
    numbers: dict[tuple[str, str], int] = {}
    for one in (one for places in placed.values() for one in places):
        shard, tensor = one.slot.shard, one.slot.tensor
        if (shard, tensor) in numbers:
            continue
        cost, sizes = sum(part.spec.nbytes for part in one.parts), groups.setdefault(shard, [])
        if not sizes or sizes[-1] + cost > limit:
            sizes.append(0)
        sizes[-1] += cost
        numbers[shard, tensor] = len(sizes)

    def moved(one: Placed) -> Placed:
        shard = one.slot.shard
        home = f"model-{numbers[shard, one.slot.tensor]:05d}-of-{len(groups[shard]):06d}.safetensors"
        file = target.layout.file(shard, home)
        return structs.replace(one, parts=tuple(structs.replace(part, file=file) for part in one.parts))

    larger = sum(size > limit for sizes in groups.values() for size in sizes)
    return {name: tuple(map(moved, places)) for name, places in placed.items()}, larger


def out_files(
    target: Target, wants: Sequence[Want], placed: Mapping[str, tuple[Placed, ...]]
) -> tuple[list[OutFile], dict[tuple[str, str], int]]:
    """Every safetensors file of the target with its header, and the offset of every tensor in it by file and name.

    Raises:
        PlanError: the matrices of one joined tensor have several dtypes.
    """
    specs, stated = _tensors(part for places in placed.values() for one in places for part in one.parts)
    padding = [one for places in placed.values() for one in places if one.slot.padded]
    metadata = _metadata(target)
    files: list[OutFile] = []
    offsets: dict[tuple[str, str], int] = {}
    for file in sorted(specs):
        header, begins = _header(target, file, specs[file], metadata)
        offsets |= {(file, tensor): begin for tensor, begin in begins.items()}
        size = len(header) + sum(spec.nbytes for spec in specs[file].values())
        literals = [(begins[tensor], data) for tensor, data in stated.get(file, {}).items()]
        literals += [
            padded
            for one in padding
            for part in one.parts
            if part.file == file
            for padded in _padding(one, part, begins)
        ]
        files.append(OutFile(file, header, size, tuple(literals)))
    if target.saves:
        side = scales_of(target, placed.keys())
        offsets |= {(ORIGINAL, tensor): begin for tensor, begin in side.begins.items()}
        files.append(OutFile(ORIGINAL, side.header, side.size, side.literals))
    whole = whole_side(target, wants)
    if whole is not None:
        offsets |= {(WHOLE, tensor): begin for tensor, begin in whole.begins.items()}
        files.append(OutFile(WHOLE, whole.header, whole.size, whole.literals))
    return files, offsets


def _tensors(parts: Iterable[PlacedPart]) -> tuple[dict[str, dict[str, TensorSpec]], dict[str, dict[str, bytes]]]:
    """Dtype and shape of every stored tensor, and the bytes that are already known, by file and tensor."""
    specs: dict[str, dict[str, TensorSpec]] = {}
    stated: dict[str, dict[str, bytes]] = {}
    for part in parts:
        spec = specs.setdefault(part.file, {}).setdefault(part.tensor, part.spec)
        if spec != part.spec:
            raise PlanError(f"{part.tensor}: joins matrices of different dtypes, {spec.dtype} and {part.spec.dtype}")
        if part.stated is not None:
            stated.setdefault(part.file, {})[part.tensor] = part.stated
    return specs, stated


def _padding(place: Placed, part: PlacedPart, begins: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
    """The offset and the bytes of the rows of a stored tensor that no parameter fills: zeros, with a scale of 1."""
    rows, filled = part.spec.shape[0], place.slot.region.shape[0]
    row = part.spec.nbytes // rows
    one = _ONE[part.spec.dtype] if part.name == SCALE else b"\0"
    yield begins[part.tensor] + filled * row, one * ((rows - filled) * row // len(one))


def _header(
    target: Target, file: str, specs: dict[str, TensorSpec], metadata: Mapping[str | None, dict[str, str]]
) -> tuple[bytes, dict[str, int]]:
    for side in target.kept if target.layout.published else ():
        if known := side.header(file, specs):
            return known
    if not target.layout.metadata:
        return build(specs, {})
    return build(specs, {**metadata.get(target.layout.home(file), {}), **PT})


def _metadata(target: Target) -> dict[str | None, dict[str, str]]:
    """The metadata in the headers of the source's files, by the file of the whole checkpoint."""
    layout, whole = target.checkpoint.layout, target.whole.headers if target.whole else {}
    kept: dict[str | None, dict[str, str]] = {file: header.metadata for file, header in whole.items()}
    return kept | {layout.home(file): header.metadata for file, header in target.checkpoint.headers.items()}


def folders(target: Target) -> tuple[str, ...]:
    """The folders of ranks."""
    shares = target.layout.shares
    return tuple(map(folder, shares.present)) if shares and target.layout.foldered else ()
