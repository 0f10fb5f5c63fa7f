"""The original of a decoded checkpoint in a folder elsewhere: its scales, headers, config and index. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from msgspec import structs

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.generic import generic
from dsctl.checkpoint.odd_scales import ODD, OddScales, read_odd
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.side_files import Original, is_altered, own_side, read_side
from dsctl.codecs.codec import CHOSEN, SCALE
from dsctl.core.config_fields import quantization_of
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.core.params import Param
from dsctl.layouts.naming import DIALECTS
from dsctl.stores import INDEX, SIGNED
from dsctl.stores.joined import PREFIX, Joined, folder_beside


class Elsewhere(NamedTuple):
    """An original in a second folder: its description, odd scales, the files to read, and notes.

    The files in `side` and `odd` have the prefix of a `Joined` store; `files` have their sizes and headers' JSON.
    """

    place: str
    side: Original
    odd: OddScales | None
    files: dict[str, tuple[int, bytes]]
    notes: tuple[str, ...]


def joined(checkpoint: Checkpoint, path: str) -> tuple[Checkpoint, Elsewhere]:
    """A checkpoint that can also read from the folder at `path`, and the original in that folder.

    The folder holds the original quantized checkpoint, or the side file of a conversion from it.

    Raises:
        SourceError, FormatError: the folder cannot be read, or contradicts itself.
        PlanError: it has no scales, or scales that do not fit the parameters of the checkpoint.
    """
    folder = folder_beside(path)
    found = original_of(open_checkpoint(folder))
    _refuse_unfit(found, checkpoint)
    return replace(checkpoint, store=Joined(checkpoint.store, folder)), found


def original_of(checkpoint: Checkpoint) -> Elsewhere:
    """The original that a folder describes: from its side file if it has one, else the folder itself.

    Raises:
        FormatError: a side file contradicts itself. PlanError: there are no scales.
    """
    place, header, notes = checkpoint.store.place, checkpoint.original, []
    if header is not None:
        if is_altered(checkpoint, ORIGINAL):
            what = f"{place}/{ORIGINAL}: was altered since it was written: {SIGNED} has a different digest"
            notes.append(f"{what}; the restored files may differ from the release's")
        side, odd = read_side(checkpoint, ORIGINAL, header), read_odd(checkpoint.store, checkpoint.files)
        files = {ORIGINAL: (checkpoint.files[ORIGINAL], header.raw)}
        files |= {ODD: (checkpoint.files[ODD], b"")} if odd else {}
    else:
        side, odd = _own(checkpoint)
        files = {file: (checkpoint.files[file], header.raw) for file, header in checkpoint.headers.items()}
    if not side.scales:
        hint = f"name the original checkpoint, or a folder with its {ORIGINAL}"
        raise PlanError(f"{place}: holds no original scales", hint=hint)
    side = replace(side, scales=_prefixed(side.scales))
    odd = OddScales(_prefixed(dict(odd.refs))) if odd else None
    return Elsewhere(place, side, odd, {PREFIX + file: one for file, one in files.items()}, tuple(notes))


def _prefixed(refs: dict[str, TensorRef]) -> dict[str, TensorRef]:
    return {name: structs.replace(ref, file=PREFIX + ref.file) for name, ref in refs.items()}


def _own(checkpoint: Checkpoint) -> tuple[Original, OddScales | None]:
    """The description of a folder that is the original itself, with its scales; those of four-bit groups apart."""
    if not checkpoint.layout.published:
        hint = "`dsctl merge` makes a whole checkpoint of ranks"
        raise PlanError(f"{checkpoint.store.place}: is not in the layout of releases", hint=hint)
    scales: dict[str, TensorRef] = {}
    groups: dict[str, TensorRef] = {}
    for pieces in checkpoint.survey.pieces.values():
        for piece in pieces:
            if piece.codec.keeps_scales:
                kept = groups if piece.codec.scales_follow else scales
                kept |= {ref.name: ref for ref in piece.chosen.values()}
    config = {"config.json": checkpoint.files["config.json"]} if "config.json" in checkpoint.files else {}
    texts = {file: checkpoint.store.read(file, 0, size) for file, size in config.items()}
    side = own_side(checkpoint)
    texts |= {INDEX: side.texts[INDEX]} if INDEX in side.texts else {}
    return replace(side, scales=scales, texts=texts), OddScales(groups) if groups else None


def _refuse_unfit(found: Elsewhere, checkpoint: Checkpoint) -> None:
    """Refuse the original of a different model.

    Raises:
        PlanError: no scale belongs to a parameter of the checkpoint, or some have a different shape or dtype.
    """
    issues, fitting = [], 0
    for name, param, wanted in _needed(found.side, checkpoint):
        ref = found.side.scales.get(name)
        if ref is None:
            continue
        if ref.spec == wanted:
            fitting += 1
            continue
        held = f"{ref.spec.dtype} {list(ref.spec.shape)}"
        issues.append(f"{name}: is {held}, {param.name} needs {wanted.dtype} {list(wanted.shape)}")
    if issues:
        what = issues[0] if len(issues) == 1 else f"{len(issues):,} scales do not fit the parameters"
        raise PlanError(f"--original: {found.place}: {what}", hint="it is of a different model", issues=issues)
    if not fitting:
        what = f"has no scale for a parameter of {checkpoint.store.place}"
        raise PlanError(f"--original: {found.place}: {what}", hint="it is of a different model")


def _needed(side: Original, checkpoint: Checkpoint) -> Iterator[tuple[str, Param, TensorSpec]]:
    """The scales that a way back can use: every name they may have, the parameter, and what they must be."""
    blocks = side.codec
    dialects = {one.dialect for one in checkpoint.published.values()} | ({blocks.dialect} if blocks else set())
    read = generic(side.specs, quantization_of(side.config)).read
    for param in checkpoint.params:
        if len(param.shape) != 2:
            continue
        codec = read[param.name].codec if param.name in read else None
        if blocks is not None and (codec is None or codec.scale_fmt):
            wanted = blocks.specs(param.shape)[SCALE]
            yield from ((DIALECTS[dialect].tensor(param.name, SCALE), param, wanted) for dialect in sorted(dialects))
        elif codec is not None:
            specs = codec.specs(param.shape)
            dialect = DIALECTS[codec.dialect]
            yield from (
                (dialect.tensor(param.name, part), param, specs[part]) for part in codec.parts if part in CHOSEN
            )
