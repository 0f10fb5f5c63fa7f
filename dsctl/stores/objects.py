"""A folder in an object store or on any other file system that fsspec knows (s3://, gs://, ...), read by ranges.

Endpoint and credentials are found where each store's own library looks for them (AWS_PROFILE, AWS_ENDPOINT_URL,
~/.aws, application default credentials, ~/.config/fsspec) and never told.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from dsctl.core.errors import LATER, DsctlError, SourceError, UsageError, words_of
from dsctl.core.header import read_head

T = TypeVar("T")

# The headers of V3's files are about 75 kB.
FIRST_READ = 128 << 10
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 0.25, 8.0
# A request may take this many seconds and one more for each so many bytes; then it has stalled and is asked again.
PATIENCE, SLOWEST = 30.0, 256 << 10
# What tells one state of an object from the next, the most exact first.
_IDENTITIES = ("ETag", "etag", "generation", "md5Hash", "content_md5", "LastModified", "mtime", "created")
_PASSED_BY = frozenset({".git", ".dsctl", ".cache", "__pycache__"})


def is_url(text: str) -> bool:
    """Whether a text names a place by its scheme: `s3://bucket/path`."""
    return "://" in text


def shown(url: str) -> str:
    """A URL without what may be secret in it: user, password, query."""
    return "::".join(map(_shown, url.split("::")))


def _shown(link: str) -> str:
    scheme, separator, rest = link.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}" + f"{slash}{path}".rstrip("/")


class ListedObject(NamedTuple):
    """An object by its relative name: its size, and what pins its contents."""

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
            SourceError: there is nothing there, no access, no such scheme, or its library is not installed.
        """
        url = text if text.endswith("://") else text.rstrip("/")
        if url.endswith(".safetensors"):
            listing = [one for one in listed(url.rpartition("/")[0], url) if url.endswith("/" + one.name)]
        else:
            listing = listed(url)
        if not listing:
            raise SourceError(f"{shown(url)}: no such folder, or an empty one", hint="check bucket, path and profile")
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

        Unfinished targets keep it: the text that it is a digest of must stay as it is.
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
    """Bytes of an object that is, after they were read, still the one that was listed."""
    system, path = opened(f"{url}/{known.name}")
    data = bytes(system.cat_file(path, start=begin, end=end, **deadline(system, end - begin)))
    if identity(system.info(path, **deadline(system))) != known.identity:
        raise SourceError(f"{shown(url)}/{known.name}: has changed since it was listed", hint="start over")
    if len(data) != end - begin:
        raise OSError(f"asked for {end - begin:,} bytes, {len(data):,} came")
    return data


def listed(url: str, below: str = "") -> list[ListedObject]:
    """Every object below a URL, or only those at or below another within it, by name; none where there is nothing.

    Raises:
        SourceError: no access, an unusable name, or the store cannot be reached.
        UsageError: the URL has a query, which cannot be part of the names within.
    """
    if "?" in url:
        raise UsageError(f"{shown(url)}: a folder's URL has no query", hint="leave out what follows the question mark")

    def look() -> dict[str, Mapping[str, Any]]:
        system, path = opened(below or url)
        try:
            # A walk passes by what it cannot list: only asking for the folder itself tells why there is nothing.
            return dict(system.find(path, detail=True, **deadline(system)) or _nothing(system, path))
        except FileNotFoundError:
            return {}

    root = opened(url)[1].rstrip("/") + "/"
    found: list[ListedObject] = []
    for path, info in persist(shown(url), look).items():
        name = path.removeprefix(root)
        # A key that ends in a slash is how consoles draw an empty folder.
        if path.startswith(root) and not name.endswith("/") and name and _PASSED_BY.isdisjoint(name.split("/")):
            _refuse_outside(name, shown(url))
            found.append(ListedObject(name, int(info["size"]), identity(info)))
    return sorted(found)


def _nothing(system: Any, path: str) -> dict[str, Mapping[str, Any]]:
    system.ls(path, detail=True, **deadline(system))
    return {}


def _refuse_outside(name: str, where: str) -> None:
    if not name.isprintable() or "\\" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise SourceError(f"{where}: object name {name!r} is no file name within a folder")


def identity(info: Mapping[str, Any]) -> str:
    """What pins an object's contents: its size, and its entity tag or the best that the store tells instead."""
    tags = (f"{key} {info[key]}" for key in _IDENTITIES if info.get(key))
    return f"{info.get('size')} {next(tags, '')}".rstrip()


def opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, which remembers no listings, and the URL's path in it.

    Raises:
        SourceError: no such scheme, its library is not installed, or the URL names nothing.
    """
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        system, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        hint = "pip install 'dsctl[cloud]'" if url.startswith("s3") else "install the library that it names"
        raise SourceError(f"{shown(url)}: {error}", hint=hint) from None
    except Exception as error:  # noqa: BLE001  each file system refuses what it cannot be made of in its own way
        what = "names neither a file nor a host" if isinstance(error, TypeError) else _words(error)
        raise SourceError(f"{shown(url)}: {what}", hint="s3://bucket/path, gs://bucket/path, ...") from None
    return system, str(path)


def deadline(system: Any, nbytes: int = 0) -> dict[str, float]:
    """The option that ends a request of so many bytes when it has stalled, where the file system takes one."""
    return {"timeout": patience(nbytes)} if getattr(system, "async_impl", False) else {}


def patience(nbytes: int) -> float:
    """Seconds after which a request of so many bytes has stalled."""
    return PATIENCE + nbytes / SLOWEST


def persist(
    where: str,
    call: Callable[[], T],
    kind: type[DsctlError] = SourceError,
    wait: Callable[[float], object] = time.sleep,
) -> T:
    """Call until it succeeds, waiting longer each time.

    Raises:
        SourceError, or another `kind`: the fault will not pass, or did not in `ATTEMPTS` attempts.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except DsctlError:
            raise
        except Exception as error:  # noqa: BLE001  each store's library raises errors of its own
            what, hint = _lasting(error)
            if what is not None:
                raise kind(f"{where}: {what}", hint=hint) from None
            if attempt == ATTEMPTS:
                hint = LATER
                raise kind(f"{where}: {_words(error)} ({attempt} attempts)", hint=hint) from None
        wait(min(FIRST_WAIT * 2.0 ** (attempt - 1), LONGEST_WAIT))
    raise AssertionError("unreachable")


def _lasting(error: Exception) -> tuple[str | None, str | None]:
    """What to report, with a hint, where trying again is of no use; else nothing."""
    name = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "no such object or bucket", None
    if isinstance(error, PermissionError) or "Credential" in name or "Auth" in name:
        return f"the store refuses access ({name})", _LOGIN
    lasting = isinstance(error, (TypeError, ValueError)) or any(word in name for word in _LASTING)
    return (_words(error), None) if lasting else (None, None)


# In the names of errors that each store's library has of its own.
_LASTING = ("Profile", "Validation", "Region", "Config", "UnknownService")
_LOGIN = "credentials are taken from the usual places: AWS_PROFILE, ~/.aws, application default credentials"


def _words(error: Exception) -> str:
    """What went wrong, in words that hold no address: those may be signed."""
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "no answer in time"
    if "Connect" in type(error).__name__:
        return "cannot reach the store"
    said = words_of(error) if isinstance(error, OSError) else str(error)
    line = " ".join(said.split()) or type(error).__name__
    return type(error).__name__ if "://" in line else line
