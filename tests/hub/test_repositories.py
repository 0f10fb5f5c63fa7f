"""Writing to a branch of a hub: what arrives, what a lost answer does, what is refused, and where the token goes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dsctl.core.errors import DsctlError, UsageError
from dsctl.stores.repositories import Commit, Content, RepositoryName, RepositoryWriter, Unsorted, parse
from tests.hub.conftest import Within
from tests.hub.receiving import SIGNATURE, Receiving
from tests.hub.server import Hub
from tests.hub.uploads import NEW, TOKEN, nth

Probe = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two weight files and two others, one of them in a folder."""
    folder, drawn = tmp_path_factory.mktemp("files"), random.Random(5)
    (folder / "a.safetensors").write_bytes(drawn.randbytes(300_000) + b"abcd" * 50_000)
    (folder / "b.safetensors").write_bytes(b"".join(drawn.randbytes(2) + b"\0\x3f" for _ in range(40_000)))
    (folder / "config.json").write_text("{}\n")
    (folder / "inference").mkdir()
    (folder / "inference" / "empty.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def probe(received: Receiving, within: Within, folder: Path) -> Probe:
    """Creates what it must, sends the files of the folder, and commits them: weights first, then the others."""

    def upload(text: str = f"hf://{NEW}", stop: float = 0, xet: bool = False) -> dict[str, Any]:
        told: list[int] = []
        with within(xet):
            try:
                done = _uploaded(text, folder, stop, told) | {"told": sum(told)}
            except DsctlError as error:
                kind, hint = type(error).__name__, error.hint or ""
                done = {"error": kind, "message": error.message, "hint": hint, "told": sum(told)}
        received.hub.settle(0 if stop else 1)
        assert not [secret for secret in (TOKEN, SIGNATURE, "xet-token-secret") if secret in str(done)]
        return done

    return upload


def _uploaded(text: str, folder: Path, stop: float, told: list[int]) -> dict[str, Any]:
    writer = RepositoryWriter.at(text)
    head = writer.create(private=True)
    if stop:
        threading.Timer(stop, writer.stop).start()
    names = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sorting = writer.sort(
        [Unsorted(name, path.stat().st_size, path.read_bytes()[:512]) for name, path in names.items()]
    )
    large = [writer.send(name, path, None, told.append) for name, path in names.items() if sorting[name].lfs]
    first = writer.commit(Commit(large, [], "weights"), head)
    small = [Content(name, path.read_bytes()) for name, path in names.items() if not sorting[name].lfs]
    last = writer.commit(Commit(small, [], "the rest"), first)
    now = writer.head()
    assert now is not None
    listings = [{listed.name: listed.size for listed in found.listing} for found in (last, now)]
    return {"commits": [head.commit, first.commit, last.commit], "same": listings[0] == listings[1]}


def whole(received: Receiving, folder: Path, branch: str = "main") -> None:
    """The branch has the folder's files, those named so as LFS, and the hub's own file."""
    state = received.state(NEW, branch)
    assert state.pop(".gitattributes")
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    expected = {
        name: (path.stat().st_size, received.hub.digest(path)[0], name in ("a.safetensors", "b.safetensors"))
        for name, path in paths.items()
    }
    assert state == expected


def commits(received: Receiving) -> list[str]:
    return [made["lines"][0]["value"]["summary"] for made in received.commits]


def token_stays(hub: Hub) -> None:
    """The token was sent to the hub's own address only."""
    assert {one.token for one in hub.log if one.host == "storage"} <= {None, "Bearer xet-token-secret"}
    assert f"Bearer {TOKEN}" in {one.token for one in hub.log if one.host == "hub"}


@pytest.mark.parametrize("how", ["whole", "parts", "xet"])
def test_files_are_sent_and_committed(received: Receiving, probe: Probe, folder: Path, how: str) -> None:
    received.part_bytes, received.xet = 100_000 if how == "parts" else 1 << 30, how == "xet"
    done = probe(f"hf://{NEW}@fp8/v1" if how == "parts" else f"hf://{NEW}", xet=how == "xet")
    whole(received, folder, "fp8/v1" if how == "parts" else "main")
    assert done["same"] and done["told"] == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert received.hub.private[NEW] and commits(received) == ["weights", "the rest"]
    assert len(received.cas.files) == (2 if how == "xet" else 0)
    assert any(key[1] == 5 for key in received.parts) == (how == "parts")
    token_stays(received.hub)


def test_a_hub_without_xet_gets_lfs(received: Receiving, probe: Probe, folder: Path) -> None:
    probe(xet=True)
    whole(received, folder)


def test_a_new_branch_does_not_begin_with_the_files_of_main(received: Receiving, probe: Probe, folder: Path) -> None:
    probe()
    received.commits.clear()
    probe(f"hf://{NEW}@other")
    whole(received, folder, "other")
    assert received.history[NEW, "other"][0] == received.history[NEW, "main"][0]
    assert sum(one.method == "PUT" for one in received.hub.log) == 2


WRITES = ["repos/create", "preupload", "objects/batch", "/lfs/", "/part/", "/complete/", "verify", "/commit/"]
PASSING = ["503", "not 503", "not 429 1", "cut", "half", "html"]


@pytest.mark.parametrize("kind", PASSING)
def test_a_failure_that_passes_changes_nothing(received: Receiving, probe: Probe, folder: Path, kind: str) -> None:
    """Each write fails once, whether or not the hub had carried it out."""
    faults = [nth(kind, word, 1) for word in (["preupload", "/lfs/"] if kind == "not 429 1" else WRITES)]
    received.part_bytes = 300_000
    received.hub.fault = lambda *asked: next(filter(None, [fault(*asked) for fault in faults]), None)
    begun = time.monotonic()
    assert probe()["same"]
    assert 2 * (kind == "not 429 1") < time.monotonic() - begun < 8
    whole(received, folder)
    assert commits(received) == ["weights", "the rest"]


@pytest.mark.parametrize("kind", ["504", "500", "reset", "cut", "html", "429"])
def test_a_commit_whose_answer_is_lost_is_made_once(received: Receiving, probe: Probe, folder: Path, kind: str) -> None:
    received.hub.fault = nth(kind, "/commit/", 1, 2)
    done = probe()
    whole(received, folder)
    assert commits(received) == ["weights", "the rest"]
    assert done["commits"] == received.history[NEW, "main"]


def test_a_hub_that_writes_its_own_file_is_not_another_writer(
    received: Receiving, probe: Probe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LFS files that `.gitattributes` does not name change it in the same commit."""
    monkeypatch.setattr("tests.hub.receiving.is_lfs", lambda name: name.endswith("a.safetensors") or "config" in name)
    received.hub.fault = nth("504", "/commit/", 1, 2)
    probe()
    assert "config.json filter=lfs" in (received._folder(NEW, "main") / ".gitattributes").read_text()
    assert received.state(NEW)["config.json"][2] and commits(received) == ["weights", "the rest"]


@pytest.mark.parametrize("kind", ["not 503", ""])
def test_a_second_writer_is_noticed(received: Receiving, probe: Probe, kind: str) -> None:
    made = received._commit_of

    def interfere(*arguments: Any) -> Any:
        received._commit_of = made  # type: ignore[method-assign]
        state = {name: (digest, lfs) for name, (_, digest, lfs) in received.state(NEW).items()}
        received._commit(NEW, "main", state | {"x.json": (received.keep(b"[]"), False)}, "another")
        return made(*arguments)

    received._commit_of = interfere  # type: ignore[method-assign]
    received.hub.fault = nth("not 503", "/commit/", 2) if kind == "not 503" else received.hub.fault
    done = probe()
    assert done["error"] == "ResumeError" and "somebody else" in done["message"] and "x.json" in done["message"]
    assert not received.commits


REFUSALS = {
    "not 401": ("does not accept the token (401)", "hf auth login"),
    "not 403": ("refuses to store this (403): You have no write access", "needs permission to write"),
    "not 413": ("refuses to store this (413): Payload", "free storage"),
    "not 507": ("(507)", "free storage"),
    "not 400": ("the hub answers 400: no good", ""),
}


@pytest.mark.parametrize(
    ("kind", "word"),
    [*((kind, "/commit/") for kind in REFUSALS), *(("not 401", word) for word in ("create", "preupload", "batch"))],
)
def test_refusals_are_final_and_in_the_hub_s_words(received: Receiving, probe: Probe, kind: str, word: str) -> None:
    received.hub.words = {
        403: f"You have no write access {TOKEN}", 413: "Payload Too Large", 400: "no good\x1b[2J",
        401: "Invalid credentials in Authorization header",
    }  # fmt: skip
    received.hub.fault = nth(kind, word, *range(1, 100))
    done = probe()
    assert done["error"] == "WorkError" and REFUSALS[kind][0] in done["message"], done
    assert REFUSALS[kind][1] in done["hint"] and "\n" not in done["message"] and "\x1b" not in done["message"]
    assert sum(word in one.path and one.method != "GET" for one in received.hub.log) == 1


def test_a_quota_is_told_in_the_hub_s_words(received: Receiving, probe: Probe) -> None:
    received.hub.words = {403: "Private repository storage limit reached, see https://hub.example/billing?token=abc"}
    received.hub.fault = nth("not 403", "/commit/", 1)
    done = probe()
    assert "storage limit reached, see https://hub.example/billing" in done["message"] and "abc" not in done["message"]
    assert "free storage" in done["hint"]


def test_an_object_that_is_refused_is_named(received: Receiving, probe: Probe, folder: Path) -> None:
    received.refused[received.hub.digest(folder / "b.safetensors")[0]] = "the file is too large"
    done = probe()
    assert "b.safetensors: the hub refuses the file (422): the file is too large" in done["message"]
    assert not received.commits


@pytest.mark.parametrize(("word", "numbers"), [("/lfs/", [1]), ("/lfs/", range(1, 10)), ("/part/", [2])])
def test_expired_addresses_of_storage_are_renewed(
    received: Receiving, probe: Probe, folder: Path, word: str, numbers: Sequence[int]
) -> None:
    received.part_bytes = 200_000 if word == "/part/" else 1 << 30
    received.hub.fault = nth("not 403", word, *numbers)
    done = probe()
    if len(numbers) == 1:
        whole(received, folder)
        assert done["told"] == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    else:
        assert "a.safetensors: storage refuses the upload (403)" in done["message"] and done["told"] == 0


def test_attempts_come_to_an_end(received: Receiving, probe: Probe) -> None:
    received.hub.fault = nth("not 503", "/commit/", *range(1, 100))
    done = probe()
    assert "the hub answers 503 (7 attempts): busy" in done["message"] and done["hint"] == "try again later"


@pytest.mark.parametrize("word", ["/lfs/", "/commit/", "preupload"])
def test_stop_ends_what_hangs(received: Receiving, probe: Probe, word: str) -> None:
    received.hub.fault = nth("hang", word, 1)
    begun = time.monotonic()
    done = probe(stop=0.3)
    assert time.monotonic() - begun < 5 and done["message"] == "the run has ended"


def test_xet_that_fails_is_tried_again_and_then_told(
    received: Receiving, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    received.xet = True
    received.hub.fault = lambda number, method, path: "not 403" if "/v1/shards" in path else None
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
    done = probe(xet=True)
    assert "a.safetensors: the upload by Xet failed" in done["message"] and "(3 attempts)" in done["message"], done
    assert "http" not in done["message"] and done["told"] == 0


@pytest.mark.parametrize("cas", ["ftp://x/", "http://", ""])
def test_storage_that_is_none_is_refused(
    received: Receiving, probe: Probe, monkeypatch: pytest.MonkeyPatch, cas: str
) -> None:
    from tests.hub import receiving

    said = {"accessToken": "xet-token-secret", "exp": 4_000_000_000, "casUrl": cas}
    monkeypatch.setattr(receiving.Receiving, "_xet_token", lambda self: receiving._json(said))
    done = probe(xet=True)
    assert "for uploads, which is not such an address" in done["message"], done


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://me/x", RepositoryName("me/x", "main")),
        ("hf://me/x/", RepositoryName("me/x", "main")),
        ("hf://me/x@fp8", RepositoryName("me/x", "fp8")),
        ("hf://me/x@a/b.c", RepositoryName("me/x", "a/b.c")),
        ("hf://me/x@refs/pr/7", RepositoryName("me/x", "refs/pr/7")),
    ],
)
def test_targets_are_parsed(text: str, name: RepositoryName) -> None:
    assert parse(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "me/x", "hf://", "hf://x", "hf://me/x/y", "hf://me/x@", "hf://me/x@" + "a" * 40, "hf://me/x@" + "A1" * 32,
        "hf://me/x@refs/heads/main", "hf://me/x@refs/pr/x", "hf://me/x@a b", "hf://me/x@../y", "hf://me/x@-a",
        "hf://me/x@a.lock", "hf://me/x@a//b", "hf://me/x@a@b", "hf://m e/x", "hf://-me/x", "hf://me/x..y",
        "hf://datasets/me/x", "hf://me/\u00fc", "hf://me/x?y", "hf://me/x@a?b",
    ],
)  # fmt: skip
def test_other_targets_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert raised.value.hint and "\n" not in raised.value.message
