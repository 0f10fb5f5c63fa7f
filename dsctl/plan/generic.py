"""Plan a checkpoint whose architecture is unknown: what a request may ask for, and what the original shall be. Pure.

Quantized matrices convert to any format. What was not quantized stays so, unless a glob names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dsctl import models
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.generic import generic
from dsctl.checkpoint.side_files import Original
from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.core.amounts import plural
from dsctl.core.config_fields import quantization_of
from dsctl.core.errors import PlanError
from dsctl.plan.notes import WARNING
from dsctl.plan.recipes import FOR_EXPERTS
from dsctl.plan.request import BLOCKS, KEEP, PUBLISHED, RECIPE, Request


def with_asked(checkpoint: Checkpoint, request: Request) -> Checkpoint:
    """The checkpoint; if its architecture is unknown, with the unquantized matrices that the request names marked."""
    if checkpoint.generic is None:
        return checkpoint
    asked = tuple(match for _, match, format_ in request.rules if match and _is_quantized(format_))
    asked += request.only if _is_quantized(request.to) else ()
    return replace(checkpoint, asked=asked) if asked else checkpoint


def check(checkpoint: Checkpoint, request: Request, original: Original | None) -> None:
    """Refuse what needs a known architecture.

    Raises:
        PlanError: in one line, with the known architectures.
    """
    if checkpoint.generic is None:
        return
    place, quantizes = checkpoint.store.place, [f for f in _formats(request) if _is_quantized(f)]
    if request.layout != "published":
        raise needs_architecture(place, f"layout {request.layout}")
    if experts := [name for name in quantizes if name in FOR_EXPERTS]:
        raise needs_architecture(place, f"{experts[0]}, which is for routed experts,")
    quantizable = any(family.quantizable for family in checkpoint.families)
    if request.to == PUBLISHED and original is None and not quantizable:
        raise needs_architecture(place, "--to published without original.dsctl")
    if quantizes and not quantizable and not (original is not None and request.to == BLOCKS):
        hint = "--only GLOB names them, as globs in a recipe do; `dsctl inspect SRC --tensors` lists names"
        raise PlanError(f"{place}: its architecture is unknown: which matrices to quantize must be named", hint=hint)


def needs_architecture(place: str, what: str) -> PlanError:
    """The refusal of something that only a known architecture makes possible."""
    return PlanError(f"{place}: {what} needs a config.json of a known architecture", hint=models.known())


def notes(checkpoint: Checkpoint, returned: Mapping[str, Codec]) -> list[str]:
    """Remarks on a checkpoint whose architecture is unknown; `returned` are the codecs that come back, by name."""
    if checkpoint.generic is None:
        return []
    found = checkpoint.generic
    told = ["the architecture is unknown: the parameters are those that the headers show", *found.notes]
    if found.unread:
        count, first = len(found.unread), min(found.unread)
        what = f"{plural(count, 'tensor')} stored in a form that dsctl does not read, such as {first}"
        told.append(f"{WARNING}{what}: copied unchanged")
    scaled = [one.name for one in returned.values() if one.quantized and not one.keeps_scales]
    for name in dict.fromkeys(scaled):
        count = scaled.count(name)
        told.append(f"scales: {count:,} parameters in {name} get new ones: only those of FP8 blocks are kept")
    return told


def values(checkpoint: Checkpoint) -> Iterator[tuple[Codec, int]]:
    """The numbers of stored values by codec; of an unknown architecture only floats."""
    stored = checkpoint.values_stored
    return stored if checkpoint.generic is None else (one for one in stored if one[0].plain in FLOATS)


def returns(checkpoint: Checkpoint, request: Request, original: Original | None) -> Mapping[str, Codec]:
    """The codecs that the original has for parameters that a request brings back to it, by name.

    Empty if the architecture is known, because its published formats are, too.
    """
    if checkpoint.generic is None or original is None or request.to not in (PUBLISHED, BLOCKS):
        return {}
    found = generic(original.specs, quantization_of(original.config))
    if request.to == PUBLISHED:
        plain = {name: Plain(spec.dtype) for name, spec in original.specs.items()}
        read = {name: one.codec for name, one in found.read.items()}
        return {one.template: read.get(one.template) or plain[one.template] for one in found.families}
    fmt = request.scale_fmt
    codecs = {name: one.codec for name, one in found.read.items()}
    return {name: one for name, one in codecs.items() if one.scale_fmt and fmt in ("auto", one.scale_fmt)}


def _formats(request: Request) -> list[str]:
    return [format_ for _, _, format_ in request.rules] or [request.to]


def _is_quantized(name: str) -> bool:
    return name not in (KEEP, PUBLISHED, RECIPE) and CODECS[name].quantized
