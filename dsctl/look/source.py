"""What a source that a person names holds: a release by its data, a folder or a repository by its headers."""

from __future__ import annotations

from dsctl import releases
from dsctl.look.description import Description, of_release


def describe(source: str) -> Description:
    """A folder or file, a release by any of its names, or a hub repository; what exists on this machine comes first.

    A release is described from its data, offline; `hf://org/name` asks the hub for it.

    Raises:
        SourceError: none of them, or unreadable. FormatError: a file's structure is broken.
    """
    release = releases.meant(source)
    if release is not None:
        return of_release(release)
    # A release needs no checkpoint, and those that look at releases alone shall start quickly.
    from dsctl.look.opened import of_place

    return of_place(source)
