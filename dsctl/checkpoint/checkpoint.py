"""Open a checkpoint: config, index and headers in, parameters and the stored pieces that hold them out. No torch."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from dsctl import models, releases
from dsctl.checkpoint import causes
from dsctl.checkpoint.matching import regular, survey, undeclared
from dsctl.checkpoint.pieces import Fault, Survey
from dsctl.codecs import Codec, readable
from dsctl.core.errors import DsctlError, FormatError, SourceError
from dsctl.core.header import Header, TensorRef, TensorSpec, header_length, parse
from dsctl.core.params import Family, Param
from dsctl.layouts import Layout
from dsctl.layouts.manifests import Manifest, decode
from dsctl.layouts.recognition import manifest_files, of_ranks, recognise
from dsctl.models import Model
from dsctl.stores import INDEX, Store, store_at
from dsctl.stores.hub import is_repository

MAX_JSON_BYTES = 200_000_000
MAX_PARAMS = 4_000_000
# A config may describe so many more parameters than there are tensors: naming each as missing has its price.
UNHELD_PARAMS = 500_000
TOLD = 10_000
ORIGINAL = "original.dsctl"


@dataclass
class Checkpoint:
    """A checkpoint as its files describe it; `survey` matches it against its architecture."""

    store: Store
    files: dict[str, int]
    config: dict[str, Any] | None
    model: Model | None
    headers: dict[str, Header]
    faults: list[Fault]
    index: dict[str, str] | None
    total_size: int | None
    manifests: dict[str, Manifest]

    @cached_property
    def layout(self) -> Layout:
        """Where its parameters are.

        Raises:
            FormatError: the manifests of its ranks contradict each other.
        """
        return recognise(self.headers, self.manifests, lambda: self.families, self.store.place)

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """The architecture's parameter families, or none where the architecture is unknown.

        Raises:
            FormatError: a shape field of the config is missing or absurd.
        """
        if self.model is None or self.config is None:
            return ()
        families = self.model.families(self.config)
        described = sum(family.count for family in families)
        if described > MAX_PARAMS:
            raise FormatError(f"config.json: describes more than {MAX_PARAMS:,} parameters")
        held = sum(len(header.names) for header in self.headers.values())
        if described > UNHELD_PARAMS + 20 * held:
            raise FormatError(f"config.json: describes {described:,} parameters, the files hold only {held:,} tensors")
        return families

    @cached_property
    def params(self) -> list[Param]:
        return [param for family in self.families for param in family.params()]

    @cached_property
    def catalogue(self) -> dict[str, dict[str, TensorRef]]:
        """Every stored tensor by shard and name. Where two files hold one name, the index decides."""
        catalogue: dict[str, dict[str, TensorRef]] = {}
        for file, header in self.headers.items():
            names = catalogue.setdefault(self.layout.shard_of(file), {})
            if self.index is None and names.keys().isdisjoint(header.tensors):
                names.update(header.tensors)
                continue
            for name, ref in header.tensors.items():
                if self._owns(file, name, name in names):
                    names[name] = ref
        return catalogue

    def _owns(self, file: str, name: str, taken: bool) -> bool:
        if self.index is not None and name in self.index:
            return self.index[name] == file
        if taken:
            raise FormatError(f"{self.store.place}: tensor {name} is in {file} and in another file")
        return True

    @property
    def quantization(self) -> dict[str, Any] | None:
        value = (self.config or {}).get("quantization_config")
        return value if isinstance(value, dict) else None

    @cached_property
    def codecs(self) -> tuple[Codec, ...]:
        """The codecs to try, those that the config declares first."""
        return readable(self.quantization)

    @cached_property
    def survey(self) -> Survey:
        return survey(self)

    @cached_property
    def regular(self) -> dict[Family, Codec] | None:
        """How each family is stored, or None where `survey` has to look at every tensor: see `matching.regular`."""
        specs: dict[str, TensorSpec] = {}
        for header in self.headers.values():
            specs.update(zip(header.names, header.specs, strict=True))
        clash = len(specs) != sum(len(header.names) for header in self.headers.values())
        return None if clash else regular(self, specs)

    @property
    def known_faults(self) -> tuple[Fault, ...]:
        """Everything that is wrong, as far as the headers tell, by its causes: see `causes`."""
        return tuple(causes.told(self, self._single_faults))

    @property
    def _single_faults(self) -> tuple[Fault, ...]:
        if self.regular is None:
            return *self.faults, *self.survey.faults
        return *self.faults, *undeclared(self, self.regular.values())

    @cached_property
    def nbytes(self) -> int:
        """What all stored tensors take: the true `total_size` of the index."""
        return sum(header.nbytes for header in self.headers.values())

    @cached_property
    def counts_values(self) -> bool:
        """Whether the index's `total_size` is twice the number of stored values, scales included.

        DeepSeek-V3's own index says 1,369,062,772,000 for 684,531,386,000 values (revision e815299b); its tensors take
        688,574,839,360 bytes. No loader needs the field.
        """
        kinds = (kind for header in self.headers.values() for kind in header.kinds.items())
        return self.total_size == 2 * sum(spec.values * count for spec, count in kinds)

    @property
    def tensors(self) -> Iterator[TensorRef]:
        for names in self.catalogue.values():
            yield from names.values()

    @cached_property
    def original(self) -> Header | None:
        """The header of the side file that keeps what a conversion replaced, if there is one."""
        if ORIGINAL not in self.files:
            return None
        return read_header(self.store, ORIGINAL, self.files[ORIGINAL])

    def require_whole(self, allow_missing: bool = False, allow_extra: bool = False, without_mtp: bool = False) -> None:
        """Refuse a checkpoint that its own files contradict; `without_mtp` where no MTP layer is wanted of it.

        Raises:
            FormatError: with every fault in `issues`, those of one cause as one.
        """
        faults = [f for f in self._single_faults if not (allow_missing and f.code == "missing-tensor")]
        faults = [f for f in faults if not (without_mtp and self._of_mtp(f))]
        faults = [f for f in faults if f.code not in NOTES and not (allow_extra and f.code == "extra-tensor")]
        if faults:
            told = causes.told(self, faults)
            issues = [str(fault) for fault in told]
            raise FormatError(summary(self.store.place, told), hint=self._hint(faults, told), issues=issues)

    def _of_mtp(self, fault: Fault) -> bool:
        """Whether it is of an MTP layer, and would be no fault without that."""
        return fault.code == "missing-tensor" and fault in self.survey.mtp

    def _hint(self, faults: list[Fault], told: list[Fault]) -> str | None:
        """What to do about faults that are of one cause or all of one kind; `told` are the same by their causes."""
        kinds, remedy = {fault.code for fault in faults}, causes.remedy(self.store, told)
        lost = any(fault.code == "missing-shard" for fault in told)
        if lost or (remedy and kinds != {"missing-tensor"}):
            return remedy
        if kinds == {"missing-tensor"}:
            drop = "drop the MTP layer with --no-mtp, or " if all(map(self._of_mtp, faults)) else ""
            return f"{drop}go on without them with --allow-missing"
        if kinds == {"extra-tensor"}:
            return "carry them over as they are with --allow-extra"
        if kinds <= {"block-size", "format-not-declared", "declared-not-stored"}:
            return "`dsctl verify --fix` makes config.json say what is stored"
        if "missing-scale" in kinds:
            return "FP8 codes mean nothing without their scales: fetch the files that should hold them again"
        return None


# Faults that say something, but make nothing unreadable or ambiguous.
NOTES = frozenset({
    "stray-file", "no-index", "total-size", "no-format-pt", "undeclared-format", "index-unknown", "missing-rank",
})  # fmt: skip


def summary(place: str, faults: list[Fault]) -> str:
    """One line for a list of faults: the only one, or how many of which kind; what others follow from comes first."""
    if len(faults) == 1:
        return f"{place}: {faults[0]}"
    first = f"{faults[0]}; in all " if faults[0].code in ("missing-shard", "wrong-config") else ""
    kinds: dict[str, int] = {}
    for fault in faults:
        kinds[fault.code] = kinds.get(fault.code, 0) + 1
    return f"{place}: {first}{len(faults)} faults ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"


def weights_at(source: str | Path) -> Store:
    """The store of a SRC whose bytes are wanted: a release known by its name alone has none here.

    Raises:
        SourceError: there is nothing there, or it cannot be reached.
    """
    release = None if os.path.exists(source) or is_repository(str(source)) else releases.known(str(source))
    if release is not None:
        fetched = f"`dsctl download {release.alias[0]} FOLDER` fetches them"
        hint = f"{fetched}, hf://{release.repository} reads them from there"
        raise SourceError(f"{source}: {release.name} is known by its description, its weights are not here", hint=hint)
    return store_at(source)


def open_checkpoint(store: Store) -> Checkpoint:
    """Read config, index and all headers of a store; weights are not read.

    Raises:
        SourceError: nothing there, or unreadable.
        FormatError: a file's own structure is broken (a missing shard or tensor is a fault, not an error, here).
    """
    files = store.files()
    faults: list[Fault] = []
    config = read_json(store, "config.json", files)
    index, total = _index(store, files)
    shards = _shards(store, files, index, faults)
    headers = read_headers(store, {file: files[file] for file in shards})
    if not headers and not faults:
        raise SourceError(f"{store.place}: no .safetensors files", hint="is this the folder of a checkpoint?")
    model = None
    if config is not None:
        try:
            model = models.recognise(config)
        except FormatError as error:
            faults.append(Fault("unknown-architecture", "config.json", error.message.partition(": ")[2]))
    elif store.files().keys() - headers.keys():
        faults.append(Fault("no-config", store.place, "no config.json"))
    faults += _index_faults(index, headers)
    plain = of_ranks(headers)
    faults += [
        Fault("no-format-pt", file, 'metadata lacks {"format": "pt"}: transformers 5 loads it, older than 5 refuses')
        for file, header in headers.items()
        if header.metadata.get("format") not in ("pt", "tf", "flax", "mlx") and not plain
    ]
    manifests = {file: _manifest(store, file, files[file]) for file in manifest_files(files)}
    return Checkpoint(store, files, config, model, headers, faults, index, total, manifests)


def _manifest(store: Store, file: str, size: int) -> Manifest:
    if size > MAX_JSON_BYTES:
        raise FormatError(f"{file}: {size:,} bytes is too long for a manifest")
    return decode(store.read(file, 0, size), file)


def read_json(store: Store, file: str, files: Mapping[str, int]) -> dict[str, Any] | None:
    """A JSON object from a store, or None where the file is absent.

    Raises:
        FormatError: not JSON, not an object, a key twice, or absurdly long.
    """
    if file not in files:
        return None
    if files[file] > MAX_JSON_BYTES:
        raise FormatError(f"{file}: {files[file]:,} bytes is too long for a JSON file")
    try:
        value = strict_json(store.read(file, 0, files[file]), file)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file}: holds {type(value).__name__} where an object is expected")
    return value


def strict_json(raw: bytes, file: str) -> Any:
    """JSON that can be written again and means the same to every reader.

    Raises:
        FormatError: a key twice. ValueError: not JSON, or a number or text that JSON in UTF-8 does not have.
        RecursionError: it is nested too deep.
    """
    text = raw.decode()
    value = json.loads(
        text, object_pairs_hook=lambda pairs: _unique(pairs, file), parse_constant=_refuse_constant, parse_float=_finite
    )
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"holds {error.object[error.start]!a}, half of a surrogate pair") from None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits[:40]} is beyond the range of numbers")
    return number


def _unique(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise FormatError(f"{file}: key {twice!r} appears twice")
    return value


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: msgspec.Raw = msgspec.Raw(b"")


def _index(store: Store, files: Mapping[str, int]) -> tuple[dict[str, str] | None, int | None]:
    if INDEX not in files:
        return None, None
    if files[INDEX] > MAX_JSON_BYTES:
        raise FormatError(f"{INDEX}: {files[INDEX]:,} bytes is too long for an index")
    raw = store.read(INDEX, 0, files[INDEX])
    try:
        index = msgspec.json.decode(raw, type=_Index)
        said = bytes(index.metadata)
        metadata = (msgspec.json.decode(said, type=dict[str, Any] | None) if said else None) or {}
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{INDEX}: not a valid index: {error}") from None
    # A pair takes four quotation marks: more of them are a repeated key, or marks within a name.
    rest = said.count(b'"') + (2 if said else 0) + 2
    if raw.count(b'"') != 4 * len(index.weight_map) + rest or len(metadata) > 1:
        read_json(store, INDEX, files)
    total = metadata.get("total_size")
    if isinstance(total, bool) or not isinstance(total, (int, float)) or not abs(total) < 1 << 63:
        return index.weight_map, None
    return index.weight_map, int(total)


def _shards(store: Store, files: Mapping[str, int], index: Mapping[str, str] | None, faults: list[Fault]) -> list[str]:
    present = [file for file in files if file.endswith(".safetensors")]
    if index is None:
        if len(present) > 1 and all("/" not in file for file in present) and not of_ranks(present):
            faults.append(Fault("no-index", store.place, f"{len(present)} safetensors files, but no {INDEX}"))
        return present
    named = dict.fromkeys(index.values())
    for file in named:
        check_name(file, INDEX)
        if file not in files:
            faults.append(Fault("missing-shard", file, "named in the index, but not there"))
    for file in present:
        if file not in named:
            faults.append(Fault("stray-file", file, "not named in the index: ignored"))
    return [file for file in named if file in files]


def check_name(file: str, where: str) -> None:
    """Refuse a shard's name that is no safetensors file inside the folder.

    Raises:
        FormatError: it is not.
    """
    parts = file.split("/")
    if not file.endswith(".safetensors") or file.startswith("/") or ".." in parts or "" in parts or "\\" in file:
        raise FormatError(f"{where}: file name {file!r} is not a safetensors file inside the folder")


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
    """A fault for each name and file, up to a number that anybody would read."""
    for name, file in found[:TOLD]:
        yield Fault(code, name, what.format(file))
    if len(found) > TOLD:
        yield Fault(code, INDEX, f"the same of {len(found) - TOLD:,} tensors more")


def _agree(index: Mapping[str, str], headers: Mapping[str, Header]) -> bool:
    """Whether the index names exactly the headers' tensors, each in its file."""
    if len(index) != sum(len(header.names) for header in headers.values()):
        return False
    return all(list(map(index.get, header.names)).count(file) == len(header.names) for file, header in headers.items())


