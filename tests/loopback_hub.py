"""A Hub on this machine: the few endpoints that the real `huggingface_hub` client calls, served from memory.

    with LoopbackHub() as hub:
        subprocess.run([...], env=hub.environment(tmp_path / "home"))
        hub.files("acme/tiny")["config.json"]

The client reads its environment when it is imported, so what talks to the Hub runs in a process of its own.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

# What the client sends to the repository's LFS store rather than in the commit itself.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".wav", ".flac", ".parquet", ".tar")


@dataclass
class Commit:
    """One state of a repository: `files` maps a path to the content."""

    sha: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Commits of each branch, oldest first; `private` is what the creation asked for."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [_commit("", "initial commit", {})]})

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, or 40 hexadecimal digits, stand for."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = [commit for branch in self.branches.values() for commit in branch]
        return next((commit for commit in commits if commit.sha == revision), None)


def _commit(parent: str, title: str, files: dict[str, bytes]) -> Commit:
    digest = hashlib.sha1(f"{parent}\n{title}\n".encode())
    for path in sorted(files):
        digest.update(f"{path}\n{hashlib.sha256(files[path]).hexdigest()}\n".encode())
    return Commit(digest.hexdigest(), title, files)


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class LoopbackHub:
    """A context manager that serves an empty Hub on a free port of 127.0.0.1.

    Attributes:
        endpoint (`str`): Its address, for `HF_ENDPOINT`.
        requests (`list[str]`): Every request so far, `"GET /path?query"`.
        repositories (`dict[str, Repository]`): What it holds, by id.
        token (`str`): The only token that may write.
    """

    token = "hf_loopback"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # the LFS store, by SHA-256
        self.requests: list[str] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, hf_home: str | Path) -> dict[str, str]:
        """The environment of a process that knows this Hub and no other, with its cache in `hf_home`."""
        dropped = ("HF_", "HUGGINGFACE", "TRANSFORMERS_", "PYTHONPATH")
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(dropped) and not name.lower().endswith("_proxy")
        }
        return environment | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(hf_home),
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",  # the client would not fall back to LFS by itself
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "HTTPS_PROXY": "http://127.0.0.1:9",  # nothing may leave this machine
            "NO_PROXY": "127.0.0.1",
        }

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository, content by path."""
        commit = self.repositories[repository].find(revision)
        assert commit is not None, f"{repository} has no revision {revision}"
        return dict(commit.files)

    def commits(self, repository: str, branch: str = "main") -> list[Commit]:
        """The commits of a branch, oldest first, the empty first one included."""
        return list(self.repositories[repository].branches[branch])


