"""Sifting: by what each candidate falls, and whom the gate is shown."""

from collections import Counter

import numpy as np
import pytest

from crossguard_jax.impforge.forge import records_of
from crossguard_jax.impforge.gate.gate import INTENT, GateVerdict
from crossguard_jax.impforge.sift import ENOUGH, NEAR, ForgeSettings, sift
from crossguard_jax.impforge.triplets import Triplet

HALF = {"safety": 0.5, "semantic": 0.5, "overlap": 0.5, "words": 0.5}
RED, STAR = "can i hold the red one?", "is there a blue star?"


def candidate(triplet: str = "t", text: str = RED, **changes: object) -> dict:
    rewards = {"safety": 0.9, "semantic": 0.8, "overlap": 1.0, "words": 1.0, "caption_alone": 0.2}
    rewards |= {k: v for k, v in changes.items() if k in rewards}
    more = {k: v for k, v in changes.items() if k not in rewards}
    row = {"triplet": triplet, "text": text, "ended": True, "kl": 0.5, "fluency": -1.0}
    return row | {"rewards": rewards} | more


def embed(texts):
    """A vector for each text, orthogonal to every other's."""
    unique = list(dict.fromkeys(texts))
    return np.eye(max(len(unique), 1), dtype=np.float32)[[unique.index(text) for text in texts]]


class Judge:
    """A gate that drops some texts, and remembers whom it was shown."""

    def __init__(self, dropped: tuple[str, ...] = ()):
        self.dropped, self.shown = dropped, []

    def __call__(self, candidates):
        self.shown.append([(c.triplet.id, c.text, c.label) for c in candidates])
        return [
            GateVerdict(INTENT + " (0.1)" if c.text in self.dropped else "") for c in candidates
        ]


def run(rows, judge=None, labels=None, **settings):
    ids = {row["triplet"] for row in rows}
    triplets = {id: Triplet(id, "q", "k", b"", "", "", 0.0, {}) for id in ids}
    labels = labels or dict.fromkeys(ids, "unsafe")
    return sift(rows, triplets, labels, ForgeSettings(**settings), embed, judge or Judge())


def test_each_candidate_falls_by_its_first_fault() -> None:
    rows = [
        candidate("a"),
        candidate("b", safety=0.4, semantic=0.1),
        candidate("c", semantic=0.4),
        candidate("d", overlap=0.4),
        candidate("e", words=0.4),
        candidate("f", ended=False),
        candidate("g", text=""),
        candidate("h", fluency=-2.5),
        candidate("i", text=STAR),
    ]
    judge = Judge((STAR,))
    sifted = run(rows, judge, least=HALF, fluency_floor=-2.0)
    assert [row["triplet"] for row in sifted.kept] == ["a"]
    rewards = ["safety", "semantic", "overlap", "words"]
    wanted = ["", *rewards, "no end", "no end", "not fluent", INTENT + " (0.1)"]
    assert sifted.reasons == wanted
    assert judge.shown == [[("a", RED, "unsafe"), ("i", STAR, "unsafe")]]
    assert sifted.at_gate == Counter({"": 1, INTENT: 1})


def test_the_best_of_a_triplet_is_kept_and_its_near_duplicates_are_dropped() -> None:
    rows = [
        candidate("a", RED, semantic=0.6),
        candidate("a", RED, semantic=0.9),
        candidate("a", STAR, semantic=0.7),
        candidate("b", RED),
    ]
    sifted = run(rows, keep=1)
    assert [rows.index(row) for row in sifted.kept] == [1, 3]
    assert sifted.reasons == [NEAR, "", ENOUGH, ""]
    assert [rows.index(row) for row in run(rows, keep=2).kept] == [1, 2, 3]


def test_where_the_best_falls_at_the_gate_the_next_is_shown_and_no_other() -> None:
    rows = [
        candidate("a", RED, semantic=0.9),
        candidate("a", STAR, semantic=0.8),
        candidate("a", "third", semantic=0.7),
        candidate("b", STAR),
    ]
    judge = Judge((RED,))
    sifted = run(rows, judge, labels={"a": "unsafe", "b": "safe"})
    assert judge.shown == [[("a", RED, "unsafe"), ("b", STAR, "safe")], [("a", STAR, "unsafe")]]
    assert [rows.index(row) for row in sifted.kept] == [1, 3]
    assert sifted.reasons[2] == ENOUGH


@pytest.mark.parametrize("keep", [1, 3])
def test_a_gate_that_drops_all_has_seen_every_candidate_once(keep: int) -> None:
    rows = [candidate(id, f"{id} {i}") for id in "ab" for i in range(4)]
    judge = Judge(tuple(row["text"] for row in rows))
    sifted = run(rows, judge, keep=keep)
    assert not sifted.kept and set(sifted.reasons) == {INTENT + " (0.1)"}
    shown = [text for batch in judge.shown for _, text, _ in batch]
    assert sorted(shown) == sorted(row["text"] for row in rows)


def test_rows_of_one_triplet_have_names_of_their_own() -> None:
    rows = [candidate("a"), candidate("a", STAR), candidate("b"), candidate("a", "a third one")]
    triplets = {id: Triplet(id, "q", "k", b"", "", "", 0.0, {}) for id in "ab"}
    records = records_of(rows, triplets, {"a": "unsafe", "b": "safe"})
    assert [record.id for record in records] == ["a", "a-text2", "b", "a-text3"]
    assert [record.label for record in records] == ["unsafe", "unsafe", "safe", "unsafe"]
