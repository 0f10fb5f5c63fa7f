"""The codec of each parameter of a target, from the request and the source's codecs. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.groups import Known
from dsctl.codecs import CODECS, NATIVE, of_published
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.core.params import OTHER, Family, Param, Published
from dsctl.plan import recipes
from dsctl.plan.recipes import FOR_EXPERTS, Rule, chosen, named, takes
from dsctl.plan.request import BLOCKS, KEEP, PUBLISHED, RECIPE, SEARCHED, Request

_WIDE, _NARROW = Plain("F32"), Plain("BF16")


@dataclass(frozen=True)
class Formats:
    """The choice of formats for one request.

    `stored` are the source's codecs and `base_dtype` is the dtype of most of its plain values. `published` describes
    the format of its releases, `quantization` is its config's. `kept` is the codec of the scales in a side file.
    `widened`: the writer of the source keeps float32 values that releases store in BF16.
    """

    request: Request
    rules: tuple[Rule, ...]
    stored: tuple[Codec, ...]
    base_dtype: str
    published: Mapping[str, Published]
    quantization: Mapping[str, Any] | None = None
    kept: Codec | None = None
    widened: bool = False

    def codec(self, param: Param, source: Codec) -> Codec:
        """The target's codec for a parameter, given the source's."""
        name = chosen(self.rules, param) if self.request.to == RECIPE else self.request.to
        key = name, param.family, source
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._found(name, param.family, source)
        return found

    @cached_property
    def _known(self) -> dict[tuple[str, Family, Codec], Codec]:
        """Earlier choices, by format name, family and the source's codec."""
        return {}

    def _found(self, name: str, family: Family, source: Codec) -> Codec:
        narrow = Plain(family.dtype)
        if not (self.widened and source == _WIDE and narrow == _NARROW and self.base_dtype == narrow.dtype):
            return self._codec(name, family, source)
        codec = self._codec(name, family, narrow)
        return replace(narrow, exact=True) if codec == narrow and self.request.to != codec.name else codec

    def _codec(self, name: str, family: Family, source: Codec) -> Codec:
        if self.request.to == KEEP:
            return source
        if self.request.to == PUBLISHED:
            form = self.published.get(family.role)
            released = family.quantizable and form is not None
            codec = self._released(form) if form else self._blocks[0]
            return self._stored_as(codec, family, source, released)
        if family.table and not (name != KEEP and CODECS[name].plain):
            return self._of_table(name, family, source)
        if self.request.to in FOR_EXPERTS and not takes(self.format, family):
            return source
        if self.request.to != RECIPE:
            return self._stored_as(self.format, family, source, takes(self.format, family))
        if name == KEEP:
            return recipes.kept(self.rules, source)
        codec = self._named(name)
        return self._stored_as(codec, family, source, takes(codec, family))

    def _of_table(self, name: str, family: Family, source: Codec) -> Codec:
        """The codec of a table: in FP8 its own, whose scales belong to single rows; other formats leave it as it is."""
        form = self.published.get(family.role)
        encoded = name == BLOCKS and form is not None and source.plain is not None
        return of_published(form) if encoded and form is not None else source

    def _stored_as(self, codec: Codec, family: Family, source: Codec, quantizable: bool) -> Codec:
        """The codec of a format for a parameter; an unquantized parameter keeps the source's or the release's dtype."""
        if source.plain is None:
            return codec if codec.plain or quantizable else Plain("BF16")
        if not codec.plain and quantizable:
            return codec
        follows = source.plain == self.base_dtype and source.plain in FLOATS and family.dtype != "F32"
        if not follows:
            return source
        return codec if codec.plain else Plain(source.plain if source.plain == "F16" else family.dtype)

    @cached_property
    def format(self) -> Codec:
        """The requested format; the plain one if each parameter has its own."""
        if self.request.to in (KEEP, RECIPE, PUBLISHED):
            return Plain(self.base_dtype)
        return self._named(self.request.to)

    def _named(self, name: str) -> Codec:
        """A format by its name, with the source's scales if they can stay, and with the requested search."""
        if name == "fp8-block":
            return self._blocks[0]
        codec = named(name, self.stored)
        return replace(codec, search=True) if self.request.search and name in SEARCHED else codec  # type: ignore[type-var]

    def _released(self, form: Published) -> Codec:
        codec, blocks = of_published(form, self.quantization), self._blocks[0]
        if form.own_block:
            return codec
        if not isinstance(codec, Fp8Block) or codec.name == blocks.name:
            return codec if codec.scale_fmt is None else blocks
        return replace(codec, block=blocks.block, scale_fmt=blocks.scale_fmt)

    @cached_property
    def _blocks(self) -> tuple[Codec, list[str]]:
        """fp8-block and notes on its scales: as requested, or else as in the original, the source or its releases."""
        own = {form.block for form in self.published.values() if form.own_block}
        blocks = [codec for codec in self.stored if codec.scale_fmt and codec.block not in own]
        asked = self.request.scale_fmt
        if self.kept and asked in ("auto", self.kept.scale_fmt):
            return self.kept, [f"scales: {self.kept.scale_fmt}; original scales are reused if they still fit"]
        notes = []
        if self.kept:
            what = f"the original scales are {self.kept.scale_fmt} and are not used: every block gets a new scale"
            notes.append(f"scales: {what}")
        elif not blocks and self.request.to in ("fp8-block", PUBLISHED):
            what = "if these weights were decoded from FP8, the original files do not come back byte for byte"
            notes.append(f"scales: the source has no {ORIGINAL}, so every block gets a new scale; {what}")
            notes.append("scales: --original FOLDER takes the original ones from the FP8 checkpoint")
        fmt, why = (asked, "as requested") if asked != "auto" else self._usual_scales(blocks)
        form = next((form for form in self.published.values() if CODECS[form.format].scale_fmt), None)
        size = blocks[0].block if blocks else form.block if form else (128, 128)
        if form is not None and form.dialect == NATIVE:
            return self._native_blocks(size, blocks)
        return Fp8Block(size, fmt, dialect=form.dialect if form else "deepseek"), [*notes, f"scales: {fmt} ({why})"]

    def _native_blocks(self, size: tuple[int, int], stored: list[Codec]) -> tuple[Codec, list[str]]:
        """The same for V4, whose scales are powers of two in either dtype, E8M0 or float32."""
        asked, usual = self.request.scale_fmt, stored[0].form.scale if stored else "E8M0"
        scale, why = (
            ({"ue8m0": "E8M0", "float32": "F32"}[asked], "as requested") if asked != "auto" else (usual, "as stored")
        )
        dtype = "F8_E8M0" if scale == "E8M0" else "F32"
        return Fp8Block(size, "ue8m0", dtype, NATIVE), [f"scales: powers of two, stored as {dtype} ({why})"]

    def _usual_scales(self, stored: list[Codec]) -> tuple[str, str]:
        if stored and stored[0].scale_fmt:
            return stored[0].scale_fmt, "as the source declares"
        known = next((form for form in self.published.values() if form.scale_fmt), None)
        if known is not None and known.scale_fmt:
            return known.scale_fmt, known.why
        return "float32", "as V3 and R1 store them; --scale-fmt ue8m0 for V3.1 and later"

    @property
    def notes(self) -> list[str]:
        """Notes on the requested formats."""
        names = {rule.format for rule in self.rules} or {self.request.to}
        return self._blocks[1] if names & {"fp8-block", PUBLISHED} and self._has_blocks(names) else []

    def _has_blocks(self, names: set[str]) -> bool:
        return "fp8-block" in names or any(CODECS[form.format].scale_fmt for form in self.published.values())


def base_dtype(values: Iterable[tuple[Codec, int]]) -> str:
    """The dtype of most unquantized values; `values` are their numbers by codec."""
    found: dict[str, int] = {}
    for codec, count in values:
        if codec.plain:
            found[codec.plain] = found.get(codec.plain, 0) + count
    return max(found, key=lambda dtype: found[dtype], default="BF16")


def formats_of(
    request: Request,
    stored: Iterable[tuple[Codec, int]],
    published: Mapping[str, Published],
    quantization: Mapping[str, Any] | None = None,
    kept: Codec | None = None,
) -> Formats:
    """The choice for a source with these numbers of values by codec; the other arguments are those of `Formats`."""
    stored = list(stored)
    rules = tuple(Rule(*rule) for rule in request.rules)
    codecs = tuple(dict.fromkeys(codec for codec, _ in stored))
    return Formats(request, rules, codecs, base_dtype(stored), published, quantization, kept)


def known_formats(known: Known, request: Request) -> Formats:
    """The choice for the description of a checkpoint."""
    published = known.model.published(known.config, known.traits) if known.model else {}
    stored = ((group.codec, group.values) for group in known.groups if group.family.role != OTHER)
    return formats_of(request, stored, published, known.quantization)
