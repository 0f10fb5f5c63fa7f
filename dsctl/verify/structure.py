"""Compare headers, index and config with each other and with the architecture. Reads no weights."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from dsctl.checkpoint import causes, lost_files
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.generic import Generic
from dsctl.checkpoint.pieces import Piece
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import FLOATS, TORCH_NAMES
from dsctl.core.amounts import plural
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorRef
from dsctl.core.params import Param
from dsctl.layouts.manifests import MANIFEST
from dsctl.layouts.transformers import MIXED
from dsctl.stores import SIGNED, WORKING, Store
from dsctl.stores.local import LocalFolder
from dsctl.verify.findings import Finding

# Endings of files that downloads and conversions have not finished.
_PARTIAL = (".part", ".incomplete", ".aria2", ".crdownload", ".tmp", ".safetensors.new", ".json.new")
# The folder below a download's target in which huggingface_hub keeps unfinished files.
_DOWNLOADS = os.path.join(".cache", "huggingface", "download")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")
# By role, for a parameter that its release keeps in float32: the code if it is not, and the consequence. Parameters of
# other roles are norms.
_NARROWED = {
    "router": ("router-bias-narrowed", ": experts are chosen with rounded biases"),
    "hyper-connections": (
        "hyper-connections-narrowed", ": every layer's reads and writes of the residual streams are rounded",
    ),
    "attention": ("float32-narrowed", ": every head's sink is rounded"),
    "compressor": ("float32-narrowed", ": positions within a compressed entry are rounded"),
}  # fmt: skip
# The dtypes that hold all values of a dtype.
_HOLDS = {"BF16": ("F32", "F64"), "F16": ("F32", "F64"), "F32": ("F64",)}


def folder(store: Store) -> Iterator[Finding]:
    """Check the folder itself: unfinished work, permissions, tokenizer files."""
    files = store.files()
    if isinstance(store, LocalFolder) and store.only is None:
        yield from _working(store, SIGNED in files)
        yield from _modes(store, files)
    for file in (*files, *_downloads(store)):
        if file.endswith(_PARTIAL):
            code = "leftover" if SIGNED in files else "unfinished"
            yield Finding(code, file, "unfinished file: a download, a conversion or a --fix has not ended")
    if len(files) > 1 and not any(name in files for name in _TOKENIZERS):
        yield Finding("no-tokenizer", store.place, "no tokenizer: has no " + " or ".join(_TOKENIZERS))


def _downloads(store: Store) -> Iterator[str]:
    """The unfinished files of downloads into this folder."""
    if isinstance(store, LocalFolder) and store.only is None:
        for folder, _, files in os.walk(os.path.join(store.root, _DOWNLOADS)):
            yield from sorted(os.path.relpath(os.path.join(folder, file), store.root) for file in files)


def _working(store: LocalFolder, signed: bool) -> Iterator[Finding]:
    if os.path.isdir(os.path.join(store.root, WORKING)):
        what = "dsctl has not finished its work here: the same command resumes it"
        yield Finding("leftover" if signed else "unfinished", WORKING, "left over" if signed else what)


def _modes(store: LocalFolder, files: Iterable[str]) -> Iterator[Finding]:
    modes = {file: stat.S_IMODE(os.stat(store.path(file)).st_mode) for file in files}
    public = any(mode & 0o004 for mode in modes.values())
    for file, mode in modes.items():
        if not mode & 0o444:
            yield Finding("unreadable-file", file, f"its mode {mode:04o} does not allow anybody to read it")
        elif public and not mode & 0o044:
            yield Finding("private-file", file, f"its mode {mode:04o} allows only its owner to read it, unlike others")


def with_tensors(checkpoint: Checkpoint, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The same findings; those about missing or unreadable files also name the tensors in these files."""
    lost = lost_files.lost(checkpoint)
    for finding in findings:
        names = lost.get(finding.where, ())
        what = lost_files.with_tensors(checkpoint, finding.what, names) if names else finding.what
        yield finding._replace(what=what, details=names)


