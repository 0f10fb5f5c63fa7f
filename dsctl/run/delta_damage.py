"""Whether the files of a delta still have the digests that its `dsctl.json` lists. No torch."""

from __future__ import annotations

from functools import partial

from dsctl.checkpoint.delta import Delta
from dsctl.checkpoint.reading import read_json
from dsctl.checkpoint.signed_files import SignedFile, differences, entries_of, read_entry
from dsctl.core.errors import FormatError
from dsctl.run.events import EventReport
from dsctl.run.reading import Reading
from dsctl.stores import SIGNED
from dsctl.stores.threads import threads


def listed(delta: Delta) -> dict[str, SignedFile]:
    """The files that the delta's `dsctl.json` lists, with their digests.

    Raises:
        FormatError: it is not valid.
    """
    said = read_json(delta.store, SIGNED, delta.sizes) or {}
    try:
        found = entries_of(said.get("files", {}))
    except ValueError as error:
        raise FormatError(f"{delta.store.place}/{SIGNED}: {error}") from None
    return {name: entry for name, entry in found.items() if name in delta.sizes}


def damage(delta: Delta, name: str, known: SignedFile) -> str:
    """How a file differs from its entry, or an empty text.

    Raises:
        SourceError: it cannot be read.
    """
    found = read_entry(delta.store, name, delta.sizes[name], known)
    unlike = differences(known, found, delta.headers.get(name))
    return f"{name}: differs from {SIGNED}: {', '.join(unlike)}" if unlike else ""


def refuse_damaged(delta: Delta, workers: int, report: EventReport) -> None:
    """Refuse a delta of which a file is not as its `dsctl.json` lists it. A delta of others lists none.

    Raises:
        FormatError: naming the files. SourceError: one of them cannot be read.
    """
    with threads(workers) as pool:
        reading = Reading(pool, report)
        found = reading.results(partial(damage, delta, name, entry) for name, entry in listed(delta).items())
        if problems := [one for one in found if one]:
            raise FormatError(f"{delta.store.place}: {problems[0]}", hint="fetch the delta again", issues=problems)
