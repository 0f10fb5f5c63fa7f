"""What a SRC on the command line means, with --remote and --local."""

from __future__ import annotations

import os

from dsctl import releases
from dsctl.core.errors import SourceError, UsageError
from dsctl.stores.hub import SCHEME, is_repository


def repository_of(text: str) -> str:
    """The repository of a release by any of its names; what has the form of a repository is one itself.

    Raises:
        UsageError: it is neither.
    """
    if "/" not in text:
        name, mark, revision = text.partition("@")
        return releases.find(name).repository + mark + revision
    if not is_repository(text.removeprefix(SCHEME)):
        raise UsageError(f"{text}: is not a repository name", hint="write it as org/name or org/name@revision")
    return text


def located(source: str, remote: bool = False, local: bool = False) -> str:
    """What to open: with --remote the hub's repository, where there is nothing of that name on this machine.

    Raises:
        UsageError: it is no release and no repository; --remote and --local are both given.
        SourceError: with --local, nothing of that name is on this machine.
    """
    if remote and local:
        raise UsageError("--remote and --local are both given", hint="choose one")
    if local and not os.path.exists(source):
        named = releases.known(source)
        hint = f"it is also a name of {named.name}: without --local that release is meant" if named else None
        raise SourceError(f"{source}: no such folder or file on this machine, and --local is given", hint=hint)
    if not remote or os.path.exists(source) or source.startswith(SCHEME):
        return source
    return SCHEME + repository_of(source)
