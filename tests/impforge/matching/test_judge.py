"""The picture judges: nothing lost, nothing judged twice, nothing silently safe."""

import hashlib
import io
import random
import re
import signal
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.identity import guard_identity
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.impforge.commands import make_judge
from crossguard_jax.impforge.matching.judge import (
    AGAIN,
    NEUTRAL,
    AcceptAll,
    EndpointJudge,
    GuardJudge,
    Judgement,
    read_answer,
)
from crossguard_jax.io.chat import Endpoint, Message, Request
from crossguard_jax.io.http import Client
from crossguard_jax.systems.load import identified
from tests.chat_server import Asked, ChatServer, Reply, refused, said


def picture(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pictures(n: int) -> list[tuple[str, bytes]]:
    return [(f"p{i}", picture(i)) for i in range(n)]


def truth(digest: str) -> bool:
    """Whether the test's server takes a picture for safe."""
    return int(digest, 16) % 3 > 0


def honest(asked: Asked) -> Reply:
    return said("SAFE" if truth(asked.pictures[0]) else "UNSAFE")


def judge(server: ChatServer, cache: Path, asks: int = 3, **changes: Any) -> EndpointJudge:
    patience = {"backoff_seconds": 0.005, "attempts": 4}
    fields = {"base_url": server.url, "model": "m", "concurrency": 4}
    return EndpointJudge(Client(Endpoint(**fields | patience | changes), cache), asks=asks)


def by_id(judgements: Any) -> dict[str, Judgement]:
    found = list(judgements)
    assert len({j.id for j in found}) == len(found)
    return {j.id: j for j in found}


def assert_true(found: dict[str, Judgement], given: list[tuple[str, bytes]]) -> None:
    expected = {id: truth(hashlib.sha256(data).hexdigest()) for id, data in given}
    assert {id: judgement.safe for id, judgement in found.items()} == expected
    assert len(set(expected.values())) == 2


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        *(("SAFE", True), ("safe.", True), (" Safe!\n", True), ("**SAFE**", True)),
        *(("UNSAFE", False), ("unsafe", False), ("'Unsafe'.", False), ("`UNSAFE`", False)),
        *(("The image is safe.", True), ("This picture is UNSAFE.", False)),
        *(("Answer: SAFE", True), ("It\u2019s safe", True), ("\u201cSAFE\u201d", True)),
        ("SAFE. There is no harm in it.", True),
        ("UNSAFE. It shows a fight, and not in play.", False),
        ("<think>unsafe? no, it is a pan</think>\nSAFE", True),
        *(("", None), ("yes", None), ("I cannot tell.", None), ("safety first", None)),
        *(("SAFE or UNSAFE", None), ("UNSAFE. Or is it SAFE?", None), ("SAFE/UNSAFE", None)),
        *(("not safe", None), ("The image isn't safe.", None), ("It isn\u2019t safe", None)),
        *(("not unsafe", None), ("Is it safe? No.", None), ("Safe? No.", None)),
        *(("safe: no", None), ("Safe? Not at all", None), ("un-safe", None), ("un safe", None)),
        *(
            ("safe?", None),
            ("Nicht safe", None),
            ("safe \u274c", None),
            ("anything but safe", None),
        ),
        *(("SAFE 10%", None), ("partially safe", None), ("\u4e0d safe", None), ("SAFE_NOT", None)),
        ("<think>it may be safe", None),
        ("<think>well</think> hm <think>safe", None),
    ],
)
def test_an_answer_is_read_only_where_it_is_plain(text, safe):
    assert read_answer(text) is safe


def test_no_answer_with_a_word_put_before_the_label_is_taken_for_safe():
    rng = random.Random(0)
    words = "not never hardly far from anything but un less isn't no neither non pas nicht".split()
    for _ in range(200):
        word = rng.choice(words)
        lead = rng.choice(["the image is", "it is", "", "i would say", "answer:"])
        assert read_answer(f"{lead} {word} {rng.choice(['safe', 'SAFE.', 'Safe!'])}") is None


def test_every_picture_is_judged_and_a_rerun_judges_none_again(tmp_path):
    given = pictures(20)
    with ChatServer(honest) as server:
        found = by_id(judge(server, tmp_path).judge(given))
        assert_true(found, given)
        assert_true(by_id(judge(server, tmp_path).judge(given)), given)
        assert len(server.asked) == 20 and set(server.times_asked.values()) == {1}
    assert {j.answer for j in found.values()} == {"SAFE", "UNSAFE"}
    assert {j.source for j in found.values()} == {judge(server, tmp_path).source}
    assert "m" in judge(server, tmp_path).source.split(":")


