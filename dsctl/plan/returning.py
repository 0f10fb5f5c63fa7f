"""The original's own forms for the way back, and remarks on their kept scales. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.generic import generic
from dsctl.checkpoint.side_files import Original
from dsctl.codecs import of_published
from dsctl.codecs.codec import CHOSEN, CODES, SCALE, Codec
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.core.config_fields import quantization_of
from dsctl.core.header import TensorSpec
from dsctl.core.params import Param, Published
from dsctl.layouts.naming import DIALECTS
from dsctl.plan.request import PUBLISHED, Request


def foreign(
    checkpoint: Checkpoint, request: Request, original: Original | None, published: Mapping[str, Published]
) -> Mapping[str, Codec]:
    """The codecs of the original of a known architecture by parameter, if not all are those of its release; else none.

    Somebody else may have quantized the release: what was decoded is then what shall come back.
    """
    if checkpoint.generic is not None or original is None or request.to != PUBLISHED or not original.scales:
        return {}
    codecs = _released(checkpoint, published)
    specs = original.specs
    expected = {
        name
        for param in checkpoint.params
        if len(param.shape) == 2 and (codec := codecs.get(param.role)) is not None
        for name in _expected(codec, param, specs)
    }
    if expected >= original.scales.keys():
        return {}
    read = generic(specs, quantization_of(original.config)).read
    # The blocks of tables are often known to the release alone.
    found: dict[str, Codec] = {
        param.name: read[param.name].codec if param.name in read else Plain(specs[param.name].dtype)
        for param in checkpoint.params
        if param.name in read or (param.name in specs and not param.family.table)
    }
    quantized = {param.name for param in checkpoint.params if param.quantizable}
    doubtful = any(name in quantized and codec.plain not in (None, *FLOATS) for name, codec in found.items())
    # The original may have more parameters than this checkpoint.
    held = {
        DIALECTS[codec.dialect].tensor(name, part)
        for name, codec in found.items()
        if codec.keeps_scales and not codec.scales_follow
        for part in codec.parts
        if part in CHOSEN
    }
    return {} if doubtful or held <= expected else found


def reused(
    checkpoint: Checkpoint, published: Mapping[str, Published], returns: Mapping[str, Codec], original: Original
) -> Iterator[str]:
    """Notes on the forms to come back: whether the original scales of their groups were kept."""
    codecs, found = _released(checkpoint, published), dict[Codec, bool]()
    for param in checkpoint.params:
        codec = returns.get(param.name, None if returns else codecs.get(param.role))
        if codec is not None and codec.quantized and not codec.scale_fmt and not codec.scales_follow:
            kept = DIALECTS[codec.dialect].tensor(param.name, SCALE) in original.scales
            found[codec] = found.get(codec, False) or kept
    held = {codec.name for codec in checkpoint.stored_codecs}
    what = "no scales were kept, so every group gets a new one: the released"
    for codec, kept in found.items():
        if codec.name in held:
            continue
        # A scale of half the size has codes for all values that a group decodes to if its largest code allows it.
        lost = "values come back exactly, some in different codes" if codec.form.powers else _INEXACT
        yield f"scales: {codec.name}: " + ("original scales are reused if they still fit" if kept else f"{what} {lost}")


_INEXACT = "codes do not come back exactly"


def _released(checkpoint: Checkpoint, published: Mapping[str, Published]) -> dict[str, Codec]:
    return {role: of_published(form, checkpoint.quantization) for role, form in published.items()}


def _expected(codec: Codec, param: Param, specs: Mapping[str, TensorSpec]) -> list[str]:
    """The names of a parameter's tensors beside the codes, if the original has them as this codec stores them.

    FP8 blocks may have scales of either float dtype.
    """
    dialect, wanted = DIALECTS[codec.dialect], codec.specs(param.shape)
    held = {part: specs.get(dialect.tensor(param.name, part)) for part in codec.parts}
    floats = {one.dtype for one in (held[SCALE], wanted[SCALE]) if one} <= {*FLOATS}
    same = held == wanted or (codec.scale_fmt and floats and held[CODES] == wanted[CODES])
    return [dialect.tensor(param.name, part) for part in codec.parts if part in CHOSEN] if same else []
