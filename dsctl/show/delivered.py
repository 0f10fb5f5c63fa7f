"""What is said of a target at a URL: in a plan, during a run, and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsctl.run.events import Saved, Uploaded
from dsctl.show.output import Output, line, plural, size

_STATES = {"new": "", "resume": ", begun by an earlier run", "complete": ", complete: there is nothing to do"}


def delivery_rows(facts: Mapping[str, Any], free: int) -> Iterator[tuple[str, Any]]:
    """The rows of a plan's table about a delivery, from its JSON; `free` are the bytes of free disk."""
    repository, commits = facts["repository"], facts["commits"]
    if repository:
        seen = "private" if repository["private"] else "public"
        yield "repository", f"{'exists' if repository['exists'] else 'new'}, {seen}{_STATES[facts['state']]}"
    if facts["state"] == "complete":
        return
    if facts["removed"]:
        kept = "; earlier commits keep them" if repository else ""
        yield "remove", f"{plural(facts['removed'], 'file')} that {_are(facts['removed'])} there now{kept}"
    made = f" in about {plural(commits, 'commit')}" if commits else ""
    yield "upload", f"{plural(facts['files'], 'file')}{made}"
    disk = f"at most {size(facts['staging_bytes'])} of disk, {size(free)} free"
    least = f"; at least {size(facts['staging_least_bytes'])} with --staging"
    enough = free >= facts["staging_bytes"]
    yield "staging", disk + least if enough else line(f"{disk}, ", ("not enough", "red"), least)


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def show_event(event: Uploaded | Saved, output: Output, verbose: bool) -> None:
    """Print a line for a commit, and with `verbose` for every upload."""
    if isinstance(event, Saved):
        output.note(f"committed {plural(event.files, 'file')}, {size(event.nbytes)}: {event.commit[:12]}")
    elif verbose:
        output.note(f"uploaded {event.file}: {size(event.nbytes)}")


def show_repository(facts: Mapping[str, Any], output: Output) -> None:
    """Print where a hub shows the result."""
    if facts:
        seen = "private" if facts["private"] else "public"
        output.text(f"repository: {facts['address']} ({seen}), commit {facts['commit']}")
