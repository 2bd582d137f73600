"""What an attack raises where a model answers in words, or finds captions: all of it under jit.

Both are a suite's `attacks.named.RowObjective`: pixels in [0, 1], normalized inside.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.attacks.embedding import push
from crossguard_jax.attacks.logits import unlikely
from crossguard_jax.attacks.named import RowObjective
from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.cmai.vetted import Vetting
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray
from crossguard_jax.nn import lora
from crossguard_jax.nn.clip import Clip
from crossguard_jax.nn.llava import Llava

Channels = Float[np.ndarray, "3 1 1"]


def answer_objective(graphdef: Any, mean: Channels, std: Channels) -> RowObjective:
    """`unlikely` of each row's answer.

    Its parameters are the ``(adapters, frozen)`` of `nn.lora.split`. Its rows have ``input_ids``
    and ``attention_mask`` [B, L], the prompt and behind it the answer, padded on the right;
    ``start`` [B], where the answer begins; ``tokens`` [B, N], and ``answer_mask`` [B, N], which of
    them are the answer's.
    """

    def objective(params: Any, rows: Any, x: Float[Array, "B C X Y"], key: PRNGKeyArray) -> Outcome:
        model: Llava = lora.merge(graphdef, *params)
        embedded = model.embed(rows["input_ids"], (x - mean) / std)
        mask, n = rows["attention_mask"] > 0, rows["tokens"].shape[1]
        logits = model.read_from(embedded, mask, rows["start"], n)
        return unlikely(logits, rows["tokens"], rows["answer_mask"])

    return objective


def vetted(objective: RowObjective, vetting: Vetting) -> RowObjective:
    """An objective where what is said of a picture is held against it.

    Its parameters are the objective's and `Vetting.params`. Its rows have besides ``h_t`` and
    ``pictures`` of the text that is held (`Checked.read`); ``held`` [B], whether there is one; and
    ``toward`` [B], whether the answer is to be said rather than not to be.
    """

    def wrapped(params: Any, rows: Any, x: Float[Array, "B C X Y"], key: PRNGKeyArray) -> Outcome:
        own, of_check = params
        outcome = objective(own, rows, x, key)
        sign = jnp.where(rows["toward"], -1.0, 1.0)
        caught = vetting.caught(of_check, rows, x)
        detector = jnp.where(rows["held"], caught, -1.0)
        return Outcome(sign * outcome.loss, sign * outcome.margin, detector)

    return wrapped


def retrieval_objective(
    graphdef: Any, mean: Channels, std: Channels, vetting: Vetting | None = None
) -> RowObjective:
    """A picture's vector away from where it was; fooled where a wrong caption is the nearest.

    Its parameters are CLIP's state and the captions' unit vectors [N, D]; its rows have ``clean``
    [B, D], the pictures' own vectors, and ``own`` [B, N], which captions are theirs. The margin is
    the best wrong cosine less the best right one. With a check, parameters are joined by the
    captions' h_t [N, D_t] and `Vetting.params`: what is held against a picture is its nearest
    caption.
    """

    def objective(params: Any, rows: Any, x: Float[Array, "B C X Y"], key: PRNGKeyArray) -> Outcome:
        state, captions, *of_check = params
        model: Clip = nnx.merge(graphdef, state)

        def vectors(x: Array, key: PRNGKeyArray) -> Array:
            return model.embed_pictures((x - mean) / std)

        def nearest(x: Array, key: PRNGKeyArray) -> Outcome:
            similarity = vectors(x, key) @ captions.T
            margin = -lead(similarity, rows["own"])
            if vetting is None:
                return Outcome(margin, margin)
            h_t, numbers = of_check
            held = {"h_t": h_t[similarity.argmax(axis=1)], "pictures": jnp.ones(len(x), jnp.int32)}
            return Outcome(margin, margin, vetting.caught(numbers, held, x))

        return push(vectors, rows["clean"], nearest)(x, key)

    return objective


def lead(
    similarity: Float[Array, "B N"] | Float[np.ndarray, "B N"], own: Any
) -> Float[Array, " B"]:
    """The best right caption's similarity less the best wrong one's; ``own`` is [B, N] bool."""
    right = jnp.where(own, similarity, -jnp.inf).max(axis=1)
    return right - jnp.where(own, -jnp.inf, similarity).max(axis=1)
