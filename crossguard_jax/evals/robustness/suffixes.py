"""GCG on a system: a suffix of tokens behind the user's text, as a user could type it.

What is judged is always the text that the tokens decode to, tokenized anew with the whole prompt;
its length is that of the text and the suffix, and a row that is not read at once is refused.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.attacks.registry import SEARCHES, Registered
from crossguard_jax.attacks.text.gcg import GcgBudget, retokenizes
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Int, PRNGKeyArray
from crossguard_jax.evals.robustness.rewriting import Rewriting

STARTS = ("!", "x", "a", ".", "and", "the")
"""What a suffix begins as: the first of these that is a token each time it stands there."""

CONTEXT = "a "  # what stands before a suffix where tokens are looked at without a prompt


def suffixed(
    attack: Registered,
    rewriting: Rewriting,
    group: Int[np.ndarray, " R"],
    texts: list[str],
    key: PRNGKeyArray,
    size: int,
) -> list[str]:
    """The texts, each with the suffix that does most.

    Args:
        attack: steps, ``tokens`` of the suffix, ``candidates`` and ``top_k``.
        rewriting: the rows and the system.
        group: which rows.
        texts: theirs.
        key: for the draws.
        size: texts of a forward pass.

    Raises:
        UserError: a row that is not read at once, or a tokenizer that no suffix begins with.
    """
    n, system = attack.options["tokens"], rewriting.system
    tokenizer = system.task.guard.encoder.tokenizer
    start = _start(tokenizer, n)
    at = group.tolist()
    rewriting.whole(with_suffix(tokenizer, texts, [start] * len(texts)), at, _what(n))

    def gradient(ids: Array, key: PRNGKeyArray) -> Array:
        written = with_suffix(tokenizer, texts, np.asarray(ids).tolist())
        rows = rewriting.whole(written, at, _what(n))
        places = np.array([np.arange(row.user[1] - n, row.user[1]) for row in rows])
        parts = []
        for first in range(0, len(at), size):
            here = np.minimum(np.arange(first, first + size), len(at) - 1)
            x, arrays = rewriting.arrays([written[i] for i in here], [at[i] for i in here])
            by_token = _by_token(system, system.params, arrays, x, places[here])
            parts.append(np.asarray(by_token)[: len(at) - first])
        return jnp.asarray(np.concatenate(parts))

    def evaluate(candidates: Array, key: PRNGKeyArray) -> Outcome:
        shape = candidates.shape[:2]
        written = with_suffix(
            tokenizer,
            [text for text in texts for _ in range(shape[1])],
            np.asarray(candidates).reshape(-1, n).tolist(),
        )
        owners = np.repeat(group, shape[1])
        parts = []
        for first in range(0, len(written), size):
            here = np.minimum(np.arange(first, first + size), len(written) - 1)
            part = rewriting.climbed([written[i] for i in here], owners[here], key)
            parts.append(jax.tree.map(np.asarray, part))

        def joined(*some: np.ndarray) -> np.ndarray:
            return np.concatenate(some)[: len(written)].reshape(shape)

        return jax.tree.map(joined, *parts)

    budget = GcgBudget(attack.steps, attack.options["candidates"], attack.options["top_k"])
    keep = retokenizes(
        lambda ids: with_suffix(tokenizer, [CONTEXT.strip()] * len(ids), ids),
        lambda written: [_tokens(tokenizer, text)[-n:] for text in written],
    )
    result = SEARCHES[attack.search].function(
        gradient,
        evaluate,
        np.tile(np.array(start, np.int32), (len(texts), 1)),
        key,
        budget,
        forbidden=_forbidden(system),
        keep=keep,
    )
    return with_suffix(tokenizer, texts, np.asarray(result.x_adv).tolist())


def with_suffix(tokenizer: Any, texts: list[str], suffixes: list[list[int]]) -> list[str]:
    """Each text, a space, and what its suffix's tokens decode to."""
    decoded = tokenizer.batch_decode(suffixes, clean_up_tokenization_spaces=False)
    return [f"{text} {end.strip()}" for text, end in zip(texts, decoded, strict=True)]


def _what(n: int) -> str:
    return f"the text with a suffix of {n} tokens"


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _start(tokenizer: Any, n: int) -> list[int]:
    for word in STARTS:
        ids = _tokens(tokenizer, CONTEXT + " ".join([word] * n))[-n:]
        (written,) = with_suffix(tokenizer, [CONTEXT.strip()], [ids])
        if len(ids) == n and _tokens(tokenizer, written)[-n:] == ids and len(set(ids)) == 1:
            return ids
    raise UserError(f"attack gcg: none of {', '.join(STARTS)} is a token of this tokenizer")


def _forbidden(system: Immunized) -> Bool[np.ndarray, " V"]:
    """Tokens that no user types: special ones, a picture's, and what is not printed."""
    encoder = system.task.guard.encoder
    tokenizer, v = encoder.tokenizer, system.task.guard.model.config.text.vocab_size
    written = tokenizer.batch_decode([[i] for i in range(min(v, len(tokenizer)))])
    forbidden = np.ones(v, bool)
    for i, text in enumerate(written):
        forbidden[i] = not text.strip() or not text.isprintable()
    special = [*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]
    forbidden[[i for i in special if i < v]] = True
    return forbidden


@functools.partial(jax.jit, static_argnums=0)
def _by_token(
    system: Immunized, params: Any, rows: Any, x: Array, places: Int[Array, "B N"]
) -> Array:
    """The margin's gradient by the one-hot vectors of the tokens at some places, [B, N, V]."""
    shift = jnp.zeros((*rows["text_mask"][:, 0].shape, system.task.width), jnp.float32)

    def total(shift: Array) -> Array:
        return system.shifted(params, rows, x, shift).margin.sum()

    by_embedding = jnp.take_along_axis(jax.grad(total)(shift), places[..., None], axis=1)
    model = system.task.model(params["trainable"], params["frozen"])
    table = model.language_model.embed_tokens.embedding
    return jnp.einsum("bnd,vd->bnv", by_embedding, table[...].astype(jnp.float32))
