"""The HTTP client against a real server that is slow, fails, talks nonsense and dies."""

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.io.chat import Answer, Endpoint, Failure, Message, Request, data_url
from crossguard_jax.io.http import Client, ContentCache, retry_after
from crossguard_jax.io.progress import Progress
from tests.chat_server import Asked, Behaviour, ChatServer, Reply, refused, said

KEY = "sk-household-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("CHAT_KEY", KEY)


def picture(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def digest(picture: bytes) -> str:
    return hashlib.sha256(picture).hexdigest()


def asks(n: int, start: int = 0) -> list[Request]:
    return [
        Request((Message("user", ("what is it?", picture(i))),), max_tokens=9)
        for i in range(start, start + n)
    ]


def endpoint(url: str, **changes: Any) -> Endpoint:
    patience = {"backoff_seconds": 0.005, "max_wait_seconds": 0.2, "attempts": 4}
    fields = {"base_url": url, "model": "m", "key_env": "CHAT_KEY", "concurrency": 4}
    return Endpoint(**fields | patience | changes)


def echo(asked: Asked) -> Reply:
    """An answer that only its own request can have."""
    return said(asked.pictures[0] if asked.pictures else "text")


def later(asked: Asked, seconds: float) -> Reply:
    return replace(echo(asked), delay=seconds)


def flaky(*replies: Reply) -> Behaviour:
    """Gives each request these replies in turn, then an answer."""
    return lambda a: replies[a.nth - 1] if a.nth <= len(replies) else echo(a)


def run(server: ChatServer, requests: list[Request], cache: Path, **changes: Any) -> dict:
    return dict(Client(endpoint(server.url, **changes), cache).complete_many(requests))


def assert_all_answered(requests: list[Request], outcomes: dict[int, Answer | Failure]) -> None:
    assert sorted(outcomes) == list(range(len(requests)))
    for index, request in enumerate(requests):
        outcome = outcomes[index]
        assert isinstance(outcome, Answer), outcome
        assert outcome.text == digest(request.messages[0].content[1])


def test_the_request_is_what_the_openai_client_sends(tmp_path):
    data = picture(0)
    messages = (
        Message("system", "be brief \u2028 \U0001f600"),
        Message("user", ("what is it?", data, "and this?", picture(1, "JPEG"))),
    )
    parameters = {"max_tokens": None, "max_completion_tokens": 7, "seed": 3}
    with ChatServer(echo) as server:
        client = Client(endpoint(server.url, parameters=parameters), tmp_path)
        [(_, ours)] = client.complete_many([Request(messages, temperature=0.5)])
        theirs = openai.OpenAI(base_url=server.url, api_key=KEY).chat.completions.create(
            model="m",
            messages=[
                {"role": "system", "content": messages[0].content},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is it?"},
                        {"type": "image_url", "image_url": {"url": data_url(data)}},
                        {"type": "text", "text": "and this?"},
                        {"type": "image_url", "image_url": {"url": data_url(picture(1, "JPEG"))}},
                    ],
                },
            ],
            temperature=0.5,
            max_completion_tokens=7,
            seed=3,
        )
    first, second = server.asked
    assert first.body == second.body and first.path == second.path == "/v1/chat/completions"
    for header in ("authorization", "content-type"):
        assert first.headers[header] == second.headers[header]
    usage, choice = theirs.usage, theirs.choices[0]
    assert ours == Answer(
        *(choice.message.content, choice.finish_reason, theirs.model),
        *(usage.prompt_tokens, usage.completion_tokens),
    )
    assert first.pictures == [digest(data), digest(picture(1, "JPEG"))]


@pytest.mark.parametrize(
    ("status", "theirs"),
    [
        *((400, openai.BadRequestError), (401, openai.AuthenticationError)),
        *((429, openai.RateLimitError), (500, openai.InternalServerError)),
    ],
)
def test_the_servers_errors_are_those_of_the_openai_client(status, theirs):
    with ChatServer(lambda a: refused(status, "the reason")) as server:
        client = openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0)
        with pytest.raises(theirs, match="the reason"):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])


