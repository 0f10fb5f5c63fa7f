"""What an upload will do to a branch of a hub: which files are there, which are new, and which it would replace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from dsctl.core.errors import PlanError
from dsctl.core.progress import Advance
from dsctl.run.finished import README, SMALL, Digests, Finished
from dsctl.stores import ATTRIBUTES, CONFIG, PARAMS, SIGNED
from dsctl.stores.hub_entries import HubFile
from dsctl.stores.repositories import Content, Head, RepositoryState
from dsctl.stores.threads import threads

# Suffixes of files that would make one model of two if they stayed beside those of a different one.
_WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx")
READERS = 4


@dataclass(slots=True)
class UploadOrder:
    """A folder, the card to add to it, the branch as it was seen, and whether files may be replaced there.

    `digests` are those of the files that were read, and `same` the names of those that the branch has already.
    """

    folder: Finished
    card: Content | None
    state: RepositoryState
    force: bool
    digests: dict[str, Digests] = field(default_factory=dict)
    same: set[str] = field(default_factory=set)

    @property
    def there(self) -> dict[str, HubFile]:
        """The files of the branch by name."""
        return self.state.head.files if self.state.head else {}

    @property
    def unread(self) -> list[str]:
        """Files that the branch has with the SHA-256 that `dsctl.json` says: they need not be read to be left there."""
        files, there = self.folder.files, self.there
        return [
            name
            for name in files
            if (known := self.folder.known(name))
            and name in there
            and (there[name].size, there[name].sha256) == (files[name], known)
        ]

    @property
    def same_size(self) -> list[str]:
        """Files that the branch has with the same size, and that must be read to compare them."""
        unread, there = set(self.unread), self.there
        return [
            name
            for name, size in self.folder.files.items()
            if name in there and there[name].size == size and name not in unread
        ]

    @property
    def new(self) -> list[str]:
        """Files that the branch does not have."""
        return [name for name in self.folder.files if name not in self.there]

    @property
    def replaced(self) -> list[str]:
        """Files that the branch has with different contents, as far as is known yet."""
        files, there = self.folder.files, self.there
        unlike = [name for name in files if name in there and there[name].size != files[name]]
        unlike += [name for name in self.same_size if name in self.digests and name not in self.same]
        return sorted(unlike)

    @property
    def others(self) -> list[str]:
        """Files of the branch that the folder does not have; they stay."""
        own = self.folder.files.keys() | ({self.card.name} if self.card else set())
        return [name for name in self.there if name not in own]

    def look_again(self, head: Head, private: bool) -> None:
        """Take the state of a branch that was created, in a repository of this visibility if it did not exist."""
        self.state = RepositoryState(private if self.state.private is None else self.state.private, head)
        self.same = {name for name in self.digests if self._is_there(name)} | set(self.unread)

    def read(self, advance: Advance) -> None:
        """Read the files that must be compared before anything is sent, and all small ones.

        Raises:
            VerifyFailed: one differs from `dsctl.json`. WorkError: one cannot be read.
        """
        wanted = [*self.same_size, *(name for name in self.new if self.folder.files[name] <= SMALL)]
        with threads(READERS) as pool:
            futures = {
                name: pool.submit(partial(self.folder.digests, name, pool.going, advance))
                for name in wanted
                if name not in self.digests
            }
            for name, future in futures.items():
                self.digests[name] = future.result()
        self.same = {name for name in self.digests if self._is_there(name)} | set(self.unread)

    def _is_there(self, name: str) -> bool:
        listed, found = self.there.get(name), self.digests[name]
        if listed is None or listed.size != self.folder.files[name]:
            return False
        return found.sha256 == listed.sha256 if listed.sha256 else found.blob == listed.blob

    def check(self, place: str) -> None:
        """Refuse to change what a person may want to keep, without `force`.

        Raises:
            PlanError: files would be replaced, or the branch has weights of its own.
        """
        mixed = [name for name in self.others if name.endswith(_WEIGHTS) or name in (CONFIG, PARAMS, SIGNED)]
        replaced = [name for name in self.replaced if name != ATTRIBUTES]
        if self.force or not (replaced or mixed):
            return
        found = [
            *(f"{name}: would be replaced" for name in replaced),
            *(f"{name}: would stay beside" for name in mixed),
        ]
        what = f"{place}: holds a different model or different files ({found[0]})"
        hint = "--force replaces files of the same names and leaves all others; a new branch, as in @v2, changes none"
        raise PlanError(what, hint=hint, issues=found)

    def card_wanted(self) -> Content | None:
        """The card, unless the branch has a README.md, which stays."""
        return self.card if README not in self.there else None


def visibility(state: RepositoryState, public: bool, private: bool, place: str) -> Iterator[str]:
    """Notes about who can read a repository that exists; `public` and `private` are what was asked for.

    Raises:
        PlanError: a private one is asked for, and it is public.
    """
    if not state.exists:
        return
    if private and not state.private:
        hint = "change it on the hub, or leave the option out"
        raise PlanError(f"{place}: is public, and --private does not change an existing repository", hint=hint)
    if public and state.private:
        yield f"{place} is private and stays so: --public does not change an existing repository"
    elif not public and not state.private:
        yield f"{place} is public: everybody can read the files"
