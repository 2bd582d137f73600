"""How various a set of texts is: numpy in, numbers out.

Figures of one set depend on its size (self-BLEU and Vendi rise with it, the nearest distance
falls), so sets are compared at equal sizes. A set too small for a figure gives NaN.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from crossguard_jax.core.typing import Bool, Float

BLEU_EPSILON = 0.1  # what nltk's SmoothingFunction().method1 puts in place of no match
DEFAULT_BLOCK = 1024

Embeddings = Float[np.ndarray, "B D"]
Ngrams = Counter[tuple[str, ...]]


class Entropy(NamedTuple):
    """Shannon's entropy in nats, and its share of the largest possible (0 to 1)."""

    nats: float
    normalized: float


class Distances(NamedTuple):
    """Mean cosine distance of all pairs, and of each row to its nearest other one (0 to 2)."""

    mean: float
    nearest: float


class Coverage(NamedTuple):
    """How many cells of a grid have anything in them, and how many there are."""

    filled: int
    total: int


def entropy(categories: Iterable[Hashable], n_categories: int | None = None) -> Entropy:
    """Entropy of the shares of the categories.

    Args:
        categories: one a row.
        n_categories: how many there could have been; None counts those that occur.
    """
    counts = np.array([*Counter(categories).values()], np.float64)
    if not counts.size:
        return Entropy(math.nan, math.nan)
    shares = counts / counts.sum()
    nats = -float((shares * np.log(shares)).sum()) + 0.0  # of one category: 0, not -0
    possible = n_categories or counts.size
    return Entropy(nats, nats / math.log(possible) if possible > 1 else 0.0)


def words(text: str) -> list[str]:
    """Words and punctuation marks in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def self_bleu(texts: Sequence[str], n: int = 4, sample: int | None = None, seed: int = 0) -> float:
    """Mean BLEU of each text with all others as its references: 1 where all say the same.

    The measure is Texygen's (arXiv 1802.01886), by nltk's ``sentence_bleu`` with ``method1``:
    every n-gram order weighs the same, and 0.1 stands for an order without a match. Time is linear
    in the number of texts.

    Args:
        texts: the set; a text without words scores 0.
        n: the longest n-gram.
        sample: take so many of the texts, drawn by ``seed``: for sets of different sizes.
        seed: of the draw.
    """
    if sample is not None and sample < len(texts):
        drawn = np.random.default_rng(seed).choice(len(texts), sample, replace=False)
        texts = [texts[i] for i in np.sort(drawn)]
    tokens = [words(text) for text in texts]
    if len(tokens) < 2:
        return math.nan
    lengths = np.array([len(row) for row in tokens])
    matched = np.stack([_matches([_ngrams(row, k) for row in tokens]) for k in range(1, n + 1)])
    possible = np.maximum(lengths - np.arange(n)[:, None], 1)
    logs = np.log(np.where(matched == 0, BLEU_EPSILON, matched) / possible).mean(axis=0)
    # Where not one word matches nothing is smoothed: the score is 0.
    scores = np.exp(logs) * _brevity(lengths) * (matched[0] > 0)
    return float(scores.mean())


def _ngrams(row: list[str], n: int) -> Ngrams:
    return Counter(zip(*(row[i:] for i in range(n)), strict=False))


def _matches(rows: list[Ngrams]) -> Float[np.ndarray, " B"]:
    """Of each row the n-grams that others have too, each no oftener than in any single other."""
    most: Ngrams = Counter()
    second: Ngrams = Counter()
    for row in rows:
        for gram, count in row.items():
            second[gram] = max(second[gram], min(count, most[gram]))
            most[gram] = max(most[gram], count)
    return np.array(
        [
            sum(min(c, second[g] if c == most[g] else most[g]) for g, c in row.items())
            for row in rows
        ],
        np.float64,
    )


def _brevity(lengths: np.ndarray) -> np.ndarray:
    """BLEU's penalty of each length against the closest of the others (the shorter of two)."""
    order = np.sort(lengths)
    place = np.searchsorted(order, lengths)
    # The row itself is at its place: the others' closest are that place's two neighbours.
    below = np.where(place > 0, order[np.maximum(place - 1, 0)], -math.inf)
    above = np.append(order, math.inf)[place + 1]
    closest = np.where(lengths - below <= above - lengths, below, above)
    return np.where(lengths > closest, 1.0, np.exp(1 - closest / np.maximum(lengths, 1)))


def distances(embeddings: Embeddings, block: int = DEFAULT_BLOCK) -> Distances:
    """Cosine distances within a set of embeddings of any length.

    Args:
        embeddings: one row a text.
        block: rows to compare with all others at a time; memory is ``block x B``.
    """
    x = _unit(embeddings)
    n = len(x)
    if n < 2:
        return Distances(math.nan, math.nan)
    # The sum over all pairs is the square of the sum, less the rows with themselves.
    mean = (float(x.sum(axis=0) @ x.sum(axis=0)) - float((x * x).sum())) / (n * (n - 1))
    nearest = np.empty(n)
    for start in range(0, n, block):
        cosines = x[start : start + block] @ x.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -math.inf
        nearest[start : start + block] = cosines.max(axis=1)
    return Distances(1 - mean, float(1 - nearest.mean()))


def vendi(embeddings: Embeddings) -> float:
    """The Vendi score (arXiv 2210.02410) of the cosine kernel: how many rows differ, 1 to B.

    ``exp`` of the entropy of the eigenvalues of ``K / B``; they are those of the smaller of the
    two Gram matrices.
    """
    x = _unit(embeddings)
    n, width = x.shape
    if n == 0:
        return math.nan
    gram = x.T @ x if width < n else x @ x.T
    values = np.linalg.eigvalsh(gram / n)
    values = values[values > 0]  # rounding leaves some a hair below
    return float(np.exp(-(values * np.log(values)).sum()))


def cells_filled(
    rows: Iterable[Sequence[Hashable]], axes: Sequence[Collection[Hashable]]
) -> Coverage:
    """How much of a grid a set covers, such as categories by keywords.

    Args:
        rows: the place of each row on every axis.
        axes: the values of each axis; a row with any other value is in no cell.
    """
    values = [set(axis) for axis in axes]
    grid = set(itertools.product(*values))
    return Coverage(len(grid & set(map(tuple, rows))), len(grid))


def near_duplicates(
    embeddings: Embeddings, threshold: float, block: int = DEFAULT_BLOCK
) -> Bool[np.ndarray, " B"]:
    """Which rows to keep so that no two of them are near-duplicates; the first one stays.

    Args:
        embeddings: one row a text, in the order in which they have precedence.
        threshold: the least cosine of near-duplicates.
        block: rows compared at a time; memory is ``block x B``, and the result does not depend
            on it.
    """
    x = _unit(embeddings)
    keep = np.zeros(len(x), bool)
    for start in range(0, len(x), block):
        here = x[start : start + block]
        crowded = (here @ x[:start][keep[:start]].T >= threshold).any(axis=1)
        alike = here @ here.T >= threshold
        for i in range(len(here)):
            if not crowded[i]:
                crowded |= alike[i]
                keep[start + i] = True
    return keep


def _unit(embeddings: Embeddings) -> Embeddings:
    """Rows of length 1 in float64; zero rows stay zero, and are like nothing."""
    x = np.asarray(embeddings, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
