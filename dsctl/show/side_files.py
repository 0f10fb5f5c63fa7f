"""The files beside the weights in a diff as sections: which bytes differ, and which contents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dsctl.look.config_changes import ABSENT
from dsctl.look.diff import Diff
from dsctl.look.side_texts import TextChange
from dsctl.show.output import plural
from dsctl.show.sections import Column, Row, Section
from dsctl.show.templates import shortened

# At most this many rows of one kind in the table of contents.
MOST_ROWS = 40


def files(diff: Diff) -> Iterator[Section]:
    """Other files of two folders by kind, and differences in their contents; for two releases, known differences."""
    if diff.files is not None:
        yield _bytes(diff)
    elif not diff.texts.changes:
        yield Section("Other files", "not compared: both sides must be folders on this machine")
        return
    if diff.texts.changes or diff.texts.problems:
        yield _contents(diff)


def _bytes(diff: Diff) -> Section:
    rows = []
    for one in diff.files or ():
        for names, kind, said in (
            (one.changed, "changed", "different"),
            (one.removed, "removed", "only in A"),
            (one.added, "added", "only in B"),
            (one.same, "", "same"),
        ):
            if names:
                rows.append(Row((one.kind, said, ", ".join(names)), kind))
        if not (one.same or one.differs):
            rows.append(Row((one.kind, "on neither side", "")))
    summary = "different" if diff.differs_in("files") else "no difference"
    return Section("Other files", summary, (Column("kind"), Column("bytes"), Column("files")), tuple(rows))


def _contents(diff: Diff) -> Section:
    if diff.files is None:
        title = "Other files"
        unread = [kind for kind in diff.not_compared if kind != "values of weights" and "config.json" not in kind]
        notes = [f"Known from the sources of both releases. Not compared: {', '.join(unread)}."]
    else:
        title, notes = "Contents of other files", [f"{text}." for text in diff.texts.problems]
    rows = []
    for kind in dict.fromkeys(change.kind for change in diff.texts.changes):
        found = [change for change in diff.texts.changes if change.kind == kind]
        rows += [_row(change) for change in found[:MOST_ROWS]]
        if len(found) > MOST_ROWS:
            notes.append(f"{kind}: {plural(len(found) - MOST_ROWS, 'more difference')} in --json.")
    return Section(title, "", (Column("kind"), Column("field"), Column("value")), tuple(rows), tuple(notes))


def _row(change: TextChange) -> Row:
    sides = [_value(side) for side in (change.before, change.after) if side is not ABSENT]
    moved = "same text, moved: " if change.moved else ""
    return Row((change.kind, shortened(change.what), moved + " → ".join(sides)), change.sign)


def _value(value: Any) -> str:
    # A text of the report itself, such as a digest, is already short.
    return value[:200] if isinstance(value, str) else shortened(json.dumps(value, ensure_ascii=False))
