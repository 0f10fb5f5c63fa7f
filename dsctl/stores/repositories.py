"""A repository on a hub as a target: look at it, create it, send files, and commit them in one piece.

Values and signatures only; `dsctl.stores.repository_client` does the work and loads huggingface_hub. Endpoint, token
and offline mode are huggingface_hub's own, as in `dsctl.stores.hub`.

A file of a hub is a *regular* one, whose bytes are part of a commit, or an *LFS* one, whose bytes are sent before. The
hub decides which (`RepositoryWriter.sort`). Nothing can be seen in a repository before it is committed, and nothing
that was sent but not committed can be found again: durable progress is a commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol

from dsctl.core.errors import UsageError
from dsctl.stores.hub import SCHEME, check_settings, is_repository
from dsctl.stores.hub_entries import HubFile

# Bytes of the beginning of a file that the hub looks at when it sorts files.
SAMPLE_BYTES = 512
MAIN = "main"
_PULL = "refs/pr/"
_FORM = "write it as hf://org/name or hf://org/name@branch"


class RepositoryName(NamedTuple):
    """A target on a hub: a repository of models, and the branch (or `refs/pr/N`) that gets the commits."""

    repository: str
    branch: str

    @property
    def place(self) -> str:
        """The name that a person uses for it."""
        return f"{SCHEME}{self.repository}" + (f"@{self.branch}" if self.branch != MAIN else "")


def is_target(text: str) -> bool:
    """Whether the text of a target names a repository on a hub."""
    return text.startswith(SCHEME)


def parse(text: str) -> RepositoryName:
    """The repository and the branch of `hf://org/name[@branch]`.

    A branch may be `refs/pr/N`, which must exist on the hub before.

    Raises:
        UsageError: the text is not of that form, or names a commit or a different reference.
    """
    repository, separator, branch = text.removeprefix(SCHEME).partition("@")
    repository = repository.removesuffix("/")
    whole = f"{SCHEME}{repository}"
    if not is_target(text) or not is_repository(repository) or not _is_plain(repository):
        raise UsageError(f"{text!r}: is not a repository on a hub", hint=_FORM)
    if separator and not branch:
        raise UsageError(f"{whole}@: the branch is missing", hint=_FORM)
    if branch.startswith(_PULL) and branch.removeprefix(_PULL).isdecimal():
        return RepositoryName(repository, branch)
    if branch.startswith("refs/"):
        raise UsageError(f"{text!r}: is not a branch", hint="write the name of a branch, or refs/pr/N")
    if len(branch) in (40, 64) and set(branch.lower()) <= set("0123456789abcdef"):
        hint = f"write to a branch instead, such as {whole}@my-branch"
        raise UsageError(f"{text!r}: is a commit, and commits cannot be changed", hint=hint)
    if branch and not _is_branch(branch):
        raise UsageError(f"{text!r}: is not the name of a branch", hint="use letters, digits, and . _ - / inside")
    return RepositoryName(repository, branch or MAIN)


def _is_plain(repository: str) -> bool:
    """Whether both parts consist of what huggingface_hub takes (`validate_repo_id`)."""
    letters = all(part.replace("-", "").replace(".", "").replace("_", "").isalnum() for part in repository.split("/"))
    ends = any(part[0] in "-." or part[-1] in "-." for part in repository.split("/"))
    return letters and not ends and ".." not in repository and "--" not in repository and len(repository) <= 96


def _is_branch(branch: str) -> bool:
    """Whether a branch has a name that git and an address take (git-check-ref-format), of plain characters only."""
    parts = branch.split("/")
    plain = all(part.replace("-", "").replace(".", "").replace("_", "").isalnum() and part.isascii() for part in parts)
    odd = any(part[0] in "-." or part.endswith((".", ".lock")) for part in parts if part)
    return plain and not odd and ".." not in branch and len(branch) <= 200


class Head(NamedTuple):
    """The newest commit of the branch, and its files by name: `sha256` of LFS files, `blob` (git's SHA-1) of others."""

    commit: str
    listing: tuple[HubFile, ...]

    @property
    def files(self) -> dict[str, HubFile]:
        """The files by name."""
        return {listed.name: listed for listed in self.listing}


class RepositoryState(NamedTuple):
    """A repository as the hub shows it: `private` is None if it does not exist, `head` if the branch does not."""

    private: bool | None
    head: Head | None

    @property
    def exists(self) -> bool:
        """Whether the repository exists, with or without the branch."""
        return self.private is not None


class Unsorted(NamedTuple):
    """A file to send: its name in the repository, its size, and its first `SAMPLE_BYTES` bytes."""

    name: str
    size: int
    sample: bytes


class Sorting(NamedTuple):
    """What the hub says about a file to send: whether it is stored as LFS, and whether a .gitignore leaves it out."""

    lfs: bool
    ignored: bool


class Sent(NamedTuple):
    """An LFS file whose bytes the hub has, to be committed."""

    name: str
    size: int
    sha256: str


class Content(NamedTuple):
    """A regular file with its bytes, to be committed."""

    name: str
    data: bytes


class Commit(NamedTuple):
    """The files of one commit: those that it adds or replaces and the names of those that it removes, and its text."""

    adds: Sequence[Sent | Content]
    removes: Sequence[str]
    message: str
    description: str = ""


Report = Callable[[int], object]


def _silent(nbytes: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class RepositoryWriter:
    """Writes to one branch of a repository. All methods may be called from several threads.

    Temporary failures are retried, longer each time and as `Retry-After` asks. Every method ends soon after `stop`.

    Raises, in every method:
        WorkError: the hub refuses (token, permission, quota, in its own words), cannot be reached, or `stop` was
            called. One line, without tokens or addresses with signatures.
        SourceError: `HF_ENDPOINT` or a different setting of huggingface_hub cannot be used.
    """

    name: RepositoryName
    _stopped: Event = field(default_factory=Event)

    @classmethod
    def at(cls, text: str) -> RepositoryWriter:
        """The writer for `hf://org/name[@branch]`. No request is made; raises as `parse` and `check_settings` do."""
        name = parse(text)
        check_settings()
        return cls(name)

    @property
    def place(self) -> str:
        """The name that a person uses for it."""
        return self.name.place

    def look(self) -> RepositoryState:
        """The repository and the newest commit of the branch, as they are now.

        A private repository that the token may not see does not exist for the hub.
        """
        return _client().look(self)

    def head(self) -> Head | None:
        """The newest commit of the branch; None if the repository or the branch does not exist."""
        return self.look().head

    def create(self, private: bool) -> Head:
        """Create the repository and the branch, unless they exist, and give the newest commit of the branch.

        An existing repository keeps its visibility. A new branch begins at the first commit of `main`, which usually
        has nothing but `.gitattributes`.

        Raises:
            WorkError: also if the branch is a pull request that does not exist.
        """
        return _client().create(self, private)

    def check_card(self, text: str) -> list[str]:
        """The warnings of the hub about the front matter of a README.md.

        Raises:
            WorkError: the front matter is not valid: a commit with it would be refused.
        """
        return _client().check_card(self, text)

    def read(self, name: str, head: Head) -> bytes | None:
        """The bytes of a small file of a commit, compared with its listed digest; None if the commit has no such file.

        Raises:
            WorkError: also if it has more than `MOST_READ` bytes (repository_client).
        """
        return _client().read(self, name, head)

    def sort(self, files: Iterable[Unsorted], gitignore: str | None = None) -> dict[str, Sorting]:
        """Ask the hub which of the files are LFS ones and which are left out, by name.

        The rules for what is left out are those of `gitignore`, the text of a .gitignore that will be sent with them;
        without it, those of the branch.
        """
        return _client().sort(self, list(files), gitignore)

    def send(self, name: str, path: Path, sha256: str | None = None, report: Report = _silent) -> Sent:
        """Send the bytes of an LFS file, by Xet if the hub has it, else by LFS; nothing is committed.

        `sha256` is the digest that the file should have: without it, the file's own is computed. No bytes are sent if
        the hub says that it has them. `report` is called with bytes that were sent or need not be sent, and with a
        negative number if they must be sent again; from other threads too.

        Raises:
            WorkError: also if the file cannot be read, changes meanwhile, or does not have this `sha256`.
        """
        return _client().send(self, Upload(name, path, sha256, report))

    def commit(self, commit: Commit, parent: Head) -> Head:
        """Make one commit on top of `parent`, and give the new newest commit with its listing.

        Safe to repeat: if the answer is lost, the hub is asked whether the branch has exactly this commit's files
        before it is tried again. The listing of the result is `parent`'s with these changes; its LFS files have no
        `blob`, and `.gitattributes` may differ, because hubs write it themselves.

        Raises:
            ResumeError: somebody else committed to the branch in the meantime.
        """
        return _client().commit(self, commit, parent)

    def stop(self) -> None:
        """End all running calls soon, and start no further request."""
        self._stopped.set()

    @property
    def stopped(self) -> Event:
        """Set when the calls shall end."""
        return self._stopped


class Upload(NamedTuple):
    """The arguments of `RepositoryWriter.send`."""

    name: str
    path: Path
    sha256: str | None
    report: Report


class RepositoryClient(Protocol):
    """The module `dsctl.stores.repository_client`, loaded on first use because the hub's library is slow to import."""

    def look(self, writer: RepositoryWriter) -> RepositoryState: ...

    def create(self, writer: RepositoryWriter, private: bool) -> Head: ...

    def check_card(self, writer: RepositoryWriter, text: str) -> list[str]: ...

    def read(self, writer: RepositoryWriter, name: str, head: Head) -> bytes | None: ...

    def sort(
        self, writer: RepositoryWriter, files: Sequence[Unsorted], gitignore: str | None
    ) -> dict[str, Sorting]: ...

    def send(self, writer: RepositoryWriter, upload: Upload) -> Sent: ...

    def commit(self, writer: RepositoryWriter, commit: Commit, parent: Head) -> Head: ...


def _client() -> RepositoryClient:
    from dsctl.stores import repository_client

    return repository_client
