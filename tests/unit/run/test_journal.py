"""The log of a run: receipts come back whole, whatever a crash left of the last ones."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dsctl.core.errors import DsctlError, ResumeError, WorkError
from dsctl.run.journal import JOURNAL, Journal
from tests.unit.core.test_files import PLACES, Place

ONE, TWO = {"job": 1, "counts": {"cast": 2}}, {"job": 2, "counts": {}}


def line(record: Any) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def test_records_come_back(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(ONE)
        journal.append(TWO)
    with Journal(tmp_path) as journal:
        assert journal.records == [ONE, TWO]


@pytest.mark.parametrize("taken", [1, 5, 1000])
def test_a_line_that_is_written_bit_by_bit_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, bytes(data)[:taken], at))
    with Journal(tmp_path) as journal:
        journal.append(ONE)
        journal.append(TWO)
    assert (tmp_path / JOURNAL).read_bytes() == line(ONE) + line(TWO)


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_an_append_that_fails_leaves_nothing_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real = os.pwrite

    def full(file: int, data: Any, at: int) -> int:
        if len(data) > 4:
            return real(file, bytes(data)[:4], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal(tmp_path) as journal:
        journal.append(ONE)
        with monkeypatch.context() as patch, pytest.raises(WorkError):
            patch.setattr(os, call, full if call == "pwrite" else failing)
            journal.append({"job": 7, "counts": {"cast": 70_000}})
        journal.append(TWO)
    assert (tmp_path / JOURNAL).read_bytes() == line(ONE) + line(TWO)


@pytest.mark.parametrize(
    "torn", [b'{"job":7,"cou', b'{"job":7,"cou{"job":8,"counts":{}}\n', b"\0" * 40, b"\0" * 40 + b"\n", b"\xff\xfe\n"]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_torn_record_is_work_not_done_wherever_it_stands(tmp_path: Path, torn: bytes, place: int) -> None:
    lines = [line(ONE), line(TWO)]
    lines.insert(place, torn if torn.endswith(b"\n") or place == 2 else torn + b"\n")
    (tmp_path / JOURNAL).write_bytes(b"".join(lines))
    with Journal(tmp_path) as journal:
        assert journal.records == [ONE, TWO]
        journal.append({"job": 3, "counts": {}})
    assert (tmp_path / JOURNAL).read_bytes() == line(ONE) + line(TWO) + line({"job": 3, "counts": {}})


@pytest.mark.parametrize(
    "record",
    [None, 7, [], {"job": None, "counts": None}, {"job": 1, "counts": {"cast": None}}, {"job": True, "counts": {}},
     {"file": None, "size": None, "sha256": None}, {"file": "a", "size": -1, "sha256": "0" * 64},
     {"job": -1, "counts": {}}],
)  # fmt: skip
def test_a_whole_line_of_something_else_is_not_a_journal(tmp_path: Path, record: Any) -> None:
    (tmp_path / JOURNAL).write_bytes(line(ONE) + line(record))
    with pytest.raises(ResumeError, match="a line is not valid"):
        Journal(tmp_path)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_of_its_own_is_not_opened(tmp_path: Path, place: Place) -> None:
    treasure, home = tmp_path / "treasure", tmp_path / "home"
    treasure.write_bytes(b"weights")
    home.mkdir()
    place(home / JOURNAL, treasure)
    with pytest.raises(DsctlError):
        Journal(home)
    assert treasure.read_bytes() == b"weights"
