"""A hub on loopback: the endpoints that huggingface_hub and dsctl ask, byte ranges, LFS digests, redirects, faults.

Weights are redirected to a second server under another host name, as hubs do with their storage.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from tests.hub.faults import STALL_SECONDS, Reply, faulty, refusal, send_body, with_headers


class Request(NamedTuple):
    """What a client asked and how many body bytes it was sent."""

    host: str
    method: str
    path: str
    range: str | None
    token: str | None
    sent: int
    received: int = 0


class Receiver(Protocol):
    """Answers requests that write; None for those that only read."""

    def answer(self, storage: bool, method: str, path: str, body: bytes) -> Reply | None: ...


@dataclass
class Hub:
    """Repositories by name, each with its commits; `fault` says what goes wrong with a request, if anything.

    `words` are the messages of refusals by status. Names say which files are LFS, except of those in `stored`.
    """

    redirects: bool = True
    ranges: bool = True
    token: str | None = None
    fault: Callable[[int, str, str], str | None] = lambda number, method, path: None
    log: list[Request] = field(default_factory=list)
    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    digests: dict[Path, tuple[str, str]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)
    stored: dict[Path, bool] = field(default_factory=dict)
    receiver: Receiver | None = None
    started: int = 0
    finished: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.servers = [_Server(("127.0.0.1", 0), _handler(self)) for _ in range(2)]
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].server_port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self.servers[1].server_port}"

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def publish(self, repository: str, folder: Path, branch: str = "main") -> str:
        """A folder's files as a new commit of a branch."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            sha256, blob = self.digest(path)
            digest.update(f"{path.relative_to(folder)}{sha256}{blob}".encode())
        commit = digest.hexdigest()
        self.commits.setdefault(repository, {})[commit] = folder
        self.branches[repository, branch] = commit
        return commit

    def digest(self, path: Path) -> tuple[str, str]:
        """sha256 of the contents, and SHA-1 as git takes it of a blob."""
        if path not in self.digests:
            stat = path.stat()
            self.digests[path] = _digest(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        return self.digests[path]

    def settle(self, seconds: float = 1.0) -> None:
        """Wait until every request is in the log: a client has its answer before."""
        ends = time.monotonic() + seconds
        while self.finished < self.started and time.monotonic() < ends:
            time.sleep(0.005)

    def is_lfs(self, path: Path) -> bool:
        """Whether a file is stored as LFS."""
        return self.stored.get(path, is_lfs(path.name))

    def sent(self, suffix: str = "") -> int:
        """Body bytes sent for paths that end so."""
        return sum(request.sent for request in self.log if request.path.endswith(suffix))


@cache
def _digest(path: Path, *identity: int) -> tuple[str, str]:
    """Both digests of a file, which is read once for all hubs that hold it as it is now."""
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return hashlib.sha256(data).hexdigest(), blob


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *rest: Any) -> None:
        """Say nothing of clients that hang up."""


def is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".dsctl"))


def _error(status: int, code: str) -> Reply:
    return Reply(status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}")


def _answer(hub: Hub, storage: bool, method: str, path: str, range_: str | None, token: str | None) -> Reply:
    if storage:
        _, _, repository, commit, name = path.split("/", 4)
        return _file(hub, hub.commits[repository.replace("--", "/")][commit] / name, range_)
    if hub.token and token != f"Bearer {hub.token}":
        return _error(401, "RepoNotFound")
    if path.startswith("/api/models/"):
        return _api(hub, path.removeprefix("/api/models/"))
    owner, name, word, revision, file = (path.removeprefix("/").split("/", 4) + [""] * 5)[:5]
    if word != "resolve":
        return Reply(404, {}, b"not found")
    return _resolve(hub, f"{owner}/{name}", revision, file, method, range_)


def _commit(hub: Hub, repository: str, revision: str) -> str | None:
    if revision in hub.commits[repository]:
        return revision
    return hub.branches.get((repository, revision))