BAD_ONCE = {
    "error_500": refused(500),
    "error_503_without_a_body": Reply(b"", 503),
    "timeout_408": refused(408),
    "conflict_409": refused(409),
    "rate_limit_without_a_time": refused(429),
    "invalid_json": Reply(b'{"choices": [{"mess'),
    "html": Reply(b"<html>busy</html>"),
    "not_utf8": Reply(b"\xff\xfe\xfa"),
    "deep_json": Reply(b"[" * 100_000),
    "no_choices": Reply({"choices": []}),
    "an_error_under_200": Reply({"error": {"message": "overloaded"}}),
    "no_message": Reply({"choices": [{"message": None}]}),
    "content_of_another_type": said(["safe"]),
    "dropped_mid_body": Reply({"a": "b" * 1000}, cut_at=100),
    "dropped_at_once": Reply({"a": "b"}, cut_at=0),
    "bad_compression": Reply(b"not gzip", headers={"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("bad", BAD_ONCE.values(), ids=BAD_ONCE)
def test_what_fails_once_is_asked_again_and_nothing_is_lost(tmp_path, bad):
    requests = asks(5)
    with ChatServer(flaky(bad, bad)) as server:
        outcomes = run(server, requests, tmp_path)
        assert_all_answered(requests, outcomes)
        assert set(server.times_asked.values()) == {3}
        again = run(server, requests, tmp_path)
        assert len(server.asked) == 15
    assert all(outcome.cached for outcome in again.values())
    assert_all_answered(requests, again)


def test_a_mixture_of_everything_bad_loses_nothing_and_asks_for_nothing_twice(tmp_path):
    """Each request draws its own misfortunes; those that stay unanswered are finished later."""
    requests = asks(40)

    def misfortune(asked: Asked) -> Reply:
        rng = random.Random(f"{asked.pictures} {asked.nth}")
        return rng.choice([*BAD_ONCE.values()]) if rng.random() < 0.6 else echo(asked)

    with ChatServer(misfortune) as server:
        first = run(server, requests, tmp_path, attempts=2)
        done = {i for i, outcome in first.items() if isinstance(outcome, Answer)}
        before = server.times_asked
        assert sorted(first) == list(range(40)) and 0 < len(done) < 40
        second = run(server, requests, tmp_path, attempts=30)
        assert_all_answered(requests, second)
        for index, request in enumerate(requests):
            h = digest(request.messages[0].content[1])
            assert (server.times_asked[h] == before[h]) == (index in done)


def test_one_request_that_fails_for_good_does_not_stop_the_others(tmp_path):
    requests = asks(6)
    requests[2] = Request((Message("user", ("?", b"not a picture")),))
    bad = digest(requests[3].messages[0].content[1])

    def behaviour(asked: Asked) -> Reply:
        return refused(422, "cannot see it") if asked.pictures == [bad] else echo(asked)

    with ChatServer(behaviour) as server:
        outcomes = run(server, requests, tmp_path)
        assert server.times_asked[bad] == 1
        assert len(server.asked) == 5
    assert "not a picture" in outcomes[2].reason and not outcomes[2].sent
    assert outcomes[3] == Failure("HTTP 422: cannot see it", 422, refused=True)
    assert {i for i, o in outcomes.items() if isinstance(o, Answer)} == {0, 1, 4, 5}


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_a_refused_key_or_unknown_model_stops_the_run_at_once(tmp_path, status):
    with ChatServer(lambda a: refused(status, f"bad {KEY}")) as server:
        mend = "CHAT_KEY" if status in (401, 403) else "base_url or model"
        with pytest.raises(UserError, match=f"HTTP {status}.*{mend}") as error:
            run(server, asks(200), tmp_path)
        assert len(server.asked) <= 8  # no more than were under way
    assert KEY not in str(error.value)


def test_a_403_about_one_picture_is_that_pictures_own(tmp_path):
    requests = asks(6)
    bad = digest(requests[4].messages[0].content[1])
    with ChatServer(lambda a: refused(403) if bad in a.pictures else echo(a)) as server:
        for _ in range(2):
            outcomes = run(server, requests, tmp_path, concurrency=1)
            assert [i for i, o in outcomes.items() if isinstance(o, Failure)] == [4]


def test_a_retry_after_is_honoured_by_every_request(tmp_path):
    refused_at, came = [], []

    def behaviour(asked: Asked) -> Reply:
        came.append(time.monotonic())
        if len(came) == 1:
            refused_at.append(time.monotonic())
            return refused(429, retry_after="0.3")
        return echo(asked)

    with ChatServer(behaviour) as server:
        outcomes = run(server, asks(6), tmp_path, concurrency=1, max_wait_seconds=1.0)
    assert_all_answered(asks(6), outcomes)
    assert all(at - refused_at[0] >= 0.3 for at in came[1:])


def test_an_endless_retry_after_is_capped(tmp_path):
    bad = refused(429, retry_after="86400")
    with ChatServer(flaky(bad)) as server:
        began = time.monotonic()
        outcomes = run(server, asks(3), tmp_path, max_wait_seconds=0.1)
        assert time.monotonic() - began < 5
    assert_all_answered(asks(3), outcomes)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("3", 3.0), ("0.25", 0.25), ("-4", 0.0), ("nan", 0.0), ("", 0.0), ("soon", 0.0)),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(value, seconds):
    assert retry_after(value, now=1000.0) == seconds


def test_a_slow_answer_is_given_up_and_asked_again(tmp_path):
    with ChatServer(flaky(Reply({}, delay=60.0))) as server:
        for name in ("read_seconds", "total_seconds"):
            requests = asks(2, start=10 * len(server.asked))
            began = time.monotonic()
            outcomes = run(server, requests, tmp_path, **{name: 1.0})
            assert time.monotonic() - began < 30
            assert_all_answered(requests, outcomes)


def test_requests_run_at_once_up_to_the_bound_and_no_more(tmp_path):
    with ChatServer(lambda a: later(a, 0.03)) as server:
        run(server, asks(12), tmp_path, concurrency=3)
        assert server.most_at_once == 3


def test_answers_come_as_they_are_ready_and_requests_are_drawn_as_they_can_be_sent(tmp_path):
    slow, another_came = digest(picture(0)), threading.Event()
    drawn = []

    def requests():
        for i, request in enumerate(asks(30)):
            drawn.append(i)
            yield request

    def behaviour(asked: Asked) -> Reply:
        if asked.pictures == [slow]:
            another_came.wait(30)
        return echo(asked)

    with ChatServer(behaviour) as server:
        client = Client(endpoint(server.url), tmp_path)
        answers = client.complete_many(requests())
        first = next(answers)
        assert first[0] != 0 and len(drawn) == client.endpoint.concurrency + 1
        another_came.set()
        outcomes = dict([first, *answers])
    assert_all_answered(asks(30), outcomes)


def test_equal_requests_are_asked_once(tmp_path):
    requests = asks(3) * 5
    with ChatServer(lambda a: later(a, 0.02)) as server:
        assert_all_answered(requests, run(server, requests, tmp_path, concurrency=2))
        assert set(server.times_asked.values()) == {1}


def test_a_server_that_dies_stops_the_run_and_a_new_run_finishes_the_rest(tmp_path):
    requests = asks(30)
    server = ChatServer(echo)

    def behaviour(asked: Asked) -> Reply:
        if len(server.asked) < 12:
            return echo(asked)
        server.die()
        return Reply({}, cut_at=0)

    server.behaviour = behaviour
    server.start()
    answered = {}
    with pytest.raises(UserError, match="requests in a row have failed.*run again"):
        for index, outcome in Client(
            endpoint(server.url, attempts=2, failures_in_a_row=5), tmp_path
        ).complete_many(requests):
            if isinstance(outcome, Answer):
                answered[index] = outcome
    assert 0 < len(answered) < 12
    server.behaviour = echo
    with server:
        assert_all_answered(requests, run(server, requests, tmp_path))
    for index in answered:
        assert server.times_asked[digest(picture(index))] == 1
    # What was under way when it died was asked without an answer, and nothing else twice.
    assert sum(server.times_asked.values()) <= 30 + 4


def test_a_server_that_comes_back_in_time_is_waited_for(tmp_path):
    requests, died = asks(20), []
    server = ChatServer(echo)

    def behaviour(asked: Asked) -> Reply:
        if len(server.asked) == 8 and not died:
            died.append(True)
            server.die()
            threading.Timer(0.2, server.start).start()
        return echo(asked)

    server.behaviour = behaviour
    with server:
        outcomes = run(server, requests, tmp_path, attempts=40, max_wait_seconds=0.05)
    assert_all_answered(requests, outcomes)


CHILD = """
import sys
from crossguard_jax.io.chat import Answer, Endpoint, Message, Request
from crossguard_jax.io.http import Client

url, cache, pictures = sys.argv[1], sys.argv[2], sys.argv[3:]
requests = [
    Request((Message("user", ("what is it?", open(p, "rb").read())),), max_tokens=9)
    for p in pictures
]
endpoint = Endpoint(base_url=url, model="m", concurrency=4)
for index, outcome in Client(endpoint, cache).complete_many(requests):
    print(index, outcome.text, flush=True)
"""


def child(
    server: ChatServer, folder: Path, n: int, code: str = CHILD, **more: Any
) -> subprocess.Popen:
    paths = []
    for i in range(n):
        paths.append(folder / f"{i:03}.png")
        paths[-1].write_bytes(picture(i))
    command = [sys.executable, "-c", code, server.url, str(folder / "cache"), *map(str, paths)]
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environ = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        # A suite that runs in the background has been told to ignore it, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **more,
    )


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, sign):
    requests, stopped = asks(40), threading.Event()

    def crawl(asked):  # from the twelfth on, so that the signal finds the run at work
        return later(asked, 0.01 if stopped.is_set() or len(server.asked) < 12 else 2.0)

    with ChatServer(crawl) as server:
        process = child(server, tmp_path, 40, stderr=subprocess.PIPE)
        told = [int(process.stdout.readline().split()[0]) for _ in range(10)]
        process.send_signal(sign)
        rest, error = process.communicate(timeout=30)
        stopped.set()
        told += [int(line.split()[0]) for line in rest.splitlines() if line.count(" ") == 1]
        assert process.returncode == -sign, error
        outcomes = run(server, requests, tmp_path / "cache")
    assert_all_answered(requests, outcomes)
    assert 10 <= len(told) < 40
    assert all(server.times_asked[digest(picture(i))] == 1 for i in told)
    assert sum(server.times_asked.values()) <= 40 + 4


