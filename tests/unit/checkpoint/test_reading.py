"""JSON and headers of a store: what is refused, in which words, and what is read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.checkpoint.reading import check_name, read_header, read_headers, read_json, strict_json
from dsctl.core.errors import FormatError, SourceError
from dsctl.core.header import TensorSpec
from dsctl.stores.local import LocalFolder
from tests.support.headers import write_header

SPECS = {"a": TensorSpec("BF16", (2, 3)), "b": TensorSpec("F32", (1,))}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc\"\\"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_what_is_json_is_read_as_it_is(value: object) -> None:
    assert strict_json(json.dumps(value).encode(), "f") == value
    assert strict_json(json.dumps(value, ensure_ascii=False).encode(), "f") == value


@pytest.mark.parametrize(
    "raw", [b"NaN", b"[Infinity]", b'{"a": -Infinity}', b"[1e999]", b"[-1e400]", b'{"a": "\\ud800"}']
)
def test_what_cannot_be_written_again_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        strict_json(raw, "config.json")


def test_a_whole_pair_of_surrogates_is_one_character() -> None:
    assert strict_json(b'"\\ud83d\\ude00"', "f") == "\U0001f600"


def test_a_key_twice_is_refused_at_any_depth() -> None:
    with pytest.raises(FormatError, match=r"^config\.json: key 'b' appears twice$"):
        strict_json(b'{"a": [{"c": 1, "b": 2, "b": 3}]}', "config.json")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
    ],
)
def test_a_file_that_holds_no_object(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(FormatError, match=f"^config.json: {words}"):
        read_json(LocalFolder.at(tmp_path), "config.json", {"config.json": len(raw)})


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert read_json(LocalFolder.at(tmp_path), "config.json", {}) is None


def test_a_file_too_long_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="200,000,001 bytes is too long for a JSON file"):
        read_json(LocalFolder.at(tmp_path), "config.json", {"config.json": 200_000_001})


@pytest.mark.parametrize("file", ["a.safetensors", "rank-00000/a.safetensors", "a..b.safetensors"])
def test_names_of_files_inside_the_folder(file: str) -> None:
    check_name(file, "index")


@pytest.mark.parametrize(
    "file",
    [
        "../a.safetensors", "/a.safetensors", "a/../../b.safetensors", "a//b.safetensors", "a.bin", "",
        "a\\b.safetensors", "a.safetensors/", "a.safetensors/..",
    ],
)  # fmt: skip
def test_names_of_other_files_are_refused(file: str) -> None:
    with pytest.raises(FormatError, match=re.escape(f"index: file name {file!r} is not a safetensors file inside")):
        check_name(file, "index")


def test_a_header_says_where_tensors_are(tmp_path: Path) -> None:
    write_header(tmp_path / "a.safetensors", SPECS)
    size = (tmp_path / "a.safetensors").stat().st_size
    header = read_header(LocalFolder.at(tmp_path), "a.safetensors", size)
    assert {name: ref.spec for name, ref in header.tensors.items()} == SPECS
    assert max(ref.end for ref in header.tensors.values()) == size


def test_headers_are_read_by_file_in_the_order_asked_for(tmp_path: Path) -> None:
    names = [f"{number}.safetensors" for number in (3, 1, 2)]
    for name in names:
        write_header(tmp_path / name, SPECS)
    sizes = {name: (tmp_path / name).stat().st_size for name in names}
    assert list(read_headers(LocalFolder.at(tmp_path), sizes)) == names
    assert read_headers(LocalFolder.at(tmp_path), {}) == {}


def test_one_broken_header_is_told_as_itself(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"short")
    with pytest.raises(FormatError, match=r"^a\.safetensors: 5 bytes is too short"):
        read_headers(LocalFolder.at(tmp_path), {"a.safetensors": 5})


def test_several_broken_headers_are_told_together(tmp_path: Path) -> None:
    sizes = {}
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"short")
        sizes[name] = 5
    write_header(tmp_path / "c.safetensors", SPECS)
    sizes["c.safetensors"] = (tmp_path / "c.safetensors").stat().st_size
    with pytest.raises(FormatError, match=r"2 files are broken$") as found:
        read_headers(LocalFolder.at(tmp_path), sizes)
    assert [issue.partition(":")[0] for issue in found.value.issues] == ["a.safetensors", "b.safetensors"]
    assert found.value.hint == "the file is probably truncated: download it again"


def test_a_file_that_is_gone_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as found:
        read_headers(LocalFolder.at(tmp_path), {"a.safetensors": 100})
    assert found.value.exit_code == 10


@pytest.mark.parametrize("change", [-1, 1, 8])
def test_a_file_of_another_size_than_its_header_says(tmp_path: Path, change: int) -> None:
    path = tmp_path / "a.safetensors"
    write_header(path, SPECS)
    size = path.stat().st_size + change
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(FormatError, match="truncated" if change < 0 else "longer than its tensors"):
        read_header(LocalFolder.at(tmp_path), "a.safetensors", size)
