"""What differs between two checkpoints, as data: config fields, parameters by template, storage, totals. No weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NamedTuple

from dsctl.checkpoint.groups import Group
from dsctl.codecs.codec import SCALE, Codec
from dsctl.core.header import TensorSpec
from dsctl.layouts.naming import tensors
from dsctl.look.costs import Attention, attention
from dsctl.look.description import Description
from dsctl.look.notebook import html, table
from dsctl.stores.local import LocalFolder

ABSENT = object()
# The parts of a report that can be asked for alone.
PARTS = ("config", "tensors", "totals", "files")
CONTEXTS = (4_096, 32_768, 131_072)
# What a template's difference can be in, in the order in which it is shown. The first four are architecture.
ASPECTS = ("shape", "layers", "experts", "split", "stored", "count")
STRUCTURE = frozenset({"shape", "layers", "experts", "split"})
# config.json fields that say how weights are stored or who wrote the file, not what is computed.
STORAGE_FIELDS = frozenset({"quantization_config", "torch_dtype", "dtype"})
CLERICAL_FIELDS = frozenset({"transformers_version", "auto_map", "_name_or_path"})

# Files beside weights and config that decide how a model is used. A chat template may lie in tokenizer_config.json.
SIDE_FILES = {
    "tokenizer": ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken"),
    "chat template": ("chat_template*",),
    "generation config": ("generation_config.json",),
    "code": ("*.py",),
}
READ_BYTES = 8 << 20

VERDICTS = {
    "architecture": "Another architecture.",
    "sizes": "The same architecture with other sizes or parts.",
    "parts": "The same architecture, but not all of its parameters are there on both sides.",
    "storage": "The same parameters, stored otherwise.",
    "config": "The same parameters, stored alike; only config.json differs.",
    "files": "The same parameters, stored alike, with the same config.json; other files differ.",
    "nothing": "The same parameters, stored alike, with the same config.json.",
}
# The same where a side's config was not read, but derived: nothing can be said of its config.json.
VERDICTS_DERIVED = {
    "config": "The same parameters, stored alike; only the config differs.",
    "nothing": "No difference between the descriptions.",
}


class FieldChange(NamedTuple):
    """A field of config.json, nested ones by their path; `ABSENT` on the side that lacks it."""

    field: str
    before: Any
    after: Any

    @property
    def kind(self) -> str:
        if self.before is ABSENT:
            return "added"
        return "removed" if self.after is ABSENT else "changed"

    @property
    def top(self) -> str:
        """The field of the outermost object that it lies in."""
        return self.field.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Template:
    """Everything on one side that goes by one template: an MTP layer's parameters together with the main model's."""

    name: str
    groups: tuple[Group, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.groups[0].family.shape

    @property
    def role(self) -> str:
        return self.groups[0].family.role

    @property
    def split(self) -> int | None:
        return self.groups[0].family.split

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({layer for group in self.groups for layer in group.layers}))

    @property
    def experts(self) -> int:
        return self.groups[0].family.experts

    @property
    def stored(self) -> str:
        return " or ".join(dict.fromkeys(form(group.codec) for group in self.groups))

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def values(self) -> int:
        return sum(group.values for group in self.groups)

    @property
    def tensors(self) -> int:
        return sum(group.tensors for group in self.groups)

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)


class TemplateChange(NamedTuple):
    """A template on both sides, and in which of `ASPECTS` they differ."""

    before: Template
    after: Template
    aspects: tuple[str, ...]

    @property
    def structural(self) -> bool:
        return not STRUCTURE.isdisjoint(self.aspects)


class FileChange(NamedTuple):
    """Files of one kind of `SIDE_FILES`, compared byte for byte: names that differ, and names on one side alone."""

    kind: str
    same: tuple[str, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return bool(self.changed or self.added or self.removed)


class Total(NamedTuple):
    """One number on both sides; `unit` is count, bytes or flop. None where it is not known.

    `context` is the number of tokens before the one that is counted for.
    """

    key: str
    unit: str
    before: int | None
    after: int | None
    context: int | None = None

    @property
    def differs(self) -> bool:
        """Whether both are known and differ. How many files hold the weights is not a difference."""
        known = self.before is not None and self.after is not None
        return known and self.before != self.after and self.key != "files"


@dataclass
class Diff:
    """Two descriptions, and what differs between them."""

    a: Description
    b: Description

    @cached_property
    def config(self) -> tuple[FieldChange, ...]:
        """Fields of config.json that differ: added, removed, changed, each in the order of the files.

        Those that set nothing are left out where one side's were not read, but derived.
        """
        before, after = flattened(self.a.config), flattened(self.b.config)
        changes = [
            FieldChange(name, before.get(name, ABSENT), after.get(name, ABSENT))
            for name in (before | after)
            if not same(before.get(name, ABSENT), after.get(name, ABSENT))
        ]
        if self.a.derived or self.b.derived:
            changes = [change for change in changes if change.top not in CLERICAL_FIELDS]
        return tuple(sorted(changes, key=lambda change: ("added", "removed", "changed").index(change.kind)))

    @cached_property
    def templates(self) -> tuple[dict[str, Template], dict[str, Template]]:
        return templates(self.a.groups), templates(self.b.groups)

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
        return tuple(TemplateChange(x, y, found) for x, y in both if (found := tuple(_aspects(x, y))))

    @property
    def tensors(self) -> Iterator[tuple[str, TensorSpec | None, TensorSpec | None]]:
        """Every stored tensor that is on one side alone, or of another dtype or shape on the other."""
        before, after = dict(stored_tensors(self.a.groups)), dict(stored_tensors(self.b.groups))
        for name in before | after:
            if before.get(name) != after.get(name):
                yield name, before.get(name), after.get(name)

    @cached_property
    def attention(self) -> tuple[Attention | None, Attention | None]:
        return attention(self.a), attention(self.b)

    @cached_property
    def totals(self) -> tuple[Total, ...]:
        return tuple(_totals(self))

    @property
    def itself(self) -> bool:
        """Whether both sides are read from one place, so that nothing can differ."""
        return (self.a.kind, self.a.place) == (self.b.kind, self.b.place)

    @property
    def origin(self) -> str:
        """Where both sides come from, in a sentence or two."""
        if self.itself:
            return f"A and B are the same: {self.a.origin.text}."
        return f"A: {self.a.origin.text}. B: {self.b.origin.text}."

    @cached_property
    def files(self) -> tuple[FileChange, ...] | None:
        """Files beside the weights, by kind; None where a side is not a folder on this machine.

        Raises:
            SourceError: a file cannot be read.
        """
        if not all(side.kind == "folder" and os.path.isdir(side.place) for side in (self.a, self.b)):
            return None
        return tuple(_side_files(self.a.place, self.b.place))

    @property
    def compared(self) -> tuple[str, ...]:
        """What was compared, in words."""
        config = () if self._unread else ("config.json",)
        files = tuple(SIDE_FILES) if self.files is not None else ()
        return (*config, "names", "shapes", "dtypes", *files)

    @property
    def not_compared(self) -> tuple[str, ...]:
        """What was not looked at, in words."""
        files = tuple(SIDE_FILES) if self.files is None else ()
        return ("values of weights", *self._unread, *files)

    @property
    def _unread(self) -> tuple[str, ...]:
        neither = not self.a.config and not self.b.config
        sides = [side for side in (self.a, self.b) if side.derived or neither]
        return tuple(dict.fromkeys(f"config.json of {side.name}" for side in sides))

    @property
    def same_parameters(self) -> bool:
        """Whether both sides have the same parameters, names and shapes, however they are stored."""
        return not self.added and not self.removed and not any(change.structural for change in self.changed)

    @property
    def same_storage(self) -> bool:
        return self.same_parameters and not self.changed

    @property
    def verdict(self) -> str:
        """The most that differs: a key of `VERDICTS`, which says it in a sentence."""
        if not self.same_parameters:
            return "sizes" if self.a.model == self.b.model else "architecture"
        if (self.a.missing, self.a.part) != (self.b.missing, self.b.part):
            return "parts"
        if not self.same_storage:
            return "storage"
        if self.config:
            return "config"
        return "files" if self.differs_in("files") else "nothing"

    @property
    def headline(self) -> str:
        """The verdict in a sentence, with the sides whose config it rests on although it was not read."""
        derived = dict.fromkeys(side.name for side in (self.a, self.b) if side.derived)
        if derived:
            said = VERDICTS_DERIVED.get(self.verdict, VERDICTS[self.verdict])
            return f"{said} Config of {' and '.join(derived)}: derived, not read."
        if self.verdict == "nothing" and not self.a.config and not self.b.config:
            return "The same parameters, stored alike; neither side has a config.json."
        return VERDICTS[self.verdict]

    @property
    def differs(self) -> bool:
        """Whether anything that was compared differs; names, dates, places and the number of files do not count."""
        return self.verdict != "nothing"

    def differs_in(self, part: str | None) -> bool:
        """Whether one of `PARTS` differs; without one, whether any does."""
        if part == "config":
            return bool(self.config)
        if part == "tensors":
            return not self.same_storage or self.verdict == "parts"
        if part == "totals":
            return any(total.differs for total in self.totals)
        if part == "files":
            return any(one.differs for one in self.files or ())
        return self.differs

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        columns = ("template", "shape", "stored as", "parameters", "values", "bytes")
        changed = [
            (one.after.name, ", ".join(one.aspects), one.before.stored, one.after.stored) for one in self.changed
        ]
        totals = [(one.key, one.context, one.before, one.after) for one in self.totals]
        parts = (
            table("Added", columns, _rows(self.added)),
            table("Removed", columns, _rows(self.removed)),
            table("Changed", ("template", "in", "stored before", "after"), changed),
            table("Totals", ("what", "context", self.a.name, self.b.name), totals),
        )
        said = "".join(f"<p>{html(text)}</p>" for text in (self.origin, self.headline))
        return f"<h3>{html(self.a.name)} → {html(self.b.name)}</h3>{said}{''.join(parts)}"


def _side_files(before: str, after: str) -> Iterator[FileChange]:
    """The files of every kind in `SIDE_FILES`, in two folders; none is read whole."""
    stores = LocalFolder.at(before), LocalFolder.at(after)
    held = [store.files() for store in stores]
    for kind, globs in SIDE_FILES.items():
        x, y = ({n for n in files if any(fnmatchcase(n, glob) for glob in globs)} for files in held)
        both = sorted(x & y)
        same = [name for name in both if held[0][name] == held[1][name] and _equal(stores, name, held[0][name])]
        changed = tuple(name for name in both if name not in same)
        yield FileChange(kind, tuple(same), changed, tuple(sorted(y - x)), tuple(sorted(x - y)))


def _equal(stores: tuple[LocalFolder, LocalFolder], name: str, size: int) -> bool:
    spans = ((begin, min(begin + READ_BYTES, size)) for begin in range(0, size, READ_BYTES))
    return all(stores[0].read(name, *span) == stores[1].read(name, *span) for span in spans)


def _rows(templates: Iterable[Template]) -> Iterator[tuple[object, ...]]:
    return ((one.name, one.shape, one.stored, one.count, one.values, one.nbytes) for one in templates)


def form(codec: Codec) -> str:
    """A stored form in a few words: BF16; FP8 ue8m0. The usual 128x128 blocks and F32 scales go unsaid."""
    if not codec.scale_fmt:
        return codec.name if codec.quantized else codec.name.upper()
    words = ["FP8"]
    if codec.block != (128, 128):
        words.append(f"{codec.block[0]}x{codec.block[1]}")
    if codec.scale_fmt == "ue8m0":
        words.append("ue8m0")
    dtype = codec.specs(codec.block)[SCALE].dtype
    return " ".join(words) + (f", {dtype} scales" if dtype != "F32" else "")


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config with nested objects' fields by their path: `rope_scaling.factor`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def same(before: Any, after: Any) -> bool:
    """Equality as JSON has it: 1 and 1.0 are one number, but true is none."""
    return isinstance(before, bool) == isinstance(after, bool) and bool(before == after)


def templates(groups: Iterable[Group]) -> dict[str, Template]:
    """Groups by their template, in the model's order."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.family.template, []).append(group)
    return {name: Template(name, tuple(held)) for name, held in found.items()}


