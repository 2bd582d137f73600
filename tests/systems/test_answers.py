"""A model that answers: what it complied with is told by a list of words or by a judge."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.refusals import LISTS
from crossguard_jax.data.prompts import get_template
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.impforge.answering import AnsweringLlava
from crossguard_jax.systems.answers import WordJudge
from crossguard_jax.systems.load import identity, load
from crossguard_jax.systems.store import VerdictStore
from crossguard_jax.systems.system import notes_of
from tests.chat_server import Asked, ChatServer, Reply, refused, said
from tests.systems.test_store import ROWS, png

ANSWERS = {
    0: "Sure, here is how.",
    1: "I'm sorry, but I cannot help with that.",
    2: "As an AI, I would rather not.",
    3: "Gladly: take the red one.",
    4: "",
}


def number(asked: Asked) -> int:
    content = asked.body["messages"][0]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return int(text.partition("row ")[2].split()[0].rstrip("<"))


def of_judge(asked: Asked) -> bool:
    return asked.body["model"] == "judge"


def speak(asked: Asked) -> Reply:
    """The model answers as written above; the judge says that odd rows complied."""
    n = number(asked)
    if of_judge(asked):
        return said("COMPLIED" if n % 2 else "REFUSED")
    return said(ANSWERS[n])


def describe(folder: Path, url: str, by_judge: bool = False, **more: Any) -> str:
    endpoint = {"base_url": url, "model": "m", "attempts": 2, "backoff_seconds": 0.005}
    fields: dict[str, Any] = {"endpoint": endpoint, "answers": str(folder / "kept")}
    if by_judge:
        fields["judge"] = endpoint | {"model": "judge"}
    file = folder / "answering.json"
    file.write_text(json.dumps(fields | more))
    return f"answers:{file}"


def rows(n: int = 5) -> tuple[list[bytes | None], list[str]]:
    return [png(i) if i % 2 else None for i in range(n)], [f"row {i} ?" for i in range(n)]


def test_complied_is_a_field_of_its_own_and_p_unsafe_says_that_it_refused(tmp_path):
    with ChatServer(speak) as server:
        system = load(describe(tmp_path, server.url))
        verdicts = system.score(*rows())
    assert [v.complied for v in verdicts] == [True, False, False, True, False]
    assert [v.p_unsafe for v in verdicts] == [0.0, 1.0, 1.0, 0.0, 1.0]
    first, words, asked, kept = notes_of(system)
    assert "complied with, not what a guard let pass" in first
    assert asked.startswith("m: 5 asked") and kept.startswith("m, this run and those before it: 5")
    assert words == f"refusals by {LISTS['xstest'].agreement_text()}"


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_named_and_another_list_is_another_system(tmp_path, name):
    spec = describe(tmp_path, "http://127.0.0.1:9/v1", refusals=name)
    facts = identity(load(spec))
    assert facts["judge"] == WordJudge(LISTS[name]).identity()
    others = [WordJudge(each).identity() for other, each in LISTS.items() if other != name]
    assert facts["judge"] not in others


def test_a_judge_decides_in_place_of_any_list(tmp_path):
    with ChatServer(speak) as server:
        system = load(describe(tmp_path, server.url, by_judge=True))
        verdicts = system.score(*rows())
        judged = [a.body["messages"][0]["content"] for a in server.asked if of_judge(a)]
    # An empty answer is nothing to ask about.
    assert [v.complied for v in verdicts] == [False, True, False, True, False]
    assert len(judged) == 4 and all(text.count("<answer>") == 1 for text in judged)
    assert sum("judge: 4 asked" in line for line in notes_of(system)) == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (refused(500), "not judged: HTTP 500"),
        (said("COMPLIED or REFUSED?"), "COMPLIED or REFUSED?"),
        (said("", refusal="No."), "refused: No."),
    ],
)
def test_a_judge_that_fails_is_a_row_without_an_answer_and_never_a_lists(tmp_path, reply, reason):
    with ChatServer(lambda a: reply if of_judge(a) and number(a) == 1 else speak(a)) as server:
        outcomes = load(describe(tmp_path, server.url, by_judge=True)).score_each(*rows())
        assert [isinstance(x, UserError) for x in outcomes] == [False, True, False, False, False]
        assert str(outcomes[1]) == f"no judgement of the answer: {reason}" or reason in str(
            outcomes[1]
        )


def test_a_model_that_fails_is_that_rows_and_one_that_refuses_apart_from_its_words_refused(
    tmp_path,
):
    odd = {
        0: refused(500),
        1: said("", refusal="No."),
        3: said(None, finish_reason="content_filter"),
    }
    with ChatServer(lambda a: odd.get(number(a)) or speak(a)) as server:
        outcomes = load(describe(tmp_path, server.url)).score_each(*rows())
    assert isinstance(outcomes[0], UserError) and "HTTP 500" in str(outcomes[0])
    assert [x.complied for x in outcomes[1:]] == [False] * 4


@pytest.mark.parametrize(
    ("more", "mend"),
    [
        ({"model": "toy://llava"}, "a model's folder or an endpoint"),
        ({"endpoint": None}, "a model's folder or an endpoint"),
        ({"refusals": "mine"}, "no refusal list 'mine'"),
        ({"refusals": "xstest", "judge": {"base_url": "http://a/v1", "model": "m"}}, "or a judge"),
        ({"judge": {"base_url": "http://a/v1"}}, "judge.*model"),
    ],
)
def test_a_faulty_description_says_what_to_mend(tmp_path, more, mend):
    with pytest.raises(UserError, match=mend):
        load(describe(tmp_path, "http://127.0.0.1:9/v1", **more))


@pytest.fixture(scope="module")
def llava(llava_folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("base") / "base.json"
    file.write_text(json.dumps({"model": str(llava_folder), "max_tokens": 6}))
    return load(f"answers:{file}")


def test_a_folders_answers_are_its_own_words_judged_by_the_list(llava, llava_folder, monkeypatch):
    target = AnsweringLlava(str(llava_folder), get_template("short"), max_new_tokens=6)
    answers = [answer.strip() for answer in target.answers(ROWS)]
    images, texts = [r.images for r in ROWS], [r.text for r in ROWS]
    assert llava.model.answers(images, texts) == answers and any(answers)
    word = next(filter(None, answers)).lower()
    monkeypatch.setattr(llava, "judge", WordJudge(replace(LISTS["xstest"], begins=(word,))))
    complied = [v.complied for v in llava.score(images, texts)]
    assert complied == [bool(a) and not a.lower().startswith(word) for a in answers]
    assert {*complied} == {True, False}


def test_a_row_that_cannot_be_asked_costs_itself_alone(llava):
    outcomes = llava.score_each([None, b"none", None, png(1)], ["row", "row", "row " * 900, ""])
    assert [isinstance(x, UserError) for x in outcomes] == [False, True, True, False]
    assert "shorten the text" in str(outcomes[2])


def test_what_was_answered_is_kept_with_whether_it_complied(llava, tmp_path):
    made = VerdictStore(tmp_path, llava).score(ROWS)
    again = VerdictStore(tmp_path, llava)
    assert again.score(ROWS) == made and again.computed == 0
    assert all(isinstance(v, Verdict) and v.complied is not None for v in made)


def test_a_store_of_before_is_read_and_says_nothing_of_complying(llava_folder, tmp_path):
    guard = load(llava_folder, prompt="short")
    made = VerdictStore(tmp_path, guard).score(ROWS)
    (file,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text(
        "".join(
            json.dumps({k: v for k, v in line.items() if k != "complied"}) + "\n" for line in lines
        )
    )
    again = VerdictStore(tmp_path, guard)
    assert again.score(ROWS) == made and again.computed == 0
    assert all(v.complied is None for v in made)
