"""What is said to a chat endpoint and what it answers; where one is, and what it may cost."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import images


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; ``content`` is text, or parts of which bytes are an encoded picture."""

    role: str
    content: str | tuple[str | bytes, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One chat completion; ``max_tokens`` is the longest answer, ``seed`` tells votes apart."""

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint said.

    Attributes:
        text: the text parts of the first choice, joined; what it thought aloud is none of them.
        finish_reason: "stop", "length" (cut short), "content_filter", ...
        model: by the endpoint's own account.
        prompt_tokens: billed; None when the endpoint did not say.
        completion_tokens: the same of the answer.
        refusal: the model's words where it refused, marked as such by the endpoint.
        reasoning: whether it thought aloud, apart from the text.
        tokens: where log-probabilities were asked for and given, of each token of the answer those
            in nats of what else might have stood there, the token itself first.
        retries: attempts that failed before it came.
        cached: read from the disk, not asked now.
    """

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    refusal: str = ""
    reasoning: bool = False
    tokens: list[dict[str, float]] = field(default_factory=list)
    retries: int = 0
    cached: bool = False

    @property
    def problem(self) -> str:
        """Why the text is no whole answer, and the mend; "" where it is one."""
        if self.refusal:
            return f"refused: {self.refusal}"
        if self.reasoning and not self.text:
            return "only reasoning; raise max_completion_tokens"
        if self.finish_reason == "length":
            return "cut short; raise max_completion_tokens"
        return ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer, in a line; it is not kept, so the next run asks again.

    ``refused`` is that this request would fail again (a picture that the endpoint will not take).
    """

    reason: str
    refused: bool = False


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask, how patiently, and what it may cost. Units: seconds, US dollars.

    Attributes:
        base_url: up to and without ``/chat/completions``, such as ``http://127.0.0.1:8000/v1``.
        model: the name that the endpoint knows it by.
        key_env: the environment variable that holds the API key; "" sends none.
        parameters: laid over each request's own (``max_tokens``, ``temperature``); None leaves the
            request's. ``max_completion_tokens``, which reasoning models want, replaces
            ``max_tokens``.
        concurrency: requests under way at once, at most.
        connect_seconds: to connect.
        read_seconds: between two pieces of an answer.
        total_seconds: of one request, its attempts and the waits between them included.
        attempts: of one request, at most; the ``openai`` client makes them, as long as what failed
            may pass, and waits for as long as a Retry-After asks (two minutes at most).
        backoff_seconds: before the second attempt, where the endpoint names no time; doubles with
            each, up to sixteen times it, less up to a quarter at random.
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
    total_seconds: float = 600.0
    attempts: int = 8
    backoff_seconds: float = 1.0
    failures_in_a_row: int = 20
    dollars_per_million_prompt: float = 0.0
    dollars_per_million_completion: float = 0.0
    budget_dollars: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError for what cannot work."""
        # A mistyped URL is not shown: it may hold a password where none was looked for.
        try:
            url = urlsplit(self.base_url)
            host = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            host = False
        if not host:
            raise UserError("base_url is no web address; give http://HOST/v1")
        if url.username or url.password or url.query or url.fragment:
            raise UserError(
                "base_url carries a user, a query or a fragment; give http://HOST/v1 alone, and "
                "the key in the environment variable that key_env names"
            )
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

    def dollars(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        dollars = prompt_tokens * self.dollars_per_million_prompt
        return (dollars + completion_tokens * self.dollars_per_million_completion) / 1e6

    def body(self, request: Request, picture: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        """The request as the endpoint takes it, each picture as ``picture`` writes it."""

        def content(message: Message) -> str | list[dict[str, Any]]:
            if isinstance(message.content, str):
                return message.content
            return [
                {"type": "text", "text": part} if isinstance(part, str) else picture(part)
                for part in message.content
            ]

        parameters = {k: v for k, v in self.parameters.items() if v is not None}
        own: dict[str, Any] = {"temperature": request.temperature}
        if request.seed is not None:
            own["seed"] = request.seed
        if "max_completion_tokens" not in parameters:
            own["max_tokens"] = request.max_tokens
        return {
            "model": self.model,
            "messages": [{"role": m.role, "content": content(m)} for m in request.messages],
        } | (own | parameters)


def image_part(picture: bytes) -> dict[str, Any]:
    """An encoded picture as a ``data:`` URL; what is not PNG, JPEG, GIF or WebP goes as PNG.

    Raises:
        UserError: the bytes are no picture, or a damaged one.
    """
    decoded = images.decode(picture, "the picture")
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for magic, kind in kinds.items() if picture.startswith(magic)), "")
    data = picture if kind else images.encode_png(decoded)
    url = f"data:image/{kind or 'png'};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def read_completion(completion: Any) -> Answer:
    """The first choice of the ``openai`` client's ChatCompletion, which it does not validate.

    Raises:
        LookupError, TypeError, AttributeError: it is no chat completion.
    """
    choice, usage = completion.choices[0], completion.usage
    content, extra = choice.message.content, choice.message.model_extra or {}
    # Parts are not in OpenAI's schema of an answer, but other endpoints send them.
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    texts = {"text": "", "refusal": choice.message.refusal or ""}
    for part in parts:
        if part["type"] in texts:
            texts[part["type"]] += part[part["type"]]
    if choice.finish_reason == "content_filter" and not texts["text"]:
        texts["refusal"] = texts["refusal"] or "by a content filter"
    thoughts = extra.get("reasoning_content") or extra.get("reasoning")
    prompt = getattr(usage, "prompt_tokens", None)
    completed = getattr(usage, "completion_tokens", None)
    return Answer(
        texts["text"],
        str(choice.finish_reason or ""),
        str(completion.model or ""),
        prompt if isinstance(prompt, int) else None,
        completed if isinstance(completed, int) else None,
        texts["refusal"],
        bool(thoughts or {part["type"] for part in parts} - texts.keys()),
        [_alternatives(token) for token in getattr(choice.logprobs, "content", None) or ()],
    )


def _alternatives(token: Any) -> dict[str, float]:
    """A token's log-probability, and those of what else might have stood there."""
    others = {each.token: float(each.logprob) for each in token.top_logprobs or ()}
    return {token.token: float(token.logprob)} | others
