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
from crossguard_jax.toy.world.pointing import point
from crossguard_jax.toy.world.requests import carriers, phrases
from crossguard_jax.toy.world.scenes import Scene, Thing
from crossguard_jax.toy.world.vqa import FORMS, caption, pick

BATCH = 64
SAFETY_ROW, REWRITE_ROW = 32, 112
SENTENCE_ROWS = 24, 52  # a text; another one, perhaps after a caption
NAMING = 0.6  # of rewritings name the thing

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
    """Prompts of the rewriter with good answers, and as many readings of captions.

    Of five answers three name the thing and two point at it: a rewriter that can do both, and
    still has to learn which one serves. Whoever is shown a keyword alone knows no colour and no
    place, and names the thing. Pointing means looking something up in a caption, which a small
    model learns only from many questions about captions.
    """

    def __init__(self, rows: list[Example]):
        self._by_form = [[r for r in rows if r.category == form] for form in ("named", "pointing")]

    def turn(self, rng: np.random.Generator) -> Turn:
        """What the user says, and the rewriting."""
        naming = rng.random() < NAMING
        rows = self._by_form[0 if naming else 1]
        row = rows[rng.integers(len(rows))]
        assert row.scene is not None and row.kind is not None
        shown = row.kind if naming and rng.random() < 0.4 else caption(rng, row.scene)
        return REWRITE_PROMPT.format(text=row.text, picture=shown), row.answer

    def reading(self, rng: np.random.Generator) -> list[Turn]:
        """Questions about one caption: which thing is where, and of what colour."""
        rows = self._by_form[1]
        scene = rows[rng.integers(len(rows))].scene
        assert scene is not None
        asked = [_look_up(rng, scene.things[i % len(scene.things)]) for i in range(6)]
        asked = [asked[i] for i in rng.permutation(len(asked))]
        (first, answer), *more = asked
        return [(f"picture: {caption(rng, scene)}. {first}", answer), *more]

    def draw(self, rng: np.random.Generator) -> Batch:
        """``ids`` and ``answers`` [B, L]."""
        turns = [[self.turn(rng)] if i % 2 else self.reading(rng) for i in range(BATCH)]
        return stack_dialogues([dialogue(t, REWRITE_ROW) for t in turns], REWRITE_ROW)


def _look_up(rng: np.random.Generator, thing: Thing) -> Turn:
    """One thing known by its name, colour or place, and another of these asked for."""
    topic = pick(rng, ("kind", "colour", "place"))
    known = {
        "kind": f"the {thing.kind}",
        "colour": f"the {thing.colour} one",
        "place": f"the thing at the {thing.place}",
    }
    it = known[pick(rng, [name for name in known if name != topic])]
    answers = {"kind": thing.kind, "colour": thing.colour, "place": thing.place}
    return pick(rng, FORMS[topic][:-1]).format(it=it), answers[topic]


class Sayings:
    """Batches for the sentence encoder: the same request on the same thing, said twice.

    The other saying names the thing, or names or points at it after a caption. Rows come in twos
    that differ in nothing but which thing of one picture is meant: without them it is enough to
    tell the requests apart, and the encoder never looks into the caption. Where it points, the
    encoder is also told the name of what is meant; from sentence vectors alone a small one does
    not find out in any reasonable time.
    """

    def __init__(self, rows: list[Example]):
        self._rows = [row for row in rows if row.category == "captioned"]

    def draw(self, rng: np.random.Generator) -> Batch:
        """``first`` and ``second`` [B, L]; ``place`` and ``name`` [B] of the thing in ``second``.

        A place of 0 is none.
        """
        said, places, names = [], [], []
        for i in rng.integers(len(self._rows), size=BATCH // 2):
            row = self._rows[i]
            assert row.scene is not None and row.request is not None
            for thing in row.scene.things[:2]:
                first, second, other = sayings(rng, row.scene, thing, row.request)
                said.append((first, second))
                places.append(_last_place(encode(second), encode(other)))
                names += encode(thing.kind)
        where = {"place": np.array(places, np.int32), "name": np.array(names, np.int32)}
        return sentence_batch(said) | where


def sayings(
    rng: np.random.Generator, scene: Scene, thing: Thing, request: str
) -> tuple[str, str, str]:
    """A text that names the thing, another that says the same, and what that one calls the thing.

    The other one comes after a caption four times of five.
    """
    named, how = f"the {thing.kind}", rng.random()
    if how < 0.2:
        return say(rng, request, named), say(rng, request, named), named
    other = named if how < 0.45 else point(rng, thing)
    joined = f"{caption(rng, scene)}. {say(rng, request, other)}"
    return say(rng, request, named), joined, other


def _last_place(ids: list[int], part: list[int]) -> int:
    """Where the last occurrence of ``part`` ends in a row that begins with ``<s>``."""
    starts = [i for i in range(len(ids)) if ids[i : i + len(part)] == part]
    return starts[-1] + len(part)


def say(rng: np.random.Generator, request: str, thing: str) -> str:
    """The request, about what ``thing`` says, in a wording of training."""
    phrase = pick(rng, phrases(request, held_out=False)).format(x=thing)
    return pick(rng, carriers(held_out=False)).format(request=phrase)


def sentence_rows(rows: list[Example]) -> Batch:
    """``first`` and ``second`` [B, L]: a row's text, and its other text."""
    return sentence_batch([(row.text, row.answer) for row in rows])


def sentence_batch(said: list[tuple[str, str]]) -> Batch:
    """``first`` and ``second`` [B, L] of texts that say the same."""
    pairs = [(encode(first), encode(second)) for first, second in said]
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
    """Contrast of sentence vectors at temperature 0.05, and the names of what is pointed at."""
    first, second = (batch[side] for side in ("first", "second"))
    states = model(second, second != PAD)
    vectors = model.embed_sentences(first, first != PAD), model.pool(states, second != PAD)
    loss, right = contrast(vectors[0] @ vectors[1].T / 0.05)
    there = jnp.take_along_axis(states, batch["place"][:, None, None], axis=1)
    logits = there @ model.word_embeddings.embedding[...].T
    naming, named = answer_nll(logits, batch["name"][:, None], batch["place"][:, None] > 0)
    return loss + naming, {"right": right, "named": named}
