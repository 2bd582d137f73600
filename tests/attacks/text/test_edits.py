"""Edits and the search for them: one edit apart, words kept, the model's batches full."""

import itertools

import jax
import numpy as np
import pytest

from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.attacks.text.edit_search import EditBudget, edit_search
from crossguard_jax.attacks.text.edits import CHARACTER_EDITS, synonym
from crossguard_jax.core.errors import UserError

TEXTS = ("May I pour the Milk?", "give a toy to the child, please!", "ok", "it's 7 o'clock")
SYNONYMS = {"milk": ["juice", "water"], "give": ["hand"], "child": ["toddler", "small boy"]}
WORDS = synonym(SYNONYMS)
EDITS = (*CHARACTER_EDITS.values(), WORDS)
KEY = jax.random.key(0)


def distance(a, b):
    """Damerau and Levenshtein's, restricted: insert, delete, replace, swap neighbours."""
    d = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        replaced = d[i - 1, j - 1] + (a[i - 1] != b[j - 1])
        d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, replaced)
        if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
            d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a), len(b)]


def score_by(worth, bar=np.inf, sizes=None):
    """An objective from a number a text."""

    def score(texts, rows, key):
        if sizes is not None:
            sizes.append(len(texts))
        loss = np.array([worth(text, row) for text, row in zip(texts, rows, strict=True)])
        return Outcome(loss, loss - bar)

    return score


def hashed(text, row):
    """A rugged loss that anyone can compute anew."""
    return float(np.random.default_rng([row, *text.encode()]).normal())


@pytest.mark.parametrize("name", CHARACTER_EDITS)
def test_a_character_edit_is_one_edit_inside_a_word(name):
    for text in TEXTS:
        found = [other for other in CHARACTER_EDITS[name](text) if other != text]
        assert found and all(distance(text, other) == 1 for other in found[::7])
        size = {"delete": -1, "insert": 1}.get(name, 0)
        assert {len(other) - len(text) for other in found} == {size}
        for other in found:
            kept = [c for c in text if not c.isalnum()]
            assert [c for c in other if c in " ,?'"] == [c for c in kept if c in " ,?'"]


def test_the_edits_are_the_ones_they_are_named_for():
    edits = {name: set(edit("Cat")) for name, edit in CHARACTER_EDITS.items()}
    assert edits["swap"] == {"aCt", "Cta"}
    assert edits["delete"] == {"at", "Ct", "Ca"}
    assert len(edits["insert"]) == 26 * 4 - 2 and {"Cata", "Czat", "qCat"} <= edits["insert"]
    assert {"C@t", "C\u0430t", "\u0421at", "Ca7"} <= edits["homoglyph"]
    near = {"q", "w", "s", "z"}
    assert {other[1] for other in edits["keyboard"] if other[0] + other[2] == "Ct"} == near
    assert {other[0] for other in edits["keyboard"] if other[1:] == "at"} == set("XDFV")
    assert not list(CHARACTER_EDITS["delete"]("a I")), "no word disappears"


def test_letters_that_look_alike_are_other_letters_of_other_alphabets_or_signs():
    for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        for other in CHARACTER_EDITS["homoglyph"](letter):
            assert len(other) == 1 and other != letter
            assert not (other.isascii() and other.isalpha())


def test_synonyms_come_from_a_mapping_or_a_callable_and_keep_the_capital():
    assert list(WORDS("Milk, milk")) == ["Juice, milk", "Water, milk", "Milk, juice", "Milk, water"]
    by_call = synonym(lambda word: [word[::-1]] if word == "child" else [])
    assert list(by_call("a child")) == ["a dlihc"]


def naive(texts, edits, steps, worth):
    """Greedy search, one text at a time: the best candidate of each step, and the best of all."""
    found = []
    for row, text in enumerate(texts):
        seen, best = {text}, (-np.inf, text)
        for _ in range(steps):
            pool = {other for edit in edits for other in edit(text)} - seen
            if not pool:
                break
            seen |= pool
            text = max(pool, key=lambda other: worth(other, row))
            best = max(best, (worth(text, row), text))
        found.append(best)
    return found


def test_greedy_search_with_every_candidate_finds_what_a_slow_loop_finds():
    edits = (CHARACTER_EDITS["keyboard"], CHARACTER_EDITS["delete"], WORDS)
    budget = EditBudget(edits=3, candidates=10_000)
    result = edit_search(score_by(hashed), TEXTS, KEY, budget, edits)
    wanted = naive(TEXTS, edits, 3, hashed)
    assert result.x_adv == [text for _, text in wanted]
    np.testing.assert_allclose(result.loss, [loss for loss, _ in wanted], rtol=1e-6)
    assert not result.success.any() and not result.rejected.any()


def test_a_beam_as_wide_as_everything_finds_the_best_of_all_pairs_of_edits():
    edits = (CHARACTER_EDITS["swap"], WORDS)
    budget = EditBudget(edits=2, candidates=10_000, strategy="beam", beams=10_000)
    result = edit_search(score_by(hashed), TEXTS, KEY, budget, edits)
    for row, text in enumerate(TEXTS):
        once = {other for edit in edits for other in edit(text)}
        twice = {other for first in once for edit in edits for other in edit(first)}
        pool = (once | twice) - {text}
        assert result.x_adv[row] == max(pool, key=lambda other: hashed(other, row))
    greedy = edit_search(
        score_by(hashed), TEXTS, KEY, EditBudget(edits=2, candidates=10_000), edits
    )
    assert (result.loss >= greedy.loss).all() and (result.loss > greedy.loss).any()


