"""What the target folder will hold: formats, files, names, config and index. Pure, no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint, read_header
from dsctl.checkpoint.pieces import Piece
from dsctl.checkpoint.quantization import quantization_config
from dsctl.checkpoint.side_files import WHOLE, Original, Side, is_altered, kept_texts, read_side
from dsctl.codecs import CODECS, Codec
from dsctl.codecs.fp4 import SILENT, Fp4
from dsctl.codecs.fp8_block import SCALE, Fp8Block
from dsctl.codecs.packed import Packed
from dsctl.codecs.plain import FLOATS, TORCH_NAMES, Plain
from dsctl.core.boxes import Box
from dsctl.core.errors import PlanError, UsageError
from dsctl.core.header import PT, Header, TensorSpec, build
from dsctl.core.params import Param
from dsctl.layouts import Layout, Slot
from dsctl.layouts.hf import folder
from dsctl.layouts.manifests import MANIFEST
from dsctl.plan import recipes
from dsctl.plan.blocks import check_filled, check_joined
from dsctl.plan.recipes import CT_BLOCKS, Rule, check, chosen, named, takes
from dsctl.plan.request import KEEP, RECIPE, Request
from dsctl.plan.spread import Subject, arrangement, check_cuts
from dsctl.plan.steps import Part, Region, region_of
from dsctl.plan.texts import Placed, PlacedPart, index_of, index_text, json_text, rank_texts
from dsctl.stores import INDEX, SIGNED

if TYPE_CHECKING:
    from dsctl.plan.planner import OutFile

# Files of tensors whose places nothing tells are at most so large.
USUAL_SHARD = 5_000_000_000
# The formats for which a search finds better scales.
SEARCHED = ("int4-group", "int4-group-32", "mxfp4", "nvfp4")
SEARCHING = (Packed, Fp4)
# Weights, in this and in other formats: what is left of them is not carried over beside what was made of them.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx")


class Want(NamedTuple):
    """A parameter that the target shall hold, the pieces that it is made from, and the codec that stores it.

    `held` are all pieces of it that the source holds, copies included; `slots` its places in the target's layout.
    """

    param: Param
    pieces: tuple[Piece, ...]
    codec: Codec
    held: tuple[Piece, ...] = ()
    slots: tuple[Slot, ...] = ()


class Target:
    """The target of one request on one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, request: Request) -> None:
        if request.to not in (KEEP, RECIPE, *CODECS):
            raise PlanError(f"unknown format {request.to!r}", hint=f"known: {', '.join(CODECS)}")
        refuse_idle(request)
        self.checkpoint, self.request = checkpoint, request
        self.subject = Subject.of(checkpoint.store.place, checkpoint.families, checkpoint.config)
        self.layout: Layout = arrangement(self.subject, request)
        self._files: dict[str, str] = {}
        self._lost = False
        self._specs: dict[Codec, dict[tuple[int, ...], tuple[dict[str, TensorSpec], dict[str, bytes]]]] = {}
        self.stored: list[tuple[Param, Codec]] = []
        self.rules = [Rule(*rule) for rule in request.rules]
        self.notes: list[str] = check(self.rules, checkpoint.params)
        self.format: Codec = self._format()

    def _format(self) -> Codec:
        if self.request.to in (KEEP, RECIPE):
            return Plain(self.base_dtype)
        return self._named(self.request.to)

    @cached_property
    def _blocks(self) -> Codec:
        """fp8-block, with scales as asked for, else as the original had them, the source has or its release."""
        kept = self.original.codec if self.original else None
        asked = self.request.scale_fmt
        if kept and asked in ("auto", kept.scale_fmt):
            self.notes.append(f"scales: {kept.scale_fmt}, kept ones of the original are used where they still fit")
            return kept
        blocks = [codec for codec in self._stored if isinstance(codec, Fp8Block)]
        if kept:
            self.notes.append(
                f"scales: the kept ones are {kept.scale_fmt} and are not used: every block gets a new one"
            )
        elif not blocks and self.request.to == "fp8-block":
            what = "if these weights were decoded from FP8, the original files do not come back byte for byte"
            self.notes.append(f"scales: no {ORIGINAL} keeps the original ones, so every block gets a new one; {what}")
        size = blocks[0].block if blocks else (128, 128)
        fmt, why = (asked, "asked for") if asked != "auto" else self._usual_scales(blocks)
        self.notes.append(f"scales: {fmt} ({why})")
        return Fp8Block(size, fmt)

    def _named(self, name: str) -> Codec:
        """A format by its name, with scales as the source has them where those can stay, and as asked for."""
        if name == "fp8-block":
            return self._blocks
        codec = named(name, self._stored)
        if self.request.search and isinstance(codec, SEARCHING):
            return replace(codec, search=codec.name in SEARCHED)
        return codec

    @cached_property
    def _stored(self) -> set[Codec]:
        """The codecs by which the source is stored."""
        return {piece.codec for pieces in self.checkpoint.survey.pieces.values() for piece in pieces}

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
        return None if header is None else self._side_file(ORIGINAL, header)

    def _side_file(self, file: str, header: Header) -> Original:
        """What a side file says; a note tells where that is not what was written into it."""
        if is_altered(self.checkpoint, file):
            what = f"{file}: was altered since it was written: {SIGNED} has another digest"
            self.notes.append(f"{what}; what comes back from it may not be what the release had")
        return read_side(self.checkpoint, file, header)

    @cached_property
    def whole(self) -> Original | None:
        """What the whole checkpoint was, of which the source holds the parts.

        Raises:
            FormatError: the side file that tells it contradicts itself.
        """
        size = self.checkpoint.files.get(WHOLE)
        if size is None or self._published(self.checkpoint.layout):
            return None
        return self._side_file(WHOLE, read_header(self.checkpoint.store, WHOLE, size))

    @staticmethod
    def _published(layout: Layout) -> bool:
        return layout.name == "hf" and layout.shares is None

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
        if name == KEEP:
            return recipes.kept(self.rules, piece.codec)
        codec = self._named(name)
        return self._as(codec, param, piece, takes(codec, param.family))

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

    def check_cuts(self, stored: Iterable[tuple[Param, Codec]]) -> None:
        """Refuse sizes at which parameters so stored cannot be cut; raises as `dsctl.plan.spread.check_cuts`."""
        pairs = ((param.family, codec) for param, codec in stored)
        legal = check_cuts(self.subject, self.request, self.layout, pairs)
        if legal:
            self.notes.append(f"tensor-parallel sizes that cut no block: {', '.join(map(str, legal))}")

    def place(self, wants: Iterable[Want]) -> dict[str, tuple[Placed, ...]]:
        """Name every stored tensor of the target and choose its file."""
        wants = list(wants)
        self.stored = [(want.param, want.codec) for want in wants]
        if any(param.family.experts and codec.name == "nvfp4" for param, codec in self.stored):
            self.notes.append(f"warning: {SILENT}")
        placed = {want.param.name: tuple(self._placed(want)) for want in wants}
        check_filled((place.slot for places in placed.values() for place in places), self.layout.name)
        limit = self.request.shard_size or (USUAL_SHARD if self._lost else 0)
        return self._regrouped(placed, limit) if limit else placed

    def _placed(self, want: Want) -> Iterator[Placed]:
        known = self._specs.setdefault(want.codec, {})
        own: dict[str, str] = {}
        for slot in want.slots or self.layout.slots(want.param):
            if slot.container not in known:
                known[slot.container] = want.codec.specs(slot.container), want.codec.stated(slot.container)
            specs, stated = known[slot.container]
            check_joined(want.param.name, want.codec, slot)
            parts = []
            for suffix in want.codec.suffixes:
                tensor = self.layout.stored(slot.tensor, suffix)
                shared = slot.stack is not None or slot.container != slot.region.shape
                homes = self._files if shared else own
                if (home := homes.get(tensor)) is None:
                    home = homes[tensor] = self._home(want, tensor, suffix)
                    self._lost = self._lost or not home
                file = self.layout.file(slot.shard, home)
                parts.append(PlacedPart(suffix, tensor, file, slot.stacked(specs[suffix]), stated.get(suffix)))
            yield Placed(slot, tuple(parts))

    def _home(self, want: Want, tensor: str, suffix: str) -> str:
        """The file in which a whole checkpoint keeps a tensor; empty where nothing tells."""
        if self.original and self.request.to == "fp8-block" and tensor in self.original.files:
            return self.original.files[tensor]
        piece = want.pieces[0]
        if self.whole:
            name = want.param.name
            known = self.whole.files.get(name + suffix) or self.whole.files.get(name + piece.codec.suffixes[0])
            if known:
                return known
        by_suffix = dict(zip(piece.codec.suffixes, piece.refs, strict=True))
        return self.checkpoint.layout.home(by_suffix.get(suffix, piece.refs[0]).file) or ""

    def _regrouped(self, placed: dict[str, tuple[Placed, ...]], limit: int) -> dict[str, tuple[Placed, ...]]:
        """The same places in files of at most `limit` bytes, where that much is more than one parameter."""
        groups: dict[str, list[int]] = {}
        numbers: dict[tuple[str, str], int] = {}
        for place in (place for places in placed.values() for place in places):
            shard, tensor = place.slot.shard, place.slot.tensor
            if (shard, tensor) in numbers:
                continue
            cost, sizes = sum(part.spec.nbytes for part in place.parts), groups.setdefault(shard, [])
            if not sizes or sizes[-1] + cost > limit:
                sizes.append(0)
            sizes[-1] += cost
            numbers[shard, tensor] = len(sizes)
        larger = sum(size > limit for sizes in groups.values() for size in sizes)
        if larger:
            self.notes.append(
                f"{larger:,} files are larger than --shard-size: one parameter each that is larger itself"
            )

        def moved(place: Placed) -> Placed:
            shard = place.slot.shard
            home = f"model-{numbers[shard, place.slot.tensor]:05d}-of-{len(groups[shard]):06d}.safetensors"
            file = self.layout.file(shard, home)
            return place._replace(parts=tuple(part._replace(file=file) for part in place.parts))

        return {name: tuple(map(moved, places)) for name, places in placed.items()}

    def files(self, placed: Mapping[str, tuple[Placed, ...]]) -> tuple[list[OutFile], dict[tuple[str, str], int]]:
        """Every safetensors file of the target with its header, and the offset of every tensor in it."""
        from dsctl.plan.planner import OutFile

        specs: dict[str, dict[str, TensorSpec]] = {}
        stated: dict[str, dict[str, bytes]] = {}
        for places in placed.values():
            for place in places:
                for part in place.parts:
                    spec = specs.setdefault(part.file, {}).setdefault(part.tensor, part.spec)
                    if spec != part.spec:
                        raise PlanError(f"{part.tensor}: what it joins is stored as {spec.dtype} and {part.spec.dtype}")
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
            side = self._side(placed)
            offsets |= {(ORIGINAL, tensor): begin for tensor, begin in side.begins.items()}
            files.append(OutFile(ORIGINAL, side.header, side.size, side.literals))
        if self._published(self.checkpoint.layout) and not self._published(self.layout):
            side = Side(kept_texts(self.checkpoint), {}, "the whole checkpoint that this folder holds parts of")
            files.append(OutFile(WHOLE, side.header, side.size, side.literals))
        return files, offsets

    def _header(self, file: str, specs: dict[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
        for kept in (self.original if self.request.to == "fp8-block" else None, self.whole):
            known = kept.header(file, specs) if kept and self._published(self.layout) else None
            if known:
                return known
        if not self.layout.metadata:
            return build(specs, {})
        return build(specs, {**self._metadata.get(self.layout.home(file), {}), **PT})

    @cached_property
    def _metadata(self) -> dict[str | None, dict[str, str]]:
        """What the headers of the source's files say of themselves, by the file of the whole checkpoint."""
        layout, whole = self.checkpoint.layout, self.whole.headers if self.whole else {}
        kept: dict[str | None, dict[str, str]] = {file: header.metadata for file, header in whole.items()}
        return kept | {layout.home(file): header.metadata for file, header in self.checkpoint.headers.items()}

    @property
    def _saves(self) -> bool:
        """Whether the target keeps a side file with the scales that decoding makes redundant."""
        decoded = isinstance(self.format, Plain) and self.request.to not in (KEEP, RECIPE)
        if not self._published(self.checkpoint.layout):
            return False
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

    def _side(self, placed: Mapping[str, tuple[Placed, ...]]) -> Side:
        scales = {
            piece.refs[1].name: piece.refs[1].spec
            for name, pieces in self.checkpoint.survey.pieces.items()
            if name in placed
            for piece in pieces
            if isinstance(piece.codec, Fp8Block)
        }
        return Side(kept_texts(self.checkpoint), scales, "what this folder was converted from")

    def kept_parts(self, want: Want, reads: tuple[Region, ...]) -> Iterator[tuple[str, Part]]:
        """The scales of a parameter that the side file keeps: name there and where they are read."""
        if not self._saves:
            return
        for piece, region in zip(want.pieces, reads, strict=True):
            if isinstance(piece.codec, Fp8Block):
                yield piece.refs[1].name, region.parts[1]

    def kept(self, want: Want) -> Region | None:
        """The kept scales with which a parameter may be encoded again."""
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
        piece = want.pieces[0]
        source, target = piece.codec, want.codec
        if len(want.pieces) > 1 or not isinstance(target, Fp8Block) or source.block != target.block:
            return None
        if not isinstance(source, Fp8Block) and source.name != CT_BLOCKS.name:
            return None
        region = region_of(piece)
        return region._replace(parts=(region.parts[1]._replace(suffix=SCALE),))

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of ranks."""
        shares = self.layout.shares
        return tuple(map(folder, shares.present)) if shares and self.layout.foldered else ()

    @property
    def carried(self) -> dict[str, int]:
        """The source's other files, copied as they are."""
        derived = self.checkpoint.layout.texts(self.checkpoint.config or {})
        replaced = {"config.json", INDEX, SIGNED, MANIFEST, *derived, *self.checkpoint.headers}
        part = self.request.only or self.request.skip or self.request.layers or self.request.experts
        quantized = self.request.to == RECIPE or not isinstance(self.format, Plain)
        if self._saves or quantized or part:
            replaced.add(ORIGINAL)
        if self._published(self.layout):
            replaced.add(WHOLE)
        folders = tuple(f"{file.rpartition('/')[0]}/" for file in self.checkpoint.manifests if "/" in file)
        return {
            file: size
            for file, size in self.checkpoint.files.items()
            if file not in replaced and not file.endswith(WEIGHTS) and not file.startswith(folders)
        }

    def texts(self, placed: Mapping[str, tuple[Placed, ...]]) -> dict[str, bytes]:
        """config.json, the index, and what a layout of ranks adds."""
        texts = {"config.json": self._config()} if self.checkpoint.config is not None else {}
        config = texts.get("config.json", b"")
        texts |= rank_texts(self.layout, placed, [param for param, _ in self.stored], config)
        texts |= self.layout.texts(json.loads(config or b"{}"))
        if self.layout.shares is not None:
            return texts
        parts = [part for places in placed.values() for place in places for part in place.parts]
        known = self._kept_index(parts)
        if known is not None or {part.file for part in parts} != {"model.safetensors"}:
            texts[INDEX] = known or index_text(index_of(parts))
        return texts

    def _kept_index(self, parts: Iterable[PlacedPart]) -> bytes | None:
        """The index of the folder that this one is to be again, byte for byte, whatever it says of sizes."""
        files: dict[str, dict[str, TensorSpec]] = {}
        for part in parts:
            files.setdefault(part.file, {})[part.tensor] = part.spec
        kept = (self.original if self.request.to == "fp8-block" else None, self.whole)
        return next((known for one in kept if one and (known := one.index(files)) is not None), None)

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
        return json_text(edited)

    def _kept_config(self, config: Mapping[str, Any]) -> bytes:
        """The source's config.json as it is, or with the MTP layer taken out."""
        fields = self.request.mtp == "drop" and {"num_nextn_predict_layers": 0}.items()
        edited = {**config, **{name: value for name, value in fields or () if name in config}}
        if self.layout.shares is None and self.checkpoint.layout.shares is None:
            return json_text(edited)
        size = self.checkpoint.files["config.json"]
        known = self.checkpoint.store.read("config.json", 0, size)
        return known if json.loads(known) == edited else json_text(edited)

    def _quantization(self, before: Mapping[str, Any]) -> Any:
        """The original's own quantization_config, where it says of the format what the target's codec says."""
        said = before.get("quantization_config")
        return said if Fp8Block.declared(said or {}) == (replace_dtype(self.format),) else None


def refuse_idle(request: Request) -> None:
    """Refuse options that no format asked for would heed.

    Raises:
        UsageError: with what they are for.
    """
    asked = {format_ for _, _, format_ in request.rules} or {request.to}
    if request.scale_fmt not in ("auto", "float32", "ue8m0"):
        raise UsageError(f"--scale-fmt: {request.scale_fmt!r} is unknown", hint="auto, float32 or ue8m0")
    for option, given, formats in (
        ("--search", request.search, SEARCHED),
        ("--scale-fmt", request.scale_fmt != "auto", ("fp8-block",)),
    ):
        if given and not asked & set(formats):
            names = ", ".join(sorted(asked))
            raise UsageError(f"{option}: does nothing for {names}", hint=f"it is for {', '.join(formats)}")


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
