"""A server that speaks what a download asks of the Hugging Face Hub, and fails where a test tells it to."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
LARGE = 1_000_000  # bytes from which on Git LFS holds a file


@dataclass
class HubServer:
    """Models by name, each a mapping from revision to files; `asked` are the requests so far.

    `cut_after`: bytes of a large file after which the connection breaks, `cuts` times. `gated`: the names of models for
    which only the token `good` serves. `error`: a status that answers everything.
    """

    models: dict[str, dict[str, dict[str, bytes]]]
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent: int = 0
    cut_after: int | None = None
    cuts: int = 0
    gated: set[str] = field(default_factory=set)
    damaged: bool = False
    without_ranges: bool = False
    error: int | None = None
    slow: float = 0.0  # seconds before each piece of a large file
    url: str = ""

    def paths(self, method: str) -> list[str]:
        return [path for asked, path, _ in self.asked if asked == method]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body):
        hub, path = self.hub, self.path.split("?")[0].replace("%2F", "/")
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if hub.error is not None:
            return self._fail(hub.error, "", "out of order")
        if path.startswith("/storage/"):
            every = [
                data for revisions in hub.models.values() for files in revisions.values() for data in files.values()
            ]
            (data,) = {data for data in every if hashlib.sha256(data).hexdigest() == path.split("/")[-1]}
            return self._file(data, "lfs", "", with_body)
        asked = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        name, kind, revision, file = asked.groups()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", "good", "other"):
            return self._fail(401, "", "Invalid credentials in Authorization header")
        if name not in hub.models:
            return self._fail(404 if token else 401, "RepoNotFound", "Repository not found")
        revision = revision or "main"
        commit = COMMITS.get(revision, revision)
        found = {COMMITS[each]: files for each, files in hub.models[name].items()}.get(commit)
        if found is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        files = {each: (data, "lfs" if len(data) >= LARGE else "git") for each, data in found.items()}
        if kind == "resolve":
            if name in hub.gated and token != "good":
                return self._fail(403 if token else 401, "GatedRepo", "Access to this model is restricted")
            if file not in files:
                return self._fail(404, "EntryNotFound", "Entry not found")
            if files[file][1] == "lfs":
                return self._moved(files[file][0], commit)
            return self._file(*files[file], commit, with_body)
        entries = [_entry(each, *content) for each, content in files.items()]
        if kind == "tree":
            if name in hub.gated and token != "good":
                return self._fail(403 if token else 401, "GatedRepo", "Access to this model is restricted")
            return self._json([{"type": "file", "path": entry.pop("rfilename"), "oid": entry.pop("blobId"), **entry}
                               for entry in entries])  # fmt: skip
        return self._json({"id": name, "sha": commit, "siblings": entries, "private": False, "tags": []})

    def _moved(self, data, commit):
        digest = hashlib.sha256(data).hexdigest()
        self.send_response(302)
        self.send_header("Location", f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage/{digest}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status, code, message):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, data, store, commit, with_body):
        hub, first = self.hub, 0
        etag = hashlib.sha256(data).hexdigest() if store == "lfs" else _git_hash(data)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and not hub.without_ranges:
            first = int(asked[1])
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{etag}"')
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if not with_body:
            return
        if hub.damaged and store == "lfs":
            data = data[:-1] + bytes([data[-1] ^ 1])
        for start in range(first, len(data), 2**16):
            if store == "lfs":
                if hub.cuts and hub.cut_after is not None and start - first >= hub.cut_after:
                    hub.cuts -= 1
                    self.close_connection = True
                    return
                hub.sent += len(data[start : start + 2**16])
                threading.Event().wait(hub.slow)
            try:
                self.wfile.write(data[start : start + 2**16])
            except OSError:  # the client has gone
                self.close_connection = True
                return


def _git_hash(data):
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _entry(name, data, store):
    entry = {"rfilename": name, "size": len(data), "blobId": _git_hash(data)}
    if store == "lfs":
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 134}
    return entry


@contextmanager
def serving(models):
    """A running HubServer for `models`."""
    hub = HubServer(models)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
