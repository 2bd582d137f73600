"""The HTTP client against a real server that is slow, fails, talks nonsense and dies."""

import contextlib
import hashlib
import io
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.io.chat import Answer, Endpoint, Failure, Message, Request, image_part
from crossguard_jax.io.http import Client
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
    patience = {"backoff_seconds": 0.005, "attempts": 4}
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


def test_the_request_is_posted_with_the_key_and_every_picture_in_its_place(tmp_path):
    data, text = picture(0), "be brief \u2028 \U0001f600"
    user = Message("user", ("what is it?", data, "and this?", picture(1, "JPEG")))
    with ChatServer(echo) as server:
        run(server, [Request((Message("system", text), user))], tmp_path)
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.pictures == [digest(data), digest(picture(1, "JPEG"))]
    system, parts = (message["content"] for message in asked.body["messages"])
    assert system == text
    assert [part["type"] for part in parts] == ["text", "image_url"] * 2


@pytest.mark.parametrize(
    ("parameters", "sent"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 9}),
        ({"max_tokens": None, "temperature": None}, {"temperature": 0.0, "max_tokens": 9}),
        ({"max_tokens": 5, "seed": 3}, {"temperature": 0.0, "max_tokens": 5, "seed": 3}),
        ({"max_completion_tokens": 7}, {"temperature": 0.0, "max_completion_tokens": 7}),
        (
            {"max_completion_tokens": 7, "temperature": 1.0, "enable": {"thinking": False}},
            {"max_completion_tokens": 7, "temperature": 1.0, "enable": {"thinking": False}},
        ),
    ],
)
def test_an_endpoints_parameters_go_over_the_requests_own(tmp_path, parameters, sent):
    with ChatServer(echo) as server:
        run(server, asks(1), tmp_path, parameters=parameters)
    body = server.asked[0].body
    assert {k: v for k, v in body.items() if k not in ("model", "messages")} == sent


BAD_FOR_NOW = {
    "error_500": refused(500),
    "rate_limit": refused(429, retry_after="0.01"),
    "dropped_mid_body": Reply({"a": "b" * 1000}, cut_at=100),
}


@pytest.mark.parametrize("bad", BAD_FOR_NOW.values(), ids=BAD_FOR_NOW)
def test_what_fails_for_now_is_asked_again_and_nothing_is_lost(tmp_path, bad):
    requests = asks(2)
    with ChatServer(flaky(bad, bad)) as server:
        assert_all_answered(requests, run(server, requests, tmp_path))
        assert set(server.times_asked.values()) == {3}
        again = run(server, requests, tmp_path)
        assert len(server.asked) == 6
    assert all(outcome.cached for outcome in again.values())
    assert_all_answered(requests, again)


NO_COMPLETION = {
    "invalid_json": (Reply(b'{"choices": [{"mess'), "not JSON"),
    "html": (Reply(b"<html>busy</html>", headers={"content-type": "text/html"}), "<html>busy"),
    "deep_json": (Reply(b"[" * 100_000), "not JSON"),
    "an_error_under_200": (Reply({"error": {"message": "overloaded"}}), "overloaded"),
    "no_message": (Reply({"choices": [{"message": None}]}), "not a chat completion"),
    "parts_of_no_type": (said(["safe"]), "not a chat completion"),
}


def each(replies: Iterable[Reply]) -> Behaviour:
    """Gives the n-th of `asks` the n-th reply."""
    by_picture = {digest(picture(i)): reply for i, reply in enumerate(replies)}
    return lambda asked: by_picture[asked.pictures[0]]


def test_what_is_no_completion_is_said_not_kept_and_asked_by_the_next_run(tmp_path):
    requests = asks(len(NO_COMPLETION))
    with ChatServer(each(reply for reply, _ in NO_COMPLETION.values())) as server:
        outcomes = run(server, requests, tmp_path)
        assert set(server.times_asked.values()) == {1}
        server.behaviour = echo
        assert_all_answered(requests, run(server, requests, tmp_path))
    for index, (_, reason) in enumerate(NO_COMPLETION.values()):
        assert reason in outcomes[index].reason
        assert "\n" not in outcomes[index].reason and len(outcomes[index].reason) <= 300


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
    assert "not a picture" in outcomes[2].reason
    assert outcomes[3] == Failure("HTTP 422: cannot see it", refused=True)
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


def test_a_retry_after_is_honoured_over_our_own_pace(tmp_path):
    came = []

    def behaviour(asked: Asked) -> Reply:
        came.append(time.monotonic())
        return refused(429, retry_after="0.3") if len(came) == 1 else echo(asked)

    with ChatServer(behaviour) as server:
        assert_all_answered(asks(1), run(server, asks(1), tmp_path))
    assert came[1] - came[0] >= 0.3


def test_the_pace_of_attempts_is_ours_to_set(tmp_path):
    with ChatServer(lambda a: refused(500)) as server:
        began = time.monotonic()
        run(server, asks(1), tmp_path, attempts=6)
        assert time.monotonic() - began < 8  # the openai client's own takes 11 s at least
        assert len(server.asked) == 6


