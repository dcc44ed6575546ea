"""A Hub on the loopback: as much of its protocol as `snapshot_download` speaks.

Weights (`.safetensors`, `.bin`) are announced like LFS files, by SHA-256; the rest like git blobs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


@dataclass(frozen=True)
class Repository:
    """Commits (each a directory of files), and the branches, tags and PRs that point to them."""

    commits: dict[str, Path]
    refs: dict[str, str]
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass(frozen=True)
class Refusal(Exception):
    status: int
    code: str = ""
    message: str = ""


@dataclass
class HubServer:
    """`with HubServer() as hub: hub.add("org/name", directory)`; every request is recorded."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: int = 0  # a status with which every request is answered instead

    def add(
        self, repo_id: str, main: Path, *, gated: bool = False, **revisions: Path
    ) -> Repository:
        """Serve a directory as `main`, and others under more names (`refs_pr_1` is refs/pr/1)."""
        commits: dict[str, Path] = {}
        refs: dict[str, str] = {}
        for name, directory in {"main": main, **revisions}.items():
            commit = hashlib.sha1(f"{repo_id} {directory}".encode()).hexdigest()
            commits[commit] = directory
            refs[name.replace("_", "/")] = commit
        self.repositories[repo_id] = Repository(commits, refs, gated)
        return self.repositories[repo_id]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server_state.requests.append(f"{self.command} {self.path}")
        try:
            if self.server_state.broken:
                raise Refusal(self.server_state.broken)
            path = unquote_segments(self.path)
            if path[:2] == ["api", "models"]:
                self._api(path[2:])
            else:
                self._resolve(path)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._answer(b"", refusal.status, {k: v for k, v in headers.items() if v})

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _api(self, path: list[str]) -> None:
        repository = self._repository("/".join(path[:2]))
        verb, revision = (*path[2:4], "main")[:2] if len(path) > 3 else ("revision", "main")
        commit, files = self._commit(repository, revision)
        if verb == "tree":
            self._answer_json([_entry(files, path) for path in _names(files)])
        else:
            siblings = [{"rfilename": name} for name in _names(files)]
            self._answer_json({"id": "/".join(path[:2]), "sha": commit, "siblings": siblings})

    def _resolve(self, path: list[str]) -> None:
        if len(path) < 5 or path[2] != "resolve":
            raise Refusal(404)
        repository = self._repository("/".join(path[:2]))
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 403 if "Authorization" in self.headers else 401
            raise Refusal(status, "GatedRepo", "Access to this model is restricted.")
        commit, files = self._commit(repository, path[3])
        file = files.joinpath(*path[4:])
        if not file.is_file():
            raise Refusal(404, "EntryNotFound", "Entry not found")
        entry = _entry(files, "/".join(path[4:]))
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(entry["size"])}
        content, status = file.read_bytes(), 200
        if wanted := self.headers.get("Range"):
            first = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            content, status = content[first:], 206
        self._answer(content, status, headers)

    def _repository(self, repo_id: str) -> Repository:
        try:
            return self.server_state.repositories[repo_id]
        except KeyError:
            raise Refusal(401, "RepoNotFound", "Repository not found") from None

    def _commit(self, repository: Repository, revision: str) -> tuple[str, Path]:
        commit = repository.commit(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    def _answer_json(self, document: object) -> None:
        self._answer(json.dumps(document).encode(), 200, {"Content-Type": "application/json"})

    def _answer(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def unquote_segments(path: str) -> list[str]:
    """The parts of a URL's path; a revision such as refs%2Fpr%2F1 stays one part."""
    return [unquote(part) for part in urlsplit(path).path.split("/") if part]


def _names(files: Path) -> list[str]:
    return sorted(p.relative_to(files).as_posix() for p in files.rglob("*") if p.is_file())


def _entry(files: Path, name: str) -> dict:
    content = (files / name).read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict = {"type": "file", "oid": blob, "size": len(content), "path": name}
    if name.endswith((".safetensors", ".bin")):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry
