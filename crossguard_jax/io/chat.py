"""What is said to a chat endpoint and what it answers; where one is, and what it may cost."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import images


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; ``content`` is text, or parts of which bytes are an encoded picture."""

    role: str
    content: str | tuple[str | bytes, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One chat completion; ``max_tokens`` is the longest answer."""

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint said.

    Attributes:
        text: of the first choice; its refusal where the model refused, "" where it said nothing.
        finish_reason: "stop", "length" (cut short), "content_filter", ...
        model: by the endpoint's own account.
        prompt_tokens: billed; None when the endpoint did not say.
        completion_tokens: the same of the answer.
        cached: read from the disk, not asked now.
    """

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer; it is not kept, so the next run asks again.

    Attributes:
        reason: one line.
        status: the last HTTP status; 0 where there was none.
        refused: this request would fail again (a picture that the endpoint will not take).
        sent: whether the endpoint has seen it.
    """

    reason: str
    status: int = 0
    refused: bool = False
    sent: bool = True


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask, how patiently, and what it may cost. Units: seconds, US dollars.

    Attributes:
        base_url: up to and without ``/chat/completions``, such as ``http://127.0.0.1:8000/v1``.
        model: the name that the endpoint knows it by.
        key_env: the environment variable that holds the API key; "" sends none.
        parameters: laid over each request's own (``max_tokens``, ``temperature``); None leaves one
            out, as in ``{"max_tokens": None, "max_completion_tokens": 512}``.
        concurrency: requests under way at once, at most.
        connect_seconds: to connect.
        read_seconds: between two pieces of an answer.
        total_seconds: from sending to the last byte, of one attempt.
        attempts: of one request, at most.
        backoff_seconds: before the second attempt; doubles with each, less up to half at random.
        max_wait_seconds: the longest wait, and the most that a Retry-After is believed.
        failures_in_a_row: requests that fail with no success between them before the run stops.
        dollars_per_million_prompt: price of a million prompt tokens.
        dollars_per_million_completion: price of a million completion tokens.
        budget_dollars: of one client's life; no request starts once it is spent, so that it is
            overrun by the requests under way at most. None is no limit.
    """

    base_url: str
    model: str
    key_env: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    connect_seconds: float = 10.0
    read_seconds: float = 120.0
    total_seconds: float = 300.0
    attempts: int = 8
    backoff_seconds: float = 1.0
    max_wait_seconds: float = 60.0
    failures_in_a_row: int = 20
    dollars_per_million_prompt: float = 0.0
    dollars_per_million_completion: float = 0.0
    budget_dollars: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError for what cannot work."""
        # A mistyped URL is not shown: it may hold a password where none was looked for.
        no_url = "base_url is no web address; give http://HOST/v1"
        try:
            url = httpx2.URL(self.base_url)
        except httpx2.InvalidURL:
            raise UserError(no_url) from None
        if url.userinfo or url.query or url.fragment:
            raise UserError(
                "base_url carries a user, a query or a fragment; give http://HOST/v1 alone, and "
                "the key in the environment variable that key_env names"
            )
        if url.scheme not in ("http", "https") or not url.host:
            raise UserError(no_url)
        for name in ("concurrency", "attempts", "failures_in_a_row"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give at least 1")
        prices = (self.dollars_per_million_prompt, self.dollars_per_million_completion)
        if self.budget_dollars is not None and not sum(prices) > 0:
            raise UserError("budget_dollars needs dollars_per_million_prompt and _completion")

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def body(self, request: Request) -> dict[str, Any]:
        """The request as the endpoint takes it, pictures as ``data:`` URLs.

        Raises:
            UserError: a picture that is none, or a damaged one.
        """

        def part(picture: bytes) -> dict[str, Any]:
            return {"type": "image_url", "image_url": {"url": data_url(picture)}}

        return self._body(request, part)

    def canonical(self, request: Request) -> dict[str, Any]:
        """What an answer depends on: the body with each picture's SHA-256 in its place."""
        return self._body(request, lambda p: {"sha256": hashlib.sha256(p).hexdigest()})

    def _body(self, request: Request, picture: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        def content(message: Message) -> str | list[dict[str, Any]]:
            if isinstance(message.content, str):
                return message.content
            return [
                {"type": "text", "text": part} if isinstance(part, str) else picture(part)
                for part in message.content
            ]

        own = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        parameters = own | dict(self.parameters)
        return {
            "model": self.model,
            "messages": [{"role": m.role, "content": content(m)} for m in request.messages],
        } | {name: value for name, value in parameters.items() if value is not None}


def data_url(picture: bytes) -> str:
    """An encoded picture as a ``data:`` URL; what is not PNG, JPEG, GIF or WebP goes as PNG.

    Raises:
        UserError: the bytes are no picture, or a damaged one.
    """
    decoded = images.decode(picture, "the picture")
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for magic, kind in kinds.items() if picture.startswith(magic)), "")
    data = picture if kind else images.encode_png(decoded)
    return f"data:image/{kind or 'png'};base64,{base64.b64encode(data).decode()}"
