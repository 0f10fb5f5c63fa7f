"""Headers: byte for byte what safetensors writes, read back as written, and no fault let through."""

from __future__ import annotations

import json
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from dsctl.core.errors import FormatError
from dsctl.core.header import DTYPE_BITS, MAX_HEADER_BYTES, PT, TensorSpec, build, header_length, parse, read_head

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
WHOLE_BYTES = [dtype for dtype, bits in DTYPE_BITS.items() if bits % 8 == 0]

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def specs(dtypes: list[str]) -> st.SearchStrategy[dict[str, TensorSpec]]:
    return st.dictionaries(names, st.builds(TensorSpec, st.sampled_from(dtypes), shapes), max_size=8)


def body(header: bytes) -> bytes:
    assert int.from_bytes(header[:8], "little") == len(header) - 8
    return header[8:]


def total(held: dict[str, TensorSpec]) -> int:
    return sum(spec.nbytes for spec in held.values())


@given(specs(list(DTYPES)))
@settings(deadline=None)
def test_the_bytes_are_those_of_safetensors(held: dict[str, TensorSpec]) -> None:
    tensors = {name: torch.zeros(spec.shape, dtype=DTYPES[spec.dtype]) for name, spec in held.items()}
    header, offsets = build(held)
    assert save(tensors, metadata=PT) == header + bytes(total(held))
    assert set(offsets) == set(held) and all(begin >= len(header) for begin in offsets.values())


@given(specs(WHOLE_BYTES), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text(max_size=5)))
def test_what_is_built_is_read_back(held: dict[str, TensorSpec], metadata: dict[str, str]) -> None:
    header, offsets = build(held, {key: value.encode("utf-8", "ignore").decode() for key, value in metadata.items()})
    read = parse(body(header), "file", len(header) + total(held))
    assert {name: ref.spec for name, ref in read.tensors.items()} == held
    assert {name: ref.begin for name, ref in read.tensors.items()} == offsets
    assert read.metadata.keys() == metadata.keys() and read.nbytes == total(held) and read.size == len(header)
    assert sum(read.kinds.values()) == len(held)
    ends = [read.size, *(ref.end for ref in read.tensors.values())]
    assert [ref.begin for ref in read.tensors.values()] == ends[:-1]


@given(specs(WHOLE_BYTES), st.randoms(use_true_random=False))
def test_the_order_of_the_entries_does_not_matter(held: dict[str, TensorSpec], random: object) -> None:
    header, _ = build(held)
    entries = list(json.loads(body(header)).items())
    random.shuffle(entries)  # type: ignore[attr-defined]
    shuffled = json.dumps(dict(entries)).encode()
    read = parse(shuffled, "file", 8 + len(shuffled) + total(held))
    assert {name: (ref.spec, ref.end - ref.begin) for name, ref in read.tensors.items()} == {
        name: (spec, spec.nbytes) for name, spec in held.items()
    }


@given(specs(list(DTYPES)).filter(total), st.data())
@settings(deadline=None)
def test_whatever_byte_changes_safetensors_refuses_no_more_than_we_do(
    held: dict[str, TensorSpec], data: st.DataObject
) -> None:
    header, _ = build(held)
    raw = bytearray(header + bytes(total(held)))
    place = data.draw(st.integers(8, len(header) - 1))
    raw[place] = data.draw(st.integers(32, 126))
    try:
        read = parse(bytes(raw[8 : len(header)]), "file", len(raw))
    except FormatError:
        return
    loaded = dict(deserialize(bytes(raw)))
    assert loaded.keys() == set(read.names)


def test_safetensors_and_we_refuse_a_truncated_file() -> None:
    header, _ = build({"a": TensorSpec("F32", (4,))})
    with pytest.raises(SafetensorError):
        deserialize(header + bytes(15))
    with pytest.raises(FormatError, match="truncated"):
        parse(body(header), "file", len(header) + 15)


def one(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), name: str = "a") -> bytes:
    return json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (one("F7"), "unknown dtype"),
        (one(""), "has no dtype"),
        (one(shape=[-1]), "impossible shape"),
        (one(shape=[1 << 48]), "impossible shape"),
        (one(shape=[1 << 30, 1 << 30]), "impossible shape"),
        (one("F4", [3], [0, 1]), "not a whole number of bytes"),
        (one(offsets=[0, 5]), "takes 4"),
        (one(offsets=[4, 8]), "begins at 4, expected 0"),
        (one(offsets=[4, 0]), "out of range"),
        (one(offsets=[-4, 0]), "out of range"),
        (b'{"a":{}}', "has no dtype"),
        (one()[:-1] + b"," + one()[1:], "'a' twice"),
        (one().replace(b'"dtype"', b'"dtype":"F32","dtype"'), "'dtype' twice"),
        (b"{", "not valid"),
        (b"", "not valid"),
        (b"[" * 100_000, "not valid"),
    ],
)
def test_faults_are_named(raw: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        parse(raw, "file", 8 + len(raw) + 4)


@pytest.mark.parametrize(
    "metadata", [{}, {"format": "pt"}, {"a": "}"}, {"a": '"'}, {"shape": "x"}, {"a": "\\"}, {"a": "{}"}]
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_metadata_is_read_wherever_it_is(metadata: dict[str, str], place: str) -> None:
    entry = json.loads(one())
    entries = {"__metadata__": metadata} | entry if place == "first" else entry | {"__metadata__": metadata}
    raw = json.dumps(entries, separators=(",", ":")).encode()
    read = parse(raw, "file", 8 + len(raw) + 4)
    assert read.metadata == metadata and read.names == ("a",)


def test_foreign_fields_of_an_entry_are_passed_over() -> None:
    raw = one().replace(b'"dtype"', b'"comment":"x","dtype"')
    assert parse(raw, "file", 8 + len(raw) + 4).names == ("a",)


@pytest.mark.parametrize("size", [0, 7, 8, 100, 1000])
def test_a_length_must_fit_the_file(size: int) -> None:
    fits = (1000 - 8).to_bytes(8, "little")
    if size == 1000:
        assert header_length(fits, "file", size) == 992
        return
    with pytest.raises(FormatError):
        header_length(fits[:size], "file", size)


def test_a_header_over_the_limit_is_not_read() -> None:
    prefix = (MAX_HEADER_BYTES + 1).to_bytes(8, "little")
    with pytest.raises(FormatError, match="over the limit"):
        header_length(prefix, "file", 1 << 40)


@pytest.mark.parametrize("first_read", [8, 20, 1 << 20])
def test_a_head_is_read_in_one_or_two_reads(first_read: int) -> None:
    header, _ = build({"a": TensorSpec("U8", (1 << 20,))})
    data = header + bytes(1 << 20)
    reads: list[tuple[int, int]] = []

    def read(begin: int, end: int) -> bytes:
        reads.append((begin, end))
        return data[begin:end]

    assert read_head(read, "file", len(data), first_read) == header
    assert len(reads) == (1 if first_read > len(header) else 2) and reads[-1][1] <= max(first_read, len(header))


@given(st.sampled_from(WHOLE_BYTES), shapes)
def test_sizes(dtype: str, shape: tuple[int, ...]) -> None:
    spec = TensorSpec(dtype, shape)
    assert spec.values == prod(shape) and spec.nbytes * 8 == prod(shape) * DTYPE_BITS[dtype]
