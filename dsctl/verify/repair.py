"""Fix a folder's metadata, as the findings of a check and the stored tensors decide. Never changes weights.

Every file is replaced whole, by a finished sibling. A header that grows moves its weights by a few bytes in the file:
they are copied unchanged, and checked during the copy if `dsctl.json` signs them. `dsctl.json` signs the sibling before
it replaces the file: the signature shows the next run that this one was killed in between, and the next run finishes.
"""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.generic import Generic
from dsctl.checkpoint.generic_config import generic_config
from dsctl.checkpoint.reading import read_json
from dsctl.checkpoint.scales import are_powers_of_two, read_scales
from dsctl.checkpoint.signed_files import SignedFile, Signer, differences, read_entry
from dsctl.codecs import dress
from dsctl.codecs.plain import TORCH_NAMES, Plain
from dsctl.core.config_fields import QUANTIZATION, edited, quantization_of, text_fields, with_value
from dsctl.core.errors import PlanError, VerifyFailed
from dsctl.core.files import beside, sync_folder, take_place, write_beside
from dsctl.core.header import PT, Header
from dsctl.stores import INDEX, SIGNED, STATEMENT, WORKING, Store
from dsctl.stores.local import LocalFolder
from dsctl.verify.against import Other
from dsctl.verify.findings import Report
from dsctl.verify.formats import role_fields
from dsctl.verify.numbers import block_scales
from dsctl.verify.opening import open_anyhow
from dsctl.verify.signed import read_signed
from dsctl.verify.statement import renewed
from dsctl.verify.structure import params, quantized_codecs, usual_dtype

COPY_BYTES = 8 << 20
# New files get the digest of their bytes.
_PLAIN = SignedFile(0, blake3="0" * 64)
_INDEX_CODES = {"no-index", "index-wrong", "index-unknown", "total-size"}
_CONFIG_CODES = {
    "format-not-declared", "declared-not-stored", "block-size", "scale-fmt-undeclared", "not-power-of-two",
    "torch-dtype", "scale-fmt-missing", "expert-dtype", "expert-dtype-missing",
}  # fmt: skip


class Mend(NamedTuple):
    """One file to replace: the change, its new bytes (read when it is carried out) and their approximate number.

    `data` is None if the finished and signed sibling only has to replace the file.
    """

    file: str
    what: str
    data: Callable[[], Iterable[bytes]] | None
    size: int = 0


def mends(store: Store, report: Report, their: Other | None = None) -> list[Mend]:
    """The changes that fix the findings of a check that are about metadata.

    Raises:
        PlanError: the checkpoint is not a folder on this machine, or a conversion into it is unfinished.
    """
    if not isinstance(store, LocalFolder) or store.only is not None:
        raise PlanError(f"{store.place}: --fix needs a folder on this machine")
    if (Path(store.root) / WORKING).exists():
        raise PlanError(f"{store.place}: has unfinished work of dsctl", hint="run the same command again to finish it")
    store = replace(store, lenient=True)
    found = list(_unended(store))
    if found:
        return found
    opened = open_anyhow(store)
    if opened.checkpoint is not None:
        codes = {finding.code for finding in report.findings}
        found += _headers(opened.checkpoint, store, report)
        if "duplicate-name" not in codes and (codes & _INDEX_CODES or INDEX in opened.lost):
            found += _index(opened.checkpoint, store, INDEX in opened.lost)
        if codes & _CONFIG_CODES and "bad-config" not in codes:
            found += _config(opened.checkpoint, report)
    if their is not None and their.store is not None:
        found += _side_files(their.store, report)
    return [*found, *_statement(store, report)]


def mend(store: LocalFolder, planned: Iterable[Mend]) -> None:
    """Carry out the changes, one file after the other, and sign the files if there is a `dsctl.json`.

    Raises:
        PlanError: the disk has too little room. WorkError: the folder cannot be written.
        SourceError: a file's name leads out of the folder.
        VerifyFailed: bytes to be kept do not have the digest in `dsctl.json`.
    """
    folder = Path(store.root)
    for one in planned:
        free = shutil.disk_usage(folder).free
        if one.size > free:
            raise PlanError(f"{store.place}: the copy of {one.file} needs {one.size:,} bytes, but {free:,} are free")
        path = folder / one.file
        store.path(one.file)
        if one.data is not None:
            _write(path, one.data())
            _sign(store, one.file)
        take_place(path)