def test_two_processes_on_one_cache_leave_it_whole(tmp_path):
    requests = asks(30)
    with ChatServer(echo) as server:
        processes = [child(server, tmp_path, 30) for _ in range(2)]
        told = [sorted(p.communicate(timeout=60)[0].splitlines()) for p in processes]
        assert [p.returncode for p in processes] == [0, 0]
        assert told[0] == told[1] and len(told[0]) == 30
        before = len(server.asked)
        assert_all_answered(requests, run(server, requests, tmp_path / "cache"))
        assert len(server.asked) == before
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 30
    assert all(json.loads(path.read_text())["answer"]["text"] for path in files)


def test_an_iterator_that_is_left_ends_with_the_process(tmp_path):
    code = CHILD.partition("for index")[0] + "answers = Client(endpoint, cache)"
    code += ".complete_many(requests)\nprint(next(answers))\n"
    with ChatServer(lambda a: later(a, 0.1)) as server:
        process = child(server, tmp_path, 8, code)
        told, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "Answer" in told


def test_a_run_that_is_left_is_over_at_once_and_asks_for_no_more(tmp_path):
    fast = digest(picture(0))
    with ChatServer(lambda a: later(a, 0.1 if a.pictures == [fast] else 60.0)) as server:
        began = time.monotonic()
        with contextlib.closing(
            Client(endpoint(server.url), tmp_path).complete_many(asks(30))
        ) as answers:
            assert next(answers)[0] == 0
        assert time.monotonic() - began < 30
        asked = len(server.asked)
        time.sleep(0.1)
        assert len(server.asked) == asked <= 5
        assert run(server, asks(1), tmp_path)[0].cached


