"""Cover the wanted boxes with stored pieces: choose the pieces, pair copies to compare, and keep blocks whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from msgspec import structs

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.pieces import Piece
from dsctl.codecs.codec import CODES, VALUES, Codec, Misaligned
from dsctl.core.boxes import Box
from dsctl.core.errors import PlanError
from dsctl.layouts.layout import Slot
from dsctl.plan.plan import Recoded
from dsctl.plan.steps import Region, Step, Twin, region_of

# A refusal names at most this many parameters.
NAMED = 100


def covers(pieces: tuple[Piece, ...], shape: tuple[int, ...], slots: tuple[Slot, ...]) -> bool:
    """Whether pieces that do not overlap hold every part of a parameter that the slots need."""
    boxes = [piece.slot.region for piece in pieces]
    if len(boxes) == 1 and boxes[0].shape == shape:
        return True
    if sum(box.size for box in boxes) == prod(shape):
        return True
    found = ((slot.region.size, [both.size for box in boxes if (both := box.intersect(slot.region))]) for slot in slots)
    return all(size == sum(sizes) for size, sizes in found)


def torn(checkpoint: Checkpoint, names: list[str]) -> PlanError:
    """The error for parameters with missing parts."""
    said = checkpoint.layout.shares.said if checkpoint.layout.shares else ""
    what = f"{len(names):,} parameters are incomplete" + (f": {said}" if said else "")
    hint = "put the files of all ranks into one folder" if said else None
    return PlanError(f"{checkpoint.store.place}: {what}", hint=hint, issues=names[:20])


def twins(name: str, held: tuple[Piece, ...], pieces: tuple[Piece, ...]) -> Iterator[Twin]:
    """The pieces among `held` that are copies of the pieces to read.

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
            raise PlanError(f"{name}: its copies in {files} have different formats")
        yield Twin(number, region_of(piece))


class Blocks:
    """Checks that steps keep blocks whole. Steps with equal regions are checked once.

    With `recode`, a step that cannot be moved is recoded and listed in `recoded` instead of refused.
    """

    def __init__(self, layout: str, recode: bool) -> None:
        self._layout, self._recode = layout, recode
        self._known: dict[tuple[object, ...], tuple[str, str]] = {}
        self._wrong: dict[str, int] = {}
        self._cut: dict[str, int] = {}
        self._recoded: dict[str, Recoded] = {}

    def checked(self, step: Step, template: str, parameters: int = 1) -> Step:
        """The step, recoded if its blocks are cut; `refuse` reports the steps that are impossible."""
        stored, moved = self._why(step)
        if stored or (moved and not self._recode):
            found, issue = self._wrong if stored else self._cut, f"{step.name}: {stored or moved}"
            found[issue] = found.get(issue, 0) + parameters
        elif moved:
            before = self._recoded.get(template, Recoded(template, 0, moved))
            self._recoded[template] = before._replace(parameters=before.parameters + parameters)
            return structs.replace(step, how="recode", measured=True)
        return step

    @property
    def recoded(self) -> list[Recoded]:
        """The parameters that are recoded because of a cut, by kind."""
        return list(self._recoded.values())

    def refuse(self) -> None:
        """Refuse the checked steps if any of them is impossible.

        Raises:
            PlanError: with a line for each of them, or for each kind.
        """
        for found, what, hint in (
            (self._wrong, f"cannot be stored in layout {self._layout}", None),
            (self._cut, "would be cut through quantization blocks", "--recode quantizes these again"),
        ):
            if found:
                count, issues = sum(found.values()), list(found)[:NAMED]
                first = f": {issues[0]}" if len(issues) == 1 else ""
                parameters = f"{count:,} parameter{'s' * (count > 1)}"
                raise PlanError(f"{parameters} {what}{first}", hint=hint, issues=issues)

    def _why(self, step: Step) -> tuple[str, str]:
        """The reasons why the stored regions of a step, and why its moves, cut through blocks; empty if they do not."""
        regions = (*step.reads, *step.writes)
        if step.is_uncut and all(one.container == one.box.shape == step.shape for one in regions):
            key: tuple[object, ...] = (step.how, step.shape, *[one.codec for one in regions])
        else:
            key = (step.how, *map(_geometry, step.reads), None, *map(_geometry, step.writes))
        found = self._known.get(key)
        if found is None:
            stored = next((why for region in (*step.reads, *step.writes) if (why := _torn_by(region, region))), "")
            stored = stored or next((why for region in step.writes if (why := _common(region))), "")
            stored = stored or (_of_several(step) if step.how == "recode" else "")
            moves = ((read, write) for read in step.reads for write in step.writes)
            moved = next((why for read, write in moves if (why := _torn_by(read, write) or _torn_by(write, read))), "")
            found = self._known[key] = stored, moved if step.how == "move" else ""
        return found


