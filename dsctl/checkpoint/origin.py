"""The origin of a description: the files in a place, or a built-in description."""

from __future__ import annotations

from typing import NamedTuple

from dsctl.releases import Release
from dsctl.stores.objects import is_url


class Origin(NamedTuple):
    """The origin of a description; `text` is a short phrase for it.

    `kind` is the description's. `revision` is a hub's commit. `derived` lists facts that were not read but follow from
    a different release: `config`, or fields of `storage`.
    """

    kind: str
    place: str
    revision: str | None
    derived: tuple[str, ...]
    text: str

    @classmethod
    def of_release(cls, release: Release) -> Origin:
        """The origin of a release: dsctl's own data."""
        stored = any(field.startswith("storage.") for field in release.derived)
        words = ["config"] * release.config_derived + ["storage"] * stored
        remark = f" ({' and '.join(words)} derived from another release, not read)" if words else ""
        text = f"dsctl's built-in description of {release.name}{remark}"
        return cls("release", release.repository, None, release.derived, text)

    @classmethod
    def of_files(cls, read: str, place: str, name: str) -> Origin:
        """The origin of files that were read (in words) from a store; `name` is its printed name."""
        # A local place is an absolute path.
        if place.startswith("/"):
            where = f"of file {name}" if place.endswith(".safetensors") else f"in folder {name}"
            return cls("folder", place, None, (), f"{read} {where}")
        if is_url(place):
            return cls("store", place, None, (), f"{read} at {place}")
        place, _, revision = place.partition("@")
        return cls("repository", place, revision, (), f"{read} of hub repository {place} at commit {revision}")

    @property
    def sentence(self) -> str:
        """A line to print above a report."""
        return f"From {self.text}."
