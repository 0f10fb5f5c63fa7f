"""The description of a source by its name: a release from built-in data, a folder or a repository from its headers."""

from __future__ import annotations

from dsctl import releases
from dsctl.look.description import Description, of_release


def describe(source: str) -> Description:
    """Describe a folder or file, a release by any of its names, or a hub repository; an existing path comes first.

    A release is described from built-in data, offline; `hf://org/name` reads its repository.

    Raises:
        SourceError: it is not one of these, or unreadable. FormatError: a file's structure is broken.
    """
    release = releases.meant(source)
    if release is not None:
        return of_release(release)
    # Imported late: releases are described without it, and commands on releases should start quickly.
    from dsctl.look.opened import of_place

    return of_place(source)