def _geometry(region: Region) -> tuple[object, ...]:
    return region.box, region.codec, region.container, region.at


def _common(region: Region) -> str:
    """The reason why a region cannot be joined with the one above it: a stored tensor would cover both."""
    if not region.at or not region.at[0]:
        return ""
    above = Box((0,) * len(region.at), (region.at[0], *region.container[1:]))
    for part in region.parts:
        if region.codec.box(part.name, above, region.container).intersect(region.place(part.name, region.box)):
            return f"its {_in_words(part.name)} would also cover the matrix it is joined with"
    return ""


def _of_several(step: Step) -> str:
    """The reason why parts cannot be encoded separately: one stored value, such as a row's scale, spans several."""
    codec, boxes = step.writes[0].codec, {region.box for region in step.writes}
    if codec.surveys:
        return ""
    for name in (part.name for part in step.writes[0].parts):
        if any(_shared(codec, name, box, step.shape) for box in boxes):
            return f"one {_in_words(name)} would span several ranks: convert to {codec.name} first, then shard"
    return ""


def _in_words(part: str) -> str:
    return "weight" if part in (VALUES, CODES) else part


def _shared(codec: Codec, part: str, box: Box, shape: tuple[int, ...]) -> bool:
    """Whether a tensor stored for one part of a parameter also covers a neighbouring part, on any rank."""
    try:
        held = codec.box(part, box, shape)
        return any(codec.box(part, other, shape).intersect(held) for other in _beside(box, shape))
    except Misaligned:
        return False


def _beside(box: Box, shape: tuple[int, ...]) -> Iterator[Box]:
    """The boxes before and after a box, along every dimension."""
    for place, length in enumerate(shape):
        for begin, end in ((0, box.start[place]), (box.stop[place], length)):
            if begin < end:
                start, stop = list(box.start), list(box.stop)
                start[place], stop[place] = begin, end
                yield Box(tuple(start), tuple(stop))


def check_filled(slots: Iterable[Slot], layout: str) -> None:
    """Refuse to write a tensor that no parameter fills completely, such as joined matrices without one of them.

    Raises:
        PlanError: with every such tensor.
    """
    left: dict[tuple[str, str], int] = {}
    for slot in slots:
        if slot.stack or (slot.container != slot.region.shape and not slot.padded):
            place = slot.shard, slot.tensor
            size = left.get(place, prod(slot.container) * (slot.stack[1] if slot.stack else 1))
            left[place] = size - slot.region.size
    torn = [f"{shard}/{tensor}".removeprefix("/") for (shard, tensor), size in left.items() if size]
    if torn:
        what = (
            f"{len(torn):,} joined tensors would be only partly filled"
            if len(torn) > 1
            else f"{torn[0]} would be only partly filled"
        )
        raise PlanError(
            f"layout {layout}: {what}", hint="keep or drop all joined matrices together", issues=torn[:NAMED]
        )


def check_joined(name: str, codec: Codec, slot: Slot) -> None:
    """Refuse to join a parameter for which the codec states values of the whole.

    Raises:
        PlanError: the slot joins it.
    """
    if (slot.stack or slot.container != slot.region.shape) and codec.stated(slot.container):
        raise PlanError(f"{name}: {codec.name} cannot be joined with other matrices in one tensor")


def _torn_by(one: Region, other: Region) -> str:
    """The reason why the intersection of two regions cannot be taken from the first; empty if it can."""
    both = one.box.intersect(other.box)
    if both is None:
        return ""
    try:
        for part in one.parts:
            one.place(part.name, both)
    except Misaligned as error:
        return str(error)
    return ""
