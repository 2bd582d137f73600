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
from crossguard_jax.toy.world.examples import WorldExample
from crossguard_jax.toy.world.pointing import point
from crossguard_jax.toy.world.requests import carriers, phrases
from crossguard_jax.toy.world.scenes import Thing
from crossguard_jax.toy.world.vqa import CAPTION_FORMS, pick

BATCH = 64
SAFETY_ROW, REWRITE_ROW = 32, 80
SENTENCE_ROWS = 24, 44  # a text; another one, perhaps after a caption's part
NAMING = 0.6  # of rewritings name the thing

SAFETY_PROMPT = PromptTemplate("safety", "USER: {image}{text} ASSISTANT:", "safe", "unsafe")
"""The safety model's one prompt: text alone, and the next token is the verdict."""

REWRITE_PROMPT = "say it in other words: {text} picture: {picture}"
"""What the user says to the rewriter, inside ``USER: ... ASSISTANT:``.

``picture`` is a keyword ("kettle"), or what a caption of the matched picture says of it.
"""


def safety_rows(rows: list[WorldExample]) -> Batch:
    """``ids`` and ``answers`` of judged texts."""
    turns: list[Turn] = [(row.text, row.label) for row in rows]
    return stack_dialogues([dialogue([turn], SAFETY_ROW) for turn in turns], SAFETY_ROW)


class Drawn:
    """Batches of rows drawn at random from a list.

    Args:
        rows: the list.
        make: rows to a batch.
    """

    def __init__(self, rows: list[WorldExample], make: Callable[[list[WorldExample]], Batch]):
        self._rows, self._make = rows, make

    def draw(self, rng: np.random.Generator) -> Batch:
        """One batch."""
        return self._make([self._rows[i] for i in rng.integers(len(self._rows), size=BATCH)])


class Rewritings:
    """Prompts of the rewriter with good answers.

    Of five answers three name the thing and two point at it: a rewriter that can do both, and
    still has to learn which one serves. Whoever is shown a keyword alone knows no colour and no
    place, and names the thing.
    """

    def __init__(self, rows: list[WorldExample]):
        self._by_form = [[r for r in rows if r.category == form] for form in ("named", "pointing")]

    def turn(self, rng: np.random.Generator) -> Turn:
        """What the user says, and the rewriting."""
        naming = rng.random() < NAMING
        rows = self._by_form[0 if naming else 1]
        row = rows[rng.integers(len(rows))]
        assert row.scene is not None and row.kind is not None
        shown = row.kind if naming and rng.random() < 0.4 else clause(rng, row.scene.things[0])
        return REWRITE_PROMPT.format(text=row.text, picture=shown), row.answer

    def draw(self, rng: np.random.Generator) -> Batch:
        """``ids`` and ``answers`` [B, L]."""
        rows = [dialogue([self.turn(rng)], REWRITE_ROW) for _ in range(BATCH)]
        return stack_dialogues(rows, REWRITE_ROW)


def clause(rng: np.random.Generator, thing: Thing) -> str:
    """What a caption says of one thing; the first of a caption begins as the caption does."""
    listed = f"a {thing.colour} {thing.kind} at the {thing.place}"
    return pick(rng, CAPTION_FORMS).format(list=listed)


class Sayings:
    """Batches for the sentence encoder: the same request on the same thing, said twice.

    The other saying names the thing, or names or points at it after what a caption says of it.
    Rows come in twos that differ in nothing but the thing.
    """

    def __init__(self, rows: list[WorldExample]):
        self._rows = [row for row in rows if row.category == "captioned"]

    def draw(self, rng: np.random.Generator) -> Batch:
        """``first`` and ``second`` [B, L]."""
        pairs = []
        for i in rng.integers(len(self._rows), size=BATCH // 2):
            row = self._rows[i]
            assert row.scene is not None and row.request is not None
            pairs += [sayings(rng, thing, row.request) for thing in row.scene.things[:2]]
        return sentence_batch(pairs)


def sayings(rng: np.random.Generator, thing: Thing, request: str) -> tuple[str, str]:
    """A text that names the thing, and another one that says the same."""
    named, how = f"the {thing.kind}", rng.random()
    text = say(rng, request, named)
    if how < 0.2:
        return text, say(rng, request, named)
    other = named if how < 0.45 else point(rng, thing)
    return text, f"{clause(rng, thing)}. {say(rng, request, other)}"


def say(rng: np.random.Generator, request: str, thing: str) -> str:
    """The request, about what ``thing`` says, in a wording of training."""
    phrase = pick(rng, phrases(request, held_out=False)).format(x=thing)
    return pick(rng, carriers(held_out=False)).format(request=phrase)


def sentence_batch(sentences: list[tuple[str, str]]) -> Batch:
    """``first`` and ``second`` [B, L] of texts that say the same."""
    pairs = [(encode(first), encode(second)) for first, second in sentences]
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
