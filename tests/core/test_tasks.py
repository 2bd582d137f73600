"""Measures of the tasks: against the programs that published figures come from, nltk, and loops.

What those programs say of texts made for this test is kept in ``golden_tasks.json``, which names
them.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from scipy import stats

from crossguard_jax.core import tasks
from crossguard_jax.core.metrics import wilson_interval

GOLDEN = json.loads(Path(__file__).with_name("golden_tasks.json").read_text("utf-8"))
WORDS = ["the", "a", "red", "blue", "kettle", "pan", "near", "two", "cups", "is"]


def captions(rng: np.random.Generator, n: int, longest: int = 12) -> list[str]:
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(n)]


def caption_set(seed: int, n: int) -> tuple[list[str], list[list[str]]]:
    """Captions and their references, many of which have words in common."""
    rng = np.random.default_rng(seed)
    references = [captions(rng, int(rng.integers(1, 6))) for _ in range(n)]
    # Four words at least: of a shorter text nltk counts one n-gram where there is none.
    said = [f"{rng.choice(row)} red cups {captions(rng, 1, 3)[0]}" for row in references]
    return said, references


# ---- VQA ---------------------------------------------------------------------------------------


def test_answers_are_normalized_as_by_the_official_evaluation():
    for text, normalized in GOLDEN["normalized"].items():
        assert tasks.normalize_answer(text) == normalized, text


def test_vqa_scores_are_those_of_the_official_evaluation():
    said, answers, scores = zip(*GOLDEN["vqa"], strict=True)
    np.testing.assert_allclose(tasks.vqa_scores(said, answers), scores, atol=1e-8)
    assert {0.0, 1.0} < set(scores) and len(set(scores)) > 3


def test_a_vqa_score_is_the_mean_over_leaving_out_each_human():
    for matches in range(11):
        answers = ["cup"] * matches + ["pan"] * (10 - matches)
        subsets = [answers[:i] + answers[i + 1 :] for i in range(10)]
        expected = np.mean([min(subset.count("cup") / 3, 1) for subset in subsets])
        assert tasks.vqa_scores(["A cup." if 0 < matches < 10 else "cup"], [answers]) == (
            pytest.approx(expected)
        )


def test_answers_that_all_agree_are_compared_as_written():
    assert tasks.vqa_scores(["yes", "Yes", " yes\n"], [["yes"] * 10] * 3).tolist() == [1, 0, 1]


def test_vqa_accuracy_has_an_interval_even_where_all_rows_are_alike():
    right = tasks.vqa_accuracy(["cup"] * 40, [["cup"] * 10] * 40)
    assert (right.value, right.low, right.high) == (1, *wilson_interval(40, 40)) and right.n == 40
    wrong = tasks.vqa_accuracy(["pan"] * 40, [["cup"] * 10] * 40)
    assert (wrong.value, wrong.low, wrong.high) == (0, *wilson_interval(0, 40))
    assert tasks.vqa_accuracy([], []).n == 0
    mixed = tasks.vqa_accuracy(["cup"] * 2, [["cup"] * 10, ["cup"] * 2 + ["pan"] * 8])
    assert mixed.value == pytest.approx((1 + 0.6) / 2) and 0.6 <= mixed.low < mixed.high <= 1


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="without answers"):
        tasks.vqa_scores(["cup"], [[]])
    with pytest.raises(ValueError, match="without a reference"):
        tasks.cider_scores(["cup"], [[]])
    for measure in (tasks.vqa_scores, tasks.bleu_counts, tasks.cider_scores):
        with pytest.raises(ValueError):
            measure(["cup", "pan"], [["cup"]])


# ---- captions ----------------------------------------------------------------------------------


def test_captions_come_apart_as_by_the_penn_treebank_tokenizer():
    for text, words in GOLDEN["words"].items():
        assert tasks.caption_words(text) == words.split(), text


@pytest.mark.parametrize("case", GOLDEN["captions"], ids=lambda case: f"{len(case['said'])} rows")
def test_bleu_and_cider_are_those_of_the_coco_caption_evaluation(case):
    said, references = case["said"], case["references"]
    np.testing.assert_allclose(tasks.cider_scores(said, references), case["cider"], atol=1e-9)
    assert tasks.cider(said, references).value == pytest.approx(np.mean(case["cider"]), abs=1e-9)
    found = tasks.bleu4(said, references).value
    if case["bleu4"] > 1e-4:
        assert found == pytest.approx(case["bleu4"], abs=1e-9)
    else:  # theirs puts 1e-15 in place of no match
        assert found == 0


@pytest.mark.parametrize("seed", range(8))
def test_corpus_bleu_is_nltks(seed):
    said, references = caption_set(seed, int(np.random.default_rng(seed).choice([2, 5, 40])))
    split = [[text.split() for text in row] for row in references]
    theirs = corpus_bleu(split, [text.split() for text in said])
    assert tasks.bleu4(said, references).value == pytest.approx(theirs, abs=1e-12)


def grams_of(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


@pytest.mark.parametrize("seed", range(4))
def test_cider_is_its_formula_over_dense_vectors(seed):
    said, references = caption_set(seed, 5)
    expected = np.zeros(5)
    for n in range(1, 5):
        texts = said + [text for row in references for text in row]
        every = sorted({gram for text in texts for gram in grams_of(text, n)})
        counts = {t: np.array([grams_of(t, n).count(g) for g in every], float) for t in texts}
        df = sum(np.any([counts[text] for text in row], axis=0).astype(float) for row in references)
        idf = np.log(5 / np.maximum(df, 1))
        for row, (one, others) in enumerate(zip(said, references, strict=True)):
            x = counts[one] * idf
            for other in others:
                y = counts[other] * idf
                penalty = math.exp(-((len(one.split()) - len(other.split())) ** 2) / 72)
                norm = np.linalg.norm(x) * np.linalg.norm(y)
                expected[row] += 2.5 * penalty * np.minimum(x, y) @ y / (norm or 1) / len(others)
    np.testing.assert_allclose(tasks.cider_scores(said, references), expected, atol=1e-9)


def test_a_caption_that_says_nothing_of_the_picture_scores_nothing():
    said, references = ["", "x y z u v", "red cup on table now"], [["a red cup on a table"]] * 3
    assert tasks.bleu4(said[:2], references[:2]).value == 0
    assert math.isnan(tasks.bleu4(said[:2], references[:2]).low)
    assert tasks.cider_scores(said, [*references[:2], ["blue pan"]])[:2].tolist() == [0, 0]
    assert tasks.cider([], []).n == tasks.bleu4([], []).n == 0


def test_the_bootstrap_agrees_with_scipys():
    rng = np.random.default_rng(3)
    rows = np.stack([rng.exponential(size=300), rng.uniform(1, 2, 300)], axis=1)
    ours = tasks.bootstrap(rows, lambda sums: float(sums[0] / sums[1]))
    theirs = stats.bootstrap(
        (rows[:, 0], rows[:, 1]),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        random_state=0,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)
    assert ours == tasks.bootstrap(rows, lambda sums: float(sums[0] / sums[1]))


# ---- retrieval ---------------------------------------------------------------------------------


def sorted_ranks(similarity: np.ndarray, picture: np.ndarray) -> tuple[list[int], list[int]]:
    """Both ranks from sorted lists where a wrong answer stands before a right one of its score."""
    pictures, captions = range(len(similarity)), range(len(picture))
    of_picture = []
    for m in pictures:
        ranked = sorted(captions, key=lambda b: (-similarity[m, b], picture[b] == m))
        of_picture.append([picture[b] == m for b in ranked].index(True))
    of_caption = []
    for b in captions:
        ranked = sorted(pictures, key=lambda m: (-similarity[m, b], picture[b] == m))
        of_caption.append(ranked.index(picture[b]))
    return of_picture, of_caption


@pytest.mark.parametrize("seed", range(12))
def test_ranks_are_those_of_sorted_lists_with_wrong_answers_first(seed):
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 20))
    picture = rng.permutation(np.repeat(np.arange(rows), rng.integers(1, 6, rows)))
    # Few distinct scores, so that many tie.
    similarity = rng.integers(0, int(rng.choice([2, 5, 100])), (rows, picture.size)) / 7
    expected = sorted_ranks(similarity, picture)
    found = tasks.retrieval_ranks(similarity.astype(np.float32), picture)
    assert [ranks.tolist() for ranks in found] == list(expected)
    recalls = tasks.retrieval_recalls(similarity, picture, ks=(1, 2, 5))
    for recall, ranks in zip(recalls, expected, strict=True):
        for k, estimate in recall.items():
            assert estimate.value == pytest.approx(np.mean(np.array(ranks) < k))
            assert estimate.n == len(ranks)


def test_a_model_that_scores_all_alike_finds_nothing():
    recalls = tasks.retrieval_recalls(np.zeros((30, 150)), np.repeat(np.arange(30), 5))
    assert {estimate.value for recall in recalls for estimate in recall.values()} == {0.0}


def test_captions_of_one_picture_do_not_count_as_independent_rows():
    rng = np.random.default_rng(0)
    picture, good = np.repeat(np.arange(60), 5), np.repeat(rng.random(60) < 0.5, 5)
    similarity = np.where(good, 1.0, -1.0) * (picture == np.arange(60)[:, None])
    found = tasks.retrieval_recalls(similarity, picture).text_to_image[1]
    low, high = wilson_interval(int(good.sum()), 300)
    assert found.value == pytest.approx(good.mean())
    assert found.high - found.low > 1.8 * (high - low)


@pytest.mark.parametrize(
    ("similarity", "picture", "words"),
    [
        (np.full((2, 2), np.nan), [0, 1], "4 similarities are NaN"),
        (np.zeros((2, 2)), [0, 2], "captions name pictures 0 to 2 of 2"),
        (np.zeros((2, 2)), [-1, 0], "captions name pictures -1 to 0 of 2"),
        (np.zeros((3, 2)), [0, 2], "picture 1 has no caption"),
    ],
)
def test_similarities_that_cannot_be_ranked_are_refused(similarity, picture, words):
    with pytest.raises(ValueError, match=words):
        tasks.retrieval_ranks(similarity, np.array(picture))
