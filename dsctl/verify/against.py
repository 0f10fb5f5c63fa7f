"""Compare a checkpoint with a release's description or a different folder: architecture, config, side files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dsctl import models, releases
from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.origin import Origin
from dsctl.checkpoint.reading import read_json
from dsctl.core.config_fields import CLERICAL_FIELDS, STORAGE_FIELDS, quantization_of, text_fields
from dsctl.core.errors import FormatError
from dsctl.core.params import Family, Traits
from dsctl.releases import Release
from dsctl.stores import INDEX, SIGNED, STATEMENT, Store, store_at
from dsctl.verify.findings import Finding

# Fields of config.json that may differ from a release. `auto_map` may not: it names the code that loaders run.
_FREE = STORAGE_FIELDS | CLERICAL_FIELDS - {"auto_map"}
_OWN = ("config.json", INDEX, SIGNED, STATEMENT, ORIGINAL)
_TEXT_BYTES = 64 << 20
_ABSENT = "absent"
# Values of more characters are too long to read side by side.
LONG = 100


class Other(NamedTuple):
    """The other side of a comparison: its config, and the folder or the release that has this config."""

    name: str
    config: Mapping[str, Any]
    store: Store | None = None
    release: Release | None = None

    @property
    def origin(self) -> Origin:
        """The origin of the data: the built-in description of a release, or files in a place."""
        if self.release is not None:
            return Origin.of_release(self.release)
        assert self.store is not None
        return Origin.of_files("config.json and side files", self.store.place, self.name)


def other(text: str) -> Other:
    """A folder or a release by any of its names; a folder takes precedence over a release of the same name.

    Raises:
        SourceError: neither exists. FormatError: its config does not parse.
    """
    release = releases.meant(text)
    if release is not None:
        return Other(release.name, release.config, None, release)
    store = store_at(text)
    return Other(text, read_json(store, "config.json", store.files()) or {}, store)


def against(checkpoint: Checkpoint, their: Other) -> Iterator[Finding]:
    """Findings about every difference between a checkpoint and the other side."""
    if checkpoint.config is not None:
        yield from _families(checkpoint, their)
        yield from _config(checkpoint, checkpoint.config, their)
    if their.release is not None and not checkpoint.alone:
        yield from _storage(checkpoint, their.release)
    if their.store is not None:
        yield from _side_files(checkpoint, their.store)


def _families(checkpoint: Checkpoint, their: Other) -> Iterator[Finding]:
    if checkpoint.generic is not None:
        yield from _by_names(checkpoint, their)
        return
    try:
        wanted = _outlines(models.recognise(their.config).families(their.config, _traits(checkpoint, their)))
        # The config of a drafter alone describes its model, too.
        found = _outlines(checkpoint.described if checkpoint.alone else checkpoint.families)
    except FormatError as error:
        yield Finding("other-architecture", their.name, error.message)
        return
    for template, outline in wanted.items():
        if template not in found:
            yield Finding("other-architecture", template, f"is in {their.name}, but not in this architecture")
        elif found[template] != outline:
            what = f"{found[template]} here, {outline} in {their.name}"
            yield Finding("other-architecture", template, what)
    for template in found.keys() - wanted.keys():
        yield Finding("other-architecture", template, f"is in this architecture, but not in {their.name}")


def _by_names(checkpoint: Checkpoint, their: Other) -> Iterator[Finding]:
    """The same for a checkpoint of unknown architecture: parameters by name, if the other side's is unknown, too."""
    store = their.store
    try:
        theirs = None if store is None else open_checkpoint(store)
        if theirs is None or theirs.generic is None:
            what = "has a known architecture, but the one here is unknown"
            yield Finding("other-architecture", their.name, what)
            return
        wanted, found = ({one.name: list(one.shape) for one in side.params} for side in (theirs, checkpoint))
    except FormatError as error:
        yield Finding("other-architecture", their.name, error.message)
        return
    for name in dict.fromkeys((*wanted, *found)):
        if name not in found:
            yield Finding("other-architecture", name, f"is in {their.name}, but not here")
        elif name not in wanted:
            yield Finding("other-architecture", name, f"is here, but not in {their.name}")
        elif wanted[name] != found[name]:
            yield Finding("other-architecture", name, f"{found[name]} here, {wanted[name]} in {their.name}")


