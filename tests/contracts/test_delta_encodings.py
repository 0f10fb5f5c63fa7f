"""Every encoding of a delta: old bytes and a frame give the new ones, and frames of a chain fold into one."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsctl.checkpoint.delta_change import Change
from dsctl.checkpoint.delta_form import CHECKSUMS, ENCODINGS, OVERWRITE, SHUFFLED, SHUFFLED_BYTES, checksum
from dsctl.core.errors import FormatError
from dsctl.core.frames import SPARSE, compressed
from dsctl.work import folding
from dsctl.work.differences import Coding, Difference, Side, difference, whole
from dsctl.work.entropy import Histogram
from dsctl.work.folding import Folded, fold
from dsctl.work.patching import patched

WIDTHS = (1, 2, 4, 8)


def side(data: bytes, width: int = 1) -> Side:
    def read_into(at: int, buffer: memoryview) -> None:
        buffer[:] = data[at : at + len(buffer)]

    return Side(read_into, len(data), width)


def idle(nbytes: int) -> None:
    pass


def sum_of(kind: str, data: bytes) -> str:
    made = checksum(kind)
    made.update(data)
    return made.hexdigest()


def made(old: bytes, new: bytes, encoding: str, width: int, kind: str = "adler32") -> tuple[Difference, bytes]:
    out = io.BytesIO()
    found = difference(side(old, width), side(new, width), Coding(encoding, kind, SPARSE), out, idle)
    assert found.stored == len(out.getvalue())
    return found, out.getvalue()


def change(frame: bytes, nbytes: int, encoding: str, width: int = 1, is_whole: bool = False) -> Change:
    return Change("w", "f", 0, len(frame), nbytes, width, encoding, "adler32", "", is_whole)


def reader(frame: bytes) -> Callable[[str, int, int], bytes]:
    return lambda file, begin, end: frame[begin:end]


def applied(old: bytes, frame: bytes, nbytes: int, encoding: str, width: int = 1) -> bytes:
    pieces = patched(change(frame, nbytes, encoding, width), side(old).read_into, reader(frame))
    return b"".join(bytes(piece) for piece in pieces)


def pairs(width: int) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """Bytes of both sides, a whole number of elements; often equal in most places."""
    size = st.integers(0, 60).map(lambda elements: elements * width)

    def both(nbytes: int) -> st.SearchStrategy[tuple[bytes, bytes]]:
        same = st.binary(min_size=nbytes, max_size=nbytes)
        few = st.dictionaries(st.integers(0, max(nbytes - 1, 0)), st.integers(0, 255), max_size=4)

        def patch(old: bytes, changes: dict[int, int]) -> tuple[bytes, bytes]:
            new = bytearray(old)
            for place, value in changes.items() if nbytes else ():
                new[place] = value
            return old, bytes(new)

        return st.one_of(st.tuples(same, same), st.builds(patch, same, few))

    return size.flatmap(both)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_old_bytes_and_the_frame_give_the_new_ones(encoding: str, width: int) -> None:
    # The first examples take long on a busy machine.
    @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=40)
    @given(pairs(width))
    def holds(both: tuple[bytes, bytes]) -> None:
        old, new = both
        found, frame = made(old, new, encoding, width)
        assert found.equal == (old == new) and found.elements == len(new) // width
        assert (found.old, found.new) == ((blake3(old).digest(), blake3(new).digest()) if new else (None, None))
        if found.equal:
            assert frame == b"" and not found.changed
        else:
            assert applied(old, frame, len(new), encoding, width) == new
            assert found.checksum == sum_of("adler32", new)
            elements = np.frombuffer(old, f"V{width}") != np.frombuffer(new, f"V{width}")
            assert found.changed == np.count_nonzero(elements)

    holds()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_first_change_behind_many_equal_pieces_is_found(encoding: str) -> None:
    old = np.random.default_rng(1).integers(0, 256, 2 * SHUFFLED_BYTES + 24, np.uint8)
    new = old.copy()
    new[2 * SHUFFLED_BYTES + 3] ^= 1
    for kind in CHECKSUMS:
        found, frame = made(old.tobytes(), new.tobytes(), encoding, 8, kind)
        assert found.checksum == sum_of(kind, new.tobytes()) and found.changed == 1
        assert applied(old.tobytes(), frame, new.nbytes, encoding, 8) == new.tobytes()
        assert (found.old, found.new) == (blake3(old).digest(), blake3(new).digest())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_frame_does_not_depend_on_what_is_behind_it(encoding: str) -> None:
    old, new = bytes(5000), bytes(4999) + b"x"
    assert made(old, new, encoding, 1) == made(old, new, encoding, 1)


def test_a_whole_tensor_needs_no_base() -> None:
    data, out = np.random.default_rng(2).integers(0, 9, 3000, np.uint8).tobytes(), io.BytesIO()
    found = whole(side(data, 2), None, Coding("xor", "blake3", SPARSE), out, idle)
    frame = out.getvalue()
    pieces = patched(change(frame, len(data), "overwrite", 2, is_whole=True), None, reader(frame))
    assert b"".join(map(bytes, pieces)) == data
    assert not found.equal and found.old is None and found.new == blake3(data).digest()


@given(st.binary(min_size=8, max_size=800).map(lambda raw: raw[: len(raw) // 8 * 8]), st.sampled_from(WIDTHS))
def test_the_limit_is_the_entropy_by_place(data: bytes, width: int) -> None:
    found = Histogram(width)
    found.count(np.frombuffer(data, np.uint8).copy())
    bits = 0.0
    for place in range(width):
        _, counts = np.unique(np.frombuffer(data, np.uint8)[place::width], return_counts=True)
        bits += float((counts * np.log2(counts.sum() / counts)).sum())
    assert found.nbytes == pytest.approx(bits / 8)


OVERWRITES = {
    "does not fit": (3).to_bytes(4, "little") + bytes(8),
    "do not rise": (2).to_bytes(4, "little") + np.array([5, 5], "<u4").tobytes() + b"ab",
    "outside of": (1).to_bytes(4, "little") + np.array([40], "<u4").tobytes() + b"a",
    "holds 0 bytes": b"",
}


@pytest.mark.parametrize("what", OVERWRITES)
def test_positions_that_cannot_be_are_refused(what: str) -> None:
    frame = compressed(OVERWRITES[what])
    with pytest.raises(FormatError, match=what):
        applied(bytes(40), frame, 40, OVERWRITE)


def folded(frames: Sequence[bytes], nbytes: int, encoding: str) -> tuple[Difference, bytes]:
    size = (1 << 32) - 1 if encoding == OVERWRITE else nbytes
    changes = tuple(change(frame, size, encoding) for frame in frames)
    out = io.BytesIO()
    return fold(Folded(changes, tuple(map(reader, frames))), SPARSE, out, idle), out.getvalue()


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_fold_has_the_effect_of_all(encoding: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "WINDOW_BYTES", 16)

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.binary(min_size=24, max_size=24), min_size=3, max_size=5))
    def holds(states: list[bytes]) -> None:
        steps = [made(old, new, encoding, width) for old, new in zip(states, states[1:], strict=False)]
        frames = [frame for found, frame in steps if not found.equal]
        if not frames:
            return
        found, frame = folded(frames, 24, encoding)
        if found.equal:
            assert states[0] == states[-1]
        else:
            assert applied(states[0], frame, 24, encoding, width) == states[-1]
        if encoding != OVERWRITE:
            assert found.equal == (states[0] == states[-1]) or len(frames) == 1

    holds()


def test_what_follows_a_whole_tensor_is_folded_into_it() -> None:
    first, last, out = bytes(range(200)), bytes(199) + b"!", io.BytesIO()
    whole(side(first), None, Coding("xor", "adler32", SPARSE), out, idle)
    _, frame = made(first, last, "xor", 1)
    changes = change(out.getvalue(), 200, "xor", is_whole=True), change(frame, 200, "xor")
    into = io.BytesIO()
    fold(Folded(changes, (reader(out.getvalue()), reader(frame))), SPARSE, into, idle)
    raw = into.getvalue()
    assert b"".join(map(bytes, patched(change(raw, 200, "xor", is_whole=True), None, reader(raw)))) == last


def test_shuffling_is_by_blocks_and_undone() -> None:
    old = np.random.default_rng(3).integers(0, 256, SHUFFLED_BYTES + 4096, np.uint8)
    new = np.random.default_rng(4).integers(0, 256, SHUFFLED_BYTES + 4096, np.uint8)
    for width in WIDTHS:
        _, frame = made(old.tobytes(), new.tobytes(), SHUFFLED, width)
        assert applied(old.tobytes(), frame, new.nbytes, SHUFFLED, width) == new.tobytes()