def tensors(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Findings about tensors, grouped by cause, about dtypes and the index. Lost files are reported elsewhere."""
    try:
        shares = checkpoint.layout.shares
    except FormatError as error:
        yield _bad_config(error)
        return
    if shares and shares.said and MANIFEST in checkpoint.manifests:
        ranks = f"rank {', '.join(map(str, shares.present))} of {shares.ranks.world}"
        yield Finding("one-rank", checkpoint.store.place, f"only {ranks}: the other ranks are not checked")
    if checkpoint.layout.name == MIXED:
        what = "mixes names of the release with those of transformers, which saves this way: other loaders refuse it"
        yield Finding("mixed-names", checkpoint.store.place, f"{what}; `dsctl convert SRC DST --layout published`")
    twice = list(_twice(checkpoint))
    yield from twice
    yield from _totals(checkpoint)
    yield from _code_files(checkpoint)
    if twice and checkpoint.index is None:
        return
    try:
        faults = checkpoint.survey.faults
    except FormatError as error:
        yield _bad_config(error)
        return
    faults = [*faults, *checkpoint.contradictions]
    yield from (Finding(*fault) for fault in causes.told(checkpoint, faults) if fault.code != "missing-shard")
    yield from _dtypes(checkpoint) if checkpoint.generic is None else _generic(checkpoint, checkpoint.generic)


def _generic(checkpoint: Checkpoint, found: Generic) -> Iterator[Finding]:
    """Findings about tensors of an unknown architecture: forms that no codec reads, and a dtype that none has."""
    if unread := sorted(found.unread):
        many = f", as {plural(len(unread) - 1, 'more tensor')}" * (len(unread) > 1)
        what = f"is stored in a form that dsctl does not read{many}: conversions copy it unchanged"
        yield Finding("unread-form", unread[0], what, tuple(unread))
    plain = {TORCH_NAMES[piece.codec.plain] for piece in pieces(checkpoint) if piece.codec.plain in TORCH_NAMES}
    config = (checkpoint.config or {}).get("torch_dtype", (checkpoint.config or {}).get("dtype"))
    # Beside quantized matrices, the dtype is that of the computation.
    if plain and not found.read and isinstance(config, str) and config in TORCH_NAMES.values() and config not in plain:
        what = f"torch_dtype is {config}, but unquantized weights are {', '.join(sorted(plain))}"
        yield Finding("torch-dtype", "config.json", what)


def _bad_config(error: FormatError) -> Finding:
    return Finding("bad-config", "config.json", error.message.removeprefix("config.json: "))


def _twice(checkpoint: Checkpoint) -> Iterator[Finding]:
    names: dict[str, set[str]] = {}
    for file, header in checkpoint.headers.items():
        names.setdefault(checkpoint.layout.shard_of(file), set()).update(header.tensors)
    if sum(map(len, names.values())) == sum(len(header.tensors) for header in checkpoint.headers.values()):
        return
    seen: dict[tuple[str, str], str] = {}
    for file, header in checkpoint.headers.items():
        shard = checkpoint.layout.shard_of(file)
        for name in header.tensors:
            other = seen.setdefault((shard, name), file)
            if other != file:
                yield Finding("duplicate-name", name, f"is in {other} and in {file}")


def _totals(checkpoint: Checkpoint) -> Iterator[Finding]:
    if checkpoint.index is None:
        return
    whole = {*checkpoint.index.values()} <= checkpoint.headers.keys()
    if checkpoint.total_size is None:
        yield Finding("total-size", "index", "has no total_size, which no loader needs")
    elif whole and checkpoint.total_size != checkpoint.nbytes:
        why = "the index counts two bytes per value, as DeepSeek-V3's own index does"
        what = f"total_size is {checkpoint.total_size:,}, the tensors take {checkpoint.nbytes:,} bytes"
        yield Finding("total-size", "index", f"{what}: {why if checkpoint.counts_values else 'no loader needs it'}")


def _code_files(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Python files of this repository that `auto_map` names and that are missing."""
    auto: Any = (checkpoint.config or {}).get("auto_map")
    named = [text for text in auto.values() if isinstance(text, str)] if isinstance(auto, dict) else []
    modules = dict.fromkeys(text.partition(".")[0] + ".py" for text in named if "--" not in text)
    for file in modules:
        if file not in checkpoint.files:
            yield Finding("missing-code", file, "missing, but auto_map in config.json names it")


def _dtypes(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Unquantized parameters whose dtype is neither the release's nor that of the other parameters."""
    usual = usual_dtype(checkpoint)
    for param, piece in params(checkpoint):
        if piece.codec.plain is None:
            continue
        stored, native = piece.refs[0].spec.dtype, param.family.dtype
        expected = usual if native == "BF16" else native
        if stored == expected:
            continue
        if stored in _HOLDS.get(expected, ()):
            yield Finding("widened", param.name, f"is {stored}, its release has {native}: larger, but exact")
        elif native == "F32" and stored == usual:
            code, why = _NARROWED.get(param.role, ("narrowed", ""))
            yield Finding(code, param.name, f"is {stored}, its release has F32{why}")
        else:
            others = f"other parameters are {usual}" if native == "BF16" else f"its release has {native}"
            yield Finding("odd-dtype", param.name, f"is {stored}, {others}")
    config = (checkpoint.config or {}).get("torch_dtype", (checkpoint.config or {}).get("dtype"))
    if usual in TORCH_NAMES and isinstance(config, str) and config != TORCH_NAMES[usual]:
        yield Finding("torch-dtype", "config.json", f"torch_dtype is {config}, but unquantized weights are {usual}")


def usual_dtype(checkpoint: Checkpoint) -> str:
    """The dtype of most unquantized values, without those that no release keeps in BF16."""
    found: Counter[str] = Counter()
    for param, piece in params(checkpoint):
        if piece.codec.plain in FLOATS and (param.family.dtype == "BF16" or checkpoint.generic is not None):
            found[piece.refs[0].spec.dtype] += param.family.values
    return max(found, key=lambda dtype: found[dtype], default="BF16")


def placed(checkpoint: Checkpoint, ref: TensorRef, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings about a tensor, with its file if several files may hold a tensor of that name."""
    if checkpoint.layout.shares is None:
        return iter(findings)
    return (finding._replace(what=f"{finding.what} (in {ref.file})") for finding in findings)


def params(checkpoint: Checkpoint) -> Iterator[tuple[Param, Piece]]:
    """Every stored parameter with each of its pieces."""
    held = checkpoint.survey.pieces
    return ((param, piece) for param in checkpoint.params for piece in held.get(param.name, ()))


def pieces(checkpoint: Checkpoint) -> Iterator[Piece]:
    """Every stored region of a parameter of the architecture."""
    return (piece for held in checkpoint.survey.pieces.values() for piece in held)


def quantized_codecs(checkpoint: Checkpoint) -> set[Codec]:
    """The quantized formats of the stored parameters, without tables, whose format no config declares."""
    return {
        piece.codec
        for param, piece in params(checkpoint)
        if piece.codec.config() is not None and not param.family.table
    }
