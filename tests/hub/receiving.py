"""The side of the loopback hub that takes what clients send: repositories, branches, LFS objects and commits.

A commit is a folder of links to files of its contents, so that the other side serves it as it serves any commit. What
arrives is kept only if it has the SHA-256 under which it was announced.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hub.faults import Reply
from tests.hub.server import Hub, is_lfs
from tests.hub.xet import Cas

SIGNATURE = "X-Amz-Signature=5ec4e7"
FIRST = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
_RULE = "{} filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Receiving:
    """What a hub was sent. `part_bytes` is the size of the parts of larger files, `xet` whether it has Xet."""

    hub: Hub
    folder: Path
    xet: bool = False
    part_bytes: int = 1 << 30
    objects: dict[str, Path] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    history: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.cas = Cas(self.keep)
        self.hub.receiver = self

    def keep(self, data: bytes) -> str:
        """Keep bytes under their SHA-256."""
        oid = hashlib.sha256(data).hexdigest()
        if oid not in self.objects:
            path = self.folder / "objects" / oid
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self.objects[oid] = path
        return oid

    def keep_announced(self, oid: str, folder: Path) -> None:
        """Keep a file of a folder by its SHA-256, for a storage elsewhere that takes it."""
        for path in folder.rglob("*"):
            if path.is_file() and self.hub.digest(path)[0] == oid:
                self.keep(path.read_bytes())

    def state(self, repository: str, branch: str = "main") -> dict[str, tuple[int, str, bool]]:
        """Size, SHA-256 and whether it is LFS, of every file of a branch."""
        folder = self.hub.commits[repository][self.hub.branches[repository, branch]]
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {
            str(path.relative_to(folder)): (path.stat().st_size, self.hub.digest(path)[0], self.hub.is_lfs(path))
            for path in paths
        }

    def make(self, repository: str, private: bool = False) -> None:
        """An empty repository, as a new one is."""
        self.hub.private[repository] = private
        self.hub.commits[repository] = {}
        self._commit(repository, "main", {".gitattributes": (self.keep(FIRST.encode()), False)}, "initial commit")

    def adopt(self, repository: str, branch: str = "main") -> None:
        """Take over a repository that was published from a folder."""
        self.history[repository, branch] = [self.hub.branches[repository, branch]]

    def answer(self, storage: bool, method: str, path: str, body: bytes) -> Reply | None:
        """The answer to a request that writes; None if it only reads."""
        with self.hub.lock:
            if storage:
                return self._stored(method, path, body)
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path == "/api/validate-yaml":
                return self._card(json.loads(body)["content"])
            if path.startswith("/api/complete/"):
                return self._complete(path.rpartition("/")[2], json.loads(body))
            if ".git/info/lfs/" in path:
                return self._lfs(path.partition(".git/")[0].strip("/"), path, json.loads(body))
            if path.startswith("/api/models/"):
                owner, name, word, revision = [*path.removeprefix("/api/models/").split("/", 3), "", ""][:4]
                return self._api(f"{owner}/{name}", word, revision, body)
            return None

    def _api(self, repository: str, word: str, revision: str, body: bytes) -> Reply | None:
        if word not in ("branch", "commits", "preupload", "commit", "xet-write-token"):
            return None
        if repository not in self.hub.commits:
            return Reply(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}")
        if word == "branch":
            return self._branch(repository, revision, json.loads(body))
        if (repository, revision) not in self.hub.branches:
            return Reply(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b"{}")
        if word == "commits":
            commits = self.history.get((repository, revision), [])[::-1]
            return _json([{"id": commit, "authors": [], "date": "", "title": ""} for commit in commits])
        if word == "preupload":
            return self._preupload(repository, revision, json.loads(body))
        if word == "xet-write-token":
            return self._xet_token()
        return self._commit_of(repository, revision, [json.loads(line) for line in body.splitlines() if line])

    def _create(self, asked: dict[str, Any]) -> Reply:
        repository = f"{asked['organization']}/{asked['name']}"
        if repository in self.hub.commits:
            return _error(409, "You already created this model repo")
        self.make(repository, asked.get("visibility") == "private")
        return _json({"url": f"{self.hub.endpoint}/{repository}", "name": repository})

    def _branch(self, repository: str, branch: str, asked: dict[str, Any]) -> Reply:
        if (repository, branch) in self.hub.branches:
            return _error(409, "Reference already exists")
        commit = asked.get("startingPoint", "main")
        commit = self.hub.branches.get((repository, commit), commit)
        main = self.history[repository, "main"]
        self.hub.branches[repository, branch] = commit
        self.history[repository, branch] = main[: main.index(commit) + 1]
        return _json({})

    def _card(self, text: str) -> Reply:
        lines = text.split("---\n")
        bad = text.startswith("---\n") and any(line and ":" not in line for line in lines[1].splitlines())
        return _json({"errors": [{"message": "bad YAML"}] if bad else [], "warnings": []}, 400 if bad else 200)

    def _preupload(self, repository: str, branch: str, asked: dict[str, Any]) -> Reply:
        files, ignored = asked["files"], self.ignored | set(asked.get("gitIgnore", "").splitlines())
        assert len(files) <= 256 and all(len(base64.b64decode(file["sample"])) <= 512 for file in files)
        state, folder = self.state(repository, branch), self._folder(repository, branch)
        said = []
        for file in files:
            name = file["path"]
            oids = {"oid": self._oid(folder / name)} if name in state else {}
            mode = "lfs" if is_lfs(name) else "regular"
            said.append({"path": name, "uploadMode": mode, "shouldIgnore": name in ignored} | oids)
        return _json({"files": said, "commitOid": self.hub.branches[repository, branch]})

    def _oid(self, path: Path) -> str:
        return self.hub.digest(path)[not self.hub.is_lfs(path)]

    def _folder(self, repository: str, branch: str) -> Path:
        return self.hub.commits[repository][self.hub.branches[repository, branch]]

    def _lfs(self, repository: str, path: str, asked: dict[str, Any]) -> Reply:
        if path.endswith("/verify"):
            known = asked["oid"] in self.objects
            return _json({}) if known else _error(404, "object not found")
        return _json({"transfer": "basic", "objects": [self._object(repository, one) for one in asked["objects"]]})

    def _object(self, repository: str, asked: dict[str, Any]) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        if oid in self.refused:
            return asked | {"error": {"code": 422, "message": self.refused[oid]}}
        if oid in self.objects:
            return asked
        verify = {"href": f"{self.hub.endpoint}/{repository}.git/info/lfs/verify"}
        if size <= self.part_bytes:
            upload: dict[str, Any] = {"href": f"{self.hub.storage}/lfs/{oid}?{SIGNATURE}"}
        else:
            count = -(-size // self.part_bytes)
            urls = {str(n): f"{self.hub.storage}/part/{oid}/{n}?{SIGNATURE}" for n in range(1, count + 1)}
            header = {"chunk_size": str(self.part_bytes)} | urls
            upload = {"href": f"{self.hub.endpoint}/api/complete/{oid}", "header": header}
        return asked | {"actions": {"upload": upload, "verify": verify}}

    def _complete(self, oid: str, asked: dict[str, Any]) -> Reply:
        data = b"".join(self.parts[oid, part["partNumber"]] for part in asked["parts"])
        tags = all(_tag(self.parts[oid, part["partNumber"]]) == part["etag"] for part in asked["parts"])
        good = tags and hashlib.sha256(data).hexdigest() == oid == asked["oid"] and self.keep(data) == oid
        return _json({}) if good else _error(400, "the parts are not the object")

    def _xet_token(self) -> Reply:
        if not self.xet:
            return Reply(404, {}, b"{}")
        return _json({"accessToken": "xet-token-secret", "exp": 4_000_000_000, "casUrl": f"{self.hub.storage}/cas"})

    def _stored(self, method: str, path: str, body: bytes) -> Reply | None:
        if path.startswith("/cas/"):
            status, value = self.cas.answer(method, path.removeprefix("/cas"), body)
            return _json(value, status)
        if method != "PUT":
            return None
        _, kind, oid, number = (path + "/0").split("/")[:4]
        if kind == "part":
            self.parts[oid, int(number)] = body
            return Reply(200, {"ETag": _tag(body)}, b"")
        return (
            Reply(200, {}, b"") if hashlib.sha256(body).hexdigest() == oid == self.keep(body) else Reply(400, {}, b"")
        )

    def _commit_of(self, repository: str, branch: str, lines: list[dict[str, Any]]) -> Reply:
        header = lines[0]["value"]
        parent = self.hub.branches[repository, branch]
        if header.get("parentCommit", parent) != parent:
            return _error(412, "A commit has happened since. Please refresh and try again.")
        state = {name: (sha256, lfs) for name, (_, sha256, lfs) in self.state(repository, branch).items()}
        for name, (sha256, _) in state.items():
            if sha256 not in self.objects:
                self.keep((self._folder(repository, branch) / name).read_bytes())
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                state[value["path"]] = self.keep(base64.b64decode(value["content"])), False
            elif line["key"] == "lfsFile":
                object_ = self.objects.get(value["oid"])
                if object_ is None or object_.stat().st_size != value.get("size", object_.stat().st_size):
                    return _error(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                state[value["path"]] = value["oid"], True
            elif state.pop(value["path"], None) is None:
                return _error(404, f"{value['path']} does not exist")
        self._attributes(state)
        commit = self._commit(repository, branch, state, header["summary"])
        self.commits.append({"repository": repository, "branch": branch, "lines": lines, "commit": commit})
        return _json({"commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{repository}/commit/{commit}"})

    def _attributes(self, state: dict[str, tuple[str, bool]]) -> None:
        """Name LFS files of other kinds in `.gitattributes`, as hubs do."""
        known = self.objects[state[".gitattributes"][0]].read_text() if ".gitattributes" in state else ""
        rules = "".join(
            _RULE.format(name)
            for name, (_, lfs) in sorted(state.items())
            if lfs and not name.endswith(".safetensors") and _RULE.format(name) not in known
        )
        if rules:
            state[".gitattributes"] = self.keep((known + rules).encode()), False

    def _commit(self, repository: str, branch: str, state: dict[str, tuple[str, bool]], summary: str) -> str:
        history = self.history.setdefault((repository, branch), [])
        text = json.dumps([sorted(state.items()), summary, sum(map(len, self.history.values()))])
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        folder = self.folder / repository.replace("/", "--") / commit
        folder.mkdir(parents=True)
        for name, (oid, lfs) in state.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.objects[oid], path)
            self.hub.stored[path] = lfs
        self.hub.commits[repository][commit] = folder
        self.hub.branches[repository, branch] = commit
        history.append(commit)
        return commit


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _error(status: int, words: str) -> Reply:
    return Reply(status, {"X-Error-Message": words}, json.dumps({"error": words}).encode())
