"""Whether two places are one, whatever they are called: schemes have several names, paths links, URLs chains."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from dsctl.core.errors import UsageError
from dsctl.stores.objects import is_url

HERE = ("file", "local")


class StorePlace(NamedTuple):
    """A folder: what kind of file system it is in, at which host where that is told, and its path there."""

    kind: str
    host: str
    path: str

    def overlaps(self, other: StorePlace) -> bool:
        """Whether one is the other, or inside it."""
        if self.kind != other.kind or (self.host and other.host and self.host != other.host):
            return False
        return self.path.startswith(other.path) or other.path.startswith(self.path)


def path_of(text: str) -> str:
    """What a text names on this machine without the scheme that says so; anything else as it is.

    Raises:
        UsageError: it is no URL, and longer than a path or a name can be.
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
    """Whether two paths or URLs name one place, or one inside the other. Nothing is asked of any store.

    A chained URL names the places of all of its links.

    Raises:
        ValueError, ImportError: fsspec knows no such scheme, or lacks its library.
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
    path = str(system._strip_protocol(link))  # noqa: SLF001  what every file system has, by no public name
    if kind in HERE:
        return _here(path)
    host = system._get_kwargs_from_urls(link).get("host", "")  # noqa: SLF001  as above
    return StorePlace(kind, str(host), _slashed(path))


def _here(path: str) -> StorePlace:
    return StorePlace(HERE[0], "", _slashed(os.path.realpath(path)))


def _slashed(path: str) -> str:
    """A path that begins and ends in one slash, so that what lies within begins with it."""
    return f"/{path.strip('/')}/".replace("//", "/")
