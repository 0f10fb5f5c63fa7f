"""Frames of zstd in pieces: what is put in comes out, and a frame that is not exactly one is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.core.errors import FormatError
from dsctl.core.frames import LEVELS, SPARSE, Frame, bound, compressed, compressor, content_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT = bytes(range(256)) * 3000 + b"\0" * 100_001


def frame(raw: bytes, nbytes: int | None, most: int = 1 << 62) -> Frame:
    return Frame(lambda begin, end: raw[begin:end], len(raw), "delta/x: w", nbytes, most)


@given(st.binary(max_size=3000), st.integers(1, 700), st.sampled_from([SPARSE, 1, 3]))
def test_pieces_are_the_content(data: bytes, most: int, level: int) -> None:
    raw = compressed(data, level)
    assert len(raw) <= bound(len(data)) and content_size(raw) == len(data)
    pieces = list(frame(raw, len(data)).pieces(most))
    assert b"".join(pieces) == data and all(0 < len(piece) <= most for piece in pieces)
    exact = list(frame(raw, len(data)).exact(most))
    assert b"".join(exact) == data and all(len(piece) == most for piece in exact[:-1])


@pytest.mark.parametrize("level", [SPARSE, LEVELS[0], LEVELS[-1]])
def test_a_frame_in_pieces_is_one_frame_that_states_its_size(level: int) -> None:
    made = compressor(len(CONTENT), level)
    raw = b"".join([*(made.compress(CONTENT[at : at + 4096]) for at in range(0, len(CONTENT), 4096)), made.flush()])
    assert zstd.decompress(raw) == CONTENT and zstd.get_frame_info(raw).decompressed_size == len(CONTENT)
    assert zstd.get_frame_size(raw) == len(raw)


def test_a_sparse_difference_takes_less_than_with_level_one() -> None:
    random = np.random.default_rng(1)
    data = random.integers(1, 256, 1 << 20, np.uint8) * (random.random(1 << 20) < 0.01)
    assert len(compressed(data.data)) < len(compressed(data.data, 1)) < 0.04 * data.size


RAW = compressed(CONTENT)
WITHOUT_SIZE = zstd.ZstdCompressor()
UNSIZED = WITHOUT_SIZE.compress(CONTENT) + WITHOUT_SIZE.flush()


@pytest.mark.parametrize(
    ("raw", "nbytes", "what"),
    [
        (b"", 5, "is not a zstd frame"),
        (b"not a frame at all", 5, "is not a zstd frame"),
        (RAW[:-9], len(CONTENT), "its frame ends too early"),
        (RAW + b"x", len(CONTENT), "holds bytes after its frame"),
        (RAW + compressed(b"more"), len(CONTENT), "holds bytes after its frame"),
        (RAW, len(CONTENT) - 1, f"holds {len(CONTENT):,} bytes, expected {len(CONTENT) - 1:,}"),
        (UNSIZED, len(CONTENT) - 1, f"holds more than {len(CONTENT) - 1:,} bytes"),
        (UNSIZED, len(CONTENT) + 1, f"holds {len(CONTENT):,} bytes, expected {len(CONTENT) + 1:,}"),
        (UNSIZED, None, "does not state the size"),
    ],
)
def test_a_frame_that_is_not_exactly_one_is_refused(raw: bytes, nbytes: int | None, what: str) -> None:
    with pytest.raises(FormatError) as refused:
        list(frame(raw, nbytes).pieces(1000))
    assert what in refused.value.message and refused.value.message.startswith("delta/x: w: ")


def test_a_damaged_frame_is_refused_or_has_another_content() -> None:
    refused = 0
    for place in range(20, len(RAW), max(1, len(RAW) // 60)):
        raw = bytearray(RAW)
        raw[place] ^= 0x55
        try:
            assert b"".join(frame(bytes(raw), len(CONTENT)).pieces(1 << 16)) != CONTENT
        except FormatError:
            refused += 1
    assert refused


def test_a_frame_that_would_fill_the_memory_is_refused_before_it_is_read() -> None:
    with pytest.raises(FormatError, match="expected at most 1,000"):
        frame(RAW, None, 1000)