@pytest.mark.parametrize("nonsense", [said("Purple."), said("safe and unsafe"), said("")])
def test_nonsense_is_asked_again_more_sternly(tmp_path, nonsense):
    given = pictures(6)

    def behaviour(asked: Asked) -> Reply:
        return honest(asked) if len(asked.body["messages"]) == 5 else nonsense

    with ChatServer(behaviour) as server:
        assert_true(by_id(judge(server, tmp_path).judge(given)), given)
        assert set(server.times_asked.values()) == {3}
        last = server.asked[-1].body["messages"]
        assert [turn["role"] for turn in last] == ["user", "assistant"] * 2 + ["user"]
        assert last[2]["content"] == last[4]["content"] == AGAIN.format("SAFE", "UNSAFE")
        assert all(turn["content"] for turn in last)
        assert_true(by_id(judge(server, tmp_path).judge(given)), given)
        assert set(server.times_asked.values()) == {3}


def test_what_stays_nonsense_is_unresolved_and_never_safe(tmp_path):
    given = pictures(9)

    def behaviour(asked: Asked) -> Reply:
        return said("It is not safe.") if truth(asked.pictures[0]) else honest(asked)

    with ChatServer(behaviour) as server:
        found = by_id(judge(server, tmp_path, asks=2).judge(given))
        assert sorted(server.times_asked.values()) == [1] * 3 + [2] * 6
        assert by_id(judge(server, tmp_path, asks=2).judge(given)) == found
        assert sorted(server.times_asked.values()) == [1] * 3 + [2] * 6
    assert {j.safe for j in found.values()} == {None, False}
    assert {j.answer for j in found.values() if j.safe is None} == {"It is not safe."}


@pytest.mark.parametrize(
    ("reply", "reason", "times"),
    [
        (said("The image is safe", finish_reason="length"), "cut short; raise max_compl", 3),
        (said("", finish_reason="length"), "cut short; raise max_completion_tokens", 1),
        (said(None, reasoning_content="SAFE"), "only reasoning; raise max_compl", 1),
        (said(None, refusal="I will not say SAFE."), "refused: I will not say SAFE.", 1),
    ],
)
def test_what_is_no_whole_answer_is_unresolved_and_asked_again_only_where_that_may_help(
    tmp_path, reply, reason, times
):
    with ChatServer(lambda a: reply) as server:
        for _ in range(2):
            (found,) = judge(server, tmp_path).judge(pictures(1))
            assert found.safe is None and found.answer.startswith(reason)
        assert len(server.asked) == times


def test_a_corrupt_picture_and_a_refused_one_are_unresolved_and_the_rest_is_judged(tmp_path):
    given = pictures(8)
    given[2] = ("torn", picture(2)[:200])
    given[5] = ("text", b"not a picture at all")
    bad = hashlib.sha256(given[6][1]).hexdigest()

    def behaviour(asked: Asked) -> Reply:
        return refused(400, "content policy") if asked.pictures == [bad] else honest(asked)

    with ChatServer(behaviour) as server:
        found = by_id(judge(server, tmp_path).judge(given))
    unresolved = {j.id: j.answer for j in found.values() if j.safe is None}
    assert sorted(unresolved) == ["p6", "text", "torn"] and len(found) == 8
    assert "content policy" in unresolved["p6"]
    assert "damaged" in unresolved["torn"] and "not a picture" in unresolved["text"]


def parts(reply: Reply) -> Reply:
    """The same answer as parts, after thoughts that name both labels."""
    text = reply.body["choices"][0]["message"]["content"]
    thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": "SAFE or UNSAFE?"}]}
    return said([thoughts, {"type": "text", "text": text}])


