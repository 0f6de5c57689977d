"""A small server on 127.0.0.1 that speaks the Hub's protocol, as far as huggingface_hub's client uses it here."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits of one repository, by id, and where its branches stand."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, branch: str, files: Files) -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        after = {**before, **files}
        text = repr((len(self.commits), branch, sorted((n, hashlib.sha1(c).hexdigest()) for n, c in after.items())))
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = after, sha
        return sha

    def at(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.at(revision) or ""]


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches: a status, or a connection that is cut (0)."""

    pattern: str
    status: int
    times: int
    headers: dict[str, str]


class HubServer(ThreadingHTTPServer):
    """The server's state; tests read and change it directly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.users = {"hf_right": "alice", "hf_other": "bob"}
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        # What another server would answer in place of this one: (request, status, content, headers) to the last three.
        self.change: Callable[[str, int, Any, dict[str, str]], tuple[int, Any, dict[str, str]]] | None = None
        self.sent_to_storage: list[str | None] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage_url(self) -> str:
        return f"http://localhost:{self.server_port}"  # another origin, as the Hub's storage has

    def fail(self, pattern: str, status: int, *, times: int = 1, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(pattern, status, times, named))

    def fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, *_: Any) -> None:
        """Connections that a test cuts are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.route("GET")

    def do_HEAD(self) -> None:
        self.route("HEAD")

    def do_POST(self) -> None:
        self.route("POST")

    def do_PUT(self) -> None:
        self.route("PUT")

    def route(self, method: str) -> None:
        path = urlsplit(self.path).path
        self.server.log.append(f"{method} {path}")
        fault = self.server.fault(f"{method} {path}")
        if fault is not None and fault.status == 0:
            self.rfile.read(min(100, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        if fault is not None:
            self.reply(fault.status, {"error": "told to fail"}, **fault.headers)
            return
        for pattern, verb, handle in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in verb:
                handle(self, *(unquote(part) for part in match.groups()))
                return
        self.reply(404, {"error": "no such address"})

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, status: int, content: Any = b"", **headers: str) -> None:
        if self.server.change is not None:
            request = f"{self.command} {urlsplit(self.path).path}"
            status, content, headers = self.server.change(request, status, content, headers)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("Content_Length", str(len(data))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.reply(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def user(self, *, owner: str | None = None) -> str | None:
        """Who asks; answers for itself when nobody may ask, or another than the owner."""
        name = self.server.users.get(self.token or "")
        if self.token is None or name is None:
            self.reply(
                401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials in Authorization header"
            )
            return None
        if owner is not None and name != owner:
            self.refuse(403, "", "You don't have the rights to do this")
            return None
        return name

    def repository(self, name: str) -> Repository | None:
        """The repository that is asked for; answers for itself when it is not for those who ask."""
        found = self.server.repositories.get(name)
        if self.token is not None and self.token not in self.server.users:
            self.reply(
                401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials in Authorization header"
            )
        elif found is None or (found.private and self.server.users.get(self.token or "") != name.split("/")[0]):
            # As the Hub does: what is private is not told from what does not exist.
            self.refuse(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        else:
            return found
        return None

    def whoami(self) -> None:
        if name := self.user():
            self.reply(200, {"name": name, "type": "user", "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        if (user := self.user(owner=wanted.get("organization"))) is None:
            return
        name = f"{user}/{wanted['name']}"
        if name in self.server.repositories:
            self.reply(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
            return
        private = wanted.get("private") is True or wanted.get("visibility") == "private"
        self.server.repositories[name] = Repository(private=private)
        self.reply(200, {"url": f"{self.server.url}/{name}", "name": name})

    def branch(self, name: str, branch: str) -> None:
        if (found := self.repository(name)) and self.user(owner=name.split("/")[0]):
            if branch in found.branches:
                self.reply(409, {"error": "exists"})
                return
            found.branches[branch] = found.branches["main"]
            self.reply(200, {})

    def validate(self) -> None:
        errors = card_errors(json.loads(self.body)["content"])
        self.reply(400 if errors else 200, {"errors": [{"message": e} for e in errors], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        if (found := self.repository(name)) is None or not self.user(owner=name.split("/")[0]):
            return
        if found.at(revision) is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith((".safetensors", ".png")) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for one in json.loads(self.body)["files"]
        ]
        self.reply(200, {"files": files})

    def lfs_batch(self, name: str) -> None:
        if self.repository(name) is None or not self.user(owner=name.split("/")[0]):
            return
        objects = []
        for one in json.loads(self.body)["objects"]:
            known = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.stored:
                upload = {"href": f"{self.server.storage_url}/storage/{one['oid']}"}
                known["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.server.url}/{name}.git/info/lfs/verify"},
                }
            objects.append(known)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        self.server.sent_to_storage.append(self.headers.get("Authorization"))
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.reply(400, {"error": "other bytes"})
            return
        self.server.stored[oid] = self.body
        self.reply(200, ETag=f'"{oid}"')

    def verify(self, name: str) -> None:
        wanted = json.loads(self.body)
        held = self.server.stored.get(wanted["oid"])
        self.reply(200 if held is not None and len(held) == wanted["size"] else 422, {"message": "checked"})

    def commit(self, name: str, revision: str) -> None:
        if (found := self.repository(name)) is None or not self.user(owner=name.split("/")[0]):
            return
        files: Files = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.server.stored:
                    self.reply(400, {"error": "LFS pointer pointed to a file that does not exist"})
                    return
                files[value["path"]] = self.server.stored[value["oid"]]
        sha = found.commit(revision, files)
        url = f"{self.server.url}/{name}/commit/{sha}"
        self.reply(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def info(self, name: str, revision: str = "main") -> None:
        if (found := self.repository(name)) is None:
            return
        if (sha := found.at(revision)) is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        siblings = [{"rfilename": path} for path in found.commits[sha]]
        known = {"_id": sha[:24], "id": name, "modelId": name, "sha": sha, "private": found.private, "tags": []}
        self.reply(200, known | {"siblings": siblings, "downloads": 0, "likes": 0})

    def tree(self, name: str, revision: str) -> None:
        if (found := self.repository(name)) is None:
            return
        if (sha := found.at(revision)) is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        files = found.commits[sha].items()
        self.reply(200, [{"type": "file", "path": p, "size": len(c), "oid": git_oid(c)} for p, c in sorted(files)])

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (found := self.repository(name)) is None:
            return
        if (sha := found.at(revision)) is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        content = found.commits[sha].get(path)
        if content is None:
            self.reply(
                404,
                {"error": "Entry not found"},
                X_Error_Code="EntryNotFound",
                X_Error_Message="Entry not found",
                X_Repo_Commit=sha,
            )
            return
        if path.endswith((".safetensors", ".png")):
            oid = hashlib.sha256(content).hexdigest()
            self.server.stored.setdefault(oid, content)
            self.reply(
                302,
                Location=f"{self.server.storage_url}/storage/{oid}?signature=1",
                X_Linked_ETag=f'"{oid}"',
                X_Linked_Size=str(len(content)),
                X_Repo_Commit=sha,
            )
            return
        self.content(content, ETag=f'"{git_oid(content)}"', X_Repo_Commit=sha)

    def download(self, oid: str) -> None:
        self.server.sent_to_storage.append(self.headers.get("Authorization"))
        if "signature" not in parse_qs(urlsplit(self.path).query) or oid not in self.server.stored:
            self.reply(403, {"error": "signed addresses only"})
            return
        self.content(self.server.stored[oid], ETag=f'"{oid}"')

    def content(self, content: bytes, **headers: str) -> None:
        """A file, or the part of it that `Range` asks for."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            self.reply(200, content, **headers)
            return
        start, stop = int(match[1]), min(len(content), int(match[2] or len(content)) + 1)
        place = f"bytes {start}-{stop - 1}/{len(content)}"
        self.reply(206, content[start:stop], Content_Range=place, **headers)


NAME = r"([\w.\-]+/[\w.\-]+)"
ROUTES = (
    (r"/api/whoami-v2", ("GET",), Handler.whoami),
    (r"/api/repos/create", ("POST",), Handler.create),
    (r"/api/validate-yaml", ("POST",), Handler.validate),
    (rf"/api/models/{NAME}/branch/(.+)", ("POST",), Handler.branch),
    (rf"/api/models/{NAME}/preupload/(.+)", ("POST",), Handler.preupload),
    (rf"/api/models/{NAME}/commit/(.+)", ("POST",), Handler.commit),
    (rf"/api/models/{NAME}/tree/([^/]+)", ("GET",), Handler.tree),
    (rf"/api/models/{NAME}/revision/(.+)", ("GET",), Handler.info),
    (rf"/api/models/{NAME}", ("GET",), Handler.info),
    (rf"/{NAME}\.git/info/lfs/objects/batch", ("POST",), Handler.lfs_batch),
    (rf"/{NAME}\.git/info/lfs/verify", ("POST",), Handler.verify),
    (r"/storage/(\w+)", ("PUT",), Handler.store),
    (r"/storage/(\w+)", ("GET", "HEAD"), Handler.download),
    (rf"/{NAME}/resolve/([^/]+)/(.+)", ("GET", "HEAD"), Handler.resolve),
)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def card_errors(content: str) -> list[str]:
    """What the Hub's validator demands of a card's metadata, as its documentation says."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        return ["empty metadata"]
    data = yaml.safe_load(match[1])
    errors = [
        f"{name} must be a string" for name in ("library_name", "license") if not isinstance(data.get(name, ""), str)
    ]
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        errors.append("tags must be strings")
    for index in data.get("model-index", []):
        if not isinstance(index.get("name"), str) or not index["name"]:
            errors.append("model-index[0].name is required")
        for result in index["results"]:
            if not isinstance(result["task"].get("type"), str):
                errors.append("task.type is required")
            if not all(isinstance(result["dataset"].get(key), str) for key in ("type", "name")):
                errors.append("dataset.type and dataset.name are required")
            if not all(isinstance(m.get("type"), str) and m.get("value") is not None for m in result["metrics"]):
                errors.append("metrics need a type and a value")
    return errors


@contextmanager
def running_hub() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
