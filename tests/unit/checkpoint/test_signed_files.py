"""Entries of files in `dsctl.json`: computed from parts, computed again from bytes, and compared."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from dsctl.checkpoint.signed_files import (
    SignedFile,
    Signer,
    Stretch,
    differences,
    entries_of,
    read_entry,
    signed_tree,
)
from dsctl.core.digests import digest
from dsctl.core.header import TensorSpec, build, parse
from dsctl.stores.local import LocalFolder
from tests.support import trees

SPECS = {"a": TensorSpec("U8", (6,)), "b": TensorSpec("U8", (4, 2)), "none": TensorSpec("U8", (0, 2))}
HEADER, BEGINS = build(SPECS)
DATA = bytes(range(14))
# `b` is joined of three matrices: of two rows, one row and one row.
PARTS = [(BEGINS["a"], DATA[:6]), *((BEGINS["b"] + at, DATA[6 + at : 6 + to]) for at, to in ((0, 4), (4, 6), (6, 8)))]
CUTS = {"b": [[1, 4], [2, 2]]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "x.safetensors").write_bytes(HEADER + DATA)
    return tmp_path / "x.safetensors"


def signed(sha256: str = "") -> SignedFile:
    stretches = [Stretch(begin, digest(data)) for begin, data in reversed(PARTS)]
    return signed_tree(HEADER, len(HEADER) + len(DATA), stretches, sha256)


def test_parts_in_any_order_give_the_entry_that_the_page_describes(file: Path) -> None:
    assert signed().json() == trees.entry(file, CUTS)
    whole = [Stretch(BEGINS["a"], digest(DATA[:6])), Stretch(BEGINS["b"], digest(DATA[6:]))]
    assert signed_tree(HEADER, file.stat().st_size, whole).json() == trees.entry(file)


def test_a_part_that_two_jobs_write_counts_once() -> None:
    twice = [Stretch(begin, digest(data)) for begin, data in (*PARTS, PARTS[0])]
    assert signed_tree(HEADER, len(HEADER) + len(DATA), twice) == signed()


@pytest.mark.parametrize("missing", range(2))
def test_a_tensor_without_a_digest_is_refused(missing: int) -> None:
    parts = [Stretch(begin, digest(data)) for begin, data in PARTS]
    with pytest.raises(ValueError, match="no digest of its first bytes"):
        signed_tree(HEADER, len(HEADER) + len(DATA), parts[:missing] + parts[missing + 1 :])


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_bytes_in_order_give_the_same_entry(size: int) -> None:
    sha256 = hashlib.sha256(HEADER + DATA).hexdigest()
    signer, raw = Signer(signed(sha256), parse(HEADER[8:], "x", None)), HEADER + DATA
    for at in range(0, len(raw), size):
        signer.update(raw[at : at + size])
    assert signer.entry() == signed(sha256)


def test_a_stored_file_is_read_again(file: Path) -> None:
    store = LocalFolder.at(file.parent)
    for like in (signed(), SignedFile(0, blake3="?"), SignedFile(0, sha256="?")):
        found = read_entry(store, file.name, file.stat().st_size, like)
        raw = file.read_bytes()
        assert (found.tree, found.blake3, found.sha256) == (
            like.tree, like.blake3 and blake3(raw).hexdigest(), like.sha256 and hashlib.sha256(raw).hexdigest()
        )  # fmt: skip


@pytest.mark.parametrize(
    ("place", "told"),
    [(BEGINS["a"], ["a"]), (BEGINS["b"] + 7, ["b"]), (len(HEADER) - 1, ["its header"]), (9, ["its contents"])],
)
def test_what_differs_is_named(file: Path, place: int, told: list[str]) -> None:
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1 if place == 9 else 0x20 if place < len(HEADER) else 1
    if place == len(HEADER) - 1:
        raw[place] = ord("\t")
    file.write_bytes(raw)
    store = LocalFolder.at(file.parent)
    found = read_entry(store, file.name, len(raw), signed())
    header = None if place == 9 else parse(bytes(raw[8 : len(HEADER)]), "x", len(raw))
    assert differences(signed(), found, header) == told


def test_equal_entries_do_not_differ() -> None:
    assert differences(signed(), signed(), parse(HEADER[8:], "x", None)) == []
    assert differences(SignedFile(1, sha256="a"), SignedFile(1, sha256="b"), None) == ["its SHA-256"]


@pytest.mark.parametrize("cut", [[[1, 4]], [[1, -4], [1, 12]], [[0, 9], [4, 2]], [[1 << 40, 1]], [[8, 1]]])
def test_parts_that_cannot_be_are_a_difference_and_cost_nothing(file: Path, cut: list[list[int]]) -> None:
    entry = msgspec.convert(signed().json() | {"cuts": {"b": cut}}, SignedFile)
    found = read_entry(LocalFolder.at(file.parent), file.name, file.stat().st_size, entry)
    assert differences(entry, found, parse(HEADER[8:], "x", None)) == ["b"]


@pytest.mark.parametrize(
    "said",
    [
        7, [], {"a": 7}, {"a": {}}, {"a": {"size": 1}}, {"a": {"sha256": "x"}}, {"a": {"size": -1, "sha256": "x"}},
        {"a": {"size": True, "sha256": "x"}}, {"a": {"size": 1 << 63, "sha256": "x"}}, {"a": {"size": 1, "tree": 7}},
        {"a": {"size": 1, "tree": "x", "cuts": {"b": 7}}},
    ],
)  # fmt: skip
def test_what_is_no_entry_is_refused(said: Any) -> None:
    with pytest.raises(ValueError, match="files"):
        entries_of(said)


def test_entries_of_earlier_versions_are_entries() -> None:
    assert entries_of({"a": {"size": 1, "sha256": "x"}}) == {"a": SignedFile(1, sha256="x")}
    assert entries_of({"a": {"size": 1, "sha256": "x"}})["a"].kind == "SHA-256"