def test_a_damaged_answer_on_the_disk_is_asked_again(tmp_path):
    requests = asks(4)
    with ChatServer(echo) as server:
        run(server, requests, tmp_path)
        damage = [b"", b"\0" * 50, b'{"answer": {"text": 3', b'{"answer": {"other": 1}}']
        for path, data in zip(sorted(tmp_path.rglob("*.json")), damage, strict=True):
            path.write_bytes(data)
        assert_all_answered(requests, run(server, requests, tmp_path))
        assert_all_answered(requests, run(server, requests, tmp_path))
        assert set(server.times_asked.values()) == {2}


def test_an_answer_is_kept_for_its_content_and_wherever_it_was_asked(tmp_path):
    same = asks(1)[0]
    others = [
        Request(same.messages, max_tokens=8),
        Request(same.messages, max_tokens=9, temperature=0.1),
        Request((Message("system", same.messages[0].content),), max_tokens=9),
        Request((Message("user", ("what is it? ", picture(0))),), max_tokens=9),
        Request((Message("user", ("what is it?", picture(1))),), max_tokens=9),
    ]
    with ChatServer(echo) as one, ChatServer(echo) as two:
        run(one, [same], tmp_path)
        assert run(two, [same], tmp_path)[0].cached
        assert not any(outcome.cached for outcome in run(two, others, tmp_path).values())
        assert not run(two, [same], tmp_path, model="n")[0].cached
        assert not run(two, [same], tmp_path, parameters={"seed": 1})[0].cached


