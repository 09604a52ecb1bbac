"""A stand-in for the Hub's HTTP API on the loopback address: repositories as lists of commits, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_test"
Tree = dict[str, bytes]


@dataclass
class Repository:
    """Commits by id, branches by name, and the faults a test asks for."""

    commits: dict[str, Tree] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    race: Tree = field(default_factory=dict)  # committed by "somebody else" just before the next commit
    cut: str = ""  # downloads of this path break off half-way
    moving: Tree = field(default_factory=dict)  # committed to main just after the next look at main

    def commit(self, changes: dict[str, bytes | None], branch: str = "main") -> str:
        tree = dict(self.commits.get(self.refs.get(branch, ""), {}))
        for path, content in changes.items():
            if content is None:
                tree.pop(path, None)
            else:
                tree[path] = content
        seed = json.dumps([self.refs.get(branch), len(self.commits), sorted(map(str, changes))]).encode()
        oid = hashlib.sha1(seed + b"".join(c or b"" for c in changes.values())).hexdigest()
        self.commits[oid] = tree
        self.refs[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class HubServer(ThreadingHTTPServer):
    """Serves `repositories`; every request is noted in `log` as (method, path)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.log: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def repository(self, repo_id: str, files: Tree | None = None) -> Repository:
        repo = self.repositories.setdefault(repo_id, Repository())
        repo.commit({".gitattributes": b"", **(files or {})})
        return repo


@contextmanager
def serve() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answer(Exception):  # noqa: N818
    """Ends a request with a status, a body and headers."""

    def __init__(self, status: int, body: object = None, **headers: str) -> None:
        super().__init__(status)
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "make_commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("GET|HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
    )

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.server.log.append((self.command, unquote(url.path)))
        self.query = parse_qs(url.query)
        self.content = self.read_body()
        try:
            self.dispatch(url.path)
            raise Answer(404, {"error": "no such route"})
        except Answer as answer:
            self.send(answer)

    do_GET = do_HEAD = do_POST = handle_any  # noqa: N815

    def dispatch(self, path: str) -> None:
        for methods, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split("|"):
                getattr(self, name)(**{key: unquote(value or "") for key, value in match.groupdict().items()})

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        length = answer.headers.pop("X-Length", str(len(answer.body)))
        for name, value in {"Content-Type": "application/json", "Content-Length": length, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        if int(length) != len(answer.body):
            self.close_connection = True

    # What the routes share

    def user(self) -> bool:
        sent = self.headers.get("Authorization", "")
        if sent and sent != f"Bearer {TOKEN}":
            raise Answer(401, {"error": "bad token"}, X_Error_Message="Invalid credentials in Authorization header")
        return bool(sent)

    def find(self, repo: str) -> Repository:
        known = self.user()
        found = self.server.repositories.get(repo)
        if found is None or (found.private and not known):
            # As the Hub does: a stranger is not told whether a private repository exists.
            raise Answer(404 if known else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if found.gated:
            raise Answer(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        return found

    def at(self, repo: str, revision: str) -> tuple[str, Tree]:
        found = self.find(repo)
        oid = found.resolve(revision or "main")
        if oid is None:
            raise Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        tree = found.commits[oid]
        if revision in ("", "main") and found.moving:
            found.commit(dict(found.moving))
            found.moving = {}
        return oid, tree

    def entry(self, path: str, content: bytes) -> dict[str, object]:
        return {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}

    # The routes

    def create(self) -> None:
        if not self.user():
            raise Answer(401, {"error": "Invalid username or password."})
        body = json.loads(self.content)
        repo_id = f"{body['organization']}/{body['name']}"
        if body["organization"] == "foreign":
            raise Answer(403, {"error": "You don't have the rights"}, X_Error_Message="You don't have the rights")
        url = {"url": f"{self.server.url}/{repo_id}"}
        if repo_id in self.server.repositories:
            raise Answer(409, {**url, "error": "You already created this model repo"})
        self.server.repository(repo_id).private = body.get("visibility") == "private"
        raise Answer(200, url)

    def validate(self) -> None:
        content = json.loads(self.content)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no front matter"}]
        raise Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        _, tree = self.at(repo, revision)
        files = [file["path"] for file in json.loads(self.content)["files"]]
        oids = {path: blob_id(tree[path]) for path in files if path in tree}
        raise Answer(
            200,
            {
                "files": [
                    {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oids.get(path)}
                    for path in files
                ]
            },
        )

    def make_commit(self, repo: str, revision: str) -> None:
        found = self.find(repo)
        if not self.user():
            raise Answer(401, {"error": "Unauthorized"})
        if found.race:
            found.commit(dict(found.race))
            found.race = {}
        lines = [json.loads(line) for line in self.content.splitlines() if line.strip()]
        parent = next(line["value"] for line in lines if line["key"] == "header").get("parentCommit")
        if parent and parent != found.refs[revision]:
            raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        changes: dict[str, bytes | None] = {}
        for line in lines:
            if line["key"] == "file":
                changes[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                changes[line["value"]["path"]] = None
        oid = found.commit(changes, revision)
        raise Answer(
            200,
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.server.url}/{repo}/commit/{oid}",
                "hookOutput": "",
            },
        )

    def paths_info(self, repo: str, revision: str) -> None:
        _, tree = self.at(repo, revision)
        asked = parse_qs(self.content.decode()).get("paths", [])
        raise Answer(200, [self.entry(path, tree[path]) for path in asked if path in tree])

    def tree(self, repo: str, revision: str, path: str) -> None:
        _, tree = self.at(repo, revision)
        inside = {name: content for name, content in tree.items() if not path or name.startswith(f"{path}/")}
        if path and not inside:
            raise Answer(404, {"error": "no such path"}, X_Error_Code="EntryNotFound")
        raise Answer(200, [self.entry(name, content) for name, content in sorted(inside.items())])

    def info(self, repo: str, revision: str) -> None:
        oid, tree = self.at(repo, revision)
        raise Answer(
            200,
            {"id": repo, "modelId": repo, "sha": oid, "tags": [], "siblings": [{"rfilename": n} for n in sorted(tree)]},
        )

    def download(self, repo: str, revision: str, path: str) -> None:
        oid, tree = self.at(repo, revision)
        if path not in tree:
            raise Answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        content = tree[path]
        headers = {"ETag": f'"{blob_id(content)}"', "X_Repo_Commit": oid, "X_Length": str(len(content))}
        if self.command == "GET" and self.server.repositories[repo].cut == path:
            content = content[: len(content) // 2]
        raise Answer(200, content, Content_Type="application/octet-stream", **headers)