def test_a_server_that_is_slow_fails_limits_babbles_and_dies_loses_no_picture(tmp_path):
    """Killed twice and started again; every picture gets its own answer, and only one."""
    given = pictures(40)
    server, answered, deaths = ChatServer(honest), [], [25, 70]

    def misfortune(asked: Asked) -> Reply:
        if deaths and len(server.asked) >= deaths[0]:
            deaths.pop(0)
            server.die()
        draw = random.Random(f"{asked.pictures} {len(asked.body['messages'])} {asked.nth}").random()
        mishaps = [
            refused(500),
            refused(429, retry_after="0.02"),
            Reply(b"{]"),
            Reply({"choices": []}),
            Reply({"choices": [1] * 100}, cut_at=20),
            said("maybe?"),
            said("It may be", finish_reason="length"),
            parts(honest(asked)),
            replace(honest(asked), delay=0.05),
        ]
        return mishaps[int(draw * 18)] if draw < 0.5 else honest(asked)

    server.behaviour = misfortune
    for _ in range(8):
        server.start()
        try:
            for j in judge(server, tmp_path, asks=9, failures_in_a_row=8).judge(given):
                if j.safe is not None:
                    answered.append((j.id, j.safe))
        except UserError as error:
            assert "requests in a row have failed" in str(error)
        server.die()
    server.start()
    before = len(server.asked)
    assert_true(by_id(judge(server, tmp_path, asks=9).judge(given)), given)
    server.die()
    assert len(server.asked) == before, "something was judged twice"
    assert len(set(answered)) == 40 and not deaths


