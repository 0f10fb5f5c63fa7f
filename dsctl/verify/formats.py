"""Compare `quantization_config` with the stored format of every weight. Reads no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.matching import disagreement
from dsctl.checkpoint.pieces import Piece
from dsctl.checkpoint.quantization import LINEAR, is_named, module_of, texts
from dsctl.codecs import SPELLINGS, dress
from dsctl.codecs.codec import SCALE, Codec
from dsctl.core.config_fields import SPARED_FIELDS, value_at
from dsctl.core.params import Param
from dsctl.layouts.naming import DIALECTS
from dsctl.verify.findings import Finding
from dsctl.verify.structure import params, quantized_codecs

# Names for kinds of codes.
_KINDS = {"e2m1": "E2M1, FP4", "e4m3": "E4M3, FP8"}
# Names in compressed-tensors for the same stored tensors (vllm-project/compressed-tensors, config/base.py).
_ALIKE = {"naive-quantized": ("float-quantized", "int-quantized"), "mixed-precision": None}


def formats(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Findings about every weight whose stored format differs from `quantization_config`."""
    said, stored = checkpoint.quantization or {}, quantized_codecs(checkpoint)
    configs = [codec.config() or {} for codec in stored]
    # Other programs spell these fields in their own words.
    wrong = list(_fields(said, configs)) if checkpoint.generic is None else []
    yield from wrong
    for param, piece in params(checkpoint):
        if piece.codec.quantized and not param.quantizable:
            what = f"is quantized, but releases never quantize its role, {param.role}, and loaders do not expect it"
            yield Finding("not-quantizable", param.name, what)
        if piece.codec.scale_fmt and piece.codec.form.scale == "BF16" and checkpoint.generic is None:
            name = DIALECTS[piece.codec.dialect].tensor(param.name, SCALE)
            yield Finding("scale-dtype", name, "is BF16, but loaders expect F32")
        yield from _spelled(param, piece)
        yield from _of_table(checkpoint, param, piece)
    yield from _of_roles(checkpoint)
    known = {fault.code for fault in checkpoint.survey.faults}
    unknown = checkpoint.generic is not None and not checkpoint.generic.known_method
    if said and stored and not (wrong or unknown) and not known & {"format-not-declared", "block-size"}:
        yield from _promises(checkpoint, said)


def _of_table(checkpoint: Checkpoint, param: Param, piece: Piece) -> Iterator[Finding]:
    """Scales of a table that span several rows: loaders look up a row together with scales of its own."""
    published = checkpoint.published.get(param.role)
    group = piece.codec.form.group
    if param.family.table and piece.codec.quantized and published is not None and group != published.block:
        rows, columns = published.block
        what = f"has scales for {group[0]}x{group[1]} values, but loaders expect them for {rows}x{columns}"
        yield Finding("wrong-scale", param.name, what)


def _spelled(param: Param, piece: Piece) -> Iterator[Finding]:
    """Exponents stored in a different dtype than the dialect's: a loader that copies numbers reads 2^-7 as 120."""
    codec = piece.codec
    wanted = SPELLINGS.get(codec.dialect, {}).get("scale_dtype")
    if codec.quantized and wanted and codec.form.scale == "E8M0":
        stored = piece.refs[codec.parts.index(SCALE)].spec.dtype
        if stored != wanted:
            name = DIALECTS[codec.dialect].tensor(param.name, SCALE)
            what = f"its scales {name} are {stored}, but {wanted} in releases: loaders may copy their bytes as numbers"
            yield Finding("wrong-scale-dtype", param.name, what)


class RoleField(NamedTuple):
    """A field of `config.json` about the stored format of a role: `said` is its value, `true` the right one.

    `usual` is the value that loaders assume if it is absent; `stored` lists the kinds of codes that store the role.
    """

    name: str
    role: str
    said: object
    true: str | None
    usual: str
    stored: tuple[str, ...]


def role_fields(checkpoint: Checkpoint) -> Iterator[RoleField]:
    """Every such field of the architecture, for roles that have stored parameters."""
    codes: dict[str, dict[str, None]] = {}
    for param, piece in params(checkpoint):
        codes.setdefault(param.role, {})[piece.codec.form.codes] = None
    for role, published in checkpoint.published.items():
        for name, values in published.fields:
            stored = tuple(codes.get(role, ()))
            said = value_at(checkpoint.config or {}, name)
            true = dict(values).get(stored[0]) if len(stored) == 1 else None
            if stored:
                yield RoleField(name, role, said, true, values[0][1], stored)


def _of_roles(checkpoint: Checkpoint) -> Iterator[Finding]:
    for field in role_fields(checkpoint):
        kinds = " and ".join(_KINDS.get(kind, kind) for kind in field.stored)
        if len(field.stored) > 1:
            what = f"{field.role} are stored as {kinds}, but loaders assume one format for all"
            yield Finding("expert-dtype", field.name, what)
        elif field.said == field.true or (field.said is None and field.true == field.usual):
            continue
        elif field.said is None:
            what = f"is absent, but {field.role} are stored as {kinds}: vLLM assumes {field.usual!r}"
            yield Finding("expert-dtype-missing", field.name, what)
        else:
            true = f"the right value is {field.true!r}" if field.true else "no single value is right"
            what = f"is {field.said!r}, but {field.role} are stored as {kinds}: {true}"
            yield Finding("expert-dtype", field.name, what)