def test_a_budget_ends_the_run_and_keeps_what_was_paid_for(tmp_path):
    prices = {
        "dollars_per_million_prompt": 100.0,
        "dollars_per_million_completion": 500.0,
    }  # 10 and 2 tokens: $0.002 an answer
    requests = asks(30)
    with ChatServer(echo) as server:
        client = Client(endpoint(server.url, budget_dollars=0.0159, **prices), tmp_path)
        outcomes = {}
        with pytest.raises(UserError, match=r"budget of \$0.0159 is spent.*run again"):
            outcomes.update(client.complete_many(requests))
        spent = len(server.asked)
        assert 8 <= spent <= 8 + 4 and client.usage.answered == spent
        assert client.usage.dollars == pytest.approx(0.002 * spent)
        assert (client.usage.prompt_tokens, client.usage.completion_tokens) == (
            *(10 * spent, 2 * spent),
        )
        assert_all_answered(requests, run(server, requests, tmp_path, **prices))
        assert len(server.asked) == 30
        # Everything is known by now, so that nothing is left to pay for.
        client = Client(endpoint(server.url, budget_dollars=0.0, **prices), tmp_path)
        assert_all_answered(requests, dict(client.complete_many(requests)))
        assert client.usage.dollars == 0 and client.usage.cached == 30


def test_a_budget_that_cannot_be_kept_is_an_error(tmp_path):
    with ChatServer(lambda a: said("safe", usage=None)) as server:
        assert run(server, asks(2), tmp_path)[1].prompt_tokens is None
        prices = {"dollars_per_million_prompt": 1.0}
        with pytest.raises(UserError, match="reports no usage"):
            run(server, asks(2, start=5), tmp_path, budget_dollars=1.0, **prices)
        with pytest.raises(UserError, match="dollars_per_million"):
            endpoint(server.url, budget_dollars=1.0)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "refusal": "I cannot look at it."}, "I cannot look at it."),
        ({"content": None}, ""),
        ({"content": "", "refusal": None}, ""),
    ],
)
def test_a_refusal_and_silence_are_answers(tmp_path, message, text):
    body = {"choices": [{"message": message, "finish_reason": "content_filter"}]}
    with ChatServer(lambda a: Reply(body)) as server:
        outcome = run(server, asks(1), tmp_path)[0]
    assert outcome == Answer(text, "content_filter", "", None, None)