def read_header(store: Store, file: str, size: int) -> Header:
    """One file's header, in one read where it is short and two where it is not.

    Raises:
        FormatError: see `dsctl.core.header.parse`.
        SourceError: the file cannot be read.
    """
    return _parsed(store.head(file, size), file, size)


def _parsed(head: bytes, file: str, size: int) -> Header:
    # A store may have kept the head from an earlier time.
    header_length(head[:8], file, size)
    return parse(head[8:], file, size)


def read_headers(store: Store, files: Mapping[str, int]) -> dict[str, Header]:
    """The headers of several files, read in parallel; every broken one is named.

    Raises:
        FormatError, SourceError: as `read_header`; several at once as issues of one error.
    """
    from concurrent.futures import wait

    from dsctl.stores.threads import threads

    headers: dict[str, Header] = {}
    errors: list[DsctlError] = []
    with threads(min(16, max(1, len(files)))) as pool:
        heads = {file: pool.submit(partial(store.head, file, size)) for file, size in files.items()}
        # Parsing beside the reading threads would only make both wait for the interpreter's lock.
        wait(heads.values())
    for file, size in files.items():
        try:
            headers[file] = _parsed(heads[file].result(), file, size)
        except DsctlError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        what = "cannot be read" if isinstance(errors[0], SourceError) else "are broken"
        hints = {error.hint for error in errors}
        hint = hints.pop() if len(hints) == 1 else None
        issues = [error.message for error in errors]
        raise type(errors[0])(f"{store.place}: {len(errors)} files {what}", hint=hint, issues=issues)
    return headers
