"""The revision of a folder of objects is kept by unfinished targets: it is the same for every version of dsctl."""

from __future__ import annotations

import hashlib
from collections import namedtuple

import pytest

from dsctl.stores.objects import ListedObject, ObjectFolder

# What the listing's entries were called when the first targets kept a revision.
Listed = namedtuple("Listed", ("name", "size", "identity"))  # noqa: PYI024  its repr is what counts
ENTRIES = (("config.json", 812, '812 ETag "a\'b"'), ("model.safetensors", 1 << 40, "x"), ("ß 'q'.txt", 0, ""))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_revision_is_the_one_of_before(count: int) -> None:
    known = tuple(Listed(*one) for one in ENTRIES[:count])
    folder = ObjectFolder("s3://bucket/x", tuple(ListedObject(*one) for one in ENTRIES[:count]))
    assert folder.revision == hashlib.sha256(repr(known).encode()).hexdigest()


def test_a_revision_is_a_known_digest() -> None:
    folder = ObjectFolder("s3://bucket/x", (ListedObject("config.json", 812, '812 "etag"'),))
    assert folder.revision == "4f25c4d18875ebc3b28f125c50e8f0680c0c0f824e51dbab9a78a30504aa5fd9"
