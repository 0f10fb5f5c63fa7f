"""A hub that fails while it takes a run's files: one line, and the same command finishes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.conftest import Run, Started
from tests.hub.receiving import Receiving
from tests.hub.server import Hub, one_in

TOKEN = "hf_never-told"
WORDS = ("--bf16", "--workers", "1", "--staging", "16MB")


@pytest.fixture
def convert(source: Path, command: Run, tmp_path: Path) -> Callable[[], tuple[int, str]]:
    """Runs the same command; the exit code, and what it said."""

    def run() -> tuple[int, str]:
        settings = {"DSCTL_STAGING": str(tmp_path / "staging"), "HF_TOKEN": TOKEN}
        done = command("convert", source, "hf://me/made", *WORDS, **settings)
        assert "Traceback" not in done.stderr and TOKEN not in done.stdout + done.stderr
        assert done.stderr.count("error: ") == (done.returncode != 0), done.stderr
        kept = [path for path in (tmp_path / "staging").rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
        assert not any(TOKEN.encode() in path.read_bytes() for path in kept)
        return done.returncode, done.stderr

    return run


def finished(received: Receiving) -> None:
    state = received.state("me/made")
    audit = json.loads(_bytes(received, "dsctl.json"))
    files = {name: (file["size"], file["sha256"]) for name, file in audit["files"].items()}
    beside = ("dsctl.json", ".gitattributes")
    assert files == {name: (size, sha256) for name, (size, sha256, _) in state.items() if name not in beside}


def _bytes(received: Receiving, name: str) -> bytes:
    hub = received.hub
    return (hub.commits["me/made"][hub.branches["me/made", "main"]] / name).read_bytes()


def test_a_hub_that_fails_now_and_then(hub: Hub, received: Receiving, convert: Callable[[], tuple[int, str]]) -> None:
    hub.fault = one_in(4, "not 429", "504", "cut", "not 503", "reset")
    code, said = convert()
    assert code in (0, 10, 41), said
    hub.fault = lambda number, method, path: None
    assert convert()[0] == 0
    finished(received)


@pytest.mark.parametrize(("status", "words"), [(401, "Invalid credentials"), (403, "Private repository storage limit")])
def test_a_refusal_in_the_middle(
    hub: Hub, received: Receiving, convert: Callable[[], tuple[int, str]], status: int, words: str
) -> None:
    commits = 0

    def refuse(number: int, method: str, path: str) -> str | None:
        nonlocal commits
        commits += "/commit/" in path
        return f"not {status}" if commits > 2 else None

    hub.fault, hub.words[status] = refuse, words
    code, said = convert()
    assert code == 41 and (words in said or f"({status})" in said), said
    before = set(received.state("me/made"))
    assert "dsctl.json" not in before and any(name.endswith(".safetensors") for name in before)
    hub.fault = lambda number, method, path: None
    assert convert()[0] == 0
    finished(received)


@pytest.fixture
def begun(hub: Hub, received: Receiving, convert: Callable[[], tuple[int, str]], tmp_path: Path) -> set[str]:
    """A run that ended in the middle, on a machine that has gone; the names of the weight files in the repository."""
    commits = 0

    def refuse(number: int, method: str, path: str) -> str | None:
        nonlocal commits
        commits += "/commit/" in path
        return "not 403" if commits > 3 else None

    hub.fault = refuse
    assert convert()[0] == 41
    hub.fault = lambda number, method, path: None
    shutil.rmtree(tmp_path / "staging")
    return {name for name in received.state("me/made") if name.endswith(".safetensors")}


def test_a_different_machine_makes_only_what_is_missing(
    hub: Hub, received: Receiving, convert: Callable[[], tuple[int, str]], begun: set[str]
) -> None:
    sent = len(received.commits)
    assert len(begun) == 2
    code, said = convert()
    assert code == 0 and "resumed: " in said, said
    later = {line["value"].get("path") for one in received.commits[sent:] for line in one["lines"]}
    assert begun.isdisjoint(later)
    finished(received)


def _replace(received: Receiving, files: dict[str, bytes]) -> None:
    """Somebody's commit of these files."""
    lines = [{"key": "header", "value": {"summary": "changed", "description": ""}}]
    lines += [
        {"key": "file", "value": {"path": name, "content": base64.b64encode(data).decode(), "encoding": "base64"}}
        for name, data in files.items()
    ]
    reply = received.answer(
        False, "POST", "/api/models/me/made/commit/main", b"\n".join(json.dumps(line).encode() for line in lines)
    )
    assert reply is not None and reply.status == 200


JOURNAL, MARK = ".dsctl-run/journal-00001.jsonl", ".dsctl-run/request.json"


def test_a_record_that_is_not_one_is_refused(
    hub: Hub, received: Receiving, convert: Callable[[], tuple[int, str]], begun: set[str]
) -> None:
    good, mark = _bytes(received, JOURNAL), json.loads(_bytes(received, MARK))
    for files in (
        {JOURNAL: b'{"job": 10, "counts": {}, "digests": "x"}\n'},
        {JOURNAL: b'{"file": "../outside", "size": 1, "sha256": "' + b"0" * 64 + b'"}\n'},
        {JOURNAL: good.replace(b'"rest":[[', b'"rest":[[999999,3],[')},
        {JOURNAL: good, MARK: b"[" * 100_000},
        {MARK: json.dumps(mark | {"work": "other"}).encode()},
        {MARK: json.dumps(mark | {"source": {"place": "x", "identity": {"config.json": {"sample": "y"}}}}).encode()},
    ):
        _replace(received, files)
        code, said = convert()
        assert code == 40 and "hint: " in said, (files, said)
    _replace(received, {JOURNAL: good, MARK: json.dumps(mark).encode()})
    assert convert()[0] == 0
    finished(received)


def test_files_and_records_that_were_changed_are_made_again(
    hub: Hub, received: Receiving, convert: Callable[[], tuple[int, str]], begun: set[str]
) -> None:
    name = ".dsctl-run/rest-00001.bin"
    torn = bytearray(_bytes(received, name))
    torn[5] ^= 1
    _replace(received, {name: bytes(torn), ".dsctl-run/journal-77.jsonl": b"not a line\n", max(begun): b"other"})
    assert convert()[0] == 0
    finished(received)


def test_an_interrupt_ends_a_stalled_upload(
    hub: Hub,
    received: Receiving,
    source: Path,
    started: Started,
    tmp_path: Path,
    convert: Callable[[], tuple[int, str]],
) -> None:
    stalled = threading.Event()

    def stall(number: int, method: str, path: str) -> str | None:
        if method != "PUT":
            return None
        stalled.set()
        return "stall"

    hub.fault = stall
    settings = {"DSCTL_STAGING": str(tmp_path / "staging"), "HF_TOKEN": TOKEN}
    process = started("convert", source, "hf://me/made", *WORDS, **settings)
    assert stalled.wait(60)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    done = process.wait(30)
    assert done.code == 130 and "same command" in done.err and time.monotonic() - began < 10, done.told()
    hub.fault = lambda number, method, path: None
    assert convert()[0] == 0
    finished(received)
