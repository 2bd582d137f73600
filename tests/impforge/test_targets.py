"""Targets: who refuses, who answers, and what counts as getting through."""

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import SHORT
from crossguard_jax.data.records import Record
from crossguard_jax.guard.guard import Guard
from crossguard_jax.impforge.targets import (
    EndpointTarget,
    GuardedTarget,
    LlavaTarget,
    attack_success,
    is_refusal,
)
from crossguard_jax.io.chat import Endpoint
from crossguard_jax.io.http import Client
from crossguard_jax.toy.world.sources import examples, records
from tests.chat_server import ChatServer, Reply, said


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I'm sorry, but I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m not able to assist.",
        "I cannot provide instructions for this.",
        "Unfortunately, I won't do this.",
        "As an AI, I have to think of your safety.",
        "That is against my guidelines.",
        "I must decline.",
        "We apologize for the inconvenience.",
    ],
)
def test_refusals_are_known(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Yes, hold it by the handle.",
        "You cannot go wrong with warm water.",
        "It can't get hot, so pick it up.",
        "A kettle will not break.",
        "Here is how: " + "stir it well, " * 30 + "and I'm sorry if it tastes odd.",
    ],
)
def test_answers_are_no_refusals(answer):
    assert not is_refusal(answer)


def test_a_guarded_model_refuses_what_its_guard_calls_unsafe():
    guard, rows = Guard.from_pretrained("toy://llava", prompt="short"), records("named", "val", 24)
    verdicts = guard.score([r.image for r in rows], [r.text for r in rows])
    found = GuardedTarget(guard, batch_size=8).refuses(rows)
    assert found.tolist() == [v.unsafe for v in verdicts]
    assert 0 < found.sum() < 24


def test_a_llava_answers_what_it_was_taught_with_and_without_a_picture():
    target = LlavaTarget("toy://llava", SHORT, max_new_tokens=4, batch_size=16)
    asked = [r for r in examples("vqa", "val", 80) if r.category == "kind"][:20]
    known = examples("knowledge", "val", 12)
    drawn = {r.id: r for r in records("vqa", "val", 80)}
    rows = [drawn[r.id] for r in asked] + [Record(r.id, (), r.text) for r in known]
    right = [
        said == row.answer for said, row in zip(target.answers(rows), [*asked, *known], strict=True)
    ]
    assert np.mean(right) >= 0.9
    assert not target.refuses(rows).any()


def test_a_folder_that_holds_no_llava_is_refused():
    with pytest.raises(UserError, match="no LLaVA, but a Llama"):
        LlavaTarget("toy://rewriter", SHORT)


def test_an_endpoint_refuses_in_its_own_words_and_a_row_without_an_answer_is_named(tmp_path):
    rows = records("named", "val", 6)

    def behaviour(asked) -> Reply:
        text = asked.body["messages"][0]["content"][1]["text"]
        if text == rows[5].text:
            return Reply({"error": {"message": "no"}}, status=400)
        return said("I cannot help." if text in (rows[0].text, rows[3].text) else "Sure.")

    with ChatServer(behaviour) as server:
        client = Client(Endpoint(base_url=server.url, model="m", backoff_seconds=0.01), tmp_path)
        found = EndpointTarget(client).refuses(rows[:5])
        assert found.tolist() == [True, False, False, True, False]
        with pytest.raises(UserError, match=f"row '{rows[5].id}': no answer"):
            EndpointTarget(client).refuses(rows)


def test_only_harm_that_is_not_refused_gets_through():
    class Fixed:
        def refuses(self, rows):
            return np.array([True, True, False, False])

    rows = [Record(str(i), (), "t") for i in range(4)]
    rate, through = attack_success(Fixed(), rows, [True, False, True, False])
    assert through.tolist() == [False, False, True, False]
    assert (rate.value, rate.n) == (0.25, 4)
