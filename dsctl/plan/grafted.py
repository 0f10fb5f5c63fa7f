"""Plan a graft: the codec of each parameter of another checkpoint, and what the audit says. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.grafts import Graft, folded
from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.side_files import Original, own_side
from dsctl.codecs import dress, in_dialect
from dsctl.codecs.codec import Codec, moves_to
from dsctl.codecs.fp4 import Fp4
from dsctl.codecs.fp8_block import CT_BLOCKS
from dsctl.codecs.plain import Plain
from dsctl.core.amounts import plural
from dsctl.core.errors import PlanError
from dsctl.core.params import OTHER, Family
from dsctl.plan.notes import WARNING
from dsctl.stores import INDEX

_LAYER = "{layer}."
# The role whose form a quantizable matrix of a role that the base lacks takes.
_USUAL = "attention"


def codecs(checkpoint: Checkpoint, as_base: bool) -> dict[str, Codec]:
    """The codec of every grafted parameter in the target, by name.

    `as_base` takes the codec that the base has for it, or for its role. Otherwise bytes are never changed; if they have
    the form of the base's, they get its names.
    """
    if checkpoint.view is None:
        return {}
    forms, said = _Forms.of(checkpoint), checkpoint.quantization or {}
    families = {param.name: param.family for param in checkpoint.params}
    found: dict[str, Codec] = {}
    for graft in checkpoint.grafts:
        for name in graft.params:
            source = checkpoint.survey.pieces[name][0].codec
            usual = checkpoint.view.had.get(name) or forms.usual(families[name])
            takes = usual is not None and (as_base or moves_to(source, usual))
            found[name] = (
                usual if takes and usual is not None else _own(source, graft.spelled, said.get("quant_method"))
            )
    return found


def _own(codec: Codec, spelled: Mapping[str, str], method: object) -> Codec:
    """The codec as it is, without the spelling of codes of the layout in which it is stored.

    If the base declares its forms as compressed-tensors, the same bytes get the names that compressed-tensors has.
    """
    dressed = replace(CT_BLOCKS, scale_dtype="F32")
    if method == dress.METHOD and codec.scale_fmt and moves_to(codec, dressed):
        return dressed
    if isinstance(codec, Fp4) and not codec.surveys and codec.codes_dtype == spelled.get(codec.form.codes):
        return in_dialect(codec, codec.dialect)
    return codec


@dataclass
class _Forms:
    """The base's own codecs: by the end of a template and by role, with their numbers; `dtypes` of plain values."""

    ends: dict[str, Codec] = field(default_factory=dict)
    roles: dict[tuple[str, bool], dict[Codec, int]] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Forms:
        found, taken = cls(), {name for graft in checkpoint.grafts for name in graft.params}
        had = checkpoint.view.had if checkpoint.view is not None else {}
        for param in checkpoint.params:
            pieces = checkpoint.survey.pieces.get(param.name)
            codec = had.get(param.name) if param.name in taken else pieces[0].codec if pieces else None
            if codec is not None:
                found.count(param.family, codec)
        return found

    def count(self, family: Family, codec: Codec) -> None:
        # Of several layers, the last one counts: an MTP layer comes after it.
        self.ends[_end(family)] = codec
        numbers = self.roles.setdefault((family.role, family.quantizable), {})
        numbers[codec] = numbers.get(codec, 0) + 1
        if codec.plain and family.dtype == "BF16":
            self.dtypes[codec.plain] = self.dtypes.get(codec.plain, 0) + family.values

    def usual(self, family: Family) -> Codec | None:
        """The codec of a family of which the base stores no parameter; None if nothing shows it."""
        if family.role == OTHER:
            return None
        if (known := self.ends.get(_end(family))) is not None:
            return known
        roles = ((family.role, family.quantizable), (_USUAL, True)) if family.quantizable else ((family.role, False),)
        for role in roles:
            if numbers := self.roles.get(role):
                return max(numbers, key=lambda codec: numbers[codec])
        if family.quantizable or family.dtype != "BF16" or not self.dtypes:
            return None
        return Plain(max(self.dtypes, key=lambda dtype: self.dtypes[dtype]))


def _end(family: Family) -> str:
    """The part of a template after the layer: main layers and drafters share it."""
    return family.template.partition(_LAYER)[2] or family.template


def check(checkpoint: Checkpoint, allow_missing: bool) -> None:
    """Refuse a graft after which a drafter is not complete.

    Raises:
        PlanError: naming the missing parameters.
    """
    left = [param.name for param in checkpoint.survey.missing if param.family.mtp]
    if checkpoint.grafts and left and not allow_missing:
        what = f"{checkpoint.store.place}: {plural(len(left), 'parameter')} of its drafter would still be missing"
        hint = "name all of them, or continue without them with --allow-missing"
        raise PlanError(f"{what}, such as {left[0]}", hint=hint, issues=left)


def notes(checkpoint: Checkpoint, chosen: Mapping[str, Codec]) -> Iterator[str]:
    """What comes from where, and what the target does not keep."""
    for graft in checkpoint.grafts:
        yield f"{plural(len(graft.params), 'parameter')} of {graft.place}: {graft.named}"
        yield from graft.notes
    new = [name for name in chosen if checkpoint.view is not None and name not in checkpoint.view.had]
    if new and checkpoint.generic is not None:
        what = f"{plural(len(new), 'parameter')} that {checkpoint.store.place} does not have, such as {new[0]}"
        yield f"{WARNING}{what}: its architecture is unknown, so check that its config.json describes them"
    if left := stale(checkpoint, chosen):
        yield f"{' and '.join(sorted(left))}: left out, because the graft has forms or parameters that the base had not"


def stale(checkpoint: Checkpoint, chosen: Mapping[str, Codec]) -> set[str]:
    """The base's side files that are not true of the target: it has new parameters, or forms that the base had not."""
    if checkpoint.view is None or not checkpoint.grafts:
        return set()
    same = all(checkpoint.view.had.get(name) == codec for name, codec in chosen.items())
    return set() if same else {ORIGINAL, ODD} & checkpoint.files.keys()


def sides(checkpoint: Checkpoint) -> Iterator[Original]:
    """The descriptions of the folders whose headers and index the target repeats if it has the same tensors."""
    if checkpoint.grafts and checkpoint.layout.published:
        yield own_side(checkpoint)
    for graft in (one for one in checkpoint.grafts if not one.renamed):
        size = graft.files[INDEX] if INDEX in graft.texts else None
        texts = {} if size is None else {INDEX: checkpoint.store.read(graft.prefix + INDEX, 0, size)}
        yield Original(dict(graft.headers), {}, {}, texts, {})


def described(grafts: Iterable[Graft]) -> list[dict[str, Any]]:
    """The sources of a graft as JSON: what came from where."""
    return [
        {
            "place": graft.place.encode(errors="backslashreplace").decode(),
            "revision": graft.revision,
            "globs": list(graft.globs),
            "parameters": len(graft.params),
            "bytes": graft.nbytes,
            "names": folded(graft.params.values()),
        }
        for graft in grafts
    ]