CHILD = """
import sys
from pathlib import Path
from crossguard_jax.impforge.matching.judge import EndpointJudge
from crossguard_jax.io.chat import Endpoint, Message, Request
from crossguard_jax.io.http import Client

url, folder = sys.argv[1], Path(sys.argv[2])
client = Client(Endpoint(base_url=url, model="m", concurrency=4), folder / "answers")
given = [(path.stem, path.read_bytes()) for path in sorted(folder.glob("*.png"))]
for judgement in EndpointJudge(client).judge(given):
    print(judgement.id, flush=True)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_where_it_was_and_asks_nothing_twice(tmp_path, sign):
    given, stopped = pictures(30), threading.Event()
    for id, data in given:
        (tmp_path / f"{id}.png").write_bytes(data)

    def crawl(asked: Asked) -> Reply:  # from the twelfth on, so that the signal finds it at work
        return replace(
            honest(asked), delay=60.0 * (len(server.asked) >= 12) * (not stopped.is_set())
        )

    with ChatServer(crawl) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, server.url, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A suite in the background has been told to ignore it, and so would the child.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        told = [process.stdout.readline().strip() for _ in range(10)]
        process.send_signal(sign)
        process.communicate(timeout=30)
        stopped.set()
        assert process.returncode == -sign
        assert_true(by_id(judge(server, tmp_path / "answers").judge(given)), given)
    once = {hashlib.sha256(data).hexdigest() for id, data in given if id in told}
    assert len(once) == 10 and all(server.times_asked[h] == 1 for h in once)
    assert len(server.asked) <= 30 + 4


@pytest.mark.parametrize("fields", [{"asks": 0}, {"prompt": "Is it harmless? Say yes or no."}])
def test_a_judge_that_could_not_decide_is_refused(tmp_path, fields):
    with ChatServer(honest) as server, pytest.raises(UserError):
        EndpointJudge(judge(server, tmp_path).client, **fields)


def test_another_prompt_judges_anew_and_says_so(tmp_path):
    with ChatServer(honest) as server:
        one = judge(server, tmp_path)
        other = EndpointJudge(one.client, prompt="SAFE or UNSAFE?")
        list(one.judge(pictures(2)))
        list(other.judge(pictures(2)))
        assert set(server.times_asked.values()) == {2}
    assert one.source != other.source


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard.from_pretrained("toy://llava")


def test_the_guard_judges_a_picture_as_it_scores_it_with_a_neutral_text(guard, tmp_path):
    given = [
        *pictures(7),
        ("again", picture(3)),
        ("text", b"no picture"),
        ("jpeg", picture(9, "JPEG")),
    ]
    good = [(id, data) for id, data in given if id != "text"]
    p = {}
    for id, data in good:
        p[id] = guard.score([data], [NEUTRAL])[0].p_unsafe
    ordered = sorted(set(p.values()))  # between two scores: batches differ in the last digits
    middle = float(np.mean(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1]))
    cut = Guard(guard.model, guard.folder, guard.settings.__class__(guard.settings.prompt, middle))
    found = by_id(GuardJudge(cut, guard_identity(cut), tmp_path, batch_size=4).judge(iter(given)))
    assert found.pop("text").safe is None
    assert {id: j.safe for id, j in found.items()} == {id: p[id] < middle for id in p}
    assert {j.safe for j in found.values()} == {True, False}
    for id, j in found.items():
        assert float(re.match(r"p_unsafe ([\d.]+),", j.answer)[1]) == pytest.approx(p[id], abs=1e-4)


def test_the_guard_judges_nothing_twice_and_finishes_the_rest(guard, tmp_path, monkeypatch):
    scored = []
    honest_score = guard.score_each

    def counting(images, texts, **options):
        scored.extend(images)
        return honest_score(images, texts, **options)

    monkeypatch.setattr(guard, "score_each", counting)
    given = pictures(10)
    left = GuardJudge(guard, guard_identity(guard), tmp_path, batch_size=4).judge(given)
    first = [next(left) for _ in range(5)]
    left.close()
    found = by_id(
        GuardJudge(guard, guard_identity(guard), tmp_path, batch_size=4).judge(
            given + [("p10", picture(0))]
        )
    )
    assert len(scored) == len(set(scored)) == 10 and len(found) == 11
    assert all(found[j.id] == j for j in first)
    other = GuardJudge(guard, guard_identity(guard), tmp_path, text="what is it?", batch_size=4)
    assert other.source != first[0].source
    list(other.judge(given[:2]))
    assert len(scored) == 12


class Rejecting:
    """Sees no harm in any picture, and rejects every other one."""

    settings = Settings()

    def __init__(self):
        self.asked = 0

    def score_each(self, images, texts, *, batch_size=16):
        self.asked += len(images)
        odd = [int(hashlib.sha256(image).hexdigest(), 16) % 2 > 0 for image in images]
        return [
            Verdict(float("nan") if out else 0.1, out, 0.5, "safe", rejected=out) for out in odd
        ]


def test_a_picture_that_the_policy_rejects_is_unsafe_now_and_from_the_cache(tmp_path):
    system, given = Rejecting(), pictures(6)
    judge = GuardJudge(system, {"a": "policy"}, tmp_path)
    first = by_id(judge.judge(given))
    rejected = {id for id, p in given if int(hashlib.sha256(p).hexdigest(), 16) % 2}
    assert {id for id, j in first.items() if j.safe is False} == rejected
    assert 0 < len(rejected) < 6
    assert {first[id].answer for id in rejected} == {"rejected by the policy"}
    assert by_id(judge.judge(given)) == first and system.asked == 6


def test_without_a_judge_every_picture_passes_and_provenance_says_so():
    found = by_id(AcceptAll().judge(iter(pictures(3))))
    assert {j.safe for j in found.values()} == {True}
    assert {(j.source, j.answer) for j in found.values()} == {("none", "not judged")}


ENDPOINT = {
    "parameters.max_completion_tokens": 400,
    "parameters.reasoning_effort": "low",
    "attempts": 2,
    "read_seconds": 30.0,
    "concurrency": 3,
    "dollars_per_million_prompt": 0.5,
    "budget_dollars": 1.0,
}


@pytest.mark.parametrize("variant", ["tiny", "llama_7b"])
def test_every_field_of_an_endpoint_is_one_of_the_configuration_with_the_same_default(variant):
    config = load_config(f"configs/impforge.py:{variant}").match.judge.endpoint.to_dict()
    assert config.keys() == {field.name for field in fields(Endpoint)}
    assert not any(value is not None for value in config.pop("parameters").values())
    assert Endpoint(**config) == Endpoint(base_url=config["base_url"], model=config["model"])


def test_the_command_line_reaches_every_judge(tmp_path):
    where = "--config.match.judge"
    lines = [f"{where}.endpoint.{name}={value}" for name, value in ENDPOINT.items()]
    lines += [f"{where}.kind=endpoint", f"{where}.endpoint.model=m", f"{where}.asks=2"]
    config = load_config("configs/impforge.py:tiny", lines).match.judge
    made = make_judge(config, tmp_path, identified)
    body = made.client.endpoint.body(Request((Message("user", "?"),)), dict)
    assert body["max_completion_tokens"] == 400 and body["reasoning_effort"] == "low"
    assert "max_tokens" not in body and "top_p" not in body and made.asks == 2
    for name, value in ENDPOINT.items():
        if "." not in name:
            assert getattr(made.client.endpoint, name) == value
