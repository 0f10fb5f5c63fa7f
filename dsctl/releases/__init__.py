"""Published releases: one JSON file each, with a source for every fact. Data only."""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from dsctl.core.errors import UsageError
from dsctl.core.params import PLAIN_TRAITS, Traits


class Storage(msgspec.Struct, frozen=True):
    """How a release is stored: formats by their codecs' names, how its scales are chosen, and its known sizes.

    `total_size` is the sum of its tensors' bytes, `values` the number of their elements, scales included. `index_total`
    is the number in its own index if that is known to be different from `total_size`. `scales_apart` lists templates
    whose scales do not follow `scale_fmt`. `traits` are facts that only its tensors show. `other_files` lists known
    files beside weights, index, config and tokenizer; `bare`: its headers have no metadata.
    """

    formats: tuple[str, ...]
    scale_fmt: str | None = None
    files: int | None = None
    total_size: int | None = None
    stored_tensors: int | None = None
    values: int | None = None
    index_total: int | None = None
    scales_apart: tuple[str, ...] = ()
    traits: Traits = PLAIN_TRAITS
    other_files: tuple[str, ...] = ()
    bare: bool = False

    @property
    def counts_values(self) -> bool:
        """Whether its index gives, as `total_size`, the stored values at two bytes each."""
        return self.values is not None and self.index_total == 2 * self.values


class Release(msgspec.Struct, frozen=True):
    """The built-in description of a release: names, place and date of publication, config, storage.

    `sources` gives the source of each field; `unknown` lists the fields without a source, `derived` those that were
    not read but follow from a different release, which the sources name. `context` is the published context length in
    tokens; the config's `max_position_embeddings` can be larger. `chat_template` is the file that turns messages into a
    prompt, a Jinja template or Python code, and `tokens` has the numbers of some special tokens; both are set only if a
    source has them.
    """

    alias: tuple[str, ...]
    name: str
    repository: str
    date: str | None
    licence: str | None
    architecture: str
    config: dict[str, Any]
    storage: Storage
    notes: str
    sources: dict[str, tuple[str, ...]]
    unknown: tuple[str, ...]
    derived: tuple[str, ...] = ()
    context: int | None = None
    chat_template: str | None = None
    tokens: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Release {self.name}: {self.repository}, {self.architecture}, {self.date or 'unknown date'}>"

    @property
    def config_derived(self) -> bool:
        """Whether its config was not read, but derived from a different release's."""
        return "config" in self.derived

    @property
    def names(self) -> tuple[str, ...]:
        """All of its names, in lower case."""
        return tuple(name.lower() for name in (*self.alias, self.name, self.repository))


@cache
def releases() -> tuple[Release, ...]:
    """Every known release, oldest first; those without a known date last. Reading all files takes about 1 ms."""
    decoder = msgspec.json.Decoder(Release)
    found = (decoder.decode(file.read_bytes()) for file in Path(__file__).parent.glob("*.json"))
    return tuple(sorted(found, key=lambda release: (release.date or "9999", release.name)))


def known(text: str) -> Release | None:
    """The release with this alias, name or repository (case does not matter), or None."""
    return _by_name().get(text.strip().lower())


@cache
def _by_name() -> dict[str, Release]:
    return {name: release for release in reversed(releases()) for name in release.names}


def meant(text: str) -> Release | None:
    """The release that a SRC means, or None. A folder or file of that name on this machine comes first."""
    return None if os.path.exists(text) else known(text)


def nearest(text: str) -> tuple[str, ...]:
    """Aliases similar to this text or containing it."""
    by_name = {name: release.alias[0] for release in releases() for name in release.names}
    wanted = text.strip().lower()
    close = get_close_matches(wanted, by_name, n=4, cutoff=0.5)
    holding = [name for release in releases() for name in release.alias if len(wanted) > 1 and wanted in name.lower()]
    found = (by_name[name.lower()] for name in (*holding[:4], *close))
    return tuple(dict.fromkeys(found))


def find(text: str) -> Release:
    """The release with this alias, name or repository (case does not matter).

    Raises:
        UsageError: it is not known; the hint has the nearest names.
    """
    release = known(text)
    if release is None:
        near = nearest(text)
        suggested = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"unknown release {text!r}", hint=f"{suggested}`dsctl models` lists all releases")
    return release
