"""The parameters of a checkpoint whose architecture is unknown, from its headers: matrices with their scales by names
and shapes, every other tensor as it is. Which parameters there should be is not known. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from dsctl.checkpoint.matching import Contents, undeclared
from dsctl.checkpoint.pairing import Reading, paired, parameter_of
from dsctl.checkpoint.pieces import Fault, Piece, Survey
from dsctl.codecs import CODECS, SPELLINGS, in_dialect, readable
from dsctl.codecs.codec import CODES, SCALE, Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.core.params import OTHER, Family, Param
from dsctl.layouts.layout import whole
from dsctl.layouts.naming import DIALECTS

# Formats under the dialects that only models speak.
_NATIVE = ("fp8-block", "fp8-block-e8m0", "mxfp4")
# Methods under which four-bit floats are stored as dsctl reads them, although it declares them under a different one.
_MODELOPT = ("modelopt", "modelopt_fp4")
_LARGEST_BLOCK = 1 << 16


@dataclass(frozen=True)
class Generic:
    """The parameters, and by name the reading of each quantized one.

    `unread` are the tensors in a form that no codec reads, which are parameters as they are. `codecs` are those that
    were tried. `known_method`: the config declares a method of quantization that codecs here have, or none. `notes` say
    what follows from shapes because the config does not declare it.
    """

    families: tuple[Family, ...]
    read: Mapping[str, Reading]
    unread: frozenset[str]
    faults: tuple[Fault, ...]
    codecs: tuple[Codec, ...]
    known_method: bool
    notes: tuple[str, ...] = ()

    def survey(self, contents: Contents, configured: bool) -> Survey:
        """Every parameter with its tensors, and the faults; `configured`: there is a config.json."""
        found, names = Survey(), contents.catalogue.get("", {})
        for family in self.families:
            param, reading = Param(family.template, family, None, None), self.read.get(family.template)
            tensors = reading.tensors if reading else (family.template,)
            refs: tuple[TensorRef, ...] = tuple(names[tensor] for tensor in tensors)
            codec = reading.codec if reading else Plain(refs[0].spec.dtype)
            found.pieces[param.name] = (Piece(whole(param, "", param.name), codec, refs),)
        found.faults += self.faults
        if configured:
            found.faults += self._undeclared(contents)
        return found

    def _undeclared(self, contents: Contents) -> Iterator[Fault]:
        """Contradictions between `quantization_config` and the matrices; only what dsctl knows of a method counts."""
        if not self.known_method:
            return
        doubtful = bool(self.unread or self.faults)
        for fault in undeclared(contents, {reading.codec for reading in self.read.values()} or {Plain()}):
            if fault.code != "declared-not-stored" or not doubtful:
                yield fault


def generic(
    specs: Mapping[str, TensorSpec], quantization: Mapping[str, Any] | None, asked: tuple[str, ...] = ()
) -> Generic:
    """The parameters that these tensors show, by name.

    `asked` are globs of unquantized matrices to be quantized. All other unquantized tensors stay so.

    Raises:
        FormatError: the config declares an absurd block.
    """
    said = quantization or {}
    known, codecs = _codecs(said)
    notes = []
    if not any(codec.scale_fmt for codec in codecs[:1]) and (block := _shown(specs)) is not None:
        codecs = *_blocks((Fp8Block(block),)), *codecs
        notes.append(f"blocks of {block[0]}x{block[1]} follow from the shapes of scales; config.json declares none")
    pairs = paired(specs, codecs, known)
    if pairs.read and not said:
        notes.append("config.json declares no quantization: forms follow from names and shapes")
    owners = {tensor: name for name, one in pairs.read.items() for tensor in one.tensors}
    families: dict[str, Family] = {}
    for tensor, spec in specs.items():
        name = owners.get(tensor)
        if name is not None and name not in families:
            families[name] = Family(name, pairs.read[name].shape, OTHER, quantizable=True)
        elif name is None and tensor not in pairs.broken:
            # Without a quantized matrix, a conversion to BF16 means all values of the dtype that most have.
            dtype = spec.dtype if owners or pairs.unread or spec.dtype not in FLOATS else "BF16"
            wanted = len(spec.shape) == 2 and spec.dtype in FLOATS and any(fnmatchcase(tensor, glob) for glob in asked)
            families[tensor] = Family(tensor, spec.shape, OTHER, quantizable=wanted, dtype=dtype)
    return Generic(tuple(families.values()), pairs.read, pairs.unread, pairs.faults, codecs, known, tuple(notes))


def _codecs(said: Mapping[str, Any]) -> tuple[bool, tuple[Codec, ...]]:
    """Whether the method that a `quantization_config` declares is known (as it is if there is none), and the codecs to
    try, the declared ones first.

    Integers mean what the config says: with a method that is not known, only floats are read. If it says nothing, words
    of packed integers are not read, because groups of one width look like those of another.
    """
    method = said.get("quant_method")
    methods = {(codec.config() or {}).get("quant_method") for codec in CODECS.values()} - {None}
    known = isinstance(method, str) and method in methods
    if known and _is_by_tensor(said):
        said, known = {}, False
    try:
        codecs = readable(said or None)
    except FormatError:
        if method == "fp8":
            raise
        codecs, known, method = readable(None), False, ""
    four_bits = known or not said or method in _MODELOPT
    undeclared = {"e2m1", *(() if said else ("int8",))} if four_bits else set[str]()
    codecs = tuple(one for one in codecs if known or _is_float(one) or one.form.codes in undeclared)
    natives = [
        in_dialect(CODECS[name], dialect)
        for dialect in _native()
        for name in _NATIVE
        if name != "mxfp4" or (four_bits and dialect in SPELLINGS)
    ]
    declared = [one for one in codecs if isinstance(one, Fp8Block) and one.dialect == "deepseek"]
    every = *codecs, *_blocks(declared), *natives
    return known or not said, tuple(dict.fromkeys(every))


def _native() -> list[str]:
    """The dialects that only models speak, and no codec by itself."""
    spoken = {codec.dialect for codec in CODECS.values()}
    return [dialect for dialect in DIALECTS if dialect not in spoken]


def _is_by_tensor(said: Mapping[str, Any]) -> bool:
    """Whether a config declares FP8 without blocks: one scale for a whole matrix."""
    return said.get("quant_method") == "fp8" and said.get("weight_block_size") is None


def _is_float(codec: Codec) -> bool:
    return codec.plain in FLOATS or codec.form.codes == "e4m3"


def _blocks(codecs: Iterable[Fp8Block]) -> Iterator[Codec]:
    """The same blocks in their own dialect and in those that only models speak."""
    for codec in codecs:
        yield codec
        yield from (replace(codec, dialect=dialect) for dialect in _native())


def _shown(specs: Mapping[str, TensorSpec]) -> tuple[int, int] | None:
    """The size of FP8 blocks that all shapes show, if it is not the usual one and no other size is possible.

    Of sizes that fit, a power of two counts if it is the only one: nobody uses others.
    """
    spans = [(1, _LARGEST_BLOCK), (1, _LARGEST_BLOCK)]
    found, dialects = False, ("deepseek", *_native())
    for tensor in specs:
        for dialect in dialects:
            name = parameter_of(tensor, dialect, SCALE)
            codes = specs.get(DIALECTS[dialect].tensor(name, CODES)) if name else None
            scale = specs[tensor]
            if codes is None or codes.dtype != "F8_E4M3" or len(codes.shape) != 2 or len(scale.shape) != 2:
                continue
            found = True
            for place, (length, parts) in enumerate(zip(codes.shape, scale.shape, strict=True)):
                first, last = _sizes(length, parts)
                spans[place] = max(spans[place][0], first), min(spans[place][1], last)
    if not found or all(first <= 128 <= last for first, last in spans):
        return None
    sizes = [_only(first, last) for first, last in spans]
    return None if None in sizes else (sizes[0] or 0, sizes[1] or 0)


def _sizes(length: int, parts: int) -> tuple[int, int]:
    """The smallest and the largest size of blocks of which `parts` cover a length; (1, 0) if there is none."""
    if parts < 1 or parts > length:
        return 1, 0
    return -(-length // parts), (-(-length // (parts - 1)) - 1 if parts > 1 else _LARGEST_BLOCK)


def _only(first: int, last: int) -> int | None:
    powers = [1 << n for n in range(17) if first <= 1 << n <= last]
    if first == last:
        return first
    return powers[0] if len(powers) == 1 else None
