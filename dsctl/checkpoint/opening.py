"""Open a checkpoint from a folder, a file, a release's repository or a URL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dsctl import models, releases
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.delta_form import refuse_delta
from dsctl.checkpoint.drafters import is_nested, nested
from dsctl.checkpoint.pieces import Fault
from dsctl.checkpoint.reading import MAX_JSON_BYTES, check_name, read_headers, read_json
from dsctl.core.errors import FormatError, SourceError
from dsctl.core.header import Header
from dsctl.layouts.manifests import Manifest, decode
from dsctl.layouts.recognition import manifest_files, of_ranks
from dsctl.models.model import Model
from dsctl.stores import CONFIG, INDEX, PARAMS, PARAMS_INDEX, Store, store_at
from dsctl.stores.hub import is_repository

if TYPE_CHECKING:
    from dsctl.stores import Store


def source_at(text: str) -> Store:
    """The store of a source; a release's name means its repository if there is no such folder.

    Raises:
        SourceError: it does not exist or cannot be reached.
    """
    release = releases.meant(text)
    return store_at(release.repository if release else text)


TOLD = 10_000


def weights_at(source: str | Path) -> Store:
    """The store of a SRC whose bytes are needed; a release's name alone is refused, because its weights are not here.

    Raises:
        SourceError: it does not exist or cannot be reached.
    """
    release = None if os.path.exists(source) or is_repository(str(source)) else releases.known(str(source))
    if release is not None:
        fetched = f"`dsctl download {release.alias[0]} FOLDER` fetches them"
        hint = f"{fetched}, hf://{release.repository} reads them from there"
        raise SourceError(
            f"{source}: {release.name} is known only by its built-in description; its weights are not here", hint=hint
        )
    return store_at(source)


def open_checkpoint(store: Store) -> Checkpoint:
    """Read config, index and all headers of a store; weights are not read.

    Raises:
        SourceError: it does not exist or cannot be read.
        FormatError: a file's own structure is broken (a missing shard or tensor is a fault, not an error, here).
    """
    files = store.files()
    faults: list[Fault] = []
    config = read_json(store, _present(files, CONFIG, PARAMS), files)
    index, total = _index(store, files)
    shards = _shards(store, files, index, faults)
    headers = read_headers(store, {file: files[file] for file in shards})
    if not headers and not faults:
        raise SourceError(f"{store.place}: no .safetensors files", hint="is this the folder of a checkpoint?")
    model = None
    if config is not None:
        try:
            model = models.recognise(config)
            config = model.restored(config)
        except FormatError as error:
            unknown = isinstance(error, models.UnknownArchitecture)
            code = "unknown-architecture" if unknown else "bad-config"
            faults.append(Fault(code, "config.json", error.message.partition(": ")[2]))
    elif store.files().keys() - headers.keys():
        faults.append(Fault("no-config", store.place, "no config.json"))
    faults += _index_faults(index, headers)
    plain = of_ranks(headers)
    faults += [
        Fault("no-format-pt", file, 'metadata lacks {"format": "pt"}: transformers 5 loads it, older than 5 refuses')
        for file, header in headers.items()
        if header.metadata.get("format") not in ("pt", "tf", "flax", "mlx") and not plain and not _are_bare(model)
    ]
    manifests = {file: _manifest(store, file, files[file]) for file in manifest_files(files)}
    return Checkpoint(store, files, config, model, headers, faults, index, total, manifests)


def _are_bare(model: Model | None) -> bool:
    """Whether no release of an architecture has metadata in its headers, so that its loaders need none."""
    known = [one.storage.bare for one in releases.releases() if model is not None and one.architecture == model.name]
    return bool(known) and all(known)


def _manifest(store: Store, file: str, size: int) -> Manifest:
    if size > MAX_JSON_BYTES:
        raise FormatError(f"{file}: {size:,} bytes is too long for a manifest")
    return decode(store.read(file, 0, size), file)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: msgspec.Raw = msgspec.Raw(b"")


def _present(files: Mapping[str, int], usual: str, other: str) -> str:
    """The name of a folder's config or index: Mistral's own only if the usual one is absent."""
    return other if other in files and usual not in files else usual


def _index(store: Store, files: Mapping[str, int]) -> tuple[dict[str, str] | None, int | None]:
    name = _present(files, INDEX, PARAMS_INDEX)
    if name not in files:
        return None, None
    if files[name] > MAX_JSON_BYTES:
        raise FormatError(f"{name}: {files[name]:,} bytes is too long for an index")
    raw = store.read(name, 0, files[name])
    try:
        index = msgspec.json.decode(raw, type=_Index)
        said = bytes(index.metadata)
        metadata = (msgspec.json.decode(said, type=dict[str, Any] | None) if said else None) or {}
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not a valid index: {error}") from None
    # A pair takes four quotation marks: more of them are a repeated key, or marks within a name.
    rest = said.count(b'"') + (2 if said else 0) + 2
    if raw.count(b'"') != 4 * len(index.weight_map) + rest or len(metadata) > 1:
        read_json(store, name, files)
    refuse_delta(metadata, store.place)
    total = metadata.get("total_size")
    if isinstance(total, bool) or not isinstance(total, (int, float)) or not abs(total) < 1 << 63:
        return index.weight_map, None
    return index.weight_map, int(total)


def _shards(store: Store, files: Mapping[str, int], index: Mapping[str, str] | None, faults: list[Fault]) -> list[str]:
    apart = nested(files)
    present = [file for file in files if file.endswith(".safetensors") and not is_nested(file, apart)]
    if index is None:
        if len(present) > 1 and all("/" not in file for file in present) and not of_ranks(present):
            faults.append(Fault("no-index", store.place, f"{len(present)} safetensors files, but no {INDEX}"))
        return present
    named = dict.fromkeys(index.values())
    for file in named:
        check_name(file, _present(files, INDEX, PARAMS_INDEX))
        if file not in files:
            faults.append(Fault("missing-shard", file, "missing, but the index names it"))
    for file in present:
        if file not in named:
            faults.append(Fault("stray-file", file, "not named in the index: ignored"))
    return [file for file in named if file in files]


def _index_faults(index: Mapping[str, str] | None, headers: Mapping[str, Header]) -> list[Fault]:
    if index is None or _agree(index, headers):
        return []
    held = {file: set(header.names) for file, header in headers.items()}
    wrong = [(name, file) for name, file in index.items() if file in held and name not in held[file]]
    unknown = [(name, file) for file in held for name in headers[file].names if name not in index]
    return [
        *_told("index-wrong", "the index places it in {}, which does not hold it", wrong),
        *_told("index-unknown", "in {}, but not in the index", unknown),
    ]


def _told(code: str, what: str, found: Sequence[tuple[str, str]]) -> Iterator[Fault]:
    """A fault for each name and file, up to a readable number."""
    for name, file in found[:TOLD]:
        yield Fault(code, name, what.format(file))
    if len(found) > TOLD:
        yield Fault(code, INDEX, f"the same of {len(found) - TOLD:,} tensors more")


def _agree(index: Mapping[str, str], headers: Mapping[str, Header]) -> bool:
    """Whether the index has exactly the headers' tensors, each in its file."""
    if len(index) != sum(len(header.names) for header in headers.values()):
        return False
    return all(list(map(index.get, header.names)).count(file) == len(header.names) for file, header in headers.items())
