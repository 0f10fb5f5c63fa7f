"""Published releases: one JSON file each, with the sources of what it says. Data only."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from typing import Any

import msgspec

from dsctl.errors import UsageError


class Storage(msgspec.Struct, frozen=True):
    """How a release is stored: formats by their codecs' names, how its scales are chosen, and its sizes where known."""

    formats: tuple[str, ...]
    scale_fmt: str | None = None
    files: int | None = None
    total_size: int | None = None
    stored_tensors: int | None = None


class Release(msgspec.Struct, frozen=True):
    """What is known of a release: names, where and when it was published, its config, how it is stored.

    `sources` says where each field was read; `unknown` names the fields for which no source was found.
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

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it goes by, in lower case."""
        return tuple(name.lower() for name in (*self.alias, self.name, self.repository))


def _load() -> tuple[Release, ...]:
    texts = (entry.read_bytes() for entry in files(__name__).iterdir() if entry.name.endswith(".json"))
    decoder = msgspec.json.Decoder(Release)
    return tuple(
        sorted((decoder.decode(text) for text in texts), key=lambda release: (release.date or "9999", release.name))
    )


RELEASES = _load()


def find(text: str) -> Release:
    """The release of this alias, name or repository.

    Raises:
        UsageError: there is none, with the nearest names.
    """
    by_name = {name: release for release in RELEASES for name in release.names}
    release = by_name.get(text.lower())
    if release is None:
        near = get_close_matches(text.lower(), by_name, n=3) or [release.alias[0] for release in RELEASES]
        raise UsageError(f"no release is called {text!r}", hint=f"known: {', '.join(near)}")
    return release
