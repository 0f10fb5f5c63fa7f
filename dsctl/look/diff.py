"""The differences between two checkpoints as data: config, parameters by template, storage, totals. No weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from dsctl.core.config_fields import CLERICAL_FIELDS
from dsctl.core.header import TensorSpec
from dsctl.core.tables import html, table, text_table
from dsctl.look.config_changes import FieldChange, config_changes
from dsctl.look.costs import Attention, attention
from dsctl.look.description import Description
from dsctl.look.other_files import SIDE_FILES, FileChange, other_files
from dsctl.look.side_texts import Texts, texts_of_folders, texts_of_releases
from dsctl.look.templates import Template, TemplateChange, aspects, prefixes, stored_tensors, templates, without
from dsctl.look.totals import TotalChange, cache_formats, totals

# The parts of a report that can be shown alone.
PARTS = ("config", "tensors", "totals", "files")

VERDICTS = {
    "architecture": "Different architecture.",
    "sizes": "Same architecture, different sizes or parts.",
    "parts": "Same architecture, but not all of its parameters are present on both sides.",
    "storage": "Same parameters, different storage format.",
    "config": "Same parameters and storage format; config.json differs.",
    "config, files": "Same parameters and storage format; config.json and other files differ.",
    "files": "Same parameters, storage format and config.json; other files differ.",
    "nothing": "No difference: same parameters, storage format and config.json.",
}
# The same if the config of a side was not read, but derived: its config.json is not known.
VERDICTS_DERIVED = {
    "config": "Same parameters and storage format; the config differs.",
    "config, files": "Same parameters and storage format; the config and other files differ.",
    "files": "Same parameters and storage format; other files differ.",
    "nothing": "No difference between the descriptions.",
}


@dataclass(repr=False)
class Diff:
    """Two descriptions and their differences. `str` gives the table, `verdict` the largest difference in a word."""

    a: Description
    b: Description

    @cached_property
    def config(self) -> tuple[FieldChange, ...]:
        """Fields of config.json that differ: added, removed, changed, each in the order of the files.

        Fields without effect are left out if the config of a side was not read, but derived.
        """
        changes = config_changes(self.a.config, self.b.config)
        if self.a.derived or self.b.derived:
            changes = [change for change in changes if change.top not in CLERICAL_FIELDS]
        return tuple(sorted(changes, key=lambda change: ("added", "removed", "changed").index(change.kind)))

    @cached_property
    def templates(self) -> tuple[dict[tuple[str, str], Template], dict[tuple[str, str], Template]]:
        """The templates of both sides, under the names by which they are paired."""
        ours, theirs = self.prefixes
        return without(ours, templates(self.a.groups)), without(theirs, templates(self.b.groups))

    @cached_property
    def prefixes(self) -> tuple[str, str]:
        """What the names of one side have before those of the other side; both are empty if they have no prefix."""
        return prefixes(templates(self.a.groups).values(), templates(self.b.groups).values())

    @cached_property
    def added(self) -> tuple[Template, ...]:
        before, after = self.templates
        return tuple(template for name, template in after.items() if name not in before)

    @cached_property
    def removed(self) -> tuple[Template, ...]:
        before, after = self.templates
        return tuple(template for name, template in before.items() if name not in after)

    @cached_property
    def changed(self) -> tuple[TemplateChange, ...]:
        before, after = self.templates
        both = [(before[name], after[name]) for name in before if name in after]
        return tuple(TemplateChange(x, y, found) for x, y in both if (found := tuple(aspects(x, y))))

    @property
    def tensors(self) -> Iterator[tuple[str, TensorSpec | None, TensorSpec | None]]:
        """Every stored tensor that only one side has, or whose dtype or shape differs."""
        before, after = dict(stored_tensors(self.a.groups)), dict(stored_tensors(self.b.groups))
        for name in before | after:
            if before.get(name) != after.get(name):
                yield name, before.get(name), after.get(name)

    @cached_property
    def attention(self) -> tuple[Attention | None, Attention | None]:
        return attention(self.a), attention(self.b)

    @property
    def cache_formats(self) -> tuple[str, str]:
        """The formats in which the caches of the two sides are counted."""
        return cache_formats(self.attention)

    @cached_property
    def totals(self) -> tuple[TotalChange, ...]:
        return tuple(totals(self.a, self.b, self.attention))

    @property
    def itself(self) -> bool:
        """Whether both sides are read from the same place, so that no difference is possible."""
        return (self.a.kind, self.a.place) == (self.b.kind, self.b.place)

    @property
    def origin(self) -> str:
        """The origin of both sides, in a sentence or two."""
        if self.itself:
            return f"A and B are the same: {self.a.origin.text}."
        return f"A: {self.a.origin.text}. B: {self.b.origin.text}."

    @cached_property
    def files(self) -> tuple[FileChange, ...] | None:
        """Files beside the weights, by kind; None if a side is not a folder on this machine.

        Raises:
            SourceError: a file cannot be read.
        """
        if not all(side.kind == "folder" and os.path.isdir(side.place) for side in (self.a, self.b)):
            return None
        return tuple(other_files(self.a.place, self.b.place))

    @cached_property
    def texts(self) -> Texts:
        """Differences in tokenizer, special tokens, chat template and generation config: read from two folders, or
        known of two releases; none if neither is the case.

        Raises:
            SourceError: a folder cannot be listed.
        """
        if self.files is not None:
            same = {name for one in self.files for name in one.same}
            return texts_of_folders(self.a.place, self.b.place, same)
        if self.a.release and self.b.release:
            return texts_of_releases(self.a.release, self.b.release)
        return Texts()

    @property
    def compared(self) -> tuple[str, ...]:
        """The parts that were compared, in words."""
        config = () if self._unread else ("config.json",)
        files = tuple(SIDE_FILES) if self.files is not None else self.texts.compared
        return (*config, "names", "shapes", "dtypes", *files)

    @property
    def not_compared(self) -> tuple[str, ...]:
        """The parts that were not compared, in words."""
        files = tuple(SIDE_FILES) if self.files is None else ()
        return ("values of weights", *self._unread, *(kind for kind in files if kind not in self.texts.compared))

    @property
    def _unread(self) -> tuple[str, ...]:
        neither = not self.a.config and not self.b.config
        sides = [side for side in (self.a, self.b) if side.derived or neither]
        return tuple(dict.fromkeys(f"config.json of {side.name}" for side in sides))

    @property
    def same_parameters(self) -> bool:
        """Whether both sides have the same parameters with the same shapes, in any storage format."""
        same = not self.added and not self.removed and not any(self.prefixes)
        return same and not any(change.structural for change in self.changed)

    @property
    def renamed(self) -> bool:
        """Whether no parameter has the same name on both sides: then all are added or removed."""
        before, after = self.templates
        return bool(before) and bool(after) and before.keys().isdisjoint(after)

    @property
    def same_storage(self) -> bool:
        return self.same_parameters and not self.changed

    @property
    def verdict(self) -> str:
        """The largest difference: a key of `VERDICTS`, which has a sentence for it."""
        if not self.same_parameters:
            return "sizes" if self._of_one_kind else "architecture"
        if (self.a.missing, self.a.part) != (self.b.missing, self.b.part):
            return "parts"
        if not self.same_storage:
            return "storage"
        if self.config:
            return "config"
        return "files" if self.differs_in("files") else "nothing"

    @property
    def _of_one_kind(self) -> bool:
        """Whether both sides have the same architecture; of unknown ones only the names in config.json are known."""
        named = (one.model or one.config.get("model_type") for one in (self.a, self.b))
        return len(set(map(repr, named))) == 1

    @property
    def headline(self) -> str:
        """The verdict in a sentence, with the sides whose config was derived, not read."""
        derived = dict.fromkeys(side.name for side in (self.a, self.b) if side.derived)
        key = "config, files" if self.verdict == "config" and self.differs_in("files") else self.verdict
        if derived:
            said = VERDICTS_DERIVED.get(key, VERDICTS[key])
            return f"{said} Config of {' and '.join(derived)}: derived, not read."
        if self.verdict == "nothing" and not self.a.config and not self.b.config:
            return "No difference: same parameters and storage format. Neither side has a config.json."
        return VERDICTS[key]

    @property
    def differs(self) -> bool:
        """Whether any compared part differs; names, dates, places and the number of weight files do not count."""
        return self.verdict != "nothing"

    def differs_in(self, part: str | None) -> bool:
        """Whether one of `PARTS` differs; any of them if `part` is None."""
        if part == "config":
            return bool(self.config)
        if part == "tensors":
            return not self.same_storage or self.verdict == "parts"
        if part == "totals":
            return any(total.differs for total in self.totals)
        if part == "files":
            return any(one.differs for one in self.files or ()) or (self.files is None and bool(self.texts.changes))
        return self.differs

    def __repr__(self) -> str:
        return f"<Diff {self.a.name} → {self.b.name}: {self.verdict}>"

    def __str__(self) -> str:
        """Return origin, verdict and tables as text, which `print` shows."""
        parts = [line for part in _tables(self) if (lines := text_table(*part)) for line in ("", *lines)]
        return "\n".join((self.origin, "", f"{self.a.name} → {self.b.name}   {self.headline}", *parts))

    def _repr_html_(self) -> str:
        """Return the same as HTML for a notebook."""
        parts = "".join(table(*part) for part in _tables(self))
        said = "".join(f"<p>{html(text)}</p>" for text in (self.origin, self.headline))
        return f"<h3>{html(self.a.name)} → {html(self.b.name)}</h3>{said}{parts}"


def _tables(diff: Diff) -> Iterator[tuple[str, tuple[str, ...], list[tuple[object, ...]]]]:
    """Title, columns and rows of each table."""
    columns = ("template", "shape", "stored as", "parameters", "values", "bytes")
    changed = [(one.after.name, ", ".join(one.aspects), one.before.stored, one.after.stored) for one in diff.changed]
    totals = [(one.key, one.context, one.before, one.after) for one in diff.totals]
    yield "Added", columns, list(_rows(diff.added))
    yield "Removed", columns, list(_rows(diff.removed))
    yield "Changed", ("template", "in", "stored before", "after"), list(changed)
    yield "Totals", ("total", "context", diff.a.name, diff.b.name), list(totals)


def _rows(templates: Iterable[Template]) -> Iterator[tuple[object, ...]]:
    return ((one.name, one.shape, one.stored, one.count, one.values, one.nbytes) for one in templates)
