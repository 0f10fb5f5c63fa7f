"""Names of files that others give: which of them can lie below a folder. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

# Longest file name in bytes (255) less the suffix that huggingface_hub appends to downloads, and longest path below
# a folder whose own path is long (Linux: 4,096 in all).
LONGEST_NAME, LONGEST_PATH = 255 - len(".incomplete"), 2048
# Folders in which version control, caches and dsctl itself keep records.
RESERVED = frozenset({".git", ".dsctl", ".cache"})


def unusable(name: str) -> str:
    """The problem of a single file name, or an empty string."""
    parts = name.split("/")
    if "\\" in name or not {"", ".", ".."}.isdisjoint(parts):
        return "leads out of the repository"
    if not name.isprintable():
        return "is not printable text"
    if reserved := [part for part in parts if part.casefold() in RESERVED]:
        return f"lies in {reserved[0]}, which is not part of a repository"
    if len(name.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in parts):
        return "is too long for a file system"
    return ""


def clashing(names: Collection[str]) -> str:
    """Why files of these names cannot lie in one folder, or an empty string: one is the folder of another."""
    known = set(names)
    for name in sorted(known):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) in known:
                return f"{folder!r} is a file and the folder of {name!r}"
    return ""


def problem_of(names: Iterable[str]) -> str:
    """The problem of the first name that cannot be used, in words that spell it out; empty if there is none."""
    folders: dict[str, str] = {}
    files: dict[str, str] = {}
    for name in names:
        why = unusable(name)
        parts = name.split("/")
        if not why and (twin := files.get(name.casefold())) is not None:
            why = "is listed twice" if twin == name else f"and {twin!r} differ in case only"
        if why:
            return f"file name {name!r} {why}"
        files[name.casefold()] = name
        folders |= {"/".join(parts[:depth]).casefold(): name for depth in range(1, len(parts))}
    both = next((name for folded, name in files.items() if folded in folders), None)
    return "" if both is None else f"{both!r} is a file and the folder of {folders[both.casefold()]!r}"
