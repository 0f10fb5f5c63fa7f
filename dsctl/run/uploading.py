"""Carry an upload out: weight files first, then the others, `dsctl.json` in the last commit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from dsctl.core.errors import PlanError, VerifyFailed, WorkError
from dsctl.core.files import refusal
from dsctl.core.progress import Advance
from dsctl.run.finished import README, Finished
from dsctl.run.upload_order import UploadOrder
from dsctl.stores import SIGNED
from dsctl.stores.repositories import Commit, Content, Head, RepositoryWriter, Sent, Sorting
from dsctl.stores.threads import threads

GITIGNORE = ".gitignore"
# Files that are sent at once.
SENDERS = 4
# LFS files of a commit (hub-docs, storage-limits: 50-100 advised), files and bytes of a commit with regular files (the
# same page: 1 GB at most), and the seconds after which files that were sent are committed.
LFS_FILES, REGULAR_FILES, REGULAR_BYTES = 50, 250, 100 << 20
SECONDS = 600.0


class Uploaded(NamedTuple):
    """A finished upload: the newest commit, the number of commits made, and names: of files with their bytes that were
    sent or were there before, of files that a .gitignore left out, and of files there that were not read here."""

    commit: str
    commits: int
    sent: dict[str, int]
    same: dict[str, int]
    ignored: tuple[str, ...]
    unread: tuple[str, ...]
    card: bool


@dataclass(slots=True)
class Uploading:
    """An upload under way. `checked` and `sending` are called with the bytes that were read and those that were sent,
    from several threads."""

    order: UploadOrder
    writer: RepositoryWriter
    message: str
    checked: Advance = lambda nbytes: None
    sending: Advance = lambda nbytes: None
    _commits: list[str] = field(default_factory=list)
    _sent: dict[str, int] = field(default_factory=dict)

    @property
    def _folder(self) -> Finished:
        return self.order.folder

    @property
    def _head(self) -> Head:
        """The newest commit that is known."""
        assert self.order.state.head is not None
        return self.order.state.head

    def run(self, private: bool) -> Uploaded:
        """Upload what the branch lacks; `private` is the visibility of a repository that must be created.

        Raises:
            PlanError: the branch has what may not be replaced. VerifyFailed: a file differs from `dsctl.json`, or the
                hub lists different files than were sent. ResumeError: somebody else writes there.
            WorkError: the hub refuses or cannot be reached, or a file cannot be read.
        """
        order = self.order
        try:
            order.read(self.checked)
            order.check(self.writer.place)
            if order.state.head is None:
                order.look_again(self.writer.create(private), private)
                order.check(self.writer.place)
            return self._run()
        finally:
            self.writer.stop()

    def _run(self) -> Uploaded:
        order, card = self.order, self.order.card_wanted()
        self._check_card(card)
        sorting = self._sorted()
        same = {name: size for name, size in self._folder.files.items() if name in order.same}
        ignored = tuple(name for name, one in sorting.items() if one.ignored)
        unread = tuple(name for name in order.unread if name not in order.digests)
        self.sending(sum(same.values()))
        self._send({name: one.lfs for name, one in sorting.items() if not one.ignored}, card)
        if self._commits:
            self._compare()
        return Uploaded(self._head.commit, len(self._commits), self._sent, same, ignored, unread, card is not None)

    def _check_card(self, card: Content | None) -> None:
        """Have the front matter of README.md checked before anything is sent: a bad one stops the commit."""
        if card is not None:
            self.writer.check_card(card.data.decode())
        elif README in self._folder.files and README not in self.order.same:
            self.writer.check_card(self._content(README).data.decode(errors="replace"))

    def _sorted(self) -> dict[str, Sorting]:
        """How the hub stores the files that it lacks.

        Raises:
            PlanError: a .gitignore leaves out a file that `dsctl.json` lists.
        """
        wanted = [self._folder.sample(name) for name in self._folder.files if name not in self.order.same]
        own = self._folder.files
        rules = self._content(GITIGNORE).data.decode(errors="replace") if GITIGNORE in own else None
        sorting = self.writer.sort(wanted, rules) if wanted else {}
        entries = self._folder.entries
        lost = sorted(name for name, one in sorting.items() if one.ignored and name in {*(entries or ()), SIGNED})
        if entries is not None and lost:
            what = f"{self.writer.place}: a .gitignore leaves out {lost[0]}, which belongs to the result"
            raise PlanError(what, hint="correct the .gitignore", issues=lost)
        return sorting

    def _send(self, lfs: Mapping[str, bool], card: Content | None) -> None:
        """Send and commit files; `lfs` says which of them are LFS files."""
        ready = self._send_large(name for name, large in lfs.items() if large and name != SIGNED)
        *batches, last = self._batches(name for name, large in lfs.items() if not large and name != SIGNED)
        for batch in batches:
            self._commit([*ready, *map(self._content, batch)], final=False)
            ready = []
        adds: list[Sent | Content] = [*ready, *map(self._content, last)]
        if card is not None:
            adds.append(card)
        if SIGNED in lfs:
            adds.append(self._send_one(SIGNED, lambda: True) if lfs[SIGNED] else self._content(SIGNED))
        if adds:
            self._commit(adds, final=True)

    def _send_large(self, names: Iterable[str]) -> list[Sent | Content]:
        """Send LFS files and commit them from time to time; return those that are not committed yet."""
        ready: list[Sent | Content] = []
        with threads(SENDERS) as pool:
            waiting = {pool.submit(partial(self._send_one, name, pool.going)) for name in names}
            since = time.monotonic()
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                ready += [future.result() for future in done]
                if waiting and (len(ready) >= LFS_FILES or time.monotonic() - since >= SECONDS):
                    self._commit(ready, final=False)
                    ready, since = [], time.monotonic()
        return ready

    def _send_one(self, name: str, going: Callable[[], bool]) -> Sent:
        """Read a file if it was not read yet, then send it; what is sent has the digest of what was read."""
        digests = self.order.digests
        if name not in digests:
            digests[name] = self._folder.digests(name, going, self.checked)
        return self.writer.send(name, self._folder.path(name), digests[name].sha256, self.sending)

    def _content(self, name: str) -> Content:
        """A regular file with its bytes, which are those that were read before.

        Raises:
            WorkError: it has changed, or cannot be read.
        """
        digests, path = self.order.digests, self._folder.path(name)
        if name not in digests:
            digests[name] = self._folder.digests(name, lambda: True, self.checked)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise refusal(path, error, WorkError) from None
        if hashlib.sha256(data).hexdigest() != digests[name].sha256:
            raise WorkError(f"{path}: has changed since it was read", hint="run the same command again")
        return Content(name, data)

    def _batches(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Regular files in groups for one commit each; the last group may be empty."""
        batch: list[str] = []
        nbytes = 0
        for name in names:
            size = self._folder.files[name]
            if batch and (len(batch) == REGULAR_FILES or nbytes + size > REGULAR_BYTES):
                yield batch
                batch, nbytes = [], 0
            batch.append(name)
            nbytes += size
        yield batch

    def _commit(self, adds: list[Sent | Content], final: bool) -> None:
        """Commit files. While files are replaced, an earlier `dsctl.json` must not call the branch complete."""
        stale = SIGNED in self._head.files and SIGNED in self._folder.files and SIGNED not in self.order.same
        removes = [SIGNED] if stale and not final else []
        message = self.message if final else f"{self.message} (part {len(self._commits) + 1})"
        head = self.writer.commit(Commit(adds, removes, message), self._head)
        self.order.state = self.order.state._replace(head=head)
        self._commits.append(head.commit)
        for add in adds:
            self._sent[add.name] = add.size if isinstance(add, Sent) else len(add.data)
            if isinstance(add, Content):
                self.sending(len(add.data))

    def _compare(self) -> None:
        """Compare what the hub lists now with what was sent and with what was there.

        Raises:
            VerifyFailed: it lists something different.
        """
        now = self.writer.head()
        there = now.files if now is not None else {}
        expected = self._head.files
        own = self._sent.keys() | self.order.same
        for name, listed in ((name, expected[name]) for name in sorted(own)):
            found = there.get(name)
            if found is None or (found.size, found.sha256 or found.blob) != (listed.size, listed.sha256 or listed.blob):
                what = f"{self.writer.place}/{name}: the hub lists a different file than was sent"
                raise VerifyFailed(what, hint="run the same command again: it compares all files")
