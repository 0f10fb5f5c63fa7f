"""The target of one request on one checkpoint: layout, formats, contents of the source's side files. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.odd_scales import OddScales, read_odd
from dsctl.checkpoint.originals import Elsewhere
from dsctl.checkpoint.reading import read_header
from dsctl.checkpoint.side_files import WHOLE, Original, is_altered, own_side, read_side
from dsctl.codecs import CODECS, in_dialect
from dsctl.codecs.codec import Codec
from dsctl.codecs.recasts import recast
from dsctl.codecs.renumbered import Renumbered
from dsctl.core.choices import choose
from dsctl.core.errors import PlanError
from dsctl.core.header import Header
from dsctl.core.params import Param, Published
from dsctl.layouts import WIDENED
from dsctl.layouts.layout import Layout
from dsctl.layouts.transformers import MIXED
from dsctl.plan import generic, grafted
from dsctl.plan.formats import Formats, base_dtype
from dsctl.plan.laid import laid, undone
from dsctl.plan.recipes import Rule, check
from dsctl.plan.request import BLOCKS, KEEP, ONLY, PUBLISHED, RECIPE, SCALED, Request, refuse_idle
from dsctl.plan.returning import foreign, reused
from dsctl.plan.spread import Subject, arrangement
from dsctl.stores import CONFIG, INDEX, PARAMS, PARAMS_INDEX, SIGNED


@dataclass(frozen=True)
class Target:
    """The checkpoint to make.

    `original` and `whole` are the side files' descriptions of the folder that the source was made from, by a change of
    format and of layout. `odd` are its scales that do not follow from the values. `notes` are remarks on all of this.
    `returns` are the original's codecs of parameters that shall have them again: of an unknown architecture, or if the
    original was stored in other forms than its release. `grafted` are the codecs of parameters of other checkpoints.
    """

    checkpoint: Checkpoint
    request: Request
    subject: Subject
    layout: Layout
    formats: Formats
    original: Original | None
    whole: Original | None
    notes: tuple[str, ...]
    odd: OddScales | None = None
    returns: Mapping[str, Codec] = field(default_factory=dict)
    grafted: Mapping[str, Codec] = field(default_factory=dict)

    @property
    def restores(self) -> bool:
        """Whether the folder that the source was decoded from shall come back, as far as a side file keeps it."""
        return self.original is not None and self.request.to in SCALED

    @cached_property
    def saves(self) -> bool:
        """Whether the target keeps a side file for the way back.

        It has the scales that decoding or recasting loses, and the config that declares the released format.
        """
        checkpoint, request = self.checkpoint, self.request
        if request.to in (KEEP, RECIPE, PUBLISHED) or not (request.keep_scales and checkpoint.layout.published):
            return False
        if self.formats.format.plain:
            return any(codec.keeps_scales for codec in checkpoint.stored_codecs)
        return request.to == BLOCKS and any(recast(codec, self.formats.format) for codec in checkpoint.stored_codecs)

    @cached_property
    def encoded(self) -> Codec | None:
        """The codec with which the whole stored the parameters that a layout decoded, if its scales are kept."""
        return None if self.whole is None else _kept_codec(self.formats.published, self.whole)

    @property
    def homes(self) -> Mapping[str, str]:
        """The files of grafted parameters, by parameter or tensor."""
        return self.checkpoint.view.homes if self.checkpoint.view is not None else {}

    @property
    def chosen_by_name(self) -> bool:
        """Whether `codec` can differ between parameters of one family that have the same codec in the source."""
        return bool(self.formats.rules or self.returns or self.grafted) or self.whole is not None

    def codec(self, param: Param, source: Codec) -> Codec:
        """The target's codec for a parameter, given the source's."""
        if isinstance(source, Renumbered):
            return source.written
        if param.name in self.grafted:
            return self.grafted[param.name]
        if self.checkpoint.generic is None and param.name in self.returns:
            return self.returns[param.name]
        if (found := self.checkpoint.generic) is not None:
            stays = source.plain and not param.quantizable and not self.formats.format.plain
            if param.name in self.returns or param.name in found.unread or self.request.to == PUBLISHED or stays:
                return self.returns.get(param.name, source)
        if self.whole is not None and self.request.to == KEEP:
            source = undone(param, source, self.whole.scales, self.encoded)
        return laid(self.layout, param.family, self.formats.codec(param, source), self.checkpoint.layout.spelled)

    @cached_property
    def kept(self) -> tuple[Original, ...]:
        """The descriptions of the folder that the target restores; the source itself if it already has the format."""
        same = self.request.to in SCALED and self.checkpoint.layout.published
        sides = self.original if self.restores else None, self.whole, own_side(self.checkpoint) if same else None
        return *(one for one in sides if one is not None), *grafted.sides(self.checkpoint)


def target_of(checkpoint: Checkpoint, request: Request, elsewhere: Elsewhere | None = None) -> Target:
    """The target of a request.

    Raises:
        UsageError, PlanError: the request contradicts itself or does not fit this model. FormatError: a side file
            contradicts itself, or a map of experts does not fit this model.
    """
    _refuse_params(checkpoint)
    if request.to not in (KEEP, RECIPE):
        choose(request.to, (*CODECS, PUBLISHED), "format", "--to")
    refuse_idle(request)
    units = checkpoint.model.units(checkpoint.config) if checkpoint.model and checkpoint.config is not None else ()
    families = checkpoint.described if checkpoint.generic is None else ()
    subject = Subject(checkpoint.store.place, families, units)
    layout = arrangement(subject, replace(request, mtp=ONLY) if checkpoint.alone else request)
    rules = tuple(Rule(*rule) for rule in request.rules)
    notes = check(rules, checkpoint.params)
    if elsewhere is None:
        original = _original(checkpoint, rules, request, notes)
        odd = read_odd(checkpoint.store, checkpoint.files) if original else None
    else:
        original, odd = elsewhere.side, elsewhere.odd
        notes += [f"scales: the original ones are those of {elsewhere.place}", *elsewhere.notes]
    generic.check(checkpoint, request, original)
    whole = _whole(checkpoint, notes)
    published = _published(checkpoint, original)
    returns = generic.returns(checkpoint, request, original) or foreign(checkpoint, request, original, published)
    notes += reused(checkpoint, published, returns, original) if original and request.to == PUBLISHED else ()
    kept = next((codec for codec in returns.values() if codec.scale_fmt), _kept_codec(published, original))
    formats = Formats(
        request, rules, checkpoint.stored_codecs, base_dtype(generic.values(checkpoint)), published,
        checkpoint.quantization, kept, checkpoint.layout.name in WIDENED,
    )  # fmt: skip
    notes += generic.notes(checkpoint)
    grafts = grafted.codecs(checkpoint, request.as_base)
    notes += grafted.notes(checkpoint, grafts)
    if checkpoint.layout.name == MIXED and not any(family.mtp for family in checkpoint.families):
        notes.append("the source has no mtp.* tensors: transformers does not load a drafter, so it does not save one")
    if checkpoint.generic is not None or not returns or kept is not None:
        notes += formats.notes
    return Target(checkpoint, request, subject, layout, formats, original, whole, tuple(notes), odd, returns, grafts)


def _refuse_params(checkpoint: Checkpoint) -> None:
    """Refuse a folder in Mistral's own format, whose config and index have names that no target has.

    Raises:
        PlanError: it has `params.json` and no `config.json`.
    """
    if CONFIG not in checkpoint.files and PARAMS in checkpoint.files:
        what = (
            f"{checkpoint.store.place}: has {PARAMS} and no {CONFIG}: dsctl reads such a folder, but does not write one"
        )
        hint = f"copy {PARAMS} to {CONFIG} and {PARAMS_INDEX} to {INDEX}, and give the target's files their names back"
        raise PlanError(what, hint=hint)


def _original(checkpoint: Checkpoint, rules: tuple[Rule, ...], request: Request, notes: list[str]) -> Original | None:
    """The description of the folder from which the source was decoded, if a requested format can use it."""
    header, asked = checkpoint.original, {rule.format for rule in rules} or {request.to}
    return None if header is None or asked.isdisjoint(SCALED) else _side_file(checkpoint, ORIGINAL, header, notes)


def _whole(checkpoint: Checkpoint, notes: list[str]) -> Original | None:
    """The description of the whole checkpoint whose parts the source holds."""
    size = checkpoint.files.get(WHOLE)
    if size is None or checkpoint.layout.published:
        return None
    return _side_file(checkpoint, WHOLE, read_header(checkpoint.store, WHOLE, size), notes)


def _side_file(checkpoint: Checkpoint, file: str, header: Header, notes: list[str]) -> Original:
    """The contents of a side file; adds a note if it was altered."""
    if is_altered(checkpoint, file):
        what = f"{file}: was altered since it was written: {SIGNED} has a different digest"
        notes.append(f"{what}; the restored files may differ from the release's")
    return read_side(checkpoint, file, header)


def _published(checkpoint: Checkpoint, original: Original | None) -> Mapping[str, Published]:
    """The formats of quantized parameters in releases; those of the folder that the source was made from, if known."""
    if original is None or checkpoint.model is None:
        return checkpoint.published
    return checkpoint.model.published(original.config, checkpoint.model.traits(original.config, original.specs))


def _kept_codec(published: Mapping[str, Published], original: Original | None) -> Codec | None:
    codec = original.codec if original else None
    form = next((form for form in published.values() if CODECS[form.format].scale_fmt), None)
    return codec if codec is None or form is None else in_dialect(codec, form.dialect)