def _fields(said: Mapping[str, Any], true: list[dict[str, Any]]) -> Iterator[Finding]:
    """Fields besides the method that change what loaders do; `fmt` is often absent, and then means the stored one."""
    for key in ("activation_scheme", *(["fmt"] if "fmt" in said else [])):
        yield from (Finding(*fault) for fault in disagreement(said, true, key))

    format_ = said.get("format") if said.get("quant_method") == dress.METHOD else None
    stored = dict.fromkeys(config["format"] for config in true if "format" in config)
    if stored and not any(_is_format(format_, one) for one in stored):
        yield _config(f"format is {format_!r}, but weights are stored for {', '.join(map(repr, stored))}")


def _config(what: str) -> Finding:
    return Finding("format-not-declared", "config.json", what)


class _ConfigGroup(NamedTuple):
    """A part of `quantization_config`: the modules that it covers, and the format that it declares for them."""

    name: str
    targets: tuple[str, ...]
    said: Mapping[str, Any]

    def fits(self, codec: Codec) -> bool:
        config = codec.config() or {}
        if self.said.get("quant_method") not in (None, dress.METHOD):
            return bool(config.get("quant_method") == self.said["quant_method"])
        format_, weights = self.said.get("format"), self.said.get("weights")
        return dress.same(weights or {}, config) and _is_format(format_, config.get("format"))


def _is_format(said: object, stored: object) -> bool:
    """Whether a declared format fits the stored one; some names cover several formats, and an absent one fits all."""
    alike = _ALIKE.get(said, ()) if isinstance(said, str) else None
    return alike is None or said == stored or stored in alike


def _groups(said: Mapping[str, Any]) -> list[_ConfigGroup]:
    if said.get("quant_method") != dress.METHOD:
        return [_ConfigGroup("quantization_config", (LINEAR,), said)]
    groups = said.get("config_groups") or {}
    return [
        _ConfigGroup(name, texts(one.get("targets")), {"format": said.get("format")} | _given(one))
        for name, one in groups.items()
    ]


def _given(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if value is not None}


def _promises(checkpoint: Checkpoint, said: Mapping[str, Any]) -> Iterator[Finding]:
    """Weights whose stored format differs from the config: a single finding if this holds for all of them."""
    spared = tuple(text for key in SPARED_FIELDS for text in texts(said.get(key)))
    groups, used = _groups(said), set[str]()
    others: list[Finding] = []
    quantized = 0
    for param, piece in params(checkpoint):
        module, is_quantized = module_of(param), piece.codec.quantized
        if param.family.table:
            continue
        quantized += is_quantized
        spares = any(is_named(text, module, param) is True for text in spared)
        mine = [one for one in groups if any(is_named(text, module, param) is not False for text in one.targets)]
        used |= {one.name for one in mine if is_quantized}
        if not is_quantized:
            if checkpoint.layout.decoded(param.family):
                continue
            if param.quantizable and mine and not any(is_named(text, module, param) is not False for text in spared):
                others.append(_plain(param, piece.refs[0].spec.dtype, checkpoint))
        elif spares or not mine:
            why = "excludes it" if spares else "has no target that matches it"
            others.append(Finding("other-format", param.name, f"is {piece.codec.name}, but quantization_config {why}"))
        elif not any(one.fits(piece.codec) for one in mine):
            declared = " or ".join(dict.fromkeys(_declared(one) for one in mine))
            what = f"is stored as {piece.codec.name}, but quantization_config declares {declared}"
            others.append(Finding("other-format", param.name, what))
    wrong = [one for one in others if one.code == "other-format"]
    if quantized and len(wrong) == quantized:
        yield _config(f"no weight is stored as quantization_config declares: {wrong[0]}, and {len(wrong) - 1:,} more")
        return
    yield from others
    for one in groups:
        if one.name not in used:
            yield _config(f"the targets of {one.name} match no quantized weight: {', '.join(one.targets) or 'empty'}")


def _plain(param: Param, dtype: str, checkpoint: Checkpoint) -> Finding:
    names = sorted(quantized_codecs(checkpoint), key=lambda codec: codec.name)
    promised = dict.fromkeys("FP8" if codec.scale_fmt else codec.name for codec in names)
    what = f"is {dtype}, but quantization_config declares {' or '.join(promised)}"
    return Finding("not-quantized", param.name, what)


def _declared(group: _ConfigGroup) -> str:
    weights = group.said.get("weights")
    if not isinstance(weights, dict):
        return str(group.said.get("quant_method"))
    return dress.told(weights) + (f", format {group.said['format']}" if group.said.get("format") else "")
