"""BLEU-4 and CIDEr-D of captions, as the COCO caption evaluation computes them.

That evaluation splits words by Stanford's PTB tokenizer, a Java program; ``caption_words`` follows
its rules as far as captions need them.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from crossguard_jax.core.metrics import DEFAULT_CONFIDENCE, Estimate
from crossguard_jax.core.tasks.intervals import bootstrap
from crossguard_jax.core.typing import Float

ORDERS = 4  # n-grams of one to four words
SIGMA = 6.0  # of CIDEr-D's penalty on length

_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": " -- ", "—": " -- "})
_DROPPED = frozenset([*"'\"`.?!,:;-", "--", "..."])
# Where a word comes apart: is|n't, man|'s, can|not, gon|na.
_SPLIT = re.compile(
    r"(?<=\w)(?=n't\b|'(?:s|m|d|re|ve|ll)\b)"
    r"|(?<=\bcan)(?=not\b)|(?<=\b[gw][oa]n)(?=na\b)|(?<=\bgot)(?=ta\b)|(?<=\b[gl][ie]m)(?=me\b)"
)
_WORD = re.compile(
    r"""
    (?:[^\W\d_]\.){2,}(?!\w)                            # u.s., a.m.
    | (?:mr|mrs|ms|dr|prof|st|ave|jr|sr|vs|etc)\.
    | n't\b | '(?:s|m|d|re|ve|ll)\b
    | (?<!\S)[-+]\d+                                    # a signed number
    | \w+ (?: (?: [-/.:&@] | (?<=\d),(?=\d{3}) | (?<=[^\W\d])'(?=[^\W\d]) ) \w+ )*
    | [!?]{2,} | \.{2,} | -{2,}
    | \S
    """,
    re.VERBOSE,
)

Ngram = tuple[str, ...]


def caption_words(text: str) -> list[str]:
    """Words in lower case, without quotation marks and ``.,:;?!-``.

    Words come apart as in the Penn Treebank (``is n't``, ``man 's``); those with a hyphen do not.
    """
    plain = _SPLIT.sub(" ", text.lower().translate(_PLAIN))
    return [word for word in _WORD.findall(plain) if word not in _DROPPED]


def bleu_counts(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, "B 10"]:
    """What corpus BLEU-4 sums over captions.

    Args:
        candidates: one caption a picture.
        references: those of humans, at least one a picture.

    Returns:
        Of each row the n-grams of 1 to 4 words that a reference has too (no oftener than in any
        single one), as many as there are, the number of words, and that of the closest reference
        (of two, the shorter).

    Raises:
        ValueError: a picture has no reference, or there are not as many rows of both.
    """
    counts = np.zeros((len(candidates), 2 * ORDERS + 2))
    for row, (one, others) in enumerate(_split(candidates, references)):
        most: Counter[Ngram] = Counter()
        for other in others:
            most |= _ngrams(other)
        for gram, count in (_ngrams(one) & most).items():
            counts[row, len(gram) - 1] += count
        closest = min((abs(len(other) - len(one)), len(other)) for other in others)[1]
        counts[row, ORDERS:] = [*(max(len(one) - n, 0) for n in range(ORDERS)), len(one), closest]
    return counts


def bleu_of(sums: Float[np.ndarray, " 10"]) -> float:
    """BLEU-4 (Papineni et al., ACL 2002) of the column sums of ``bleu_counts``, 0 to 1.

    Unsmoothed: without one match of four words it is 0.
    """
    matches, possible, (length, reference) = sums[:ORDERS], sums[ORDERS:-2], sums[-2:]
    if not matches.all():
        return 0.0
    logs = np.log(matches / possible).mean() + min(0.0, 1 - reference / length)
    return float(np.exp(logs))


def bleu4(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    confidence: float = DEFAULT_CONFIDENCE,
) -> Estimate:
    """Corpus BLEU-4, bootstrapped by rows; arguments and errors are those of ``bleu_counts``."""
    return bootstrap(bleu_counts(candidates, references), bleu_of, confidence)


def cider_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, " B"]:
    """CIDEr-D (Vedantam et al., CVPR 2015) of each row, 0 to 10; papers print it times 100.

    The document frequencies are those of the references given, so rows compare within one set; of
    a single picture every score is 0.

    Raises:
        ValueError: a picture has no reference, or there are not as many rows of both.
    """
    texts = _split(candidates, references)
    rows = [(_ngrams(one), [_ngrams(other) for other in others]) for one, others in texts]
    document_frequency = Counter(gram for _, others in rows for gram in set().union(*others))
    rarity = {gram: math.log(len(rows) / count) for gram, count in document_frequency.items()}
    unseen = math.log(max(len(rows), 1))

    def vector(counts: Counter[Ngram]) -> dict[Ngram, float]:
        return {gram: count * rarity.get(gram, unseen) for gram, count in counts.items()}

    scores = []
    for (one, others), (words, other_words) in zip(rows, texts, strict=True):
        own = vector(one)
        alike = [_similarity(own, vector(other)) for other in others]
        longer = [len(words) - len(other) for other in other_words]
        weights = np.exp(-np.square(longer) / (2 * SIGMA**2))
        scores.append(10 * float(np.mean(weights * alike)))
    return np.array(scores, np.float64)


def cider(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    confidence: float = DEFAULT_CONFIDENCE,
) -> Estimate:
    """The mean of ``cider_scores``, bootstrapped by rows with the document frequencies held."""
    scores = cider_scores(candidates, references)
    rows = np.stack([scores, np.ones_like(scores)], axis=1)
    return bootstrap(rows, lambda sums: float(sums[0] / sums[1]), confidence)


def _split(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> list[tuple[list[str], list[list[str]]]]:
    if not all(references):
        raise ValueError("a picture without a reference caption has no score")
    return [
        (caption_words(one), [caption_words(other) for other in others])
        for one, others in zip(candidates, references, strict=True)
    ]


def _ngrams(words: list[str]) -> Counter[Ngram]:
    return Counter(
        tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1)
    )


def _similarity(one: dict[Ngram, float], other: dict[Ngram, float]) -> float:
    """Cosine, its numerator clipped at the other's weights, averaged over the orders of n-grams."""
    dots, ones, others = np.zeros(ORDERS), np.zeros(ORDERS), np.zeros(ORDERS)
    for gram, weight in one.items():
        ones[len(gram) - 1] += weight**2
        dots[len(gram) - 1] += min(weight, other.get(gram, 0.0)) * other.get(gram, 0.0)
    for gram, weight in other.items():
        others[len(gram) - 1] += weight**2
    norms = np.sqrt(ones * others)
    return float(np.divide(dots, norms, out=np.zeros(ORDERS), where=norms > 0).mean())
