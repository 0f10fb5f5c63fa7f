"""Files beside weights and config that decide how a model is used, compared byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from dsctl.stores.local import LocalFolder

# Globs of each kind of file. A chat template can also be in tokenizer_config.json, or be Python code.
SIDE_FILES = {
    "tokenizer": ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken"),
    "chat template": ("chat_template*", "assets/chat_template*", "additional_chat_templates/*"),
    "generation config": ("generation_config.json",),
    "code": ("*.py",),
}
READ_BYTES = 8 << 20


class FileChange(NamedTuple):
    """Files of one kind of `SIDE_FILES`, compared byte by byte: the same, different, and on one side only."""

    kind: str
    same: tuple[str, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return bool(self.changed or self.added or self.removed)


def other_files(before: str, after: str) -> Iterator[FileChange]:
    """The files of every kind in `SIDE_FILES`, in two folders; they are read in parts."""
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
