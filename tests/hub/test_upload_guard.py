"""A hub that means no good, or is not as it should be, while it is written to: the token, storage, visibility."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import Run
from tests.hub.faults import Reply
from tests.hub.receiving import SIGNATURE, Receiving
from tests.hub.server import Hub
from tests.hub.uploads import NEW, good, refused, whole


@pytest.fixture
def elsewhere() -> Iterator[Hub]:
    """A server of another origin that takes everything and keeps what it is sent."""
    hub = Hub()
    hub.fault = lambda *asked: "not 200"
    yield hub
    hub.close()


@pytest.mark.parametrize("parts", [False, True])
def test_the_token_does_not_leave_for_addresses_of_other_origins(
    received: Receiving,
    upload: Run,
    made: Path,
    elsewhere: Hub,
    monkeypatch: pytest.MonkeyPatch,
    parts: bool,
) -> None:
    """Storage, the request that completes an upload and the one that verifies it may all be elsewhere."""
    known, received.part_bytes = received._object, 100_000 if parts else 1 << 30

    def named(repository: str, asked: dict[str, Any]) -> dict[str, Any]:
        said = known(repository, asked)
        for action in said.get("actions", {}).values():
            if parts or action is said["actions"]["verify"]:
                action["href"] = f"{elsewhere.endpoint}/taken?{SIGNATURE}"
        received.keep_announced(asked["oid"], made)
        return said

    monkeypatch.setattr(received, "_object", named)
    good(upload(made))
    whole(received, made)
    assert len(elsewhere.log) >= 5 and {one.token for one in elsewhere.log} == {None}


def test_a_redirect_of_a_write_is_followed_within_the_hub_alone(
    received: Receiving, upload: Run, made: Path, elsewhere: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that was renamed redirects; what it holds is sent nowhere else."""
    make, origin = received._commit_of, [elsewhere.endpoint]

    def redirected(repository: str, branch: str, lines: list[dict[str, Any]]) -> Reply:
        if repository == "acme/old":
            return Reply(307, {"Location": f"{origin[0]}/api/models/acme/new/commit/main"}, b"")
        return make(repository, branch, lines)

    received.make("acme/old")
    monkeypatch.setattr(received, "_commit_of", redirected)
    received.hub.commits[NEW], received.history[NEW, "main"] = received.hub.commits["acme/old"], ["x"]
    received.hub.branches[NEW, "main"] = received.hub.branches["acme/old", "main"]
    refused(upload(made, target="hf://acme/old"), 41, f"is redirected to {elsewhere.endpoint}")
    assert not elsewhere.log and not received.commits
    origin[0] = received.hub.endpoint
    upload(made, target="hf://acme/old")
    whole(received, made)


def test_storage_by_plain_http_is_refused_for_a_hub_by_https(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from dsctl.core.errors import WorkError
    from dsctl.stores.repository_requests import storage_address

    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    assert storage_address("https://cas.example/x?sig=1") == "https://cas.example/x?sig=1"
    with pytest.raises(WorkError) as raised:
        storage_address("http://cas.example/x?sig=secret")
    assert "http://cas.example/x" in raised.value.message and "secret" not in raised.value.message


def test_a_public_repository_where_a_private_one_was_asked_for_gets_no_file(
    received: Receiving, upload: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = received.make
    monkeypatch.setattr(received, "make", lambda repository, private: make(repository, False))
    refused(upload(made), 41, "created a public repository, a private one was asked for")
    assert not received.commits and not any(one.method == "PUT" for one in received.hub.log)


def test_a_pull_request_must_be_open(received: Receiving, upload: Run, made: Path) -> None:
    received.make(NEW)
    refused(upload(made, target="hf://acme/new@refs/pr/1"), 41, "no such pull request")
    received._branch(NEW, "refs/pr/1", {})
    good(upload(made, target="hf://acme/new@refs/pr/1"))
    whole(received, made, branch="refs/pr/1")
    assert list(received.state(NEW)) == [".gitattributes"]


def test_a_hub_that_lists_other_files_in_the_end_is_noticed(
    received: Receiving, upload: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = received._commit

    def spoilt(repository: str, branch: str, state: dict[str, Any], summary: str) -> str:
        state |= {"config.json": (received.keep(b"{}"), False)} if "config.json" in state else {}
        return make(repository, branch, state, summary)

    monkeypatch.setattr(received, "_commit", spoilt)
    refused(upload(made), 50, "config.json: the hub lists a different file than was sent")


def test_offline_it_says_so(upload: Run, received: Receiving, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(upload(made), 41, "cannot write to a hub while offline", "HF_HUB_OFFLINE")
    assert not received.hub.log


def test_nothing_is_sent_without_a_token(received: Receiving, upload: Run, made: Path) -> None:
    received.hub.token = "hf_another"
    refused(upload(made), 41, "does not accept the token (401)", "hf auth login")
    assert not received.commits
