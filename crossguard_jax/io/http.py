"""The one HTTP client: chat completions of any OpenAI-compatible endpoint, many at once.

Answers are kept on disk by the content of their request, so that nothing is asked twice: a run
that was killed, or that the endpoint left, goes on where it was.
"""

import atexit
import concurrent.futures
import hashlib
import json
import math
import os
import random
import re
import time
import weakref
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from crossguard_jax.core.errors import UserError
from crossguard_jax.io.chat import Answer, Endpoint, Failure, Request
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.io.progress import Progress

TRANSIENT = (408, 409, 425, 429)  # and every 5xx: the same request may be answered later
TICK_SECONDS = 1.0

_OPEN: "weakref.WeakSet[Generator]" = weakref.WeakSet()


@atexit.register
def _close() -> None:
    """Closes the runs that were left, while their event loops can still be waited for."""
    for run in list(_OPEN):
        run.close()


@dataclass(slots=True)
class Usage:
    """What a client has done and used so far; cached answers cost nothing."""

    answered: int = 0
    cached: int = 0
    failed: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0

    def __str__(self) -> str:
        """One line, for a progress bar or a report."""
        text = f"{self.answered:,} asked, {self.cached:,} known, {self.failed:,} failed"
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
        UserError: the key's variable is not set, or holds what cannot be a key.
    """

    def __init__(self, endpoint: Endpoint, cache: str | Path):
        self.endpoint, self.cache, self.usage = endpoint, ContentCache(cache), Usage()
        self._key = _read_key(endpoint.key_env)
        self._resume_at = -math.inf  # by the event loop's clock, when a rate limit ends
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
        run = self._run(requests, progress)
        _OPEN.add(run)
        return run

    def _run(
        self, requests: Iterable[Request], progress: Progress | None
    ) -> Generator[tuple[int, Answer | Failure], None, None]:
        asked_by: dict[str, list[int]] = {}
        flying: dict[concurrent.futures.Future, str] = {}
        self._failed_in_a_row, out_of_money = 0, False
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(self._connections()) as http,
        ):
            for index, request in enumerate(requests):
                canonical = self.endpoint.canonical(request)
                key = content_key(canonical)
                if key in asked_by:
                    asked_by[key].append(index)
                    continue
                if (known := self._known(key)) is not None:
                    self.usage.cached += 1
                    yield index, known
                    continue
                while len(flying) >= self.endpoint.concurrency:
                    yield from self._landed(flying, asked_by, progress)
                if out_of_money := self._spent():
                    break
                asked_by[key] = [index]
                task = portal.start_task_soon(self._ask, http, key, canonical, request)
                flying[task] = key
            while flying:
                yield from self._landed(flying, asked_by, progress)
            if out_of_money:
                raise UserError(
                    f"the budget of ${self.endpoint.budget_dollars:g} is spent ({self.usage}); "
                    "raise budget_dollars and run again: what was answered is kept"
                )

    def _known(self, key: str) -> Answer | None:
        kept = self.cache.get(key)
        try:
            return None if kept is None else Answer(**kept, cached=True)
        except TypeError:  # another version's, or a damaged file's
            return None

    def _landed(
        self,
        flying: dict[concurrent.futures.Future, str],
        asked_by: dict[str, list[int]],
        progress: Progress | None,
    ) -> Iterator[tuple[int, Answer | Failure]]:
        """Waits a moment for some request to be over; yields those that are."""
        first = concurrent.futures.FIRST_COMPLETED
        done, _ = concurrent.futures.wait(flying, TICK_SECONDS, return_when=first)
        for task in done:
            key = flying.pop(task)
            outcome = task.result()
            for index in asked_by.pop(key):
                yield index, outcome
            self._count(outcome)
        if progress is not None:
            progress.update(0, note=str(self.usage))

    def _count(self, outcome: Answer | Failure) -> None:
        """Raises UserError when so many fail in a row that it is not the requests' fault."""
        if isinstance(outcome, Answer):
            self._failed_in_a_row = 0
            return
        self.usage.failed += 1
        if outcome.sent and not (outcome.refused and self._works):
            self._failed_in_a_row += 1
        if self._failed_in_a_row >= self.endpoint.failures_in_a_row:
            raise UserError(
                f"{self.endpoint.url}: {self._failed_in_a_row} requests in a row have failed "
                f"(the last: {outcome.reason}); mend the endpoint and run again: what was "
                "answered is kept"
            )

    @property
    def _works(self) -> bool:
        return self.usage.answered + self.usage.cached > 0

    async def _ask(
        self, http: httpx2.AsyncClient, key: str, canonical: Any, request: Request
    ) -> Answer | Failure:
        """One request until it is answered, refused, or out of attempts."""
        try:
            body = json.dumps(self.endpoint.body(request)).encode()
        except UserError as error:
            return Failure(str(error), refused=True, sent=False)
        attempt = 0
        while True:
            await self._wait(attempt)
            attempt += 1
            outcome = await self._attempt(http, body)
            if isinstance(outcome, Answer):
                kept = asdict(outcome)
                del kept["cached"]
                self.cache.put(key, canonical, kept)
                self._bill(outcome)
                return outcome
            if outcome.refused:
                return outcome
            if attempt == self.endpoint.attempts:
                return replace(outcome, reason=f"{outcome.reason} ({attempt} attempts)")

    async def _wait(self, attempt: int) -> None:
        """Backs off before another attempt, and before any while a rate limit holds."""
        base, now = self.endpoint.backoff_seconds, anyio.current_time()
        spread = random.uniform(0.5, 1.0)  # so that those who were refused together part
        backoff = min(self.endpoint.max_wait_seconds, base * 2.0 ** (attempt - 1)) if attempt else 0
        until = now + backoff * spread
        while (left := max(until, self._resume_at + base * spread) - anyio.current_time()) > 0:
            await anyio.sleep(left)

    async def _attempt(self, http: httpx2.AsyncClient, body: bytes) -> Answer | Failure:
        """One HTTP exchange. Raises UserError for what every other request would meet too."""
        self.usage.attempts += 1
        try:
            with anyio.fail_after(self.endpoint.total_seconds):
                response = await http.post(self.endpoint.url, content=body)
        except TimeoutError:
            return Failure(f"no answer within {self.endpoint.total_seconds:g} s")
        except httpx2.RequestError as error:
            return Failure(self._line(f"{type(error).__name__}: {error}"))
        status = response.status_code
        if response.is_success:
            try:
                return self._read(response.content)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                return Failure(self._line(f"not a chat completion: {response.text}"), status)
        said = self._line(f"HTTP {status}: {_error_text(response)}")
        if status in TRANSIENT or status >= 500:
            seconds = retry_after(response.headers.get("retry-after", ""), time.time())
            if seconds > 0:
                until = anyio.current_time() + min(seconds, self.endpoint.max_wait_seconds)
                self._resume_at = max(self._resume_at, until)
            return Failure(said, status)
        # Later, 403 and 404 may be about one picture only: some endpoints moderate so.
        if status == 401 or (status == 403 and not self._works):
            name = self.endpoint.key_env or "the variable that key_env is to name"
            raise UserError(f"{self.endpoint.url} refuses the key ({said}); set {name}")
        if (status < 400 or status in (404, 405)) and not self._works:
            raise UserError(f"{self.endpoint.url}: {said}; correct base_url or model")
        return Failure(said, status, refused=True)

    def _read(self, content: bytes) -> Answer:
        """The first choice of a chat completion. Raises nearly anything for what is none."""
        value = json.loads(content)
        choice = value["choices"][0]
        text = choice["message"].get("content")
        if text is None:
            text = choice["message"].get("refusal") or ""
        if not isinstance(text, str):
            raise TypeError("the content is no text")
        usage = value.get("usage") or {}
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Answer(
            self._clean(text),
            self._clean(str(choice.get("finish_reason") or "")),
            self._clean(str(value.get("model") or "")),
            prompt if isinstance(prompt, int) else None,
            completion if isinstance(completion, int) else None,
        )

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
        usage.dollars += answer.prompt_tokens * prices.dollars_per_million_prompt / 1e6
        usage.dollars += answer.completion_tokens * prices.dollars_per_million_completion / 1e6

    def _spent(self) -> bool:
        budget = self.endpoint.budget_dollars
        return budget is not None and self.usage.dollars >= budget

    def _connections(self) -> httpx2.AsyncClient:
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        read, connect = self.endpoint.read_seconds, self.endpoint.connect_seconds
        return httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(read, connect=connect, pool=None),
            limits=httpx2.Limits(max_connections=self.endpoint.concurrency),
        )

    def _clean(self, text: str) -> str:
        # What is shorter is no secret but a filler ("EMPTY") for servers that want none.
        return text.replace(self._key, "***") if len(self._key) >= 8 else text

    def _line(self, text: str) -> str:
        return " ".join(self._clean(text).split())[:300]


def retry_after(value: str, now: float) -> float:
    """Seconds that a Retry-After header asks for, at UNIX time ``now``; 0 for what is none."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0


def _read_key(name: str) -> str:
    """The API key in the environment variable ``name``; no message shows either's content."""
    if not name:
        return ""
    # A key given in the name's place must not be shown as a variable that is missing.
    if not re.fullmatch("[A-Z][A-Z0-9_]*", name):
        raise UserError(
            "key_env is not the name of an environment variable; give one in capitals, such as "
            "OPENAI_API_KEY, and never the key itself"
        )
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"the environment variable {name} is not set; put the API key into it")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"the environment variable {name} holds no API key; set it again")
    return key


def _error_text(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return response.text
