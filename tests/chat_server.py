"""A real HTTP server that talks like an OpenAI-compatible one, and can be as bad as any."""

import base64
import hashlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What goes back: JSON (or raw bytes), after a delay, perhaps not to its end."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut_at: int | None = None  # bytes of the body before the connection is dropped


@dataclass(frozen=True)
class Asked:
    """What came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    nth: int  # time that this very body came, from 1

    @property
    def pictures(self) -> list[str]:
        """SHA-256 of each picture."""
        parts = [
            part
            for message in self.body["messages"]
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] == "image_url"
        ]
        encoded = [part["image_url"]["url"].partition("base64,")[2] for part in parts]
        return [hashlib.sha256(base64.b64decode(data)).hexdigest() for data in encoded]


Behaviour = Callable[[Asked], Reply]


def said(
    text: Any, model: str = "m", finish_reason: str = "stop", usage: Any = (10, 2), **fields: Any
) -> Reply:
    """An answer; ``usage`` is (prompt, completion) tokens or None, ``fields`` the message's own."""
    message = {"role": "assistant", "content": text} | fields
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": model}
    body |= {"choices": [choice]}
    if usage is not None:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        body["usage"] = dict(zip(names, (*usage, sum(usage)), strict=True))
    return Reply(body)


def refused(status: int, message: str = "no", **headers: str) -> Reply:
    """An error as OpenAI words it."""
    error = {"message": message, "type": "error", "param": None, "code": None}
    return Reply({"error": error}, status, {k.replace("_", "-"): v for k, v in headers.items()})


class ChatServer:
    """Answers as ``behaviour`` says; may be stopped, dead to everybody, and started again."""

    def __init__(self, behaviour: Behaviour):
        self.behaviour = behaviour
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._bodies: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._port = 0
        self._dead = threading.Event()
        self._dead.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def times_asked(self) -> Counter[str]:
        """Requests by the pictures' hash."""
        return Counter(picture for asked in self.asked for picture in asked.pictures)

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_port
        self._dead.clear()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def die(self) -> None:
        """Drops everything that is under way, as a killed process does. May be called twice."""
        with self._lock:
            dead = self._dead.is_set()
            self._dead.set()
        if dead:
            return
        self._server.shutdown()
        self._server.socket.close()
        with self._lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the client was first
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "ChatServer":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.die()

    def _take(self, handler: BaseHTTPRequestHandler) -> Asked:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            text = json.dumps(body)
            self._bodies[text] += 1
            headers = {k.lower(): v for k, v in handler.headers.items()}
            asked = Asked(handler.path, headers, body, self._bodies[text])
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return asked

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with outer._lock:
                    outer._connections.add(self.connection)

            def finish(self) -> None:
                with outer._lock:
                    outer._connections.discard(self.connection)
                try:
                    super().finish()
                except OSError:
                    pass

            def do_POST(self) -> None:
                asked = outer._take(self)
                reply = outer.behaviour(asked)
                outer._dead.wait(reply.delay)
                with outer._lock:
                    outer._at_once -= 1
                try:
                    self._send(reply)
                except OSError:
                    self.close_connection = True

            def _send(self, reply: Reply) -> None:
                raw = isinstance(reply.body, bytes)
                body = reply.body if raw else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                headers = {"content-type": "application/json", "content-length": str(len(body))}
                for name, value in (headers | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: reply.cut_at])
                if reply.cut_at is not None:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
