"""The SHA-256 of files as a hub states them."""

from __future__ import annotations

import os

from dsctl.stores.hub import HubRepository
from dsctl.stores.local import LocalFolder

_HEXADECIMAL = frozenset("0123456789abcdef")


def is_sha256(text: object) -> bool:
    """Whether a value is a SHA-256 in hexadecimal."""
    return isinstance(text, str) and len(text) == 64 and _HEXADECIMAL.issuperset(text)


def stated_sums(store: object) -> dict[str, str]:
    """The SHA-256 that a hub states for large files, by name: in its listing, or by the names of its cache's blobs.

    Nothing is read to confirm it. Empty for other stores.
    """
    if isinstance(store, HubRepository):
        return {listed.name: listed.sha256 for listed in store.listing if is_sha256(listed.sha256)}  # type: ignore[misc]
    if not isinstance(store, LocalFolder):
        return {}
    links = (name for name in store.files() if os.path.islink(os.path.join(store.root, name)))
    named = {name: os.path.basename(store.path(name)) for name in links}
    return {name: blob for name, blob in named.items() if is_sha256(blob)}
