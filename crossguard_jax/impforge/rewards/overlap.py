"""R_ovlp: how little of a picture its text gives away (ImpForge, arXiv 2510.17687).

``1 - (1 / |Tok(t)|) sum_w max(0, cos(g(w), g(x)) - tau)`` with CLIP's embeddings ``g``. The
policy's vocabulary is embedded once; after that the reward is a gather.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.core.typing import Array, Bool, Float, Int
from crossguard_jax.impforge.rewards.texts import token_texts, words
from crossguard_jax.io.jsonl import write_atomic

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts to CLIP's unit vectors, [B, D] float32."""


def empty_texts(
    tokens: Int[Array, "B N"], mask: Bool[Array, "B N"], special: Bool[Array, " V"]
) -> Bool[Array, " B"]:
    """Rows without a token that says anything."""
    return ~_counted(tokens, mask, special).any(axis=1)


def overlap_reward(
    tokens: Int[Array, "B N"],
    mask: Bool[Array, "B N"],
    vocabulary: Float[Array, "V D"],
    special: Bool[Array, " V"],
    pictures: Float[Array, "B D"],
    tau: float | Float[Array, ""],
) -> Float[Array, " B"]:
    """One less the mean excess of the tokens' cosines with the picture over ``tau``, float32.

    Args:
        tokens: the policy's texts.
        mask: False at padding.
        vocabulary: unit vectors of what each token says (`embed_vocabulary`).
        special: tokens that say nothing, and do not count.
        pictures: unit vectors.
        tau: the cosine from which on a word shows in a picture.

    Returns:
        ``tau`` to 1. A text without a token that counts gives away nothing by the formula, but is
        no rewriting either: 0.
    """
    counted = _counted(tokens, mask, special)
    # Full precision, as a TPU would round the factors of a product to bfloat16.
    cosines = jnp.einsum(
        "bnd,bd->bn",
        vocabulary[tokens].astype(jnp.float32),
        pictures.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    excess = jnp.where(counted, jnp.maximum(cosines - tau, 0.0), 0.0)
    n = counted.sum(axis=1).astype(jnp.float32)
    return jnp.where(n > 0, 1 - excess.sum(axis=1) / jnp.maximum(n, 1), 0.0)


def overlap_of_words(
    texts: Sequence[str], pictures: Float[np.ndarray, "B D"], embed: Embed, tau: float
) -> Float[np.ndarray, " B"]:
    """The same of whole words, which a policy cannot get around by spelling a word in pieces.

    Args:
        texts: the policy's.
        pictures: unit vectors.
        embed: CLIP's text tower; each word is embedded once.
        tau: as in `overlap_reward`.

    Returns:
        float32; 0 for a text without words.
    """
    tokenized = [words(text) for text in texts]
    unique = sorted({word for row in tokenized for word in row})
    if not unique:
        return np.zeros(len(tokenized), np.float32)
    place = {word: i for i, word in enumerate(unique)}
    vectors = np.asarray(embed(unique), np.float32)
    overlaps = np.zeros(len(tokenized), np.float32)
    for i, row in enumerate(tokenized):
        if row:
            cosines = vectors[[place[word] for word in row]] @ pictures[i]
            overlaps[i] = 1 - np.maximum(cosines - tau, 0).mean()
    return overlaps


def embed_vocabulary(
    embed: Embed,
    width: int,
    tokenizer: Any,
    size: int,
    cache: str | Path | None = None,
    model: str = "",
) -> tuple[Float[np.ndarray, "V D"], Bool[np.ndarray, " V"]]:
    """What every token of a policy says, as CLIP embeds it.

    Args:
        embed: CLIP's text tower; each distinct text is embedded once.
        width: D.
        tokenizer: the policy's.
        size: of the policy's vocabulary.
        cache: a folder that keeps the table for the next time.
        model: names the CLIP and its settings, for the cache.

    Returns:
        Unit vectors (zero where there is nothing to embed), float32, and which tokens say nothing:
        special ones, space, parts of a character.
    """
    texts = token_texts(tokenizer, size)
    special = np.array([not text for text in texts])
    unique = sorted({text for text in texts if text})
    place = {text: i for i, text in enumerate(unique, 1)}
    vectors = np.zeros((len(unique) + 1, width), np.float32)
    if unique:
        vectors[1:] = _cached(lambda: embed(unique), cache, [model, *unique])
    return vectors[[place.get(text, 0) for text in texts]], special


def calibrated_tau(
    shown: Float[np.ndarray, " B"], absent: Float[np.ndarray, " M"]
) -> tuple[float, float]:
    """The cosine that best tells words that a picture shows from words that it does not.

    Published CLIPs have their words for what is shown above 0.2; another CLIP's lie elsewhere.

    Args:
        shown: cosines of words with pictures that show them.
        absent: cosines of words with pictures that do not.

    Returns:
        ``tau`` with the largest balanced accuracy, and that accuracy.
    """
    scores = np.concatenate([shown, absent])
    curve = metrics.roc_curve(scores, np.arange(len(scores)) < len(shown))
    best = int(np.argmax(curve.tpr - curve.fpr))
    return float(curve.thresholds[best]), float(1 + curve.tpr[best] - curve.fpr[best]) / 2


def _counted(tokens: Array, mask: Array, special: Array) -> Array:
    return mask & ~special[tokens]


def _cached(make: Callable[[], np.ndarray], folder: str | Path | None, key: list[str]) -> Any:
    """What ``make`` gives, or what it gave before for the same key."""
    if folder is None:
        return make()
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    path = Path(folder) / f"vocabulary-{name}.npy"
    if path.exists():
        return np.load(path)
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.save(file, value)
    write_atomic(path, file.getvalue())
    return value