def _api(hub: Hub, rest: str) -> Reply:
    owner, name, *more = rest.split("/", 3)
    word, revision = more if len(more) == 2 else ("", "main")
    repository = f"{owner}/{name}"
    if repository not in hub.commits:
        return _error(404, "RepoNotFound")
    commit = _commit(hub, repository, revision if word in ("revision", "tree") else "main")
    if commit is None:
        return _error(404, "RevisionNotFound")
    folder = hub.commits[repository][commit]
    entries = [_entry(hub, folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
    siblings = [{"rfilename": entry["path"]} for entry in entries]
    private = hub.private.get(repository, False)
    value: Any = {"id": repository, "sha": commit, "siblings": siblings, "private": private}
    value = entries if word == "tree" else value
    return Reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _entry(hub: Hub, folder: Path, path: Path) -> dict[str, Any]:
    name, size = str(path.relative_to(folder)), path.stat().st_size
    sha256, blob = hub.digest(path)
    lfs = {"lfs": {"oid": sha256, "size": size, "pointerSize": 134}} if hub.is_lfs(path) else {}
    return {"type": "file", "path": name, "size": size, "oid": blob} | lfs


def _resolve(hub: Hub, repository: str, revision: str, file: str, method: str, range_: str | None) -> Reply:
    if repository not in hub.commits:
        return _error(404, "RepoNotFound")
    commit = _commit(hub, repository, revision)
    if commit is None:
        return _error(404, "RevisionNotFound")
    path = hub.commits[repository][commit] / file
    if not path.is_file():
        return _error(404, "EntryNotFound")
    sha256, blob = hub.digest(path)
    headers = {"X-Repo-Commit": commit, "ETag": f'"{sha256 if hub.is_lfs(path) else blob}"'}
    if not hub.is_lfs(path):
        return with_headers(_file(hub, path, range_), headers)
    headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(path.stat().st_size)}
    if not hub.redirects:
        return with_headers(_file(hub, path, range_), headers)
    location = f"{hub.storage}/blob/{repository.replace('/', '--')}/{commit}/{file}"
    return Reply(302, headers | {"Location": location}, b"")


def _file(hub: Hub, path: Path, range_: str | None) -> Reply:
    size = path.stat().st_size
    if not range_ or not hub.ranges:
        return Reply(200, {}, path.read_bytes())
    first, _, last = range_.removeprefix("bytes=").partition("-")
    begin, end = int(first), min(int(last) + 1 if last else size, size)
    if begin >= size:
        return Reply(416, {"Content-Range": f"bytes */{size}"}, b"")
    with path.open("rb") as file:
        file.seek(begin)
        return Reply(206, {"Content-Range": f"bytes {begin}-{end - 1}/{size}"}, file.read(end - begin))


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    # Headers and body are written one after the other: the second would wait 40 ms for the first's receipt.
    disable_nagle_algorithm = True

    def log_message(self, *words: Any) -> None:
        pass

    def answer(self) -> None:
        hub = self.hub
        path = unquote(urlsplit(self.path).path)
        storage = self.server is hub.servers[1]
        token, range_ = self.headers.get("Authorization"), self.headers.get("Range")
        with hub.lock:
            hub.started += 1
            fault = hub.fault(hub.started, self.command, path)
        body = self.take(fault)
        sent = 0
        if fault == "hang":
            time.sleep(STALL_SECONDS)
        elif body is not None:
            reply = refusal(hub.words, fault) or self.reply(storage, path, range_, token, body)
            sent = self.send(faulty(fault, reply) if fault else reply, fault)
        with hub.lock:
            host = "storage" if storage else "hub"
            hub.finished += 1
            hub.log.append(Request(host, self.command, path, range_, token, sent, len(body or b"")))

    def take(self, fault: str | None) -> bytes | None:
        """The body of a request; None, and nothing more is heard, if the connection is cut halfway."""
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "half":
            self.rfile.read(length // 2)
            self.hang_up()
            return None
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return None
        return body

    def reply(self, storage: bool, path: str, range_: str | None, token: str | None, body: bytes) -> Reply:
        if self.hub.receiver is not None and (storage or not self.hub.token or token == f"Bearer {self.hub.token}"):
            received = self.hub.receiver.answer(storage, self.command, path, body)
            if received is not None:
                return received
        return _answer(self.hub, storage, self.command, path, range_, token)

    def send(self, reply: Reply, fault: str | None) -> int:
        if fault == "reset":
            self.hang_up()
            return 0
        self.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            shorter = name == "Content-Length" and fault == "length"
            self.send_header(name, str(int(value) // 2) if shorter else value)
        self.end_headers()
        if self.command == "HEAD":
            return 0
        sent = send_body(self.put, reply.body, fault)
        if fault in ("cut", "stall"):
            self.hang_up()
        return sent

    def put(self, body: bytes) -> int:
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return 0
        return len(body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815  the names http.server looks for


def one_in(number: int, *kinds: str) -> Callable[[int, str, str], str | None]:
    """A fault for every so many requests, each kind in turn."""
    turn: Iterator[str] = _cycle(kinds)
    return lambda count, method, path: next(turn) if count % number == 0 else None


def _cycle(kinds: tuple[str, ...]) -> Iterator[str]:
    while True:
        yield from kinds
