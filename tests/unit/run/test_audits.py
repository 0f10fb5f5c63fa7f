"""An audit is believed if it is what a run writes, and if the files that it names have the sizes that it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsctl.core.errors import ResumeError
from dsctl.plan.plan import COUNTED
from dsctl.run.audits import read_audit, valid_audit

COUNTS = dict.fromkeys(COUNTED, 0)
AUDIT: dict[str, Any] = {
    "files": {"a": {"size": 3, "sha256": "x"}}, "audit": COUNTS, "notes": [], "dropped": [],
}  # fmt: skip


def signed(folder: Path, said: Any) -> Path:
    (folder / "dsctl.json").write_text(json.dumps(said))
    return folder


def test_what_a_run_writes_is_valid() -> None:
    assert valid_audit(AUDIT) == AUDIT


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([], "not an object"),
        (AUDIT | {"files": []}, "files"),
        (AUDIT | {"files": {"a": {"size": -1, "sha256": "x"}}}, "files"),
        (AUDIT | {"files": {"a": {"size": 1}}}, "files"),
        (AUDIT | {"audit": None}, "audit"),
        (AUDIT | {"audit": COUNTS | {"cast": True}}, "audit"),
        (AUDIT | {"audit": {}}, "is missing"),
        (AUDIT | {"notes": None}, "notes"),
    ],
)
def test_anything_else_is_not(said: Any, why: str) -> None:
    with pytest.raises((TypeError, ValueError), match=why):
        valid_audit(said)


@pytest.mark.parametrize("data", [b"123", b"1234", b"12", None])
def test_files_have_the_sizes_that_it_names(tmp_path: Path, data: bytes | None) -> None:
    signed(tmp_path, AUDIT)
    if data is not None:
        (tmp_path / "a").write_bytes(data)
    if data == b"123":
        assert read_audit(tmp_path) == AUDIT
        return
    with pytest.raises(ResumeError, match="/a: was finished, but is now missing or changed"):
        read_audit(tmp_path)


def test_one_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dsctl.json").write_text("{")
    with pytest.raises(ResumeError, match=r"dsctl\.json: is not valid") as refused:
        read_audit(tmp_path)
    assert refused.value.hint == "start over with --force"
