"""A hub that means no good: where the token goes, and which names of files are taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsctl.core.errors import SourceError
from dsctl.stores.hub_listing import refuse_names
from tests.hub import server
from tests.hub.conftest import REPOSITORY, Run
from tests.hub.server import Hub, Reply
from tests.support.command import run

TOKEN = "hf_secretsecret"
API, RESOLVE = server._api, server._resolve


@pytest.fixture
def elsewhere(source: Path) -> Iterator[Hub]:
    """A hub of another origin that holds the same and keeps what it is sent."""
    hub = Hub()
    hub.publish(REPOSITORY, source)
    yield hub
    hub.close()


@pytest.fixture
def private(hub: Hub) -> Hub:
    """The hub, for those who have the token."""
    hub.token = TOKEN
    return hub


def paged(monkeypatch: pytest.MonkeyPatch, link: Any, size: int = 3) -> None:
    """A listing in pages; `link` gives the address of what follows a page, from its number."""

    def api(hub: Hub, rest: str) -> Reply:
        rest, _, number = rest.partition("@page")
        reply = API(hub, rest)
        if "/tree/" not in rest:
            return reply
        at, entries = int(number or 0), json.loads(reply.body)
        following = link(at, f"/api/models/{rest}@page{at + 1}")
        more = {"Link": f'<{following}>; rel="next"'} if following and size * (at + 1) < len(entries) else {}
        return reply._replace(headers=reply.headers | more, body=json.dumps(entries[size * at :][:size]).encode())

    monkeypatch.setattr(server, "_api", api)


def refused(done: Any, *words: str) -> None:
    """One error line with these words, a hint, and no token in it."""
    assert done.returncode == 10, done.stderr
    assert done.stderr.count("error: ") == 1 and "\nhint: " in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr and TOKEN not in done.stderr and not done.stdout
    assert all(c.isprintable() or c == "\n" for c in done.stderr), repr(done.stderr)


@pytest.mark.parametrize("how", ["whole", "relative"])
def test_pages_of_the_same_origin_are_followed(
    private: Hub, source: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    paged(monkeypatch, lambda number, path: path if how == "relative" else private.endpoint + path)
    done = command("download", REPOSITORY, tmp_path / "copy", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "copy").iterdir() if path.is_file()} == {p.name for p in source.iterdir()}
    assert sum("@page" in request.path for request in private.log) >= 2


@pytest.mark.parametrize("other", ["port", "host", "scheme", "anything"])
def test_a_page_of_another_origin_is_refused_and_not_asked_for(
    private: Hub, elsewhere: Hub, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    port = private.servers[0].server_port
    origin = {
        "port": elsewhere.endpoint, "host": f"http://localhost:{port}", "scheme": f"https://127.0.0.1:{port}",
        "anything": "ftp://example.com",
    }[other]  # fmt: skip
    paged(monkeypatch, lambda number, path: origin + path)
    for verb in (["download"], ["inspect"], ["convert", "--bf16"]):
        target = [] if verb[0] == "inspect" else [tmp_path / "copy"]
        done = command(verb[0], f"hf://{REPOSITORY}", *target, *verb[1:], HF_TOKEN=TOKEN)
        refused(done, origin, private.endpoint, "next page")
    assert not elsewhere.log and not any("@page" in request.path for request in private.log)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("how", ["the same page", "ever another"])
def test_a_listing_without_an_end_is_refused(hub: Hub, command: Run, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def api(hub: Hub, rest: str) -> Reply:
        rest, _, number = rest.partition("@page")
        reply = API(hub, rest)
        if "/tree/" not in rest:
            return reply
        following = f"/api/models/{rest}" + (f"@page{int(number or 0) + 1}" if how == "ever another" else "")
        return reply._replace(headers={"Link": f'<{following}>; rel="next"'}, body=b"[]")

    monkeypatch.setattr(server, "_api", api)
    done = command("inspect", f"hf://{REPOSITORY}")
    assert done.returncode == 10 and "does not end" in done.stderr, done.stderr


def test_a_redirect_to_another_origin_carries_no_token(
    private: Hub, elsewhere: Hub, source: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of git itself are sent elsewhere too, and listings to the same hub by another of its names."""

    def resolve(hub: Hub, repository: str, revision: str, file: str, method: str, range_: str | None) -> Reply:
        reply = RESOLVE(hub, repository, revision, file, method, range_)
        if hub is elsewhere or server.is_lfs(file):
            return reply
        headers = {key: value for key, value in reply.headers.items() if key != "Content-Range"}
        size = str((source / file).stat().st_size)
        there = f"{elsewhere.endpoint}/{repository}/resolve/{revision}/{file}"
        return Reply(302, headers | {"Location": there, "X-Linked-Size": size}, b"")

    monkeypatch.setattr(server, "_resolve", resolve)
    done = command("download", REPOSITORY, tmp_path / "copy", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert command("convert", REPOSITORY, tmp_path / "out", "--bf16", HF_TOKEN=TOKEN).returncode == 0
    assert {(one.host, one.token) for one in private.log} == {("hub", f"Bearer {TOKEN}"), ("storage", None)}
    assert elsewhere.log and {one.token for one in elsewhere.log} == {None}


@pytest.mark.parametrize("header", ["Link", "X-Xet-Refresh-Route"])
def test_a_route_to_a_xet_token_elsewhere_is_refused(
    private: Hub, elsewhere: Hub, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    def resolve(*rest: Any) -> Reply:
        reply, route = RESOLVE(*rest), f"{elsewhere.endpoint}/api/token"
        said = f'<{route}>; rel="xet-auth"' if header == "Link" else route
        return reply._replace(headers=reply.headers | {"X-Xet-Hash": "a" * 64, header: said})

    monkeypatch.setattr(server, "_resolve", resolve)
    done = command("download", REPOSITORY, tmp_path / "copy", HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="0")
    refused(done, elsewhere.endpoint, "Xet token")
    assert not elsewhere.log


LONG = "a" * 250 + ".json"
LISTS = {
    "a record of dsctl's": [".dsctl/journal.jsonl"],
    "a record of dsctl's within": ["x/.DSCTL/lock"],
    "a record of huggingface_hub's": [".cache/huggingface/download/config.json.metadata"],
    "a hook of git's": [".git/hooks/post-checkout"],
    "absolute": ["/etc/passwd"],
    "climbs out": ["a/../../x.json"],
    "climbs nowhere": ["./config.json"],
    "an empty part": ["a//b.json"],
    "a folder's name": ["a/"],
    "no name": [""],
    "a backslash": ["..\\x.json"],
    "ESC": ["a\x1b]0;x\x07.json"],
    "C1": ["a\x9b2J.json"],
    "a line feed": ["a\nb.json"],
    "another direction": ["a\u202egnp.json"],
    "half a character": ["a\ud800.json"],
    "NUL": ["a\0.json"],
    "a long name": [LONG],
    "a long path": ["/".join(["a" * 200] * 20)],
    "twice": ["more.json", "more.json"],
    "twins": ["more.json", "More.json"],
    "a twin of its own": ["CONFIG.JSON"],
    "a file that is a folder": ["more", "more/x.json"],
    "a folder that is a file": ["config.json/x.json"],
    "a folder that is a file in other letters": ["Config.json/x.json"],
}


@pytest.mark.parametrize("names", LISTS.values(), ids=LISTS)
def test_names_that_cannot_be_files_of_a_checkpoint_are_refused(source: Path, names: list[str]) -> None:
    there = [path.name for path in source.iterdir()]
    refuse_names(there, "hub")
    for order in ([*there, *names], [*names, *there]):
        with pytest.raises(SourceError, match=r"file name|is a file and") as raised:
            refuse_names(order, "hub")
        assert raised.value.message.isprintable()


@pytest.mark.parametrize("case", ["a record of dsctl's", "a hook of git's", "ESC", "a file that is a folder", "twins"])
def test_nothing_is_written_or_asked_of_a_hub_that_lists_such_names(
    hub: Hub, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def api(hub: Hub, rest: str) -> Reply:
        reply = API(hub, rest)
        if "/tree/" not in rest:
            return reply
        more = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in LISTS[case]]
        return reply._replace(body=json.dumps(json.loads(reply.body) + more).encode())

    monkeypatch.setattr(server, "_api", api)
    for verb in ("download", "convert"):
        refused(command(verb, f"hf://{REPOSITORY}", tmp_path / "copy", *["--bf16"] * (verb == "convert")), "file")
    assert not (tmp_path / "copy").exists()
    assert not any("/resolve/" in request.path for request in hub.log)


def test_names_that_are_odd_but_good_are_taken(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(source, tmp_path / "odd"))
    for name in (
        ".gitattributes",
        "a/b/.gitignore",
        "über 源.json",
        "[/][bold].md",
        "-rf",
        "a..b",
        ".cached",
        "x" * 200,
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("{}")
    hub.publish(REPOSITORY, copy)
    done = command("download", REPOSITORY, tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "a" / "b" / ".gitignore").exists() and (tmp_path / "copy" / "[/][bold].md").exists()


@pytest.mark.parametrize(
    "address",
    ["http://[::1", "localhost:8080", "ftp://example.com", "http://", "http://me:secret@[::1", "https:///x", ""],
)
def test_an_address_that_is_none_is_refused_at_once(
    command: Run, environment: dict[str, str], tmp_path: Path, address: str
) -> None:
    for line in (["inspect", f"hf://{REPOSITORY}"], ["download", REPOSITORY, tmp_path / "x"]):
        # huggingface_hub cannot be imported with such an address, so no fork of what imported it can be asked.
        unreadable = "[" in address
        done = (
            run(*line, env=environment | {"HF_ENDPOINT": address})
            if unreadable
            else command(*line, HF_ENDPOINT=address)
        )
        refused(done, "HF_ENDPOINT", "is not a hub's address")
        assert "secret" not in done.stderr


def test_a_doctor_says_that_an_address_is_none(command: Run, tmp_path: Path) -> None:
    done = command("doctor", tmp_path, HF_ENDPOINT="localhost:8080")
    assert done.returncode == 0 and "not reached (HF_ENDPOINT" in " ".join(done.stdout.split()), done


def test_a_setting_that_huggingface_hub_does_not_take_is_told(environment: dict[str, str]) -> None:
    done = run("inspect", f"hf://{REPOSITORY}", env=environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "soon"})
    refused(done, "huggingface_hub refuses its settings", "soon", "HF_")
