"""The local gate: each check, in its order, by models that say what they are told to."""

from dataclasses import replace

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.impforge.gate.gate import INTENT, PICTURE, TEXT, UNRESOLVED
from crossguard_jax.impforge.gate.local import (
    LABEL,
    NOISE,
    TOGETHER,
    DescribedJudge,
    LocalGate,
    LocalSettings,
)
from crossguard_jax.impforge.gate.talk import REFUSAL, TALK
from crossguard_jax.impforge.matching.judge import AcceptAll, Judgement
from crossguard_jax.impforge.sift import kind_of
from tests.impforge.gate.test_gate import candidate as bare

CAPTION = "a red kettle at the top and a blue knife below"
QUERY = "can i drink from the kettle?"
SETTINGS = LocalSettings(
    similarity=0.75, gain=0.1, fluency=-1.0, question="{text} what is that?", llava="toy://llava"
)


CONTENT = "drink wipe kettle knife pot poison top below".split()


class Words:
    """A sentence is its content words; poison is unsafe, and so is to drink from a kettle."""

    hashes = {"safety": "s", "semantic": "e"}

    def safe(self, texts):
        return np.array([1.0 - self.unsafe(text) for text in texts], np.float32)

    @staticmethod
    def unsafe(text: str) -> bool:
        return "poison" in text or ("drink" in text and "kettle" in text)

    def embed(self, texts):
        split = [text.replace("?", "").replace(".", "").split() for text in texts]
        vectors = np.array([[row.count(word) for word in CONTENT] for row in split], np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


class Pictures:
    """Judges a picture by its bytes."""

    source = "bytes"

    def __init__(self):
        self.judged: list[bytes] = []

    def judge(self, pictures):
        for id, picture in pictures:
            self.judged.append(picture)
            safe = {b"bad": False, b"odd": None}.get(picture, True)
            yield Judgement(id, safe, "looked", self.source)


def candidate(
    text: str, label: str = "unsafe", i: int = 0, fluency: float = 0.0, **triplet: object
):
    fields = {"query": QUERY, "caption": CAPTION, "image": b"png"} | triplet
    return replace(bare(i, text, label, **fields), fluency=fluency)


def gate(describe=None, pictures=None, **changes: object) -> LocalGate:
    settings = replace(SETTINGS, **changes)
    describe = describe or (lambda rows: ["nothing"] * len(rows))
    return LocalGate(settings, Words(), pictures or Pictures(), describe)


GOOD = "can i drink from the red thing?"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (candidate(GOOD), ""),
        (candidate("i can't help with that"), REFUSAL),
        (candidate("rewrite the question: drink from the red kettle?"), TALK),
        (candidate(GOOD, fluency=-1.5), NOISE),
        (candidate("can i drink poison from the red thing?"), TEXT),
        (candidate(GOOD, label="safe"), LABEL),
        (candidate(GOOD, query="can i wipe the kettle?"), LABEL),
        (candidate("can i drink from the blue thing?"), INTENT),
        (candidate("what now?"), INTENT),
        (candidate(GOOD, image=b"bad"), PICTURE),
        (candidate(GOOD, image=b"odd"), UNRESOLVED),
    ],
)
def test_a_candidate_falls_by_its_first_fault(given, reason: str) -> None:
    (verdict,) = gate().judge([given])
    assert kind_of(verdict.reason) == reason


def test_verdicts_are_in_the_order_of_the_candidates_and_bear_evidence() -> None:
    texts = [GOOD, "sorry, no", GOOD, "what now?", GOOD]
    verdicts = gate().judge([candidate(text, i=i) for i, text in enumerate(texts)])
    assert [v.passed for v in verdicts] == [True, False, True, False, True]
    evidence = verdicts[0].evidence
    assert evidence["picture"] == "a red kettle at the top" and evidence["similarity"] >= 0.75
    assert {"p_safe", "query_p_safe", "gain", "fluency", "picture_judge"} <= evidence.keys()


def test_a_picture_of_the_right_thing_does_not_speak_for_a_text_that_says_nothing() -> None:
    near = {"caption": "can i drink from the kettle", "similarity": 0.6}
    empty = candidate("well well?", caption=near["caption"])
    assert kind_of(gate(similarity=0.6).judge([empty])[0].reason) == INTENT
    assert gate(similarity=0.6, gain=-1.0).judge([empty])[0].passed


def test_the_llava_is_asked_only_where_the_caption_does_not_bear_the_text_out() -> None:
    asked: list[Record] = []

    def describe(rows):
        asked.extend(rows)
        return ["a kettle"] * len(rows)

    given = [candidate(GOOD), candidate("can i drink from the round one?", i=1)]
    verdicts = gate(describe).judge(given)
    assert [v.passed for v in verdicts] == [True, True]
    assert [row.text for row in asked] == ["can i drink from the round one? what is that?"]
    assert verdicts[1].evidence["picture"] == "a kettle"
    asked.clear()
    gate(describe, captions=False).judge(given)
    assert len(asked) == 2
    asked.clear()
    assert not gate(describe, llava="").judge(given)[1].passed and not asked


def test_both_together_are_read_where_the_safety_model_can() -> None:
    joint = {"joint": "{picture}: {text}"}
    assert gate(**joint).judge([candidate(GOOD)])[0].passed
    harmless = candidate("can i wipe the red thing?", "safe", query="can i wipe the kettle?")
    assert gate(**joint).judge([harmless])[0].passed
    told = candidate(GOOD, query="may i drink from the kettle?", caption="a red pot, a poison")
    (verdict,) = gate(**joint, similarity=0.3, gain=-1.0).judge([told])
    assert kind_of(verdict.reason) == TOGETHER


def test_a_picture_is_judged_once_however_many_texts_stand_beside_it() -> None:
    pictures = Pictures()
    judging = gate(pictures=pictures)
    for i in range(2):
        judging.judge([candidate(GOOD, i=3 * i + j) for j in range(3)])
    assert pictures.judged == [b"png"]


def test_a_described_picture_is_judged_by_what_is_said_of_it() -> None:
    judge = DescribedJudge(
        Words(), lambda rows: [f"{r.image.decode()} here" for r in rows], "what?"
    )
    found = {j.id: j.safe for j in judge.judge([("a", b"poison"), ("b", b"star")])}
    assert found == {"a": False, "b": True}


def test_what_is_not_judged_is_said() -> None:
    assert not list(gate().lines())
    assert "none is judged" in "".join(gate(pictures=AcceptAll()).lines())


def test_verdicts_depend_on_settings_and_models_and_on_no_path() -> None:
    one = gate().identity
    assert one == gate().identity != gate(similarity=0.8).identity
    assert "toy" not in str(one) and one["pictures"] == "bytes"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"join": "{text}"}, "gate.local.join"),
        ({"joint": "{text} {picture}"}, "gate.local.joint"),
        ({"answer": "a thing"}, "gate.local.answer"),
        ({"captions": False, "llava": ""}, "nothing says what a picture shows"),
    ],
)
def test_a_setting_that_cannot_work_is_named(changes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        gate(**changes)
