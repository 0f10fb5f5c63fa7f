"""A folder in an object store or on any other file system that fsspec knows (s3://, gs://, ...), read by ranges.

Endpoint and credentials come from the places where each store's own library looks for them (AWS_PROFILE,
AWS_ENDPOINT_URL, ~/.aws, application default credentials, ~/.config/fsspec). They are never printed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from dsctl.core.errors import LATER, DsctlError, SourceError, UsageError, words_of
from dsctl.core.extras import install_command
from dsctl.core.header import read_head

T = TypeVar("T")

# The headers of V3's files have about 75 kB.
FIRST_READ = 128 << 10
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 0.25, 8.0
# A request may take `PATIENCE` seconds plus one for every `SLOWEST` bytes; after that it has stalled and is retried.
PATIENCE, SLOWEST = 30.0, 256 << 10
# Fields that change with an object's contents, the most exact first.
_IDENTITIES = ("ETag", "etag", "generation", "md5Hash", "content_md5", "LastModified", "mtime", "created")
_PASSED_BY = frozenset({".git", ".dsctl", ".cache", "__pycache__"})


def is_url(text: str) -> bool:
    """Whether a text names a place by its scheme: `s3://bucket/path`."""
    return "://" in text


def shown(url: str) -> str:
    """A URL without its possibly secret parts: user, password, query."""
    return "::".join(map(_shown, url.split("::")))


def _shown(link: str) -> str:
    scheme, separator, rest = link.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}" + f"{slash}{path}".rstrip("/")


class ListedObject(NamedTuple):
    """A listed object: its size, and an identifier that changes with its contents."""

    name: str
    size: int
    identity: str


@dataclass(frozen=True, slots=True)
class ObjectFolder:
    """All objects below a prefix, or the one that `only` names, as they were when listed."""

    url: str
    listing: tuple[ListedObject, ...]

    @classmethod
    def at(cls, text: str) -> ObjectFolder:
        """The folder, or the single safetensors file, that a URL names.

        Raises:
            SourceError: the place is empty, access is denied, the scheme is unknown, or its library is not installed.
        """
        url = text if text.endswith("://") else text.rstrip("/")
        if url.endswith(".safetensors"):
            listing = [one for one in listed(url.rpartition("/")[0], url) if url.endswith("/" + one.name)]
        else:
            listing = listed(url)
        if not listing:
            raise SourceError(
                f"{shown(url)}: the folder does not exist or is empty", hint="check bucket, path and profile"
            )
        return cls(url.rpartition("/")[0] if url.endswith(".safetensors") else url, tuple(listing))

    @property
    def place(self) -> str:
        return shown(self.url)

    @property
    def remote(self) -> bool:
        return True

    @property
    def revision(self) -> str:
        """A digest of the listing: if anything under any of its names changes, so does the revision.

        Unfinished targets store this digest, so its input text must not change.
        """
        said = [f"Listed(name={one.name!r}, size={one.size!r}, identity={one.identity!r})" for one in self.listing]
        text = f"({', '.join(said)}{',' * (len(said) == 1)})"
        return hashlib.sha256(text.encode()).hexdigest()

    def files(self) -> dict[str, int]:
        return {one.name: one.size for one in self.listing}

    def head(self, file: str, size: int) -> bytes:
        return read_head(lambda begin, end: self.read(file, begin, end), file, size, FIRST_READ)

    def read(self, file: str, begin: int, end: int) -> bytes:
        known = next((one for one in self.listing if one.name == file), None)
        if known is None:
            raise SourceError(f"{self.place}: no file {file}")
        if end > known.size:
            raise SourceError(f"{self.place}/{file}: file ends at byte {known.size:,}, expected more")
        if begin == end:
            return b""
        return persist(f"{self.place}/{file}", lambda: _range(self.url, known, begin, end))

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        buffer[:] = self.read(file, begin, begin + len(buffer))


def _range(url: str, known: ListedObject, begin: int, end: int) -> bytes:
    """Bytes of an object that is unchanged after the read."""
    system, path = opened(f"{url}/{known.name}")
    data = bytes(system.cat_file(path, start=begin, end=end, **deadline(system, end - begin)))
    if identity(system.info(path, **deadline(system))) != known.identity:
        raise SourceError(f"{shown(url)}/{known.name}: has changed since it was listed", hint="start over")
    if len(data) != end - begin:
        raise OSError(f"asked for {end - begin:,} bytes, {len(data):,} came")
    return data


def listed(url: str, below: str = "") -> list[ListedObject]:
    """Every object below a URL by name, or only those at or below a path within it; empty if there are none.

    Raises:
        SourceError: access is denied, a name is unusable, or the store cannot be reached.
        UsageError: the URL has a query, which cannot be part of the names within.
    """
    if "?" in url:
        raise UsageError(f"{shown(url)}: a folder's URL has no query", hint="remove the part after the question mark")

    def look() -> dict[str, Mapping[str, Any]]:
        system, path = opened(below or url)
        try:
            # A walk skips folders that it cannot list: only a request for the folder itself shows the reason.
            return dict(system.find(path, detail=True, **deadline(system)) or _nothing(system, path))
        except FileNotFoundError:
            return {}

    root = opened(url)[1].rstrip("/") + "/"
    found: list[ListedObject] = []
    for path, info in persist(shown(url), look).items():
        name = path.removeprefix(root)
        # Consoles represent an empty folder by a key that ends in a slash.
        if path.startswith(root) and not name.endswith("/") and name and _PASSED_BY.isdisjoint(name.split("/")):
            _refuse_outside(name, shown(url))
            found.append(ListedObject(name, int(info["size"]), identity(info)))
    return sorted(found)


def _nothing(system: Any, path: str) -> dict[str, Mapping[str, Any]]:
    system.ls(path, detail=True, **deadline(system))
    return {}


def _refuse_outside(name: str, where: str) -> None:
    if not name.isprintable() or "\\" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise SourceError(f"{where}: object name {name!r} is not a file name within a folder")


def identity(info: Mapping[str, Any]) -> str:
    """An identifier of an object's contents: its size, and its entity tag or the best substitute that the store has."""
    tags = (f"{key} {info[key]}" for key in _IDENTITIES if info.get(key))
    return f"{info.get('size')} {next(tags, '')}".rstrip()


def opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, without a cache of listings, and the URL's path in it.

    Raises:
        SourceError: the scheme is unknown, its library is not installed, or the URL has no host and no file.
    """
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        system, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        hint = install_command("cloud") if url.startswith("s3") else "install the library in this message"
        raise SourceError(f"{shown(url)}: {error}", hint=hint) from None
    except Exception as error:  # noqa: BLE001  each file system has its own exceptions for bad arguments
        what = "has neither a host nor a file" if isinstance(error, TypeError) else _words(error)
        raise SourceError(f"{shown(url)}: {what}", hint="s3://bucket/path, gs://bucket/path, ...") from None
    return system, str(path)


def deadline(system: Any, nbytes: int = 0) -> dict[str, float]:
    """The option that ends a stalled request of `nbytes` bytes, if the file system has one."""
    return {"timeout": patience(nbytes)} if getattr(system, "async_impl", False) else {}


def patience(nbytes: int) -> float:
    """Seconds after which a request of this size counts as stalled."""
    return PATIENCE + nbytes / SLOWEST


def persist(
    where: str,
    call: Callable[[], T],
    kind: type[DsctlError] = SourceError,
    wait: Callable[[float], object] = time.sleep,
) -> T:
    """Call until it succeeds, waiting longer each time.

    Raises:
        SourceError, or a different `kind`: the failure is final, or `ATTEMPTS` attempts failed.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except DsctlError:
            raise
        except Exception as error:  # noqa: BLE001  each store's library has its own exceptions
            what, hint = _lasting(error)
            if what is not None:
                raise kind(f"{where}: {what}", hint=hint) from None
            if attempt == ATTEMPTS:
                hint = LATER
                raise kind(f"{where}: {_words(error)} ({attempt} attempts)", hint=hint) from None
        wait(min(FIRST_WAIT * 2.0 ** (attempt - 1), LONGEST_WAIT))
    raise AssertionError("unreachable")


def _lasting(error: Exception) -> tuple[str | None, str | None]:
    """The message and hint to report if a retry is useless; else empty."""
    name = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "the object or bucket does not exist", None
    if isinstance(error, PermissionError) or "Credential" in name or "Auth" in name:
        return f"the store refuses access ({name})", _LOGIN
    lasting = isinstance(error, (TypeError, ValueError)) or any(word in name for word in _LASTING)
    return (_words(error), None) if lasting else (None, None)


# Parts of the names of each store library's own errors.
_LASTING = ("Profile", "Validation", "Region", "Config", "UnknownService")
_LOGIN = "credentials come from the usual places: AWS_PROFILE, ~/.aws, application default credentials"


def _words(error: Exception) -> str:
    """The failure in words without an address, because addresses may be signed."""
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "no answer in time"
    if "Connect" in type(error).__name__:
        return "cannot reach the store"
    said = words_of(error) if isinstance(error, OSError) else str(error)
    line = " ".join(said.split()) or type(error).__name__
    return type(error).__name__ if "://" in line else line