def _traits(checkpoint: Checkpoint, their: Other) -> Traits:
    """The traits of a release's tensors; for a folder, whose config alone is read, those of the checkpoint."""
    return their.release.storage.traits if their.release else checkpoint.traits


class _FamilyOutline(NamedTuple):
    """The shape of a template's parameters, their layers, and the number of experts.

    A parameter that follows from the config has no shape here: its size differs between releases of one architecture,
    and of some only its bytes are known.
    """

    shape: tuple[int, ...]
    layers: tuple[int, ...]
    experts: int

    def __str__(self) -> str:
        where = [f"{len(self.layers)} x"] if self.layers else []
        each = [f"of {self.experts} experts"] if self.experts else []
        return " ".join([*where, *([str(list(self.shape))] if self.shape else ()), *each])


def _outlines(families: Iterable[Family]) -> dict[str, _FamilyOutline]:
    found: dict[str, _FamilyOutline] = {}
    for family in families:
        before = found[family.template].layers if family.template in found else ()
        shape = () if family.derived else family.shape
        found[family.template] = _FamilyOutline(shape, tuple(sorted((*before, *family.layers))), family.experts)
    return found


def _config(checkpoint: Checkpoint, config: Mapping[str, Any], their: Other) -> Iterator[Finding]:
    free = _FREE | {field for published in checkpoint.published.values() for field, _ in published.fields}
    mine, other = text_fields(config), text_fields(their.config)
    for key in dict.fromkeys((*other, *mine)):
        if key in free or (key in mine and key in other and mine[key] == other[key]):
            continue
        here, there = mine.get(key, _ABSENT), other.get(key, _ABSENT)
        yield Finding("config-differs", key, _differing(here, there, their.name))


def _differing(here: Any, there: Any, name: str) -> str:
    """Two values; if they are long lists, the first difference."""
    mine, other = (value if value is _ABSENT else repr(value) for value in (here, there))
    if max(len(mine), len(other)) <= LONG or not (isinstance(here, list) and isinstance(there, list)):
        return f"{mine} here, {other} in {name}"
    if len(here) != len(there):
        return f"{len(here)} entries here, {len(there)} in {name}"
    at = next(place for place, pair in enumerate(zip(here, there, strict=True)) if pair[0] != pair[1])
    return f"entry {at} is {here[at]!r} here, {there[at]!r} in {name}"


def _storage(checkpoint: Checkpoint, release: Release) -> Iterator[Finding]:
    """The number and bytes of tensors, if they are known and the release stores the same formats."""
    mine, theirs = checkpoint.traits, release.storage.traits
    if (mine.experts, mine.scales) != (theirs.experts, theirs.scales):
        return
    said = checkpoint.quantization or {}
    if said.get("quant_method") != (quantization_of(release.config) or {}).get("quant_method"):
        return
    refs = list(checkpoint.tensors)
    found = {"stored_tensors": len(refs), "total_size": sum(ref.nbytes for ref in refs)}
    for field, number in found.items():
        known = getattr(release.storage, field)
        if known is not None and known != number:
            what = f"{number:,} here, {known:,} in {release.name}"
            yield Finding("other-storage", "tensors" if field == "stored_tensors" else "bytes of tensors", what)


def side_files(store: Store) -> dict[str, int]:
    """Everything beside weights, index and config: tokenizer, chat template, code, licence."""
    return {
        file: size
        for file, size in store.files().items()
        if file not in _OWN and not file.endswith((".safetensors", ".part")) and not _hidden(file)
    }


def _hidden(file: str) -> bool:
    return any(part.startswith(".") for part in file.split("/"))


def _side_files(checkpoint: Checkpoint, their: Store) -> Iterator[Finding]:
    for file, size in side_files(their).items():
        if file not in checkpoint.files:
            yield Finding("missing-side-file", file, f"missing, but {their.place} has it")
        elif checkpoint.files[file] != size or (size <= _TEXT_BYTES and not _alike(checkpoint, their, file, size)):
            yield Finding("side-file-differs", file, f"differs from the file in {their.place}")


def _alike(checkpoint: Checkpoint, their: Store, file: str, size: int) -> bool:
    return checkpoint.store.read(file, 0, size) == their.read(file, 0, size)