def _entry(path: str, content: bytes) -> dict[str, object]:
    """How a listing describes a file."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _folder(path: str) -> dict[str, object]:
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body in one packet

    def log_message(self, *arguments: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True  # a client that was stopped

    def route(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {self.path}")
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    if method == "POST" and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
                        return self.error(401, "", "Invalid username or password.")
                    return action(self, **match.groupdict())
        self.error(404, "", f"{self.command} {path}: not served here")

    do_HEAD = do_GET = do_POST = do_PUT = route

    def answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.answer({"error": message}, status, named | (headers or {}))

    def find(self, id: str, revision: str) -> Commit | None:
        """The commit, or None when the error is already answered."""
        if id not in self.hub.repositories:
            return self.error(404, "RepoNotFound", f"Repository {id} not found.")
        commit = self.hub.repositories[id].find(revision)
        if commit is None:
            return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # What is served. The client's calls and the least each answer must hold are known from its request logs.

    def create(self) -> None:
        asked = json.loads(self.body)
        id = "/".join((asked.get("organization") or "acme", asked["name"]))
        known = id in self.hub.repositories
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories.setdefault(id, Repository(private))
        kind = "datasets/" if asked.get("type") == "dataset" else ""
        self.answer({"url": f"{self.hub.endpoint}/{kind}{id}", "id": id}, 409 if known else 200)

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        front = re.match(r"---\n(.*?)\n---(\n|$)", content, re.DOTALL)
        errors = [] if front else [{"message": "the card has no metadata between --- lines"}]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def branch(self, id: str, revision: str) -> None:
        if self.find(id, "main"):
            branches = self.hub.repositories[id].branches
            known = revision in branches
            branches.setdefault(revision, list(branches["main"]))
            self.answer({}, 409 if known else 200)

    def preupload(self, id: str, revision: str) -> None:
        if self.find(id, revision):
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            modes = ["lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths]
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in zip(paths, modes)]
            self.answer({"files": files})

    def lfs_batch(self, id: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                href = f"{self.hub.endpoint}/lfs/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        self.answer({"objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.error(400, "", f"the content does not have the SHA-256 {oid}")
        self.hub.objects[oid] = self.body
        self.answer(b"")

    def lfs_verify(self, oid: str) -> None:
        size = len(self.hub.objects.get(oid, b""))
        if oid not in self.hub.objects or size != json.loads(self.body)["size"]:
            return self.error(404, "", f"object {oid} is not stored")
        self.answer({})

    def commit(self, id: str, revision: str) -> None:
        parent = self.find(id, revision)
        if parent is None:
            return
        files, title = dict(parent.files), ""
        for line in self.body.splitlines():
            value = (entry := json.loads(line))["value"]
            if entry["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, parent.sha):
                    return self.error(412, "", "the branch has moved on since parentCommit")
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.error(400, "", f"{value['path']}: object {value['oid']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] in ("deletedFile", "deletedFolder"):
                inside = value["path"].rstrip("/") + "/"
                files = {p: c for p, c in files.items() if p != value["path"] and not p.startswith(inside)}
            else:
                return self.error(400, "", f"unknown operation {entry['key']}")
        commit = _commit(parent.sha, title, files)
        self.hub.repositories[id].branches[revision].append(commit)
        self.answer({"commitUrl": f"{self.hub.endpoint}/{id}/commit/{commit.sha}", "commitOid": commit.sha})

    def info(self, id: str, revision: str | None = None) -> None:
        if commit := self.find(id, revision or "main"):
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            private = self.hub.repositories[id].private
            self.answer({"id": id, "sha": commit.sha, "private": private, "tags": [], "siblings": siblings})

    def tree(self, id: str, revision: str, folder: str | None = None) -> None:
        commit = self.find(id, revision)
        if commit is None:
            return
        prefix = f"{folder}/" if folder else ""
        inside = {path: content for path, content in commit.files.items() if path.startswith(prefix)}
        if prefix and not inside:
            return self.error(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        folders = {parent.as_posix() for path in inside for parent in PurePosixPath(path).parents}
        entries = [_folder(path) for path in sorted(folders - {".", folder}) if path.startswith(prefix)]
        entries += [_entry(path, content) for path, content in sorted(inside.items())]
        if self.query.get("recursive") != "true":
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        self.answer(entries)

    def paths_info(self, id: str, revision: str) -> None:
        if commit := self.find(id, revision):
            asked = json.loads(self.body)["paths"]
            files = [_entry(path, commit.files[path]) for path in asked if path in commit.files]
            folders = [path for path in asked if any(file.startswith(f"{path}/") for file in commit.files)]
            self.answer(files + [_folder(path) for path in folders])

    def refs(self, id: str) -> None:
        if self.find(id, "main"):
            branches = self.hub.repositories[id].branches.items()
            listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c[-1].sha} for n, c in branches]
            self.answer({"branches": listed, "converts": [], "tags": []})

    def resolve(self, id: str, revision: str, file: str) -> None:
        commit = self.find(id, revision)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit.sha}
        if file not in commit.files:
            return self.error(404, "EntryNotFound", f"{file} is not in {id} at {revision}", headers)
        content = commit.files[file]
        large = file.endswith(LFS_SUFFIXES)
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest() if large else _blob_id(content)}"'
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.answer(content, headers=headers)
        start, end = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
        if start > end:
            return self.error(416, "", "the range is outside the file", {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(content[start : end + 1], 206, headers)


ID = r"(?P<id>[^/]+/[^/]+)"
API = f"/api/(?:models|datasets)/{ID}"  # a dataset is a repository like a model's
ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", f"{API}/branch/(?P<revision>.+)", _Handler.branch),
    ("POST", f"{API}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", f"(?:/datasets)?/{ID}.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", _Handler.lfs_verify),
    ("POST", f"{API}/commit/(?P<revision>.+)", _Handler.commit),
    ("GET", API, _Handler.info),
    ("GET", f"{API}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", f"{API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET", f"{API}/refs", _Handler.refs),
    ("HEAD GET", f"(?:/datasets)?/{ID}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
)
