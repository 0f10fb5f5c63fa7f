"""Reading a statement: what a person or a stranger may have put there is refused in one line."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dsctl.checkpoint import statement as made
from dsctl.checkpoint.signed_files import SignedFile
from dsctl.checkpoint.statement import WITHHELD, Descriptor, digest_set, open_request, parse, subjects
from dsctl.core.errors import FormatError
from dsctl.plan.request import Request

FILES = {
    "b.safetensors": SignedFile(9, tree="1" * 64, tensors="", sha256="2" * 64),
    "a.json": SignedFile(2, blake3="3" * 64),
    "dsctl.intoto.json": SignedFile(7, blake3="4" * 64),
}
# Fields of a request that may name a place on somebody's machine. A new field belongs here, or into `_OPEN`.
PLACES = {"original", "lora"}


def whole(**change: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.make(FILES, {"to": "bf16"}, [Descriptor("x", digest={"sha256": "5" * 64})],
                                                 {"moved": 1}, "1.0"))  # fmt: skip
    return found | change


def test_what_is_made_is_read() -> None:
    found = parse(json.dumps(whole()).encode())
    assert [(one.name, one.digest) for one in found.subject] == [
        ("a.json", {"blake3": "3" * 64}),
        ("b.safetensors", {"dsctlBlake3Tree": "1" * 64, "sha256": "2" * 64}),
    ]
    assert (found.version, found.request, found.audit) == ("1.0", {"to": "bf16"}, {"moved": 1})
    assert [one.name for one in found.dependencies] == ["x"]


def test_the_digest_of_a_weight_file_is_not_called_blake3() -> None:
    assert digest_set(FILES["b.safetensors"]).keys() == {"dsctlBlake3Tree", "sha256"}


def test_the_statement_is_not_its_own_subject() -> None:
    assert list(subjects(FILES)) == ["a.json", "b.safetensors"]


def test_every_field_of_a_request_is_open_or_may_be_a_place() -> None:
    names = {field.name for field in fields(Request)} - {"notes"}
    assert names == made._OPEN | PLACES and not made._OPEN & PLACES


def test_a_place_is_withheld_and_so_is_what_nobody_knows() -> None:
    said = open_request({"to": "bf16", "original": "/home/me/x", "later": ["/home/me"], "empty": ""})
    assert said == {"to": "bf16", "original": WITHHELD, "later": WITHHELD, "empty": ""}


def subject(**change: Any) -> dict[str, Any]:
    return whole(subject=[{"name": "a", "digest": {"sha256": "0" * 64}} | change])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not a valid statement"),
        (b"\xff", "not a valid statement"),
        (b"[1]", "not a valid statement"),
        (b"[" * 200_000, "not a valid statement"),
        (b'{"_type": 1}', "not a valid statement"),
        (b'{"_type": "a", "_type": "b"}', "appears twice"),
        (json.dumps(whole(_type="https://in-toto.io/Statement/v0.1")).encode(), "its _type is"),
        (json.dumps(whole(predicateType="x")).encode(), "its predicateType is"),
        (json.dumps(whole(predicate=[])).encode(), "not a valid statement"),
        (json.dumps(whole(predicate={})).encode(), "not a valid statement"),
        (json.dumps(whole(subject=[])).encode(), "no subject"),
        (json.dumps(whole(subject=whole()["subject"] * 2)).encode(), "appears twice"),
        (json.dumps(subject(name="../a")).encode(), "not a file inside the folder"),
        (json.dumps(subject(name="/a")).encode(), "not a file inside the folder"),
        (json.dumps(subject(name="")).encode(), "not a file inside the folder"),
        (json.dumps(subject(digest={})).encode(), "has no digest"),
        (json.dumps(subject(digest={"sha256": "zz"})).encode(), "is not hexadecimal digits"),
        (json.dumps(subject(digest={"blake3": "Z" * 64})).encode(), "is not hexadecimal digits"),
        (json.dumps(subject(digest={"sha256": 7})).encode(), "not a valid statement"),
        (json.dumps(whole(x=123)).replace("123", "1e999").encode(), "not a valid statement"),
    ],
)
def test_what_is_no_statement_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        parse(raw)


def test_unknown_fields_are_ignored_as_in_toto_demands() -> None:
    assert parse(json.dumps(whole(more={"a": 1})).encode()).version == "1.0"


@pytest.mark.parametrize("content", ["!", "eA==", "bm90IGpzb24="])
def test_an_audit_that_cannot_be_read_is_none(content: str) -> None:
    said = whole()
    said["predicate"]["runDetails"]["byproducts"][0]["content"] = content
    assert parse(json.dumps(said).encode()).audit is None


def test_a_huge_statement_is_not_read() -> None:
    class Store:
        def read(self, file: str, begin: int, end: int) -> bytes:
            raise AssertionError("was read")

    with pytest.raises(FormatError, match="too long"):
        made.read_raw(Store(), {"dsctl.intoto.json": 1 << 40})  # type: ignore[arg-type]


def test_the_page_explains_the_identifiers_and_every_digest() -> None:
    page = (Path(__file__).parents[3] / "docs" / "attestation.md").read_text()
    words = (made.BUILD_TYPE, made.BUILDER, made.BLAKE3, made.SHA256, made.TREE, made.SAMPLE, made.WITHHELD)
    assert [word for word in words if f"`{word}`" not in page] == []