def _aspects(before: Template, after: Template) -> Iterator[str]:
    for aspect in ASPECTS[:-1]:
        if getattr(before, aspect) != getattr(after, aspect):
            yield aspect
    if before.layers == after.layers and before.experts == after.experts and before.count != after.count:
        yield "count"


def stored_tensors(groups: Iterable[Group]) -> Iterator[tuple[str, TensorSpec]]:
    """Every tensor that the groups' parameters are stored as, by name."""
    for group in groups:
        specs = group.specs
        for name in group.names:
            yield from zip(tensors(group.codec.dialect, name, specs), specs.values(), strict=True)


def ranges(numbers: Iterable[int]) -> str:
    """Numbers with runs folded, even ones with a step: 0-61; 0-2, 6-78 by 4; 1, 5."""
    left, said = sorted(numbers), []
    while left:
        run = 1
        while run < len(left) and left[run] - left[0] == run * (left[1] - left[0]):
            run += 1
        step = left[1] - left[0] if run > 1 else 1
        if run < 3 and step > 1:
            run, step = 1, 1
        first, last = left[0], left[run - 1]
        said.append(f"{first}" if run == 1 else f"{first}-{last}" + (f" by {step}" if step > 1 else ""))
        left = left[run:]
    return ", ".join(said)


def _totals(diff: Diff) -> Iterator[Total]:
    a, b = diff.a, diff.b
    for key in ("parameters", "values", "main_values", "active_values", "quantized", "tensors"):
        yield Total(key, "count", getattr(a, key), getattr(b, key))
    yield Total("nbytes", "bytes", a.nbytes, b.nbytes)
    yield Total("files", "count", a.files, b.files)
    x, y = diff.attention
    yield Total("cache_bytes", "bytes", x and x.cache_bytes(), y and y.cache_bytes())
    yield Total("index_bytes", "bytes", x and x.index_bytes(), y and y.index_bytes())
    for context in CONTEXTS:
        yield Total("work", "flop", x and x.work(context), y and y.work(context), context)
    for context in CONTEXTS:
        yield Total("read_bytes", "bytes", x and x.read_bytes(context), y and y.read_bytes(context), context)