@pytest.mark.parametrize("strategy", ["greedy", "beam", "random"])
@pytest.mark.parametrize("seed", range(2))
def test_a_text_is_within_the_budget_and_keeps_protected_words(strategy, seed):
    calls = []
    budget = EditBudget(edits=3, candidates=12, strategy=strategy, beams=3, batch=16)
    result = edit_search(
        score_by(hashed, sizes=calls),
        TEXTS,
        jax.random.key(seed),
        budget,
        tuple(CHARACTER_EDITS.values()),
        protected=["milk", "Child"],
    )
    for text, other, edits, queries in zip(
        TEXTS, result.x_adv, result.edits, result.queries, strict=True
    ):
        assert other != text and 1 <= distance(text, other) <= edits <= 3
        assert queries <= 1 + 3 * 12
    assert "Milk" in result.x_adv[0].split("?")[0].split() and "child," in result.x_adv[1]
    assert set(calls) == {16}, "one size to compile"
    assert len(calls) == 1 + sum(-(-4 * 12 // 16) for _ in range(3)) + 1, "and full"
    again = [hashed(text, row) for row, text in enumerate(result.x_adv)]
    np.testing.assert_allclose(result.loss, again, rtol=1e-6)


def test_protected_words_cannot_be_reached_from_beside_them_nor_be_made():
    seen = []

    def worth(text, row):
        seen.append(text)
        return 0.0

    budget = EditBudget(edits=1, candidates=10_000)
    edit_search(
        score_by(worth), ["a cat bat"], KEY, budget, tuple(CHARACTER_EDITS.values()),
        protected=["cat"],
    )  # fmt: skip
    assert len(seen) > 100
    assert all(text.split().count("cat") == 1 for text in seen), "not acat, not a second cat"


def test_a_row_ends_with_its_first_success_and_a_text_that_fools_needs_no_edit():
    def worth(text, row):
        return (9.0 if row == 1 else 0.0) if text in TEXTS else 1.0 + row

    result = edit_search(
        score_by(worth, bar=3.5), TEXTS, KEY, EditBudget(edits=4, candidates=8), EDITS
    )
    assert list(result.success) == [False, True, False, True]
    assert result.x_adv[1] == TEXTS[1] and result.edits[1] == 0 and result.queries[1] == 1
    assert result.edits[3] == 1 and result.queries[3] == 9
    assert result.queries[2] == 1 + 4 * 8


def test_an_edited_text_is_returned_though_every_edit_lowers_the_loss():
    result = edit_search(
        score_by(lambda text, row: float(text in TEXTS)), TEXTS, KEY, EditBudget(1, 8), EDITS
    )
    assert all(a != b for a, b in zip(result.x_adv, TEXTS, strict=True))


def test_a_text_without_candidates_stays():
    result = edit_search(score_by(hashed), ["...", "milk"], KEY, EditBudget(2, 8), (WORDS,))
    assert result.x_adv[0] == "..." and list(result.edits) == [0, 1]
    assert result.queries[0] == 1


def test_a_success_that_is_caught_is_none_and_noise_is_judged_anew():
    rng = np.random.default_rng(0)

    def score(texts, rows, key):
        loss = rng.normal(size=len(texts))
        return Outcome(loss, np.ones(len(texts)), np.ones(len(texts)))

    result = edit_search(score, ["a toy of wood"] * 40, KEY, EditBudget(2, 30), EDITS)
    assert not result.success.any() and result.rejected.all()
    assert abs(result.loss.mean()) < 0.6, "not the luckiest draws"


def test_a_semantic_constraint_sees_the_original_and_drops_what_it_refuses():
    pairs = []

    def keep(originals, candidates):
        pairs.extend(zip(originals, candidates, strict=True))
        return [
            "toddler" not in text and len(text) <= len(a) for a, text in pairs[-len(originals) :]
        ]

    result = edit_search(
        score_by(lambda text, row: float(len(text))), TEXTS, KEY, EditBudget(2, 500), EDITS,
        keep=keep,
    )  # fmt: skip
    assert {a for a, _ in pairs} == set(TEXTS)
    for text, other in zip(TEXTS, result.x_adv, strict=True):
        assert len(other) == len(text) and "toddler" not in other


def test_a_row_does_not_depend_on_its_neighbours_but_on_the_key():
    budget = EditBudget(edits=2, candidates=6, strategy="beam", beams=2)
    one = edit_search(score_by(hashed), TEXTS, KEY, budget, EDITS)
    other = (TEXTS[3], TEXTS[1], TEXTS[0])
    two = edit_search(score_by(hashed), other, KEY, budget, EDITS)
    assert one.x_adv[1] == two.x_adv[1]
    three = edit_search(score_by(hashed), TEXTS, jax.random.key(1), budget, EDITS)
    assert one.x_adv != three.x_adv


def test_every_kind_of_edit_is_drawn_alike():
    """There are twenty times as many insertions as swaps."""
    seen = []

    def worth(text, row):
        seen.append(text)
        return 0.0

    swaps, inserts = CHARACTER_EDITS["swap"], CHARACTER_EDITS["insert"]
    edit_search(score_by(worth), [TEXTS[1]], KEY, EditBudget(1, 20, batch=1), (inserts, swaps))
    drawn = seen[1:-1]
    assert len(drawn) == 20 and sum(text in set(swaps(TEXTS[1])) for text in drawn) == 10


def test_bad_budgets_and_scores_are_refused():
    with pytest.raises(UserError, match="strategy 'annealing' is none of greedy, beam, random"):
        EditBudget(strategy="annealing")
    with pytest.raises(UserError, match="edits.edits 0: a whole number above 0"):
        EditBudget(edits=0)
    with pytest.raises(UserError, match=r"loss is \[3\] for \[64\] texts"):
        edit_search(lambda *_: Outcome(np.zeros(3), np.zeros(64)), TEXTS, KEY, EditBudget(), EDITS)
