"""Find out whether two names mean the same place: schemes have aliases, paths have links, URLs have chains."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from dsctl.core.errors import UsageError
from dsctl.stores.objects import is_url

HERE = ("file", "local")


class StorePlace(NamedTuple):
    """A folder: its kind of file system, its host if known, and its path there."""

    kind: str
    host: str
    path: str

    def overlaps(self, other: StorePlace) -> bool:
        """Whether one equals the other or lies inside it."""
        if self.kind != other.kind or (self.host and other.host and self.host != other.host):
            return False
        return self.path.startswith(other.path) or other.path.startswith(self.path)


def path_of(text: str) -> str:
    """A local path without its `file://` scheme; any other text unchanged.

    Raises:
        UsageError: it is not a URL, and is longer than a path or a name can be.
    """
    try:
        os.lstat(text)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG and not is_url(text):
            hint = "Linux takes 255 bytes in a name and 4,095 in a path"
            raise UsageError(f"{text[:80]}...: the name is too long", hint=hint) from None
    if os.path.exists(text):
        return text
    for scheme in HERE:
        for prefix in (f"{scheme}://", f"{scheme}:"):
            if text.startswith(prefix):
                return text.removeprefix(prefix)
    return text


def overlap(one: str, other: str) -> bool:
    """Whether two paths or URLs mean the same place or one lies inside the other. No store is asked.

    A chained URL stands for the places of all of its links.

    Raises:
        ValueError, ImportError: fsspec does not know the scheme, or its library is not installed.
    """
    theirs = _places(other)
    return any(place.overlaps(their) for place in _places(one) for their in theirs)


def _places(text: str) -> list[StorePlace]:
    if not is_url(text):
        return [_here(text)]
    return [place for link in text.split("::") if (place := _place(link))]


def _place(link: str) -> StorePlace | None:
    from fsspec import available_protocols, get_filesystem_class  # type: ignore[import-untyped]

    if not is_url(link):
        return None if link in available_protocols() else _here(link)
    system = get_filesystem_class(link.partition("://")[0])
    kind = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    path = str(system._strip_protocol(link))  # noqa: SLF001  every file system has it, but not under a public name
    if kind in HERE:
        return _here(path)
    host = system._get_kwargs_from_urls(link).get("host", "")  # noqa: SLF001  as above
    return StorePlace(kind, str(host), _slashed(path))


def _here(path: str) -> StorePlace:
    return StorePlace(HERE[0], "", _slashed(os.path.realpath(path)))


def _slashed(path: str) -> str:
    """A path that begins and ends with one slash, so that paths inside it begin with it."""
    return f"/{path.strip('/')}/".replace("//", "/")
