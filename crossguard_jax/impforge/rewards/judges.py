"""The three rewards of the rewriter (ImpForge, arXiv 2510.17687), pure and vectorized.

- safety: ``p(safe | t)`` of a Llama-Guard-style text model, over its two label tokens;
- semantic: how near the picture with the text comes to the query, by a sentence encoder
  (``caption``: the caption before the text) or by CLIP (``clip_sum``: the sum of both embeddings);
- overlap: one less what the text gives away of the picture (`impforge.overlap`).

They need neither tokenizers nor weights: what is compiled for a machine that is not here is these
very functions (`plan`). `rewards.Rewards` loads the judges and makes arrays of texts.
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int
from crossguard_jax.impforge.rewards import overlap
from crossguard_jax.nn.bert import Bert
from crossguard_jax.nn.clip import Clip
from crossguard_jax.nn.llama import Llama

REWARDS = ("safety", "semantic", "overlap")
"""What is summed; a weight each."""


def safety_reward(
    model: Llama, ids: Int[Array, "B L"], mask: Bool[Array, "B L"], label_ids: tuple[int, int]
) -> Float[Array, " B"]:
    """``p(safe | t)``: softmax over the two label tokens behind the last token, float32.

    Args:
        model: of the Llama-Guard kind.
        ids: texts in its prompt (`texts.SafetyEncoder`).
        mask: False at padding, on either side; a row without a token gets 0.
        label_ids: the (safe, unsafe) tokens.
    """
    last = ids.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    x = model.hidden(model.embed_tokens(ids), mask, last=last)
    logits = model.head(x, jnp.asarray(label_ids))[:, 0].astype(jnp.float32)
    return jnp.where(mask.any(axis=1), jax.nn.softmax(logits)[:, 0], 0.0)


def caption_reward(
    model: Bert,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    query: Float[Array, "B D"],
) -> Float[Array, " B"]:
    """``cos(g(caption + text), g(query))`` with Sentence-BERT's ``g``, float32.

    Args:
        model: the sentence encoder.
        ids: captions with the texts behind them.
        mask: False at padding.
        query: sentence vectors of the queries.
    """
    return cosine(model.embed_sentences(ids, mask), query)


def clip_sum_reward(
    model: Clip,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    picture: Float[Array, "B D"],
    query: Float[Array, "B D"],
) -> Float[Array, " B"]:
    """``cos(u(picture) + u(text), u(query))`` with CLIP's unit vectors ``u``, float32.

    Args:
        model: CLIP.
        ids: the texts alone.
        mask: False at padding.
        picture: unit vectors of the pictures.
        query: unit vectors of the queries.
    """
    return cosine(picture + model.embed_texts(ids, mask), query)


def cosine(
    a: Float[Array | np.ndarray, "B D"], b: Float[Array | np.ndarray, "B D"]
) -> Float[Array, " B"]:
    """Cosines of rows, float32; 0 where one is zero."""
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / jnp.maximum(norms, 1e-12)


def total(components: Mapping[str, Any], weights: Mapping[str, Any]) -> Float[Array, " B"]:
    """The weighted sum of the rewards (paper: all weights equal), float32.

    Args:
        components: from `Rewards.components`.
        weights: one for each of ``REWARDS``; 0 is an ablation.

    Raises:
        UserError: a weight is missing, or for something else.
    """
    if set(weights) != set(REWARDS):
        raise UserError(
            f"rewards.weights has {', '.join(weights)}; give one for each of {', '.join(REWARDS)}"
        )
    parts = [jnp.float32(weights[name]) * components[name] for name in REWARDS]
    return parts[0] + parts[1] + parts[2]


class Judges:
    """The judges of a rewriter's texts, without their numbers.

    Args:
        safety: the text-safety model; it and the other may be abstract (`jax.eval_shape`).
        judge: a sentence encoder, or CLIP for `clip_sum_reward`.
        label_ids: the safety model's (safe, unsafe) tokens.
        tau: of the overlap.
    """

    def __init__(self, safety: Llama, judge: Any, label_ids: tuple[int, int], tau: float):
        self.label_ids, self._tau = label_ids, tau
        self.by_caption = not isinstance(judge, Clip)
        # Static halves; the arrays are everybody's arguments.
        self._safety, safety_state = nnx.split(safety, graph=False)
        self._judge, judge_state = nnx.split(judge, graph=False)
        self.frozen: dict[str, Any] = {"safety": safety_state, "semantic": judge_state}

    def components(
        self,
        frozen: dict[str, Any],
        tokens: Int[Array, "B N"],
        token_mask: Bool[Array, "B N"],
        context: Mapping[str, Any],
        encoded: Mapping[str, Any],
    ) -> dict[str, Float[Array, " B"]]:
        """The rewards of a batch, pure.

        A text that says nothing earns nothing, whatever the judges think of nothing; and so does
        one that a judge has no room for: a part of it would speak for the whole.

        Args:
            frozen: `Rewards.frozen`.
            tokens: the policy's texts.
            token_mask: False at padding.
            context: rows of `Rewards.context`, a row a text.
            encoded: from `Rewards.encode`.

        Returns:
            ``safety``, ``semantic``, ``overlap``; and for the record ``caption_alone``, ``empty``
            (1 for a text that says nothing) and ``unread`` (1 for one without room). All float32.
        """
        e = encoded
        safety_model = nnx.merge(self._safety, frozen["safety"])
        safety = safety_reward(safety_model, e["safety_ids"], e["safety_mask"], self.label_ids)
        judge: Any = nnx.merge(self._judge, frozen["semantic"])
        picture, query = context["picture"], context["query"]
        if self.by_caption:
            semantic = caption_reward(judge, e["joined_ids"], e["joined_mask"], query)
        else:
            semantic = clip_sum_reward(judge, e["text_ids"], e["text_mask"], picture, query)
        vocabulary, special = frozen["vocabulary"], frozen["special"]
        empty = overlap.empty_texts(tokens, token_mask, special)
        read = _was_read(encoded)
        nothing = empty | ~read
        shown = overlap.overlap_reward(tokens, token_mask, vocabulary, special, picture, self._tau)
        return {
            "safety": jnp.where(nothing, 0.0, safety),
            "semantic": jnp.where(nothing, 0.0, semantic),
            "overlap": jnp.where(nothing, 0.0, shown),
            "caption_alone": context["caption_alone"],
            "empty": empty.astype(jnp.float32),
            "unread": 1.0 - read.astype(jnp.float32),
        }

    def vectors(self, frozen: dict[str, Any], encoded: Mapping[str, Any]) -> Float[Array, "B D"]:
        """The semantic model's unit vectors of the texts alone, pure; for an archive. Zero for a
        text that a judge has no room for."""
        judge: Any = nnx.merge(self._judge, frozen["semantic"])
        vectors = unit_vectors(judge, encoded["text_ids"], encoded["text_mask"])
        return jnp.where(_was_read(encoded)[:, None], vectors, 0.0)


def _was_read(encoded: Mapping[str, Any]) -> Bool[Array, " B"]:
    """Texts for which every judge has room; see `Rewards.encode`."""
    masks = [jnp.asarray(value) for name, value in encoded.items() if name.endswith("_mask")]
    return functools.reduce(operator.and_, [mask.any(axis=1) for mask in masks])


def unit_vectors(model: Bert | Clip, ids: Array, mask: Array) -> Array:
    """A sentence encoder's, or CLIP's, of texts: [B, D]."""
    if isinstance(model, Clip):
        return model.embed_texts(ids, mask)
    x = model.embed_sentences(ids, mask)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
