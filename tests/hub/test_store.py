"""The hub as a store: what is asked for, what arrives, and what is refused, fault by fault."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from dsctl.stores import hub_faults
from dsctl.stores.hub import FIRST_READ
from tests.hub.conftest import REPOSITORY
from tests.hub.server import Hub, one_in
from tests.support.forks import Launcher

PROBE = """
import json, sys, hashlib, pickle
from dsctl.stores import hub_faults
hub_faults.FIRST_WAIT = 0.02
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.errors import DsctlError
from dsctl.stores import store_at
try:
    store = pickle.loads(pickle.dumps(store_at(sys.argv[1])))
    checkpoint = open_checkpoint(store)
    digests = {file: hashlib.sha256(store.read(file, 0, size)).hexdigest() for file, size in checkpoint.files.items()}
    print(json.dumps({"place": store.place, "tensors": len(list(checkpoint.tensors)), "digests": digests}))
except DsctlError as error:
    print(json.dumps({"error": type(error).__name__, "message": "; ".join([error.message, *error.issues]),
                      "hint": error.hint or ""}))
"""


Probe = Callable[..., dict[str, Any]]


@pytest.fixture
def probe(launcher: Launcher, settings: dict[str, str]) -> Probe:
    """Opens a checkpoint by name in a process of its own and reads every byte of it."""

    def opened(text: str = REPOSITORY, **variables: str) -> dict[str, Any]:
        return dict(json.loads(launcher.script(PROBE, text, environment=settings | variables)))

    return opened


def digests(hub: Hub, folder: Path) -> dict[str, str]:
    return {path.name: hub.digest(path)[0] for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("text", [REPOSITORY, f"{REPOSITORY}@main", f"hf://{REPOSITORY}", f"hf://{REPOSITORY}@main"])
def test_every_byte_is_the_repository_s(hub: Hub, source: Path, probe: Probe, text: str) -> None:
    seen = probe(text)
    assert seen["digests"] == digests(hub, source)
    assert seen["place"] == f"{REPOSITORY}@{hub.branches[REPOSITORY, 'main'][:12]}"


@pytest.mark.parametrize("kind", ["503", "500", "429", "reset", "cut", "length", "range", "html", "json"])
def test_one_request_in_five_failing_changes_nothing(hub: Hub, source: Path, probe: Probe, kind: str) -> None:
    hub.fault = one_in(5, kind)
    assert probe()["digests"] == digests(hub, source)
    assert hub.started >= 5


@pytest.mark.parametrize("kind", ["html", "json", "length", "cut"])
def test_an_answer_of_the_api_that_is_none_is_asked_for_again(hub: Hub, source: Path, probe: Probe, kind: str) -> None:
    hub.fault = lambda number, method, path: kind if number in (1, 3) else None
    assert probe()["digests"] == digests(hub, source)
    hub.fault = lambda number, method, path: kind if path.startswith("/api/") else None
    seen = probe()
    assert seen["error"] == "SourceError" and "attempts" in seen["message"] and "\n" not in seen["message"]


@pytest.mark.parametrize("kind", ["stall", "trickle"])
def test_a_stalled_answer_is_taken_up_where_it_stopped(hub: Hub, source: Path, probe: Probe, kind: str) -> None:
    hub.fault = lambda number, method, path: kind if number == 12 else None
    begun = time.monotonic()
    assert probe(HF_HUB_DOWNLOAD_TIMEOUT="1")["digests"] == digests(hub, source)
    assert time.monotonic() - begun < 20


def test_retry_after_is_seconds_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    for text, least, most in (("7", 7, 7), (later, 28, 30), ("soon", 0, 0), ("", 0, 0)):
        assert least <= hub_faults._asked(text) <= most


def test_user_and_password_of_an_endpoint_are_told_nowhere(hub: Hub, probe: Probe, tmp_path: Path) -> None:
    endpoint = hub.endpoint.replace("//", "//somebody:secret@")
    probe(HF_ENDPOINT=endpoint)
    hub.fault = lambda number, method, path: "503"
    hub.close()
    seen = json.dumps(probe(HF_ENDPOINT=endpoint))
    names = [str(path) for path in (tmp_path / "hf").rglob("*")]
    assert any(path.endswith(".header") for path in names) and hub.endpoint in seen
    assert not any("secret" in text or "somebody" in text for text in (seen, *names))


def test_a_server_without_ranges_is_survived(hub: Hub, source: Path, probe: Probe) -> None:
    hub.ranges = False
    assert probe()["digests"] == digests(hub, source)


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, probe: Probe) -> None:
    hub.token = "hf_secretsecret"
    seen = probe(HF_TOKEN=hub.token)
    assert "hf_secret" not in json.dumps(seen)
    asked = {(request.host, request.token) for request in hub.log}
    assert asked == {("hub", f"Bearer {hub.token}"), ("storage", None)}


@pytest.mark.parametrize(
    ("text", "variables", "said", "hint"),
    [
        ("acme/absent", {}, "no such repository", "check the name"),
        (f"{REPOSITORY}@absent", {}, "no such revision", "a branch, a tag or a commit"),
        (REPOSITORY, {"HF_HUB_OFFLINE": "1"}, "offline", "unset HF_HUB_OFFLINE"),
        (REPOSITORY, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach http://127.0.0.1:9", "try again later"),
    ],
)
def test_what_cannot_be_had_is_told_in_words(
    hub: Hub, probe: Probe, text: str, variables: dict[str, str], said: str, hint: str
) -> None:
    seen = probe(text, **variables)
    assert seen["error"] == "SourceError"
    assert said in seen["message"] and hint in seen["hint"]


def test_a_private_repository_without_a_token_is_refused(hub: Hub, probe: Probe) -> None:
    hub.token = "hf_secretsecret"
    assert "HF_TOKEN" in probe()["hint"]


def test_another_commit_than_the_pinned_one_is_refused(hub: Hub, probe: Probe) -> None:
    hub.fault = lambda number, method, path: "commit" if "/resolve/" in path else None
    assert "a different one was requested" in probe()["message"]


def test_a_fault_that_lasts_ends_in_an_error(hub: Hub, probe: Probe) -> None:
    hub.fault = lambda number, method, path: "length" if path.endswith(".safetensors") else None
    seen = probe()
    assert seen["error"] == "SourceError" and "attempts" in seen["message"]


def test_headers_take_two_requests_a_file_and_then_none(hub: Hub, launcher: Launcher, settings: dict[str, str]) -> None:
    code = "import dsctl.checkpoint.opening as c; from dsctl.stores import store_at as s; c.open_checkpoint(s('%s'))"
    for most in (2, 0):
        hub.log.clear()
        launcher.script(code % REPOSITORY, environment=settings)
        asked = [request for request in hub.log if "/resolve/" in request.path]
        for file in {request.path for request in asked}:
            assert sum(request.path == file for request in asked) <= most
        assert hub.sent(".safetensors") <= 4 * FIRST_READ


def test_a_name_that_leads_out_is_refused(hub: Hub, probe: Probe, monkeypatch: Any) -> None:
    monkeypatch.setattr("tests.hub.server._entry", lambda *rest: {"type": "file", "path": "../x", "size": 1, "oid": ""})
    assert "leads out of the repository" in probe()["message"]


def test_a_store_is_plain_data(environment: dict[str, str]) -> None:
    from dsctl.stores.hub import HubRepository

    store = HubRepository("a/b", "c" * 40, "http://127.0.0.1", ())
    assert pickle.loads(pickle.dumps(store)) == store


def test_a_limit_of_the_hub_s_own_is_waited_for() -> None:
    """`RateLimit` says how many requests are left, and in how many seconds there are more (huggingface_hub's form)."""
    for limit, status, least in (
        ('"api";r=0;t=55', 429, 56),
        ('"api";r=0;t=999', 429, 120),
        ('"api";r=4;t=55', 429, 0),
    ):
        response = httpx2.Response(status, headers={"ratelimit": limit}, request=httpx2.Request("GET", "http://x/"))
        seconds = hub_faults._seconds(HfHubHTTPError("busy", response=response), 1)
        assert seconds == max(least, hub_faults.FIRST_WAIT)
