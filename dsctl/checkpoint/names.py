"""Names of repositories: those that a user may write for a release or a repository on the hub."""

from __future__ import annotations

from dsctl import releases
from dsctl.core.errors import UsageError
from dsctl.stores.hub import SCHEME, is_repository


def repository_of(text: str) -> str:
    """The repository of a release by any of its names, or the repository that the text itself names.

    Raises:
        UsageError: it is neither.
    """
    if "/" not in text:
        name, mark, revision = text.partition("@")
        return releases.find(name).repository + mark + revision
    if not is_repository(text.removeprefix(SCHEME)):
        raise UsageError(f"{text}: is not a repository name", hint="write org/name or org/name@revision")
    return text
