"""Files on their way to a repository on a hub: as the hub wants them, sent, and waiting for a commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256 as sha256_of
from pathlib import Path

from dsctl.core.errors import WorkError
from dsctl.core.files import replace_file
from dsctl.stores.repositories import SAMPLE_BYTES, Content, RepositoryWriter, Sent, Sorting, Unsorted


@dataclass(slots=True)
class Outbox:
    """Files that were sent to the hub, or will be part of the next commit. All errors are those of the writer."""

    writer: RepositoryWriter
    _waiting: dict[str, Sent | Path] = field(default_factory=dict)
    _sorted: dict[str, Sorting] = field(default_factory=dict)

    def sort(self, files: Mapping[str, Path]) -> None:
        """Ask the hub how it stores these files.

        Raises:
            WorkError: also if the repository's own .gitignore leaves one of them out.
        """
        self._sorted |= self._sortings(
            [Unsorted(name, path.stat().st_size, _sample(path)) for name, path in sorted(files.items())]
        )

    def send(self, name: str, path: Path, sha256: str, report: Callable[[int], None]) -> None:
        """Send a file with this SHA-256, or keep its path until the commit that has its bytes."""
        if name not in self._sorted:
            self.sort({name: path})
        lfs = self._sorted.pop(name).lfs
        self._waiting[name] = self.writer.send(name, path, sha256, report) if lfs else path

    def take(self) -> list[Sent | Content]:
        """The files for a commit; they no longer wait."""
        waiting = self._waiting.items()
        adds = [one if isinstance(one, Sent) else Content(name, one.read_bytes()) for name, one in waiting]
        self._waiting.clear()
        return adds

    def small(self, folder: Path, files: Mapping[str, bytes]) -> list[Sent | Content]:
        """Files of dsctl's own for a commit; the hub may want their bytes before, from a file in this folder."""
        found = self._sortings([Unsorted(name, len(data), data[:SAMPLE_BYTES]) for name, data in files.items()])
        adds: list[Sent | Content] = []
        for name, data in files.items():
            if found[name].lfs:
                path = folder / "sending"
                replace_file(path, data)
                adds.append(self.writer.send(name, path, sha256_of(data).hexdigest()))
                path.unlink()
            else:
                adds.append(Content(name, data))
        return adds

    def _sortings(self, files: list[Unsorted]) -> dict[str, Sorting]:
        found = self.writer.sort(files) if files else {}
        if left_out := sorted(name for name, one in found.items() if one.ignored):
            what = "the repository's .gitignore leaves it out"
            raise WorkError(f"{self.writer.place}/{left_out[0]}: {what}", hint="change .gitignore, and try again")
        return found


def _sample(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(SAMPLE_BYTES)
