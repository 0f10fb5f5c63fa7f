"""Where a checkpoint is opened from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsctl.stores import Store


def source_at(text: str) -> Store:
    """The store of a source; a release's name stands for its repository where there is no such folder.

    Raises:
        SourceError: there is nothing there, or it cannot be reached.
    """
    from dsctl import releases
    from dsctl.stores import store_at

    release = releases.meant(text)
    return store_at(release.repository if release else text)
