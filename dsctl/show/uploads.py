"""Show an upload: what it will do, its progress on a terminal, and its result."""

from __future__ import annotations

from math import ceil
from threading import Lock
from types import TracebackType
from typing import Any

from rich.progress import Progress as Bar
from rich.table import Table

from dsctl.run.finished import README
from dsctl.run.upload_order import UploadOrder
from dsctl.run.uploading import LFS_FILES, Uploaded
from dsctl.show.bars import columns
from dsctl.show.output import Output, plural, size
from dsctl.stores import ATTRIBUTES, SIGNED
from dsctl.stores.repositories import RepositoryName, Sorting

# The most files of the branch that a note lists by name.
NAMED = 5


class UploadBars:
    """Two bars on a terminal: bytes that were read and compared, and bytes that the hub has. Silent elsewhere."""

    def __init__(self, order: UploadOrder, output: Output) -> None:
        self._bar = Bar(*columns(), console=output.err, transient=True) if output.has_bar else None
        self._lock, total = Lock(), max(order.folder.nbytes, 1)
        unread = sum(order.folder.files[name] for name in order.unread)
        if self._bar is not None:
            self._read = self._bar.add_task("checked", total=max(total - unread, 1))
            self._sent = self._bar.add_task("uploaded", total=total)

    def __enter__(self) -> UploadBars:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def checked(self, nbytes: int) -> None:
        """Take bytes that were read."""
        if self._bar is not None:
            self._bar.advance(self._read, nbytes)

    def sending(self, nbytes: int) -> None:
        """Take bytes that were sent, or must be sent again if negative."""
        if self._bar is not None:
            self._bar.advance(self._sent, nbytes)


def described(order: UploadOrder, name: RepositoryName) -> dict[str, Any]:
    """What is the same before and after an upload, as stable JSON; sizes are in bytes."""
    return {
        "folder": order.folder.store.root,
        "repository": name.repository,
        "branch": name.branch,
        "private": order.state.private,
        "files": dict(order.folder.files),
        "bytes": order.folder.nbytes,
        "card": order.card_wanted() is not None,
    }


def described_plan(order: UploadOrder, name: RepositoryName, sorting: dict[str, Sorting] | None) -> dict[str, Any]:
    """A dry run as stable JSON; `sorting` is None if the hub was not asked how it stores files."""
    large = None if sorting is None else sum(one.lfs and not one.ignored for one in sorting.values())
    ignored = None if sorting is None else sorted(file for file, one in sorting.items() if one.ignored)
    wanted = [*order.new, *order.same_size, *order.replaced]
    weights = sum(file.endswith(".safetensors") for file in wanted) if large is None else large
    return described(order, name) | {
        "exists": order.state.exists,
        "branch_exists": order.state.head is not None,
        "new": sorted(order.new),
        "replaced": order.replaced,
        "to_compare": sorted(order.same_size),
        "there": sorted(order.unread),
        "others": sorted(order.others),
        "lfs": large,
        "regular": None if sorting is None else sum(not one.lfs and not one.ignored for one in sorting.values()),
        "ignored": ignored,
        "most_commits": max(1, ceil(weights / LFS_FILES)) if wanted or order.card_wanted() else 0,
    }


def show_order(order: UploadOrder, name: RepositoryName, sorting: dict[str, Sorting] | None, output: Output) -> None:
    """Print what an upload will do."""
    facts = described_plan(order, name, sorting)
    output.data(facts)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    said = {**dict.fromkeys(order.same_size, "same size there: to compare"), **dict.fromkeys(order.unread, "there")}
    said |= dict.fromkeys(order.replaced, "would be replaced")
    for file, nbytes in order.folder.files.items():
        table.add_row(size(nbytes), file, said.get(file, ""))
    output.text(table)
    if facts["card"]:
        output.text(f"and a card as {README}")
    unlike = {*order.new, *order.replaced, *order.same_size}
    nbytes = sum(order.folder.files[file] for file in unlike)
    total = f"{size(order.folder.nbytes)} in {plural(len(order.folder.files), 'file')}"
    output.text(f"{total} to {name.place}, {_state(order)}; at most {size(nbytes)} to upload")
    kinds = "the hub was not asked how it stores them, because the branch does not exist"
    if sorting is not None:
        kinds = f"{plural(facts['lfs'], 'LFS file')}, {plural(facts['regular'], 'regular file')} to upload or compare"
    commits = facts["most_commits"]
    output.text(f"{kinds}; {plural(commits, 'commit')}, and one more for every 10 minutes of uploading")
    output.note("dry run: nothing was written")


def _state(order: UploadOrder) -> str:
    if not order.state.exists:
        return "which does not exist yet"
    visible = "private" if order.state.private else "public"
    return f"which is {visible}" if order.state.head else f"which is {visible} and does not have this branch"


def show_notes(order: UploadOrder, output: Output) -> None:
    """Print what stays in the branch, and what `dsctl verify` will say about README.md."""
    others = [name for name in order.others if name != ATTRIBUTES]
    if others:
        names = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
        output.note(f"not in the folder, and left there unchanged: {plural(len(others), 'file')}: {names}")
    if order.card_wanted() is not None:
        output.note(f"the folder has no {README}: adding the card that `dsctl card` prints (--no-card leaves it out)")
    listed = (order.folder.entries or {}).get(README)
    if listed is not None and order.folder.files.get(README) != listed.size:
        output.warn(f"{README} is not the one that {SIGNED} lists: `dsctl verify` will report it")


def described_result(order: UploadOrder, name: RepositoryName, done: Uploaded) -> dict[str, Any]:
    """A finished upload as stable JSON; sizes are in bytes."""
    return described(order, name) | {
        "card": done.card,
        "commit": done.commit,
        "commits": done.commits,
        "sent": done.sent,
        "same": done.same,
        "ignored": list(done.ignored),
        "not_read": list(done.unread),
        "compared": list(_compared(order, done)),
    }


def _compared(order: UploadOrder, done: Uploaded) -> list[str]:
    """What was compared with what."""
    found = []
    entries = order.folder.entries
    if entries is not None:
        kinds = sorted({kind for entry in entries.values() for kind in entry.algorithms})
        read = sum(name in entries for name in order.digests)
        found.append(f"{plural(read, 'file')} with {SIGNED} before anything of them was sent ({', '.join(kinds)})")
        if done.unread:
            found.append(f"the hub's SHA-256 of {plural(len(done.unread), 'file')} with {SIGNED}, without reading them")
    own = len({*done.sent, *done.same})
    found.append(f"the hub's list with the SHA-256, or git's SHA-1, of {plural(own, 'file')}")
    return found


def show_result(order: UploadOrder, name: RepositoryName, done: Uploaded, output: Output) -> None:
    """Print the result of an upload."""
    output.data(described_result(order, name, done))
    for file in done.ignored:
        output.note(f"{file}: left out, a .gitignore names it")
    same = f"{plural(len(done.same), 'file')}, {size(sum(done.same.values()))}"
    if not done.commits:
        output.text(("up to date", "green"), f": {name.place} has all of it at {done.commit[:12]} ({same})")
    else:
        sent = f"{plural(len(done.sent), 'file')}, {size(sum(done.sent.values()))}"
        there = f"; {same} were there" if done.same else ""
        commits = plural(done.commits, "commit")
        output.text(("uploaded", "green"), f": {sent} to {name.place} in {commits}, now at {done.commit[:12]}{there}")
    output.text("compared: " + "; ".join(_compared(order, done)))
