"""Published releases: one JSON file each, with the sources of what it says. Data only."""

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
    """How a release is stored: formats by their codecs' names, how its scales are chosen, and its sizes where known.

    `total_size` is the sum of its tensors' bytes, `values` the number of their elements, scales included. `index_total`
    is what its own index says instead of `total_size`, where that is known to be another number. `scales_apart` are
    templates whose scales are not chosen as `scale_fmt` says. `traits` is what its tensors tell of its architecture.
    `other_files` are what it has beside weights, index, config and tokenizer, as far as that is known; the headers of
    one that is `bare` have no metadata.
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
    """What is known of a release: names, where and when it was published, its config, how it is stored.

    `sources` says where each field was read; `unknown` names the fields for which no source was found, `derived` those
    that were not read but follow from another release's, which the sources name. `context` is the published one, in
    tokens; `max_position_embeddings` of the config can be larger.
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

    @property
    def config_derived(self) -> bool:
        """Whether its config was not read, but follows from another release's."""
        return "config" in self.derived

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it goes by, in lower case."""
        return tuple(name.lower() for name in (*self.alias, self.name, self.repository))


@cache
def releases() -> tuple[Release, ...]:
    """Every known release, oldest first; those without a known date last. All files together take under 1 ms."""
    decoder = msgspec.json.Decoder(Release)
    found = (decoder.decode(file.read_bytes()) for file in Path(__file__).parent.glob("*.json"))
    return tuple(sorted(found, key=lambda release: (release.date or "9999", release.name)))


def known(text: str) -> Release | None:
    """The release of this alias, name or repository, whatever its case, or None."""
    wanted = text.strip().lower()
    return next((release for release in releases() if wanted in release.names), None)


def meant(text: str) -> Release | None:
    """The release that a SRC means by its name, or None: what exists on this machine comes first."""
    return None if os.path.exists(text) else known(text)


def nearest(text: str) -> tuple[str, ...]:
    """Aliases of names that look like this text or hold it; every release's first alias where none does."""
    by_name = {name: release.alias[0] for release in releases() for name in release.names}
    wanted = text.strip().lower()
    close = get_close_matches(wanted, by_name, n=4, cutoff=0.5)
    holding = [name for release in releases() for name in release.alias if len(wanted) > 1 and wanted in name.lower()]
    found = (by_name[name.lower()] for name in (*holding[:4], *close))
    return tuple(dict.fromkeys(found)) or tuple(r.alias[0] for r in releases())


def find(text: str) -> Release:
    """The release of this alias, name or repository, whatever its case.

    Raises:
        UsageError: there is none, with the nearest names.
    """
    release = known(text)
    if release is None:
        hint = f"known: {', '.join(nearest(text))}; `dsctl models` lists all"
        raise UsageError(f"no release is called {text!r}", hint=hint)
    return release
