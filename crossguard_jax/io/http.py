"""Chat completions of any OpenAI-compatible endpoint, many at once, by the ``openai`` client.

That client speaks HTTP, retries and waits. Ours is what a long run needs besides: answers are kept
on disk by the content of their request, so that nothing is asked twice, and a budget ends the run.
One that was killed, or that the endpoint left, goes on where it was.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.io.chat import Answer, Endpoint, Failure, Request, image_part, read_completion
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.io.progress import Progress

if TYPE_CHECKING:  # it takes a second to import, and few runs ask an endpoint
    import openai

TICK_SECONDS = 1.0

_retries: contextvars.ContextVar[list[float]] = contextvars.ContextVar("retries")
"""The waits before each further attempt of the request that this task is about, in seconds."""


@dataclass(slots=True)
class Usage:
    """What a client has done and used so far; cached answers cost nothing, and once had a cost."""

    answered: int = 0
    cached: int = 0
    failed: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0

    def __str__(self) -> str:
        """One line, for a progress bar or a report."""
        text = f"{self.answered:,} asked, {self.cached:,} known, {self.failed:,} failed"
        text += f", {self.retries:,} asked again" if self.retries else ""
        return text + (f", ${self.dollars:.4f}" if self.dollars else "")


class ContentCache:
    """JSON values by the hash of what they are an answer to, one small file each.

    A file is written whole or not at all, so that neither a kill nor a second process on the same
    folder leaves half of one. A file that a failing disk damaged counts as absent.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was kept under ``key``, if anything."""
        try:
            return json.loads(self._path(key).read_bytes())["answer"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be read ({error.strerror})") from error
        except (ValueError, LookupError, TypeError):
            return None

    def answers(self) -> Iterator[dict[str, Any]]:
        """Everything that was kept, in no order."""
        for path in self.folder.glob("??/*.json"):
            if (kept := self.get(path.stem)) is not None:
                yield kept

    def put(self, key: str, request: Any, answer: dict[str, Any]) -> None:
        """Keeps ``answer``, with the request beside it for whoever looks."""
        try:
            write_atomic(self._path(key), json.dumps({"request": request, "answer": answer}))
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); make room or choose another"
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def content_key(value: Any) -> str:
    """SHA-256 of a JSON value, the same however its objects are ordered."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Client:
    """Asks one endpoint, many requests at once, and keeps every answer.

    The API key goes into the requests' header and nowhere else: not into the cache, an error, an
    answer that repeats it, or what this class shows of itself.

    Example:
        >>> client = Client(Endpoint(base_url="http://127.0.0.1:8000/v1", model="m"), "answers")
        >>> for index, outcome in client.complete_many(requests):
        ...     ...  # an Answer or a Failure of requests[index]

    Args:
        endpoint: where, and how.
        cache: the folder of answers; several processes may share it.

    Raises:
        UserError: the key's variable holds what cannot be a key.
    """

    def __init__(self, endpoint: Endpoint, cache: str | Path):
        self.endpoint, self.cache, self.usage = endpoint, ContentCache(cache), Usage()
        self._key = _read_key(endpoint.key_env)
        self._failed_in_a_row = 0

    def complete_many(
        self, requests: Iterable[Request], progress: Progress | None = None
    ) -> Iterator[tuple[int, Answer | Failure]]:
        """Yields ``(position in requests, outcome)`` as outcomes come in, each position once.

        Requests are drawn as they can be sent. Two of the same content are asked once. What has
        been answered is on the disk before it is yielded; closing the iterator, Ctrl-C or an error
        drops the requests under way and no more.

        Args:
            requests: any number.
            progress: takes notes of the usage; counting what is done is the caller's.

        Raises:
            UserError: the endpoint refuses the key or knows no such model, too many requests in a
                row have failed, the budget is spent, the cache's folder fails. What was answered
                is kept.
        """
        positions: dict[str, list[int]] = {}
        flying: dict[concurrent.futures.Future, str] = {}
        budget, self._failed_in_a_row = self.endpoint.budget_dollars, 0
        client = self._connect()
        with _running(client) as loop:
            for position, request in enumerate(requests):
                canonical = self.endpoint.body(request, _digest)
                key = content_key(canonical)
                if key in positions:
                    positions[key].append(position)
                    continue
                if (kept := self._kept(key)) is not None:
                    self.usage.cached += 1
                    self.usage.cached_prompt_tokens += kept.prompt_tokens or 0
                    self.usage.cached_completion_tokens += kept.completion_tokens or 0
                    yield position, kept
                    continue
                while len(flying) >= self.endpoint.concurrency:
                    yield from self._landed(flying, positions, progress)
                if budget is not None and self.usage.dollars >= budget:
                    while flying:
                        yield from self._landed(flying, positions, progress)
                    raise UserError(
                        f"the budget of ${budget:g} is spent ({self.usage}); raise budget_dollars "
                        "and run again: what was answered is kept"
                    )
                positions[key] = [position]
                asking = self._ask(client, key, canonical, request)
                flying[asyncio.run_coroutine_threadsafe(asking, loop)] = key
            while flying:
                yield from self._landed(flying, positions, progress)

    def _landed(
        self,
        flying: dict[concurrent.futures.Future, str],
        positions: dict[str, list[int]],
        progress: Progress | None,
    ) -> Iterator[tuple[int, Answer | Failure]]:
        """Waits a moment for some request to be over; yields those that are."""
        first = concurrent.futures.FIRST_COMPLETED
        for task in concurrent.futures.wait(flying, TICK_SECONDS, return_when=first).done:
            key, outcome = flying.pop(task), task.result()
            for position in positions.pop(key):
                yield position, outcome
        if progress is not None:
            progress.update(0, note=str(self.usage))

    def _kept(self, key: str) -> Answer | None:
        kept = self.cache.get(key)
        try:
            return None if kept is None else Answer(**kept, cached=True)
        except TypeError:  # another version's, or a damaged file's
            return None

    async def _ask(
        self, client: "openai.AsyncOpenAI", key: str, canonical: Any, request: Request
    ) -> Answer | Failure:
        """Raises UserError for what every other request would meet too."""
        try:
            body = self.endpoint.body(request, image_part)
        except UserError as error:
            self.usage.failed += 1
            return Failure(str(error))
        _retries.set([])
        outcome = await self._complete(client, body)
        self.usage.retries += len(_retries.get())
        if isinstance(outcome, Answer):
            outcome = replace(outcome, retries=len(_retries.get()))
            kept = asdict(outcome)
            del kept["cached"]
            self.cache.put(key, canonical, kept)
            self._bill(outcome)
            self._failed_in_a_row = 0
            return outcome
        self.usage.failed += 1
        self._failed_in_a_row += not (outcome.refused and self._works)
        if self._failed_in_a_row >= self.endpoint.failures_in_a_row:
            raise UserError(
                f"{self.endpoint.url}: {self._failed_in_a_row} requests in a row have failed "
                f"(the last: {outcome.reason}); mend the endpoint and run again: what was "
                "answered is kept"
            )
        return outcome

    async def _complete(
        self, client: "openai.AsyncOpenAI", body: dict[str, Any]
    ) -> Answer | Failure:
        import openai

        no_key = {} if self._key else {"Authorization": openai.Omit()}
        model, messages = body.pop("model"), body.pop("messages")
        try:
            async with asyncio.timeout(self.endpoint.total_seconds):
                completion = await client.chat.completions.create(
                    model=model, messages=messages, extra_body=body, extra_headers=no_key
                )
        except openai.APIStatusError as error:
            return self._refused(error)
        except TimeoutError:
            return Failure("no answer within total_seconds; raise it")
        except openai.APITimeoutError:
            return Failure("no answer within read_seconds (or connect_seconds); raise it")
        except openai.APIConnectionError as error:
            # By name: which library's class it is depends on the client's version.
            kind = type(error.__cause__).__name__
            reason = self._line(f"{kind}: {error.__cause__}")
            if kind == "ConnectError" and not self._works:
                raise UserError(
                    f"{self.endpoint.url}: nobody answers there ({reason}), asked "
                    f"{1 + len(_retries.get())} times; start the endpoint, or correct base_url"
                ) from error
            return Failure(reason)
        except (ValueError, RecursionError) as error:
            return Failure(self._line(f"the answer is not JSON: {error}"))
        try:
            answer = read_completion(completion)
        except (LookupError, TypeError, AttributeError):
            return Failure(self._line(f"not a chat completion: {completion}"))
        text, refusal = self._clean(answer.text), self._clean(answer.refusal)
        return replace(answer, text=text, refusal=refusal, model=self._clean(answer.model))

    def _refused(self, error: "openai.APIStatusError") -> Failure:
        """Raises UserError where the endpoint would refuse every request."""
        status, body = error.status_code, error.body
        text = body.get("message") if isinstance(body, dict) else None
        reason = self._line(f"HTTP {status}: {text or error.response.text}")
        # Later, 403 and 404 may be about one picture only: some endpoints moderate so.
        if status == 401 or (status == 403 and not self._works):
            name = self.endpoint.key_env or "the variable that key_env is to name"
            raise UserError(f"{self.endpoint.url} refuses the key ({reason}); set {name}")
        if (status < 400 or status in (404, 405)) and not self._works:
            raise UserError(f"{self.endpoint.url}: {reason}; correct base_url or model")
        return Failure(reason, refused=status < 500 and status not in (408, 409, 429))

    @property
    def _works(self) -> bool:
        return self.usage.answered + self.usage.cached > 0

    def _bill(self, answer: Answer) -> None:
        usage, prices = self.usage, self.endpoint
        usage.answered += 1
        if answer.prompt_tokens is None or answer.completion_tokens is None:
            if prices.budget_dollars is not None:
                raise UserError(
                    f"{prices.url} reports no usage, so a budget cannot be kept; unset "
                    "budget_dollars and watch the bill elsewhere"
                )
            return
        usage.prompt_tokens += answer.prompt_tokens
        usage.completion_tokens += answer.completion_tokens
        usage.dollars += prices.dollars(answer.prompt_tokens, answer.completion_tokens)

    def _connect(self) -> "openai.AsyncOpenAI":
        import openai

        scale = self.endpoint.backoff_seconds / 0.5  # which is the client's own

        class Paced(openai.AsyncOpenAI):
            """The client has no setting for the pace of its attempts."""

            def _calculate_retry_timeout(
                self, remaining_retries: int, options: Any, response_headers: Any = None
            ) -> float:
                seconds = super()._calculate_retry_timeout(
                    remaining_retries, options, response_headers
                )
                seconds *= 1 if "retry-after" in (response_headers or {}) else scale
                _retries.get().append(seconds)
                return seconds

        read, connect = self.endpoint.read_seconds, self.endpoint.connect_seconds
        return Paced(
            base_url=self.endpoint.base_url,
            api_key=self._key or "none",  # it would take the environment's
            max_retries=self.endpoint.attempts - 1,
            timeout=openai.Timeout(read, connect=connect, pool=None),
        )

    def _clean(self, text: str) -> str:
        # What is shorter is no secret but a filler ("EMPTY") for servers that want none.
        return text.replace(self._key, "***") if len(self._key) >= 8 else text

    def _line(self, text: str) -> str:
        return " ".join(self._clean(text).split())[:300]


@contextlib.contextmanager
def _running(client: "openai.AsyncOpenAI") -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own; at the end, what is still under way is dropped.

    Nobody waits for that thread: an iterator that was left does not hold up the process's end.
    """
    started: concurrent.futures.Future = concurrent.futures.Future()

    async def serve() -> None:
        async with client:
            stop = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    loop, stop = started.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(stop.set)


def _digest(picture: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(picture).hexdigest()}


def _read_key(name: str) -> str:
    """The API key in the environment variable ``name``; no message shows either's content."""
    # A key given in the name's place must not be shown as a variable that is missing.
    if name and not re.fullmatch("[A-Z][A-Z0-9_]*", name):
        raise UserError(
            "key_env is not the name of an environment variable; give one in capitals, such as "
            "OPENAI_API_KEY, and never the key itself"
        )
    key = os.environ.get(name, "").strip()
    if name and not re.fullmatch("[!-~]+", key):
        raise UserError(f"the environment variable {name} holds no API key; put it there")
    return key