def test_the_key_is_in_no_file_no_log_no_error_and_no_answer(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    noisy = [
        said(f"your key is {KEY}", model=KEY, finish_reason=KEY),
        refused(422, f"{KEY} " * 40),
        Reply(f"{'x' * 290} {KEY}".encode()),
        Reply({KEY: KEY}, 500, {"x-key": "none"}),
    ]
    by_picture = {digest(picture(i)): reply for i, reply in enumerate(noisy)}
    with ChatServer(lambda a: by_picture[a.pictures[0]]) as server:
        client = Client(endpoint(server.url), tmp_path)
        outcomes = dict(client.complete_many(asks(4)))
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))
    shown = (
        f"{outcomes} {client} {vars(client.endpoint)} {caplog.text} {''.join(capfd.readouterr())}"
    )
    for part in (KEY, KEY[:12], KEY[8:]):
        assert part.encode() not in files and part not in shown
    assert "your key is ***" in shown and len(outcomes) == 4
    assert b"your key is ***" in files


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("CHAT_KEY", "", "CHAT_KEY is not set"),
        ("CHAT_KEY", "sk-1 sk-2", "CHAT_KEY holds no API key"),
        ("CHAT_KEY", "sk-1\nx", "CHAT_KEY holds no API key"),
        ("CHAT_KEY", "sk-ü", "CHAT_KEY holds no API key"),
        ("sk-0123456789", "x", "not the name of an environment variable"),
        ("gsk_0123456789", "x", "not the name of an environment variable"),
    ],
)
def test_a_key_that_is_none_is_said_without_showing_it(tmp_path, monkeypatch, name, value, mend):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=mend) as error:
        Client(endpoint("http://127.0.0.1:1/v1", key_env=name), tmp_path)
    assert "sk-" not in str(error.value) and "gsk" not in str(error.value)


def test_no_key_is_sent_where_none_is_named(tmp_path):
    with ChatServer(echo) as server:
        run(server, asks(1), tmp_path, key_env="")
        assert "authorization" not in server.asked[0].headers


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8000/v1", "ftp://host/v1", "http://", "", "http://host:secret"),
        "user:secret@host/v1",
        *("http://user:secret@host/v1", "http://host/v1?key=secret", "http://host/v1#secret"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once_and_no_secret_in_it_is_shown(url):
    with pytest.raises(UserError, match="base_url") as error:
        endpoint(url)
    assert "secret" not in str(error.value)


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with ChatServer(echo) as server, pytest.raises(UserError, match="cannot be"):
        run(server, asks(1), tmp_path / "file")


def test_a_picture_of_a_kind_that_endpoints_do_not_take_is_sent_as_png():
    for kind in ("PNG", "JPEG", "GIF", "WEBP"):
        assert data_url(picture(0, kind)).startswith(f"data:image/{kind.lower()};base64,")
    assert data_url(picture(0, "BMP")) == data_url(picture(0, "PNG"))
    with pytest.raises(UserError, match="damaged"):
        data_url(picture(0)[:-30])


def test_progress_shows_the_usage_while_nothing_is_done(tmp_path):
    stream = io.StringIO()
    progress = Progress("judging", total=1, quiet_seconds=0.0, stream=stream)
    with ChatServer(lambda a: refused(400)) as server:
        client = Client(endpoint(server.url), tmp_path)
        assert len(list(client.complete_many(asks(1), progress))) == 1
    assert "0 asked, 0 known, 1 failed" in stream.getvalue() and progress.done == 0


def test_a_value_is_kept_under_its_key(tmp_path):
    cache = ContentCache(tmp_path)
    assert cache.get("ab12") is None
    cache.put("ab12", {"any": 1}, {"n": 2})
    assert cache.get("ab12") == {"n": 2} and cache.get("ab13") is None
    assert Counter(path.name for path in tmp_path.rglob("*.json")) == {"ab12.json": 1}