@pytest.mark.parametrize("limit", ["read_seconds", "total_seconds"])
def test_a_slow_answer_is_given_up_and_the_others_are_not(tmp_path, limit):
    slow = digest(picture(0))
    with ChatServer(lambda a: later(a, 60.0 if a.pictures == [slow] else 0.0)) as server:
        outcomes = run(server, asks(3), tmp_path, attempts=2, **{limit: 0.5})
    assert limit in outcomes[0].reason
    assert all(isinstance(outcomes[i], Answer) for i in (1, 2))


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


def test_where_nobody_has_ever_answered_the_first_request_ends_the_run(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match="nobody answers there .*, asked 2 times; start"):
        list(
            Client(endpoint(url, attempts=2, failures_in_a_row=50), tmp_path).complete_many(asks(9))
        )


CHILD = """
import sys
from crossguard_jax.io.chat import Endpoint, Message, Request
from crossguard_jax.io.http import Client

requests = [Request((Message("user", str(i)),)) for i in range(8)]
answers = Client(Endpoint(base_url=sys.argv[1], model="m"), sys.argv[2]).complete_many(requests)
assert "openai" not in sys.modules
print(next(answers)[1].text)
"""


def test_openai_is_imported_to_ask_and_an_iterator_that_is_left_ends_with_the_process(tmp_path):
    first = threading.Event()

    def behaviour(asked: Asked) -> Reply:
        slow = first.is_set()
        first.set()
        return later(asked, 60.0 if slow else 0.0)

    with ChatServer(behaviour) as server:
        command = [sys.executable, "-c", CHILD, server.url, str(tmp_path)]
        told = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert told.stdout == "text\n" and not told.stderr and told.returncode == 0


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


def thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


REASONING = "only reasoning; raise max_completion_tokens"
CUT = "cut short; raise max_completion_tokens"
MESSAGES = {
    "text": (said("SAFE"), "SAFE", ""),
    "parts": (said([part("SA"), part("FE")]), "SAFE", ""),
    "thoughts_and_a_part": (said([thinking("UNSAFE?"), part("SAFE")]), "SAFE", ""),
    "reasoning_content_beside": (said("SAFE", reasoning_content="UNSAFE?"), "SAFE", ""),
    "thoughts_alone": (said([thinking("UNSAFE")]), "", REASONING),
    "reasoning_content_alone": (said(None, reasoning_content="UNSAFE"), "", REASONING),
    "reasoning_alone": (said("", reasoning="UNSAFE"), "", REASONING),
    "hidden_thoughts": (said("", finish_reason="length"), "", CUT),
    "cut": (said("It is", finish_reason="length"), "It is", CUT),
    "refusal": (said(None, refusal="I will not."), "", "refused: I will not."),
    "a_refusals_part": (said([{"type": "refusal", "refusal": "No."}]), "", "refused: No."),
    "a_filter": (said(None, finish_reason="content_filter"), "", "refused: by a content filter"),
    "silence": (said(None), "", ""),
}


def test_the_texts_are_the_answer_and_what_is_none_says_why_and_is_kept(tmp_path):
    requests = asks(len(MESSAGES))
    with ChatServer(each(reply for reply, _, _ in MESSAGES.values())) as server:
        outcomes, again = (run(server, requests, tmp_path) for _ in range(2))
        assert set(server.times_asked.values()) == {1}
    for index, (name, (_, text, problem)) in enumerate(MESSAGES.items()):
        assert (outcomes[index].text, outcomes[index].problem) == (text, problem), name
        assert again[index] == replace(outcomes[index], cached=True)


def test_the_key_is_in_no_file_no_log_no_error_and_no_answer(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    noisy = [
        said(f"your key is {KEY}", model=KEY),
        refused(422, f"{KEY} " * 40),
        Reply(f"{'x' * 290} {KEY}".encode()),
        Reply({KEY: KEY}, 500, {"x-key": "none"}),
    ]
    with ChatServer(each(noisy)) as server:
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
        ("CHAT_KEY", "", "CHAT_KEY holds no API key"),
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


def test_no_key_is_sent_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
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
        url = image_part(picture(0, kind))["image_url"]["url"]
        assert url.startswith(f"data:image/{kind.lower()};base64,")
    assert image_part(picture(0, "BMP")) == image_part(picture(0, "PNG"))
    with pytest.raises(UserError, match="damaged"):
        image_part(picture(0)[:-30])


def test_progress_shows_the_usage_while_nothing_is_done(tmp_path):
    progress = Progress("judging", total=1)
    with ChatServer(lambda a: refused(400)) as server:
        client = Client(endpoint(server.url), tmp_path)
        assert len(list(client.complete_many(asks(1), progress))) == 1
    assert "0 asked, 0 known, 1 failed" in progress.postfix and progress.n == 0
