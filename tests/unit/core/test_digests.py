"""Digests of the parts of a file do not depend on how its bytes arrive."""

from __future__ import annotations

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from dsctl.core import digests

GROUPS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=4), min_size=1, max_size=6)


@given(GROUPS, st.lists(st.integers(0, 70), max_size=40), st.binary(max_size=9))
def test_bytes_in_any_pieces_give_the_same_digests(groups: list[list[int]], pieces: list[int], more: bytes) -> None:
    total = sum(map(sum, groups))
    data = bytes(at * 7 % 251 for at in range(total)) + more
    in_order, at = digests.InOrder(groups), 0
    for piece in [*pieces, len(data)]:
        in_order.update(data[at : at + piece])
        at += piece
    expected, at = [], 0
    for group in groups:
        parts = []
        for size in group:
            parts.append(blake3(data[at : at + size]).digest())
            at += size
        expected.append(parts[0] if len(parts) == 1 else blake3(b"".join(parts)).digest())
    assert in_order.found == expected


def test_a_part_that_is_not_complete_has_no_digest() -> None:
    in_order = digests.InOrder([[3], [4, 5]])
    in_order.update(bytes(11))
    assert in_order.found == [blake3(bytes(3)).digest()]


def test_the_digest_of_nothing_is_blake3_s() -> None:
    assert digests.digest(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert digests.hasher().digest() == digests.digest(b"")


def test_digests_in_a_run_are_taken_apart() -> None:
    both = digests.digest(b"a") + digests.digest(b"b")
    assert list(digests.split(both)) == [digests.digest(b"a"), digests.digest(b"b")]