def _write(path: Path, data: Iterable[bytes]) -> None:
    """Write the sibling that replaces a file, with its permissions. Removed if that fails."""
    try:
        write_beside(path, data, _mode(path))
        sync_folder(path.parent)
    except BaseException:
        beside(path).unlink(missing_ok=True)
        raise


def _mode(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


def _unended(store: LocalFolder) -> Iterator[Mend]:
    """Siblings that `dsctl.json` signs already: they only have to replace their files."""
    files = store.files()
    for file, entry in (read_signed(store, files) or {}).items():
        sibling = str(beside(Path(file)))
        if files.get(sibling) == entry.size and read_entry(store, sibling, entry.size, entry) == entry:
            yield Mend(file, f"replaced by {sibling}, which {SIGNED} signs", None)


def _sign(store: LocalFolder, file: str) -> None:
    """Put the size and the digests of a file's new sibling into `dsctl.json`, if there is one."""
    signed, files = Path(store.root) / SIGNED, store.files()
    entries = read_signed(store, files)
    if entries is None:
        return
    sibling = str(beside(Path(file)))
    entry = read_entry(store, sibling, files[sibling], entries.get(file, _PLAIN))
    audit = json.loads(signed.read_bytes())
    audit["files"] = dict(sorted({**audit["files"], file: entry.json()}.items()))
    write_beside(signed, _text(audit, 1), _mode(signed))
    take_place(signed)


def _text(value: Any, indent: int = 2) -> bytes:
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()


def _headers(checkpoint: Checkpoint, store: LocalFolder, report: Report) -> Iterator[Mend]:
    files = {finding.where for finding in report.findings if finding.code == "no-format-pt"}
    entries = read_signed(store, checkpoint.files) or {}
    for file in sorted(files & checkpoint.headers.keys()):
        size, header = checkpoint.files[file], checkpoint.headers[file]
        what = f'add {{"format": "pt"}} to its header; copies {size:,} bytes beside the file, then replaces it'
        yield Mend(file, what, partial(_stamped, store, header, size, entries.get(file)), size)


def _stamped(store: Store, header: Header, size: int, entry: SignedFile | None) -> Iterator[bytes]:
    """A weight file with the metadata that loaders need; offsets count from the header's end and stay the same."""
    file = header.file
    head, signer = store.head(file, size), Signer(entry or _PLAIN, header)
    entries = json.loads(head[8:])
    metadata = {**entries.pop("__metadata__", {}), **PT}
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    signer.update(head)
    for begin in range(len(head), size, COPY_BYTES):
        chunk = store.read(file, begin, min(begin + COPY_BYTES, size))
        signer.update(chunk)
        yield chunk
    if entry is not None and differences(entry, signer.entry(), header):
        raise VerifyFailed(f"{file}: its {entry.kind} digest differs from the one in {SIGNED}: file left unchanged")


def _index(checkpoint: Checkpoint, store: Store, lost: bool) -> Iterator[Mend]:
    """The index that the headers give; entries of missing files stay.

    A `total_size` that counts values, as a release's own index does, is not a reason to write a new index.
    """
    old: dict[str, Any] = {} if lost else dict(read_json(store, INDEX, checkpoint.files) or {})
    held = {file: header.tensors for file, header in checkpoint.headers.items()}
    before: Mapping[str, str] = old.get("weight_map") or {}
    weights = {name: file for name, file in before.items() if file not in held or name in held[file]}
    for file, names in held.items():
        weights |= {name: file for name in names if name not in weights}
    if len(held) == 1 and not before and not lost:
        return
    metadata = dict(old.get("metadata") or {})
    many = len(weights.items() ^ before.items())
    changes = [f"{many:,} entries change" if many > 1 else "1 entry changes"] if many else []
    if set(weights.values()) <= held.keys() and (changes or not checkpoint.counts_values):
        total = checkpoint.nbytes
        changes += [f"total_size {total:,}"] if metadata.get("total_size") != total else []
        metadata["total_size"] = total
    data = _text({**old, "metadata": metadata, "weight_map": weights})
    if changes:
        yield Mend(INDEX, "written from the headers: " + ", ".join(changes), lambda: (data,), len(data))


def _config(checkpoint: Checkpoint, report: Report) -> Iterator[Mend]:
    """`quantization_config` and dtype that match the stored tensors."""
    config = dict(checkpoint.config or {})
    said = quantization_of(config)
    true = _quantization(checkpoint, report)
    changes = []
    if true is None and said is not None:
        config = edited(config, {}, [QUANTIZATION])
        changes.append("quantization_config removed: no weight is quantized")
    elif true != said:
        config = edited(config, {QUANTIZATION: true})
        changes.append(f"quantization_config becomes {json.dumps(true)}")
    for field in role_fields(checkpoint):
        if len(field.stored) > 1 or field.said == field.true:
            continue
        config = with_value(config, field.name, field.true)
        changes.append(f"{field.name} becomes {field.true}" if field.true else f"{field.name} removed")
    usual = TORCH_NAMES.get(usual_dtype(checkpoint))
    flat = text_fields(config)
    key = "dtype" if "dtype" in flat and "torch_dtype" not in flat else "torch_dtype"
    told = checkpoint.generic is None or any(finding.code == "torch-dtype" for finding in report.findings)
    if usual and told and key in flat and flat[key] != usual:
        config = edited(config, {key: usual})
        changes.append(f"{key} becomes {usual}")
    data = _text(config)
    if changes:
        yield Mend("config.json", "; ".join(changes), lambda: (data,), len(data))


def _quantization(checkpoint: Checkpoint, report: Report) -> dict[str, Any] | None:
    """The `quantization_config` that matches the stored tensors; unchanged if several formats are mixed."""
    blocks = {codec.block for codec in quantized_codecs(checkpoint) if codec.scale_fmt}
    if not quantized_codecs(checkpoint):
        unquantized = any(finding.code == "declared-not-stored" for finding in report.findings)
        return None if unquantized else checkpoint.quantization
    if checkpoint.generic is not None:
        return _of_generic(checkpoint, checkpoint.generic)
    if len(blocks) != 1:
        return checkpoint.quantization
    true = dress.fp8(blocks.pop(), _scale_fmt(checkpoint, report))
    said = checkpoint.quantization or {}
    kept = said if said.get("quant_method") == true["quant_method"] else {}
    return {key: value for key, value in {**kept, **true}.items() if key != "scale_fmt" or "scale_fmt" in true}


def _of_generic(checkpoint: Checkpoint, found: Generic) -> dict[str, Any] | None:
    """The same for an unknown architecture; unchanged if one config cannot declare the stored formats."""
    stored = [(param, Plain(), piece.codec) for param, piece in params(checkpoint)]
    try:
        return generic_config(stored, checkpoint.quantization, found.unread)
    except PlanError:
        return checkpoint.quantization


def _scale_fmt(checkpoint: Checkpoint, report: Report) -> str:
    """ue8m0 if most scales are powers of two: a single one that is not is damage, not a different format."""
    refs = block_scales(checkpoint)
    powers = sum(are_powers_of_two(values) for _, values in read_scales(checkpoint.store, refs))
    declared = (checkpoint.quantization or {}).get("scale_fmt") == "ue8m0"
    is_ue8m0 = powers == len(refs) or (declared and 2 * powers > len(refs))
    return "ue8m0" if is_ue8m0 else "float32"


def _statement(store: LocalFolder, report: Report) -> Iterator[Mend]:
    """The statement with the files and digests of `dsctl.json`: it is read when the other files have been fixed."""
    codes = {finding.code for finding in report.findings}
    if "statement-subjects" in codes and not codes & {"signed-missing", "signed-size", "digest"}:
        what = f"its subjects become the files of {SIGNED}; changed ones are marked, and a signature of it ends"
        yield Mend(STATEMENT, what, lambda: (renewed(store),), store.files()[STATEMENT])


def _side_files(their: Store, report: Report) -> Iterator[Mend]:
    files = their.files()
    wanted = {finding.where for finding in report.findings if finding.code == "missing-side-file"}
    if any(finding.code == "no-config" for finding in report.findings):
        wanted.add("config.json")
    for file, size in files.items():
        if file in wanted:
            what = f"copied from {their.place}, {size:,} bytes"
            yield Mend(file, what, lambda file=file, size=size: _copied(their, file, size), size)  # type: ignore[misc]


def _copied(their: Store, file: str, size: int) -> Iterator[bytes]:
    for begin in range(0, size, COPY_BYTES):
        yield their.read(file, begin, min(begin + COPY_BYTES, size))
