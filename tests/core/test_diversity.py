"""Figures of variety: against nltk, published values, and plain loops over all pairs."""

import math
import tracemalloc

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from scipy.spatial.distance import pdist, squareform

from crossguard_jax.core import diversity

WORDS = ["can", "i", "touch", "the", "red", "blue", "kettle", "pan", "?", "please", "now"]


def texts(rng: np.random.Generator, n: int, longest: int = 9) -> list[str]:
    return [" ".join(rng.choice(WORDS, rng.integers(0, longest))) for _ in range(n)]


def rows_of(rng: np.random.Generator, n: int, width: int = 7) -> np.ndarray:
    """Rows of any length, some of them nearly the same, one of them zero."""
    centres = rng.normal(size=(max(n // 4, 1), width))
    x = centres[rng.integers(len(centres), size=n)] + 0.2 * rng.normal(size=(n, width))
    x[-1] = 0
    return (x * rng.uniform(0.1, 9, (n, 1))).astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_self_bleu_is_nltks_with_all_others_as_references(seed):
    rng = np.random.default_rng(seed)
    said = texts(rng, int(rng.choice([2, 3, 4, 40])), int(rng.integers(2, 30)))
    order = int(rng.integers(1, 6))
    split = [text.split() for text in said]
    smooth = SmoothingFunction().method1
    theirs = [
        sentence_bleu(split[:i] + split[i + 1 :], row, [1 / order] * order, smooth)
        for i, row in enumerate(split)
    ]
    assert diversity.self_bleu(said, order) == pytest.approx(np.mean(theirs), abs=1e-12)


def test_self_bleu_goes_from_nothing_in_common_to_all_the_same():
    same = "Can I touch the red one, please?"
    assert diversity.self_bleu([same] * 3) == pytest.approx(1)
    assert diversity.self_bleu(["a b c d e", "f g h i j"]) == 0
    assert diversity.self_bleu(["", "  "]) == 0
    assert math.isnan(diversity.self_bleu([same]))


def test_a_sample_of_texts_is_the_same_every_time_and_no_larger_than_asked():
    rng = np.random.default_rng(0)
    said = texts(rng, 60)
    first = diversity.self_bleu(said, sample=20, seed=3)
    assert first == diversity.self_bleu(said, sample=20, seed=3)
    assert first != diversity.self_bleu(said, sample=20, seed=4)
    assert diversity.self_bleu(said, sample=60) == diversity.self_bleu(said)


@pytest.mark.parametrize("block", [1, 5, 64])
@pytest.mark.parametrize("n", [2, 33])
def test_distances_are_scipys(n, block):
    x = rows_of(np.random.default_rng(n), n)
    x[-1] = -x[0]  # a zero row has no cosine in scipy
    every = squareform(pdist(x.astype(np.float64), "cosine"))
    found = diversity.distances(x, block)
    assert found.mean == pytest.approx(every.sum() / (n * (n - 1)), abs=1e-9)
    np.fill_diagonal(every, np.inf)
    assert found.nearest == pytest.approx(every.min(1).mean(), abs=1e-9)


def test_a_row_of_zeros_is_like_nothing():
    x = np.array([[1.0, 0], [0, 0], [2, 0]])
    assert diversity.distances(x) == pytest.approx(((0 + 1 + 1) / 3, (0 + 1 + 0) / 3))
    assert diversity.near_duplicates(x, 0.5).tolist() == [True, True, False]
    assert all(map(math.isnan, diversity.distances(x[:1])))


def test_vendi_is_the_published_example():
    # The readme of vendi-score: of the kernel [[1, .9, 0], [.9, 1, 0], [0, 0, 1]], 2.1573.
    x = np.array([[1, 0, 0], [0.9, math.sqrt(1 - 0.81), 0], [0, 0, 1]])
    assert diversity.vendi(x) == pytest.approx(2.1573, abs=5e-5)


@pytest.mark.parametrize("n, width", [(5, 40), (60, 8)])
def test_vendi_is_the_entropy_of_the_whole_kernel(n, width):
    x = np.random.default_rng(n).normal(size=(n, width))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / n).clip(1e-300)
    whole = np.exp(-(values * np.log(values)).sum())
    assert diversity.vendi(x) == pytest.approx(whole, rel=1e-9)
    assert diversity.vendi(np.concatenate([x, 3 * x])) == pytest.approx(whole, rel=1e-9)


def test_vendi_counts_what_differs():
    assert diversity.vendi(np.eye(9)) == pytest.approx(9)
    assert diversity.vendi(np.ones((9, 4))) == pytest.approx(1)
    assert diversity.vendi(np.repeat(np.eye(3), [4, 4, 4], axis=0)) == pytest.approx(3)
    assert math.isnan(diversity.vendi(np.zeros((0, 4))))


def test_entropy_of_known_shares():
    assert diversity.entropy("abcd" * 3) == pytest.approx((math.log(4), 1.0))
    assert diversity.entropy("aab") == pytest.approx((0.6365141682948128, 0.9182958340544896))
    assert diversity.entropy("ab", n_categories=4) == pytest.approx((math.log(2), 0.5))
    assert diversity.entropy("aaa") == (0.0, 0.0)
    assert all(map(math.isnan, diversity.entropy([])))


def test_cells_are_counted_once_and_only_on_the_grid():
    rows = [("hot", "pan"), ("hot", "pan"), ("sharp", "pan"), ("hot", "moon"), ("", "pan")]
    assert diversity.cells_filled(rows, [["hot", "sharp", "wet"], ["pan", "iron"]]) == (2, 6)
    assert diversity.cells_filled([], [["hot"], ["pan", "iron"]]) == (0, 2)


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_are_those_of_a_loop_whatever_the_block(seed):
    rng = np.random.default_rng(seed)
    x = rows_of(rng, 70)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    kept: list[int] = []
    for i in range(len(x)):
        if all(unit[i] @ unit[j] < 0.9 for j in kept):
            kept.append(i)
    assert 5 < len(kept) < 70
    for block in (1, 7, 1000):
        assert np.flatnonzero(diversity.near_duplicates(x, 0.9, block)).tolist() == kept


def test_memory_does_not_grow_with_the_square_of_the_rows():
    x = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    tracemalloc.start()
    diversity.distances(x, block=256)
    diversity.near_duplicates(x, 0.99, block=256)
    diversity.vendi(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # the square is 200 MB
