"""Side files with the originals of a folder: headers, config and index of the source, and scales. No torch.

`original.dsctl` follows a change of format and keeps the scales that decoding makes redundant; `whole.dsctl` follows a
change of layout. Both are safetensors files, so any reader can open them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.reading import MAX_JSON_BYTES, check_name, read_json, strict_json
from dsctl.checkpoint.signed_files import entries_of, read_entry
from dsctl.codecs.codec import CODES, SCALE
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.core.config_fields import QUANTIZATION, quantization_of, text_fields
from dsctl.core.errors import FormatError
from dsctl.core.header import Header, TensorRef, TensorSpec, build, parse
from dsctl.layouts.naming import DIALECTS
from dsctl.stores import INDEX, SIGNED
from dsctl.stores.sums import is_sha256

WHOLE = "whole.dsctl"
_HEADER = "header:"


@dataclass(frozen=True, slots=True)
class Original:
    """A side file's record of the source folder."""

    headers: dict[str, Header]
    files: dict[str, str]
    scales: dict[str, TensorRef]
    texts: dict[str, bytes]
    config: dict[str, Any]

    @property
    def codec(self) -> Fp8Block | None:
        """The codec of its FP8 blocks, if there are any and all have scales of one dtype."""
        declared = Fp8Block.declared(quantization_of(self.config) or {})
        kept = self._scales_of_blocks() if declared else iter(())
        dtypes = {ref.spec.dtype for ref in kept}
        return replace(declared[0], scale_dtype=dtypes.pop()) if declared and len(dtypes) == 1 else None

    def _scales_of_blocks(self) -> Iterator[TensorRef]:
        """The kept scales of tensors of E4M3 codes that have the parameter's own name; of all if no header is kept."""
        if not self.headers:
            yield from self.scales.values()
        own = [dialect for dialect in DIALECTS.values() if CODES not in dialect.endings]
        for name, spec in self.specs.items() if self.scales else ():
            if spec.dtype == "F8_E4M3" and name not in self.scales:
                found = {dialect.tensor(name, SCALE) for dialect in own}
                yield from (self.scales[scale] for scale in found if scale in self.scales)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor of the source folder."""
        return {
            name: spec for one in self.headers.values() for name, spec in zip(one.names, one.specs, strict=True)
        }  # fmt: skip

    @property
    def literals(self) -> dict[str, bytes]:
        """The kept texts, as `kept_texts` returns them."""
        return {_HEADER + file: header.raw for file, header in self.headers.items()} | self.texts

    def header(self, file: str, specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]] | None:
        """The bytes of a file's header and its tensors' offsets, if the file had exactly these tensors; else None."""
        known = self.headers.get(file)
        if known is None or {name: ref.spec for name, ref in known.tensors.items()} != specs:
            return None
        prefix = len(known.raw).to_bytes(8, "little")
        return prefix + known.raw, {name: ref.begin for name, ref in known.tensors.items()}

    def index(self, files: Mapping[str, Mapping[str, TensorSpec]]) -> bytes | None:
        """The original index, if these files hold exactly the original tensors; else None."""
        same = files.keys() == self.headers.keys() and all(self.header(file, specs) for file, specs in files.items())
        return self.texts.get(INDEX) if same else None


class Side:
    """A side file to write: its bytes except the scales, which are copied to their offsets."""

    def __init__(self, literals: Mapping[str, bytes], scales: Mapping[str, TensorSpec], what: str) -> None:
        specs = {name: TensorSpec("U8", (len(data),)) for name, data in literals.items()} | dict(scales)
        self.header, self.begins = build(specs, {"dsctl": what})
        self.size = len(self.header) + sum(spec.nbytes for spec in specs.values())
        self.literals = tuple((self.begins[name], data) for name, data in literals.items())


def kept_texts(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The texts that a side file keeps: the header of every file, config.json and the index."""
    literals = {_HEADER + file: header.raw for file, header in checkpoint.headers.items()}
    return literals | {
        file: checkpoint.store.read(file, 0, checkpoint.files[file])
        for file in ("config.json", INDEX)
        if file in checkpoint.files
    }


def own_side(checkpoint: Checkpoint) -> Original:
    """The record that a side file of this checkpoint would have, without scales."""
    texts = {INDEX: checkpoint.store.read(INDEX, 0, checkpoint.files[INDEX])} if INDEX in checkpoint.files else {}
    files = {name: file for file, header in checkpoint.headers.items() for name in header.names}
    return Original(checkpoint.headers, files, {}, texts, checkpoint.config or {})


def read_side(checkpoint: Checkpoint, file: str, side: Header) -> Original:
    """Read a side file's record.

    Raises:
        FormatError: it contradicts itself.
    """
    headers: dict[str, Header] = {}
    texts: dict[str, bytes] = {}
    scales: dict[str, TensorRef] = {}
    for name, ref in side.tensors.items():
        # Texts are rows of bytes; scales that are powers of two may be matrices of bytes.
        if ref.spec.dtype != "U8" or len(ref.spec.shape) != 1:
            scales[name] = ref
            continue
        if ref.nbytes > MAX_JSON_BYTES:
            raise _broken(file, f"{name} is absurdly long")
        raw = checkpoint.store.read(file, ref.begin, ref.end)
        if name.startswith(_HEADER):
            kept = name.removeprefix(_HEADER)
            check_name(kept, file)
            headers[kept] = parse(raw, f"{file}: {name}", None)
        else:
            texts[name] = raw
    try:
        config = strict_json(texts.get("config.json", b"{}"), file)
        strict_json(texts.get(INDEX, b"{}"), file)
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"kept JSON is not valid: {error}") from None
    if not isinstance(config, dict) or not isinstance(text_fields(config).get(QUANTIZATION) or {}, dict):
        raise _broken(file, "kept config.json or its quantization_config is not an object")
    files = {name: kept for kept, header in headers.items() for name in header.tensors}
    return Original(headers, files, scales, texts, config)


def kept_sums(checkpoint: Checkpoint) -> dict[str, str]:
    """The SHA-256 of the files that a folder was made from, as its `dsctl.json` keeps them; empty if it does not.

    Raises:
        SourceError: `dsctl.json` cannot be read. FormatError: it is not JSON.
    """
    source = (read_json(checkpoint.store, SIGNED, checkpoint.files) or {}).get("source")
    kept = source.get("sha256") if isinstance(source, dict) else None
    return {str(name): one for name, one in kept.items() if is_sha256(one)} if isinstance(kept, dict) else {}


def _broken(file: str, what: str) -> FormatError:
    hint = (
        f"no loader needs {file}: without it the weights are the same, but the original files cannot come back exactly"
    )
    return FormatError(f"{file}: {what}", hint=hint)


def is_altered(checkpoint: Checkpoint, file: str) -> bool:
    """Whether a local side file's digest differs from the one in the folder's `dsctl.json`.

    False if that is unknown: without `dsctl.json`, if it does not list the side file, and for remote sources.

    Raises:
        SourceError: the side file cannot be read. FormatError: `dsctl.json` is not JSON.
    """
    store, files = checkpoint.store, checkpoint.files
    signed = None if store.remote else read_json(store, SIGNED, files)
    entries = (signed or {}).get("files")
    said = entries.get(file) if isinstance(entries, dict) else None
    if not isinstance(said, dict):
        return False
    try:
        entry = entries_of({file: said})[file]
    except ValueError:
        return True
    return read_entry(store, file, files[file], entry) != entry
