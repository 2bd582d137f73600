"""What an attack raises where a model answers in words, or finds captions: all of it under jit.

Both are a suite's `attacks.named.RowObjective`: pixels in [0, 1], normalized inside.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.attacks.embedding import push
from crossguard_jax.attacks.logits import cross_entropy, margin_from
from crossguard_jax.attacks.named import RowObjective
from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray, Shaped
from crossguard_jax.nn import lora
from crossguard_jax.nn.clip import Clip
from crossguard_jax.nn.llava import Llava

Channels = Float[np.ndarray, "3 1 1"]


def unlikely(
    logits: Float[Array, "B N V"], tokens: Int[Array, "B N"], mask: Bool[Array, "B N"]
) -> Outcome:
    """Away from one answer, given the logits at each of its tokens after those before it.

    Args:
        logits: teacher-forced.
        tokens: the answer's.
        mask: False behind its end.

    Returns:
        The loss, ``-log p(answer)`` in nats. The margin, the greatest over the answer's tokens of
        the best other logit less the token's own: it is above 0 exactly where greedy decoding
        says something else. (Logits behind the first token that changes are those of an answer
        that is not given, but there the margin is above 0 already.)
    """
    flat, targets = logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1)
    nats = cross_entropy(flat, targets).reshape(tokens.shape)
    margins = margin_from(flat, targets).reshape(tokens.shape)
    loss = jnp.where(mask, nats, 0).sum(axis=1)
    return Outcome(loss, jnp.where(mask, margins, -jnp.inf).max(axis=1))


def answer_logits(
    model: Llava, pixels: Float[Array, "B C X Y"], rows: dict[str, Shaped[Array, "B ..."]]
) -> Float[Array, "B N V"]:
    """The logits that predict each row's answer, of normalized pixels; the head sees no others.

    ``rows`` has ``input_ids`` and ``attention_mask`` [B, L], the prompt and behind it the answer,
    padded on the right; ``start`` [B], where the answer begins; and ``tokens`` [B, N].
    """
    mask = rows["attention_mask"] > 0
    states = model.language_model.hidden(model.embed(rows["input_ids"], pixels), mask)
    before = rows["start"][:, None] - 1 + jnp.arange(rows["tokens"].shape[1])
    at = jnp.minimum(before, mask.shape[1] - 1)[..., None]
    return model.language_model.head(jnp.take_along_axis(states, at, axis=1))


def answer_objective(graphdef: Any, mean: Channels, std: Channels) -> RowObjective:
    """`unlikely` of each row's answer.

    Its parameters are the ``(adapters, frozen)`` of `nn.lora.split`, its rows those of
    `answer_logits` with ``answer_mask`` [B, N], which of ``tokens`` are the answer's.
    """

    def objective(params: Any, rows: Any, x: Float[Array, "B C X Y"], key: PRNGKeyArray) -> Outcome:
        model: Llava = lora.merge(graphdef, *params)
        logits = answer_logits(model, (x - mean) / std, rows)
        return unlikely(logits, rows["tokens"], rows["answer_mask"])

    return objective


def retrieval_objective(graphdef: Any, mean: Channels, std: Channels) -> RowObjective:
    """A picture's vector away from where it was; fooled where a wrong caption is the nearest.

    Its parameters are CLIP's state and the captions' unit vectors [N, D]; its rows have ``clean``
    [B, D], the pictures' own vectors, and ``own`` [B, N], which captions are theirs. The margin is
    the best wrong cosine less the best right one.
    """

    def objective(params: Any, rows: Any, x: Float[Array, "B C X Y"], key: PRNGKeyArray) -> Outcome:
        state, captions = params
        model: Clip = nnx.merge(graphdef, state)

        def vectors(x: Array, key: PRNGKeyArray) -> Array:
            return model.embed_pictures((x - mean) / std)

        def nearest(x: Array, key: PRNGKeyArray) -> Outcome:
            margin = -lead(vectors(x, key) @ captions.T, rows["own"])
            return Outcome(margin, margin)

        return push(vectors, rows["clean"], nearest)(x, key)

    return objective


def lead(
    similarity: Float[Array, "B N"] | Float[np.ndarray, "B N"], own: Any
) -> Float[Array, " B"]:
    """The best right caption's similarity less the best wrong one's; ``own`` is [B, N] bool."""
    right = jnp.where(own, similarity, -jnp.inf).max(axis=1)
    return right - jnp.where(own, -jnp.inf, similarity).max(axis=1)
