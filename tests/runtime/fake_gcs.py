"""A bucket on this machine: what gcsfs, google-cloud-storage and TensorStore ask of Cloud Storage.

Objects are in memory, each change is a generation of its own, as in the JSON API. What is wrong
with a bucket in the field (gone, no permission, an error now and then) can be set.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
COPY = re.compile(OBJECT.pattern + r"/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
LISTING = re.compile(r"/storage/v1/b/([^/]+)/o/?")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
UPLOAD = re.compile(r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o")


@dataclass(frozen=True)
class Blob:
    """An object as it was written."""

    content: bytes
    generation: int


@dataclass
class Bucket:
    """One bucket, and how it misbehaves.

    Attributes:
        name: of the only bucket that there is.
        blobs: by name.
        writes: names in the order in which they were written, once for each time.
        deletes: names in the order in which they were deleted.
        read_only: nothing may be written.
        failing: each so many-th request is answered with 500; 0 is none.
        held: names that match are not written before `release`, and `reached` is set as one comes.
    """

    name: str = "bucket"
    address: str = ""
    blobs: dict[str, Blob] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)
    read_only: bool = False
    failing: int = 0
    failures: int = 0
    held: str = ""
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    lock: Any = field(default_factory=threading.RLock)
    requests: int = 0
    sessions: dict[str, tuple[str, bytearray]] = field(default_factory=dict)
    _generation: int = 0

    def write(self, name: str, content: bytes) -> Blob:
        """Writes an object whole, as Cloud Storage does."""
        if self.held and re.search(self.held, name):
            self.reached.set()
            if not self.release.wait(60):
                raise ConnectionError(f"nobody waits for {name} any more")
        with self.lock:
            self._generation += 1
            self.blobs[name] = blob = Blob(content, self._generation)
            self.writes.append(name)
            return blob

    def environ(self) -> dict[str, str]:
        """What sends the clients here, and keeps them from looking for credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a token",
            "GCE_METADATA_MTLS_MODE": "none",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
    """A bucket, as long as the context lasts."""
    bucket = Bucket()

    handler = type("Handler", (_Handler,), {"bucket": bucket})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that has read enough hangs up
    bucket.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        bucket.release.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    bucket: Bucket
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self._body()
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        bucket = self.bucket
        with bucket.lock:
            bucket.requests += 1
            fails = bucket.failing and bucket.requests % bucket.failing == 0
            bucket.failures += bool(fails)
        if fails:
            return self._error(500, "an error now and then")
        if method != "GET" and bucket.read_only:
            return self._error(403, "no permission to storage.objects.create")
        if match := UPLOAD.fullmatch(url.path):
            if unquote(match[1]) == bucket.name:
                return self._upload(method, query, body)
        elif match := COPY.fullmatch(url.path):
            return self._copy(*map(unquote, match.groups()))
        elif match := OBJECT.fullmatch(url.path):
            if unquote(match[1]) == bucket.name:
                return self._object(method, unquote(match[2]), query)
        elif match := LISTING.fullmatch(url.path):
            if unquote(match[1]) == bucket.name:
                return self._list(query)
        elif match := BUCKET.fullmatch(url.path):
            if unquote(match[1]) == bucket.name:
                return self._json(
                    {"kind": "storage#bucket", "name": bucket.name, "id": bucket.name}
                )
        return self._error(404, "The specified bucket does not exist.")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _json(self, value: Any, code: int = 200, **headers: str) -> None:
        self._send(code, json.dumps(value).encode(), {"Content-Type": "application/json"} | headers)

    def _error(self, code: int, message: str) -> None:
        self._json({"error": {"code": code, "message": message}}, code)

    def _about(self, name: str, blob: Blob) -> dict[str, Any]:
        md5 = base64.b64encode(hashlib.md5(blob.content).digest()).decode()
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket.name,
            "size": str(len(blob.content)),
            "generation": str(blob.generation),
            "metageneration": "1",
            "md5Hash": md5,
            "etag": f"e{blob.generation}",
            "storageClass": "STANDARD",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def _kept(self, name: str, query: dict[str, str]) -> bool:
        """Whether the object is still of the generation that a change goes by; answers if not."""
        blob = self.bucket.blobs.get(name)
        now = blob.generation if blob else 0
        if int(query.get("ifGenerationMatch", now)) == now:
            return True
        self._error(412, "conditionNotMet")
        return False

    def _object(self, method: str, name: str, query: dict[str, str]) -> None:
        with self.bucket.lock:
            blob = self.bucket.blobs.get(name)
            if not self._kept(name, query):
                return
            if method == "DELETE" and blob:
                del self.bucket.blobs[name]
                self.bucket.deletes.append(name)
                return self._send(204, b"", {})
        if blob is None:
            return self._error(404, f"No such object: {self.bucket.name}/{name}")
        if int(query.get("ifGenerationNotMatch", -1)) == blob.generation:
            return self._send(304, b"", {})
        if query.get("alt") != "media":
            return self._json(self._about(name, blob))
        content, code = blob.content, 200
        headers = {"x-goog-generation": str(blob.generation), "ETag": f"e{blob.generation}"}
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            size = len(content)
            start = int(match[1]) if match[1] else size - int(match[2])
            end = min(int(match[2]) if match[1] and match[2] else size - 1, size - 1)
            if start >= size:
                return self._error(416, "range not satisfiable")
            content, code = content[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        self._send(code, content, headers | {"Content-Type": "application/octet-stream"})

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, end = query.get("startOffset", ""), query.get("endOffset", "")
        items, folders = [], set()
        with self.bucket.lock:
            for name, blob in sorted(self.bucket.blobs.items()):
                if not name.startswith(prefix) or name < first or (end and name >= end):
                    continue
                below = name[len(prefix) :]
                if delimiter and delimiter in below:
                    folders.add(prefix + below.partition(delimiter)[0] + delimiter)
                else:
                    items.append(self._about(name, blob))
        self._json({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def _copy(self, source: str, name: str, target: str, copy: str) -> None:
        blob = self.bucket.blobs.get(name)
        if blob is None or {source, target} != {self.bucket.name}:
            return self._error(404, "No such object")
        about = self._about(copy, self.bucket.write(copy, blob.content))
        self._json({"kind": "storage#rewriteResponse", "done": True, "resource": about})

    def _upload(self, method: str, query: dict[str, str], body: bytes) -> None:
        kind, name = query.get("uploadType"), query.get("name", "")
        if kind == "resumable":
            return self._resumable(method, query, body)
        if kind == "multipart":
            about, body = _parts(self.headers["Content-Type"], body)
            name = name or about["name"]
        with self.bucket.lock:
            if not self._kept(name, query):
                return
        self._json(self._about(name, self.bucket.write(name, body)))

    def _resumable(self, method: str, query: dict[str, str], body: bytes) -> None:
        sessions = self.bucket.sessions
        if method == "DELETE":
            return self._send(499, b"", {})  # what Cloud Storage says of an upload that is given up
        if "upload_id" not in query:
            session = f"s{len(sessions)}"
            sessions[session] = (query.get("name") or json.loads(body)["name"], bytearray())
            place = f"{self.bucket.address}{urlsplit(self.path).path}?uploadType=resumable"
            return self._json({}, Location=f"{place}&upload_id={session}")
        name, content = sessions[query["upload_id"]]
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"])
        assert match, self.headers["Content-Range"]
        if match[1]:
            content[int(match[1]) :] = body
        if match[3] != "*" and len(content) == int(match[3]):
            return self._json(self._about(name, self.bucket.write(name, bytes(content))))
        received = {"Range": f"bytes=0-{len(content) - 1}"} if content else {}
        self._send(308, b"", received)


def _parts(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """An upload's description and content, which come as two parts of one body."""
    match = re.search(r'boundary="?([^";]+)"?', content_type)
    assert match, content_type
    _, about, content, _ = body.split(b"--" + match[1].encode(), 3)
    return (
        json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1]),
        re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1].removesuffix(b"\n").removesuffix(b"\r"),
    )
