"""What a description says of where it comes from."""

from __future__ import annotations

import msgspec
import pytest

from dsctl import releases
from dsctl.checkpoint.origin import Origin


@pytest.mark.parametrize(
    ("place", "name", "origin"),
    [
        ("/data/v3", "v3", Origin("folder", "/data/v3", None, (), "headers in folder v3")),
        (
            "/data/v3/a.safetensors", "a.safetensors",
            Origin("folder", "/data/v3/a.safetensors", None, (), "headers of file a.safetensors"),
        ),
        ("s3://bucket/v3", "x", Origin("store", "s3://bucket/v3", None, (), "headers at s3://bucket/v3")),
        (
            "org/name@abc", "x",
            Origin("repository", "org/name", "abc", (), "headers of hub repository org/name at commit abc"),
        ),
    ],
)  # fmt: skip
def test_of_files(place: str, name: str, origin: Origin) -> None:
    assert Origin.of_files("headers", place, name) == origin
    assert origin.sentence == f"From {origin.text}."


@pytest.mark.parametrize(
    ("derived", "remark"),
    [
        ((), ""),
        (("config",), " (config derived from another release, not read)"),
        (("storage.scale_fmt",), " (storage derived from another release, not read)"),
        (("config", "storage.scale_fmt"), " (config and storage derived from another release, not read)"),
    ],
)
def test_of_a_release(derived: tuple[str, ...], remark: str) -> None:
    release = msgspec.structs.replace(releases.find("v3.2"), derived=derived)
    origin = Origin.of_release(release)
    assert origin.text == f"dsctl's built-in description of {release.name}{remark}"
    assert (origin.kind, origin.place, origin.revision, origin.derived) == (
        "release", release.repository, None, derived,
    )  # fmt: skip
