"""Resolve a SRC of the command line, with --remote and --local."""

from __future__ import annotations

import os

from dsctl import releases
from dsctl.checkpoint.names import repository_of
from dsctl.core.errors import SourceError, UsageError
from dsctl.stores.hub import SCHEME


def located(source: str, remote: bool = False, local: bool = False) -> str:
    """Return what to open: with --remote the Hub's repository, if nothing on this machine has that name.

    Raises:
        UsageError: the text is not a release or repository; --remote and --local are both given.
        SourceError: with --local, nothing on this machine has that name.
    """
    if remote and local:
        raise UsageError("--remote and --local exclude each other", hint="give one of them")
    if local and not os.path.exists(source):
        named = releases.known(source)
        hint = f"without --local, {source} means the release {named.name}" if named else None
        raise SourceError(f"{source}: no such folder or file on this machine, and --local is given", hint=hint)
    if not remote or os.path.exists(source) or source.startswith(SCHEME):
        return source
    return SCHEME + repository_of(source)
