"""Cover what is wanted with what is stored: which pieces, which copies are compared, and whether blocks stay whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import prod

from dsctl.boxes import Box
from dsctl.checkpoint import Checkpoint, Piece
from dsctl.codecs import Misaligned
from dsctl.errors import PlanError
from dsctl.layouts import Slot
from dsctl.steps import Region, Step, Twin, region_of


def cover(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """One piece for every region: of copies the first. The regions of one layout are equal or apart."""
    if len(pieces) == 1:
        return pieces
    return tuple({piece.slot.region: piece for piece in reversed(pieces)}.values())[::-1]


def covers(pieces: tuple[Piece, ...], shape: tuple[int, ...], slots: tuple[Slot, ...]) -> bool:
    """Whether pieces that do not overlap hold all that the slots want of a parameter."""
    boxes = [piece.slot.region for piece in pieces]
    if sum(box.size for box in boxes) == prod(shape):
        return True
    found = ((slot.region.size, [both.size for box in boxes if (both := box.intersect(slot.region))]) for slot in slots)
    return all(size == sum(sizes) for size, sizes in found)


def torn(checkpoint: Checkpoint, names: list[str]) -> PlanError:
    """What to say where parameters are not all there."""
    said = checkpoint.layout.shares.said if checkpoint.layout.shares else ""
    what = f"{len(names):,} parameters are not all there" + (f": {said}" if said else "")
    hint = "put the parts of all ranks into one folder" if said else None
    return PlanError(f"{checkpoint.store.place}: {what}", hint=hint, issues=names[:20])


def twins(name: str, held: tuple[Piece, ...], pieces: tuple[Piece, ...]) -> Iterator[Twin]:
    """The copies, among the pieces held, of those that are read.

    Raises:
        PlanError: a copy is stored in another format.
    """
    if len(held) <= len(pieces):
        return
    places = {piece.slot.region: number for number, piece in enumerate(pieces)}
    chosen = set(map(id, pieces))
    for piece in held:
        number = places.get(piece.slot.region)
        if number is None or id(piece) in chosen:
            continue
        if piece.codec != pieces[number].codec:
            files = f"{pieces[number].refs[0].file} and {piece.refs[0].file}"
            raise PlanError(f"{name}: {files} store it in different formats")
        yield Twin(number, region_of(piece))


class Blocks:
    """Whether steps leave blocks whole. Steps with equal regions are looked at once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[str, str]] = {}

    def cut(self, step: Step) -> tuple[str, str]:
        """Why the stored regions of a step, and why its moves, cut through blocks; empty where they do not."""
        key = (step.how, *map(_geometry, step.reads), None, *map(_geometry, step.writes))
        if key not in self._known:
            stored = next((why for region in (*step.reads, *step.writes) if (why := _why(region, region))), "")
            stored = stored or next((why for region in step.writes if (why := _common(region))), "")
            stored = stored or (_of_several(step) if step.how == "recode" else "")
            moves = ((read, write) for read in step.reads for write in step.writes)
            moved = next((why for read, write in moves if (why := _why(read, write) or _why(write, read))), "")
            self._known[key] = stored, moved if step.how == "move" else ""
        return self._known[key]


def _geometry(region: Region) -> tuple[object, ...]:
    return region.box, region.codec, region.container, region.at


def _common(region: Region) -> str:
    """Why a region cannot be joined with what is above it in its container: a stored tensor would be of both."""
    if not region.at or not region.at[0]:
        return ""
    above = Box((0,) * len(region.at), (region.at[0], *region.container[1:]))
    for part in region.parts:
        if region.codec.box(part.suffix, above, region.container).intersect(region.place(part.suffix, region.box)):
            return f"its {part.suffix.strip('_') or 'weight'} would be that of what it is joined with, too"
    return ""


def _of_several(step: Step) -> str:
    """Why parts cannot be encoded each for itself: something stored, such as the scale of a row, is of several."""
    codec, boxes = step.writes[0].codec, {region.box for region in step.writes}
    for suffix in () if codec.surveys or len(boxes) == 1 else (part.suffix for part in step.writes[0].parts):
        try:
            held = [codec.box(suffix, box, step.shape) for box in boxes]
        except Misaligned:
            continue
        if any(one.intersect(other) for one, other in combinations(held, 2)):
            return f"its {suffix.strip('_') or 'weight'} is of several parts: convert to {codec.name} first, then shard"
    return ""


def _why(one: Region, other: Region) -> str:
    """Why what two regions share cannot be told from the rest of the first; empty where it can be."""
    both = one.box.intersect(other.box)
    if both is None:
        return ""
    try:
        for part in one.parts:
            one.place(part.suffix, both)
    except Misaligned as error:
        return str(error)
    return ""
