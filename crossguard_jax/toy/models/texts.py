"""The small text models: what the safety judge, rewriter and sentence encoder are taught."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.typing import Array, Bool, Float, Int
from crossguard_jax.data.prompts import PromptTemplate
from crossguard_jax.nn.bert import Bert
from crossguard_jax.nn.llama import Llama
from crossguard_jax.toy.models.batches import Batch, Turn, dialogue, encode, pad, stack_dialogues
from crossguard_jax.toy.models.tokenizers import BOS, EOS, PAD
from crossguard_jax.toy.world.examples import Example
from crossguard_jax.toy.world.vqa import caption

BATCH = 64
SAFETY_ROW, REWRITE_ROW = 32, 112
SENTENCE_ROWS = 24, 52  # a text; another one, perhaps after a caption
FORMS, FORM_SHARES = ("named", "pointing", "captioned"), (0.6, 0.25, 0.15)

SAFETY_PROMPT = PromptTemplate("safety", "USER: {image}{text} ASSISTANT:", "safe", "unsafe")
"""The safety model's one prompt: text alone, and the next token is the verdict."""

REWRITE_PROMPT = "say it in other words: {text} picture: {picture}"
"""What the user says to the rewriter, inside ``USER: ... ASSISTANT:``.

``picture`` is a keyword ("kettle") or a caption of the matched picture.
"""


def rewrite_prompt(text: str, picture: str) -> str:
    """The rewriter's whole prompt, up to where its text begins."""
    return f"USER: {REWRITE_PROMPT.format(text=text, picture=picture)} ASSISTANT:"


def safety_rows(rows: list[Example]) -> Batch:
    """``ids`` and ``answers`` of judged texts."""
    turns: list[Turn] = [(row.text, row.label) for row in rows]
    return stack_dialogues([dialogue([turn], SAFETY_ROW) for turn in turns], SAFETY_ROW)


class Drawn:
    """Batches of rows drawn at random from a list.

    Args:
        rows: the list.
        make: rows to a batch.
    """

    def __init__(self, rows: list[Example], make: Callable[[list[Example]], Batch]):
        self._rows, self._make = rows, make

    def draw(self, rng: np.random.Generator) -> Batch:
        """One batch."""
        return self._make([self._rows[i] for i in rng.integers(len(self._rows), size=BATCH)])


class Rewritings:
    """Prompts of the rewriter with good answers.

    Of five answers three name the thing and two point at it, one of them after a caption: a
    rewriter that can do all, and still has to learn which one serves. Whoever is shown a keyword
    alone knows no colour and no place, and names the thing or guesses.
    """

    def __init__(self, rows: list[Example]):
        self._by_form = [[r for r in rows if r.category == form] for form in FORMS]

    def turn(self, rng: np.random.Generator) -> Turn:
        """What the user says, and the rewriting."""
        form = self._by_form[rng.choice(len(FORMS), p=FORM_SHARES)]
        row = form[rng.integers(len(form))]
        assert row.scene is not None and row.kind is not None
        keyword = row.category != "captioned" and rng.random() < 0.4
        shown = row.kind if keyword else caption(rng, row.scene)
        return REWRITE_PROMPT.format(text=row.text, picture=shown), row.answer

    def draw(self, rng: np.random.Generator) -> Batch:
        """``ids`` and ``answers`` [B, L]."""
        rows = [dialogue([self.turn(rng)], REWRITE_ROW) for _ in range(BATCH)]
        return stack_dialogues(rows, REWRITE_ROW)


def sentence_rows(rows: list[Example]) -> Batch:
    """``first`` and ``second`` [B, L]: the same said twice."""
    pairs = [(encode(row.text), encode(row.answer)) for row in rows]
    first, second = ([[BOS, *pair[side], EOS] for pair in pairs] for side in (0, 1))
    return {
        "first": pad(first, SENTENCE_ROWS[0]),
        "second": pad(second, SENTENCE_ROWS[1]),
    }


def answer_nll(
    logits: Float[Array, "B L V"], target: Int[Array, "B L"], weight: Bool[Array, "B L"]
) -> tuple[Array, Array]:
    """Mean loss in nats of the tokens with weight, and how many of them are the likeliest."""
    chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    total = jnp.maximum(weight.sum(), 1)
    right = (jnp.argmax(logits, axis=-1) == target) & weight
    nll = jax.nn.logsumexp(logits, axis=-1) - chosen
    return (nll * weight).sum() / total, right.sum() / total


def causal_loss(model: Llama, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Next-token loss on the answers alone."""
    ids = batch["ids"]
    logits = model(ids[:, :-1], ids[:, :-1] != PAD)
    loss, right = answer_nll(logits, ids[:, 1:], batch["answers"][:, 1:])
    return loss, {"right": right}


def contrast(similarity: Float[Array, "B B"]) -> tuple[Array, Array]:
    """Symmetric InfoNCE of scaled cosines whose pairs are on the diagonal, and its accuracy."""
    n = jnp.arange(similarity.shape[0])
    rows, columns = (jax.nn.log_softmax(similarity, axis)[n, n] for axis in (1, 0))
    right = (jnp.argmax(similarity, axis=1) == n).mean()
    return -0.5 * (rows.mean() + columns.mean()), right


def sentence_loss(model: Bert, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Contrast of sentence vectors, at temperature 0.05."""
    first, second = (
        model.embed_sentences(batch[side], batch[side] != PAD) for side in ("first", "second")
    )
    loss, right = contrast(first @ second.T / 0.05)
    return loss, {"right": right}
