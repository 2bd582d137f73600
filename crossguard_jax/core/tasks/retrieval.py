"""Recall at k of retrieval between pictures and captions (Karpathy and Fei-Fei, CVPR 2015)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crossguard_jax.core.metrics import DEFAULT_CONFIDENCE, Estimate, proportion
from crossguard_jax.core.tasks.intervals import share
from crossguard_jax.core.typing import Float, Int

KS = (1, 5, 10)


class Recalls(NamedTuple):
    """Recall by k: captions found for pictures, and pictures found for captions."""

    image_to_text: dict[int, Estimate]
    text_to_image: dict[int, Estimate]


def retrieval_ranks(
    similarity: Float[np.ndarray, "M B"], picture: Int[np.ndarray, " B"]
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " B"]]:
    """How many wrong answers come before the right one; a tie counts as before it.

    Args:
        similarity: of each picture with each caption; higher is nearer.
        picture: the row of each caption's picture. A picture may have any number of captions, but
            at least one.

    Returns:
        Of each picture the wrong captions before the first of its own, and of each caption the
        wrong pictures before its own.

    Raises:
        ValueError: a score is NaN, a caption's picture is no row, or a picture has no caption.
    """
    rows = len(similarity)
    if np.isnan(similarity).any():
        raise ValueError(f"{int(np.isnan(similarity).sum())} similarities are NaN")
    if picture.size and not 0 <= picture.min() <= picture.max() < rows:
        raise ValueError(f"captions name pictures {picture.min()} to {picture.max()} of {rows}")
    bare = np.bincount(picture, minlength=rows) == 0
    if bare.any():
        raise ValueError(f"picture {int(bare.argmax())} has no caption")
    own = similarity[picture, np.arange(picture.size)]
    of_picture, of_caption = np.zeros(rows, np.int64), np.zeros(picture.size, np.int64)
    for row, scores in enumerate(similarity):
        mine = picture == row
        of_picture[row] = np.count_nonzero(scores[~mine] >= scores[mine].max())
        of_caption += ~mine & (scores >= own)
    return of_picture, of_caption


def retrieval_recalls(
    similarity: Float[np.ndarray, "M B"],
    picture: Int[np.ndarray, " B"],
    ks: Sequence[int] = KS,
    confidence: float = DEFAULT_CONFIDENCE,
) -> Recalls:
    """R@k both ways; arguments and errors are those of ``retrieval_ranks``.

    A picture is answered when any of its captions is among the first k. Its captions are not
    independent rows: the interval of ``text_to_image`` is bootstrapped by pictures, that of
    ``image_to_text`` is Wilson's.
    """
    of_picture, of_caption = retrieval_ranks(similarity, picture)
    captions = np.bincount(picture, minlength=len(similarity)).astype(np.float64)

    def recall(k: int) -> Estimate:
        hits = np.bincount(picture, weights=of_caption < k, minlength=len(similarity))
        return share(hits, captions, confidence)

    return Recalls(
        {k: proportion(of_picture < k, confidence) for k in ks}, {k: recall(k) for k in ks}
    )
