"""What the target folder will hold: formats, files, names, config and index. Pure, no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from dsctl.boxes import Box
from dsctl.checkpoint import MAX_JSON_BYTES, ORIGINAL, Checkpoint, Piece, check_name
from dsctl.codecs import CODECS, Codec
from dsctl.codecs.dress import METHOD
from dsctl.codecs.fp4 import Fp4
from dsctl.codecs.fp8_block import SCALE, Fp8Block
from dsctl.codecs.packed import Packed
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.codecs.scaled import Scaled, formats
from dsctl.errors import FormatError, PlanError
from dsctl.header import PT, Header, TensorRef, TensorSpec, build, parse
from dsctl.layouts import LAYOUTS, Layout, Slot
from dsctl.models import Param
from dsctl.quantization import quantization_config
from dsctl.recipes import Rule, check, chosen, takes
from dsctl.request import KEEP, RECIPE, Request
from dsctl.stores import INDEX, SIGNED

if TYPE_CHECKING:
    from dsctl.plan import Dropped, OutFile, Part, Region

TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_HEADER = "header:"
# DeepSeek's blocks under compressed-tensors' names.
CT_BLOCKS: Scaled = formats()["fp8-block-ct"]
# The formats for which a search finds better scales.
SEARCHED = ("int4-group", "int4-group-32", "mxfp4", "nvfp4")
SEARCHING = (Packed, Fp4)
# Weights, in this and in other formats: what is left of them is not carried over beside what was made of them.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx")


class Want(NamedTuple):
    """A parameter that the target shall hold, the pieces that it is made from, and the codec that stores it."""

    param: Param
    pieces: tuple[Piece, ...]
    codec: Codec


class PlacedPart(NamedTuple):
    """One stored tensor of the target: codec suffix, tensor name, file, what it is, its bytes where these are known."""

    suffix: str
    tensor: str
    file: str
    spec: TensorSpec
    stated: bytes | None = None


class Placed(NamedTuple):
    """A slot of the target and its stored tensors."""

    slot: Slot
    parts: tuple[PlacedPart, ...]


@dataclass(frozen=True, slots=True)
class Original:
    """What a side file says of the folder that a conversion started from."""

    headers: dict[str, Header]
    files: dict[str, str]
    scales: dict[str, TensorRef]
    texts: dict[str, bytes]
    config: dict[str, Any]

    @property
    def codec(self) -> Fp8Block | None:
        declared = Fp8Block.declared(self.config.get("quantization_config") or {})
        dtypes = {ref.spec.dtype for ref in self.scales.values()}
        return replace(declared[0], scale_dtype=dtypes.pop()) if declared and len(dtypes) == 1 else None


class Target:
    """The target of one request on one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, request: Request) -> None:
        if request.to not in (KEEP, RECIPE, *CODECS):
            raise PlanError(f"unknown format {request.to!r}", hint=f"known: {', '.join(CODECS)}")
        self.checkpoint, self.request = checkpoint, request
        self.layout: Layout = LAYOUTS[request.layout]
        self.notes: list[str] = []
        self.stored: list[tuple[Param, Codec]] = []
        self.rules = [Rule(*rule) for rule in request.rules]
        check(self.rules, checkpoint.params)
        self.format: Codec = self._format()

    def _format(self) -> Codec:
        if self.request.to in (KEEP, RECIPE):
            return Plain(self.base_dtype)
        if self.request.to != "fp8-block":
            return self._named(self.request.to)
        kept = self.original.codec if self.original else None
        asked = self.request.scale_fmt
        if kept and asked in ("auto", kept.scale_fmt):
            self.notes.append(f"scales: {kept.scale_fmt}, kept ones of the original are used where they still fit")
            return kept
        stored = {p.codec for pieces in self.checkpoint.survey.pieces.values() for p in pieces}
        blocks = [codec for codec in stored if isinstance(codec, Fp8Block)]
        size = blocks[0].block if blocks else (128, 128)
        fmt, why = (asked, "asked for") if asked != "auto" else self._usual_scales(blocks)
        self.notes.append(f"scales: {fmt} ({why})")
        return Fp8Block(size, fmt)

    def _named(self, name: str) -> Codec:
        """A format by its name, with scales as the source has them where those can stay, and as asked for."""
        codec = CODECS[name]
        if name == "fp8-block-ct" and self._has_blocks(codec.block):
            return replace(CT_BLOCKS, scale_dtype="F32")
        if self.request.search and isinstance(codec, SEARCHING):
            return replace(codec, search=codec.name in SEARCHED)
        return codec

    def _has_blocks(self, block: tuple[int, int]) -> bool:
        pieces = (piece for pieces in self.checkpoint.survey.pieces.values() for piece in pieces)
        return any(isinstance(piece.codec, Fp8Block) and piece.codec.block == block for piece in pieces)

    def _usual_scales(self, stored: list[Fp8Block]) -> tuple[str, str]:
        if stored:
            return stored[0].scale_fmt, "as the source declares"
        if self.checkpoint.model and self.checkpoint.model.name in ("deepseek_v32", "glm_moe_dsa"):
            return "ue8m0", "as V3.1 and later releases store them"
        return "float32", "as V3 and R1 store them; --scale-fmt ue8m0 for V3.1 and later"

    @cached_property
    def original(self) -> Original | None:
        """What the source's side file tells, or None where there is none.

        Raises:
            FormatError: the side file contradicts itself.
        """
        header = self.checkpoint.original
        return None if header is None else _read_original(self.checkpoint, header)

    @cached_property
    def base_dtype(self) -> str:
        """The dtype in which the source stores most of what is not quantized."""
        values: dict[str, int] = {}
        for pieces in self.checkpoint.survey.pieces.values():
            for piece in pieces:
                if isinstance(piece.codec, Plain):
                    spec = piece.refs[0].spec
                    values[spec.dtype] = values.get(spec.dtype, 0) + spec.values
        return max(values, key=lambda dtype: values[dtype], default="BF16")

    def codec(self, param: Param, piece: Piece) -> Codec:
        """How the target stores a parameter."""
        if self.request.to == KEEP:
            return piece.codec
        if self.request.to != RECIPE:
            return self._as(self.format, param, piece, takes(self.format, param.family))
        name = chosen(self.rules, param)
        return self._kept_codec(piece) if name == KEEP else self._as(self._named(name), param, piece, param.quantizable)

    def _kept_codec(self, piece: Piece) -> Codec:
        """How a recipe keeps a piece: DeepSeek's blocks under the names that the other formats' loaders read."""
        formats = [CODECS[rule.format] for rule in self.rules if rule.format != KEEP]
        dressed = any((codec.config() or {}).get("quant_method") == METHOD for codec in formats)
        if dressed and isinstance(piece.codec, Fp8Block) and piece.codec.block == CT_BLOCKS.block:
            return replace(CT_BLOCKS, scale_dtype="F32")
        return piece.codec

    def _as(self, codec: Codec, param: Param, piece: Piece, quantizable: bool) -> Codec:
        """How a format stores a parameter; what it does not quantize follows the source's or the release's dtype."""
        plain = isinstance(codec, Plain)
        if piece.codec.config() is not None:
            return codec if plain or quantizable else Plain("BF16")
        if not plain and quantizable:
            return codec
        stored = piece.refs[0].spec.dtype
        follows = stored == self.base_dtype and stored in FLOATS and param.family.dtype != "F32"
        if not follows:
            return Plain(stored)
        return codec if plain else Plain(stored if stored == "F16" else param.family.dtype)

    def place(self, wants: Iterable[Want]) -> dict[str, tuple[Placed, ...]]:
        """Name every stored tensor of the target and choose its file."""
        wants = list(wants)
        self.stored = [(want.param, want.codec) for want in wants]
        placed = {want.param.name: tuple(self._placed(want)) for want in wants}
        return self._regrouped(placed) if self.request.shard_size else placed

    def _placed(self, want: Want) -> Iterator[Placed]:
        for slot in self.layout.slots(want.param):
            specs, stated = want.codec.specs(slot.container), want.codec.stated(slot.container)
            parts = []
            for suffix in want.codec.suffixes:
                tensor = self.layout.stored(slot.tensor, suffix)
                file = self._file(want, tensor, suffix)
                parts.append(PlacedPart(suffix, tensor, file, specs[suffix], stated.get(suffix)))
            yield Placed(slot, tuple(parts))

    def _file(self, want: Want, tensor: str, suffix: str) -> str:
        if self.original and self.request.to == "fp8-block" and tensor in self.original.files:
            return self.original.files[tensor]
        piece = want.pieces[0]
        by_suffix = dict(zip(piece.codec.suffixes, piece.refs, strict=True))
        return by_suffix.get(suffix, piece.refs[0]).file

    def _regrouped(self, placed: dict[str, tuple[Placed, ...]]) -> dict[str, tuple[Placed, ...]]:
        groups: list[int] = []
        size, limit = 0, self.request.shard_size or 0
        for places in placed.values():
            cost = sum(part.spec.nbytes for place in places for part in place.parts)
            if not groups or size + cost > limit:
                groups.append(0)
                size = 0
            groups[-1] += 1
            size += cost
        names = iter(
            [
                f"model-{number:05d}-of-{len(groups):06d}.safetensors"
                for number, count in enumerate(groups, 1)
                for _ in range(count)
            ]
        )
        return {
            name: tuple(
                place._replace(parts=tuple(part._replace(file=file) for part in place.parts)) for place in places
            )
            for (name, places), file in zip(placed.items(), names, strict=True)
        }

    def files(self, placed: Mapping[str, tuple[Placed, ...]]) -> tuple[list[OutFile], dict[tuple[str, str], int]]:
        """Every safetensors file of the target with its header, and the offset of every tensor in it."""
        from dsctl.plan import OutFile

        specs: dict[str, dict[str, TensorSpec]] = {}
        stated: dict[str, dict[str, bytes]] = {}
        for places in placed.values():
            for place in places:
                for part in place.parts:
                    specs.setdefault(part.file, {})[part.tensor] = part.spec
                    if part.stated is not None:
                        stated.setdefault(part.file, {})[part.tensor] = part.stated
        files: list[OutFile] = []
        offsets: dict[tuple[str, str], int] = {}
        for file in sorted(specs):
            header, begins = self._header(file, specs[file])
            offsets |= {(file, tensor): begin for tensor, begin in begins.items()}
            size = len(header) + sum(spec.nbytes for spec in specs[file].values())
            literals = tuple((begins[tensor], data) for tensor, data in stated.get(file, {}).items())
            files.append(OutFile(file, header, size, literals))
        if self._saves:
            side, begins = self._side_file(placed)
            offsets |= {(ORIGINAL, tensor): begin for tensor, begin in begins.items()}
            files.append(side)
        return files, offsets

    def _header(self, file: str, specs: dict[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
        known = self.original.headers.get(file) if self.original and self.request.to == "fp8-block" else None
        if known and {name: ref.spec for name, ref in known.tensors.items()} == specs:
            prefix = len(known.raw).to_bytes(8, "little")
            return prefix + known.raw, {name: ref.begin for name, ref in known.tensors.items()}
        source = self.checkpoint.headers.get(file)
        return build(specs, {**(source.metadata if source else {}), **PT})

    @property
    def _saves(self) -> bool:
        """Whether the target keeps a side file with the scales that decoding makes redundant."""
        decoded = isinstance(self.format, Plain) and self.request.to not in (KEEP, RECIPE)
        return self.request.keep_scales and decoded and bool(self._scales)

    @cached_property
    def _scales(self) -> dict[str, Piece]:
        """The source's block scales by stored name."""
        return {
            piece.refs[1].name: piece
            for pieces in self.checkpoint.survey.pieces.values()
            for piece in pieces
            if isinstance(piece.codec, Fp8Block)
        }

    def _side_file(self, placed: Mapping[str, tuple[Placed, ...]]) -> tuple[OutFile, dict[str, int]]:
        from dsctl.plan import OutFile

        checkpoint = self.checkpoint
        literals = {_HEADER + file: header.raw for file, header in checkpoint.headers.items()}
        literals |= {
            file: checkpoint.store.read(file, 0, checkpoint.files[file])
            for file in ("config.json", INDEX)
            if file in checkpoint.files
        }
        specs = {name: TensorSpec("U8", (len(data),)) for name, data in literals.items()}
        specs |= {
            piece.refs[1].name: piece.refs[1].spec
            for name, pieces in checkpoint.survey.pieces.items()
            if name in placed
            for piece in pieces
            if isinstance(piece.codec, Fp8Block)
        }
        header, begins = build(specs, {"dsctl": "what this folder was converted from"})
        size = len(header) + sum(spec.nbytes for spec in specs.values())
        return OutFile(ORIGINAL, header, size, tuple((begins[n], data) for n, data in literals.items())), begins

    def kept_parts(self, want: Want, reads: tuple[Region, ...]) -> Iterator[tuple[str, Part]]:
        """The scales of a parameter that the side file keeps: name there and where they are read."""
        if not self._saves:
            return
        for piece, region in zip(want.pieces, reads, strict=True):
            if isinstance(piece.codec, Fp8Block):
                yield piece.refs[1].name, region.parts[1]

    def kept(self, want: Want) -> Region | None:
        """The kept scales with which a parameter may be encoded again."""
        from dsctl.plan import Part, Region

        own = self._own_scales(want)
        if own is not None:
            return own
        if self.original is None or not isinstance(want.codec, Fp8Block) or want.codec != self.original.codec:
            return None
        ref = self.original.scales.get(want.param.name + SCALE)
        if ref is None or ref.spec != want.codec.specs(want.param.shape)[SCALE]:
            return None
        shape = want.param.shape
        part = Part(SCALE, ORIGINAL, ref.begin, ref.spec)
        return Region(Box.whole(shape), want.codec, (part,), shape, (0,) * len(shape))

    def _own_scales(self, want: Want) -> Region | None:
        """The source's scales of the same blocks, where only their dtype or name is another."""
        from dsctl.plan import region_of

        piece = want.pieces[0]
        source, target = piece.codec, want.codec
        if len(want.pieces) > 1 or not isinstance(target, Fp8Block) or source.block != target.block:
            return None
        if not isinstance(source, Fp8Block) and source.name != CT_BLOCKS.name:
            return None
        region = region_of(piece)
        return region._replace(parts=(region.parts[1]._replace(suffix=SCALE),))

    @property
    def carried(self) -> dict[str, int]:
        """The source's other files, copied as they are."""
        replaced = {"config.json", INDEX, SIGNED, *self.checkpoint.headers}
        part = self.request.only or self.request.skip or self.request.layers or self.request.experts
        quantized = self.request.to == RECIPE or not isinstance(self.format, Plain)
        if self._saves or quantized or part:
            replaced.add(ORIGINAL)
        return {
            file: size
            for file, size in self.checkpoint.files.items()
            if file not in replaced and not file.endswith(WEIGHTS)
        }

    def texts(self, placed: Mapping[str, tuple[Placed, ...]], dropped: list[Dropped]) -> dict[str, bytes]:
        """config.json and the index."""
        texts = {}
        if self.checkpoint.config is not None:
            texts["config.json"] = self._config()
        parts = [part for places in placed.values() for place in places for part in place.parts]
        if {part.file for part in parts} != {"model.safetensors"}:
            texts[INDEX] = self._index(parts)
        return texts

    def _index(self, parts: list[PlacedPart]) -> bytes:
        index = {
            "metadata": {"total_size": sum(part.spec.nbytes for part in parts)},
            "weight_map": {part.tensor: part.file for part in sorted(parts, key=lambda part: part.tensor)},
        }
        known = self.original.texts.get(INDEX) if self.original and self.request.to == "fp8-block" else None
        if known is not None and json.loads(known) == index:
            return known
        return _json(index)

    def _config(self) -> bytes:
        config = self.checkpoint.config or {}
        if self.request.to == KEEP:
            return self._kept_config(config)
        said = quantization_config(self.stored)
        edited = edit_config(config, self.format, self.request.mtp == "drop", said)
        if self.original and self.request.to == "fp8-block":
            before = self.original.config
            if edit_config(before, Plain(self.base_dtype), False) == config and self.request.mtp == "keep":
                if (before.get("quantization_config") or {}) == self._quantization(before):
                    return self.original.texts["config.json"]
        return _json(edited)

    def _kept_config(self, config: Mapping[str, Any]) -> bytes:
        """The source's config.json as it is, or with the MTP layer taken out."""
        fields = self.request.mtp == "drop" and {"num_nextn_predict_layers": 0}.items()
        edited = {**config, **{name: value for name, value in fields or () if name in config}}
        return _json(edited)

    def _quantization(self, before: Mapping[str, Any]) -> Any:
        """The original's own quantization_config, where it says of the format what the target's codec says."""
        said = before.get("quantization_config")
        return said if Fp8Block.declared(said or {}) == (replace_dtype(self.format),) else None


def replace_dtype(codec: Codec) -> Codec:
    """The codec as a config can declare it: without the dtype in which scales are stored."""
    return replace(codec, scale_dtype="F32") if isinstance(codec, Fp8Block) else codec


def edit_config(
    config: Mapping[str, Any], codec: Codec, drop_mtp: bool, quantization: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A `config.json` for weights stored by `codec`: quantization_config, dtype and MTP fields made true."""
    edited = {name: value for name, value in config.items() if name != "quantization_config"}
    if quantization is not None:
        edited["quantization_config"] = quantization
    if isinstance(codec, Plain):
        edited["dtype" if "dtype" in edited else "torch_dtype"] = TORCH_NAMES[codec.dtype]
    if drop_mtp and "num_nextn_predict_layers" in edited:
        edited["num_nextn_predict_layers"] = 0
    return edited


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _read_original(checkpoint: Checkpoint, side: Header) -> Original:
    headers: dict[str, Header] = {}
    texts: dict[str, bytes] = {}
    scales: dict[str, TensorRef] = {}
    for name, ref in side.tensors.items():
        if ref.spec.dtype != "U8":
            scales[name] = ref
            continue
        if ref.nbytes > MAX_JSON_BYTES:
            raise FormatError(f"{ORIGINAL}: {name} is absurdly long")
        raw = checkpoint.store.read(ORIGINAL, ref.begin, ref.end)
        if name.startswith(_HEADER):
            file = name.removeprefix(_HEADER)
            check_name(file, ORIGINAL)
            headers[file] = parse(raw, f"{ORIGINAL}: {name}", None)
        else:
            texts[name] = raw
    try:
        config = json.loads(texts.get("config.json", b"{}"))
        json.loads(texts.get(INDEX, b"{}"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{ORIGINAL}: kept JSON is not valid: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("quantization_config") or {}, dict):
        raise FormatError(f"{ORIGINAL}: kept config.json or its quantization_config is not an object")
    files = {name: file for file, header in headers.items() for name in header.tensors}
    return Original(headers, files, scales, texts, config)
