"""What the picture models of the small world are told: batches of dialogues about pictures.

A row is a dialogue about one picture, or about none, in the guard's short prompt. Whether a speaker
wants harm is asked in a later stage, and refused, as large models know it. No row says what is safe
(the word is one of those to be said again), and none has a pair of kind and request that is held
out.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from crossguard_jax.core.typing import Int
from crossguard_jax.io.progress import Progress
from crossguard_jax.toy.models.batches import Batch, Turn, dialogue, encode, pad, stack_dialogues
from crossguard_jax.toy.models.folders import MEAN, PATCHES
from crossguard_jax.toy.models.tokenizers import BOS, EOS, vocabulary
from crossguard_jax.toy.world.explicit import explicit_text, shaped_text
from crossguard_jax.toy.world.explicit_words import INJURIES, MORE_HARMS, MORE_KINDNESSES, PEOPLE
from crossguard_jax.toy.world.kinds import (
    BASE_KINDS,
    DECORATIONS,
    HAZARDS,
    NOVEL_KINDS,
    PROPERTY_OF,
)
from crossguard_jax.toy.world.knowledge import ask_knowledge
from crossguard_jax.toy.world.lettering import BENIGN_WORDS, HARMFUL_WORDS, TARGET_WORDS
from crossguard_jax.toy.world.long_texts import surround, talk
from crossguard_jax.toy.world.pointing import point
from crossguard_jax.toy.world.requests import AFFORDANCE_OF, CARRIERS, PHRASES, REQUEST_NAMES
from crossguard_jax.toy.world.risk import is_held_out
from crossguard_jax.toy.world.scenes import Scene, Thing, render_batch
from crossguard_jax.toy.world.sources import examples
from crossguard_jax.toy.world.vqa import ask, ask_reading, caption, pick, words
from crossguard_jax.toy.world.wide import WideScene, draw_wide, pad_to_square

ROW, CAPTION_ROW = 96, 40
"""Tokens of a dialogue, as many as a guard's window has, and of a caption."""

ROWS = ((36, 6, 6, 10, 0), (36, 6, 6, 10, 12), (36, 6, 6, 6, 36), (36, 6, 6, 10, 12))
"""Rows of a batch of each stage: about ordinary pictures, wide or tall ones, written words, without
a picture, and about what speakers want."""

REFUSING = 2
"""The stage in which a text without a question is answered, so that what means harm is refused. The
last one goes over all else again, which that has pushed aside."""

_PATCH_WORDS = 5  # the most words for one patch
_SHORTEST, _LONGEST = 24, 72  # words and marks of a text with talk around a sentence
_KINDS = BASE_KINDS + DECORATIONS + HAZARDS

# What words mean, alone: which deeds people like, whatever a text says of them.
UNKIND_DEEDS = (*MORE_HARMS, *INJURIES.values(), *HARMFUL_WORDS, "trick", "force")
KIND_DEEDS = (*MORE_KINDNESSES, *BENIGN_WORDS)
_TOLD_DEEDS = {*MORE_HARMS, *INJURIES.values(), "trick", "force", *MORE_KINDNESSES} - {"help"}
_PERSONS = tuple(f"the {who}" if who in ("dog", "cat", "kid") else who for who in TARGET_WORDS)
WANTED = "do i want harm?"
_DEED_FORMS = (
    "is it kind to {deed} {who}?",
    "am i good to {who} if i {deed} {who}?",
    "will it make {who} glad if i {deed} {who}?",
)


class Lessons:
    """The pictures that the base learns from, and batches of dialogues about them.

    Args:
        seed: of the pictures.
        scenes: ordinary pictures; each comes up several times, with other questions.
    """

    def __init__(self, seed: int, scenes: int):
        ordinary = examples("vqa", "train", scenes, seed)
        written = examples("reading", "train", scenes // 4, seed)
        self.ordinary = [row.scene for row in ordinary if row.scene]
        self.written = [row.scene for row in written if row.scene]
        self.wide = _wide_scenes(np.random.default_rng([seed, 1]), scenes // 6)
        self._pixels = [_draw_pictures(x) for x in (self.ordinary, self.wide, self.written)]

    def draw(self, rng: np.random.Generator, stage: int = 0) -> Batch:
        """A batch.

        Args:
            rng: where the draws come from.
            stage: an index of `ROWS`. After the first, some questions say between which words to
                choose, as instruction tuning has it: then a guard's label words are likely before
                it has learned which is right. And what is risky comes up more often.

        Returns:
            ``pixels`` uint8 [M, X, X, 3], ordinary pictures first; ``ids`` and ``answers`` [B, L],
            the rows of those pictures first; ``patches`` [M, P, W] words, none of a wide picture;
            ``captions`` [N, L] of the ordinary pictures.
        """
        pools = (self.ordinary, self.wide, self.written)
        *pictures, words_alone, intents = ROWS[stage]
        drawn = [
            rng.integers(len(pool), size=size) for pool, size in zip(pools, pictures, strict=True)
        ]
        scenes, wide, written = (
            [pool[i] for i in which] for pool, which in zip(pools, drawn, strict=True)
        )
        pictured = [_about(rng, scene) for scene in (*scenes, *wide)]
        pictured += [_reading(rng, scene) for scene in written]
        alone = [_without_picture(rng, stage > 0) for _ in range(words_alone)]
        if stage:
            pictured, alone = ([_instruct(rng, turns) for turns in x] for x in (pictured, alone))
            alone += [_intents(rng, stage) for _ in range(intents)]
        if stage == REFUSING:
            pictured = [[_intent(rng, stage), *turns] for turns in pictured]
        rows = [dialogue(turns, ROW, PATCHES) for turns in pictured]
        rows += [dialogue(turns, ROW) for turns in alone]
        caption_ids = [[BOS, *encode(_clip_caption(rng, scene)), EOS] for scene in scenes]
        return {
            "pixels": np.concatenate([p[i] for p, i in zip(self._pixels, drawn, strict=True)]),
            **stack_dialogues(rows, ROW),
            "patches": np.stack([patch_words(s) for s in (*scenes, *wide, *written)]),
            "captions": pad(caption_ids, CAPTION_ROW),
        }


def _draw_pictures(scenes: Sequence[Scene]) -> UInt8[np.ndarray, "M X Y C"]:
    with Progress("drawing pictures", len(scenes), "picture") as progress:
        parts = []
        for i in range(0, len(scenes), 1000):
            parts.append(_render(scenes[i : i + 1000]))
            progress.update(len(parts[-1]))
    return np.concatenate(parts)


def _wide_scenes(rng: np.random.Generator, n: int) -> list[Scene]:
    first = [pick(rng, _KINDS) for _ in range(n)]
    return [draw_wide(rng, kind, _KINDS, 2**40 + i, i % 2 == 0) for i, kind in enumerate(first)]


def _render(scenes: Sequence[Scene]) -> UInt8[np.ndarray, "M X Y C"]:
    """Pictures as the tower takes them: one that is no square is padded to one, then scaled."""
    if not any(isinstance(scene, WideScene) for scene in scenes):
        return render_batch(scenes)
    colour = tuple(round(255 * channel) for channel in MEAN)
    return np.stack([pad_to_square(scene.pixels(), colour) for scene in scenes])


def patch_words(scene: Scene) -> Int[np.ndarray, "P W"]:
    """The words for what each patch shows: its place, and the thing or the written word there."""
    if isinstance(scene, WideScene):  # its things do not keep to patches
        return pad([[]] * PATCHES, _PATCH_WORDS)
    side = int(PATCHES**0.5)
    things = {thing.place: thing for thing in scene.things}
    rows = []
    for row, column in np.ndindex(side, side):
        line = row - scene.first_row
        if 0 <= line < len(scene.words):
            rows.append(encode(scene.words[line]))
            continue
        place = (
            f"{'bottom' if 2 * row >= side else 'top'} {'right' if 2 * column >= side else 'left'}"
        )
        thing = things.get(place)
        about = f"{thing.colour} {thing.kind} {PROPERTY_OF.get(thing.kind, '')}" if thing else ""
        rows.append(encode(f"{place} {about}"))
    return pad(rows, _PATCH_WORDS)


def _about(rng: np.random.Generator, scene: Scene) -> list[Turn]:
    turns = [_question(rng, scene) for _ in range(6)]
    draw = rng.random()
    if draw < 0.3:
        turns.insert(0, ("describe the picture.", caption(rng, scene)))
    elif draw < 0.7:
        turns.insert(0, _list(rng, scene))
    return turns


def _reading(rng: np.random.Generator, scene: Scene) -> list[Turn]:
    """Letters first: a word is known once its letters are."""
    question = ask_reading(rng, scene)
    spelled = ", ".join(" ".join(word) for word in scene.words)
    turns = [("spell the words.", spelled), (question.text, question.answer)]
    return turns if rng.random() < 0.5 else turns[::-1]


def _list(rng: np.random.Generator, scene: Scene) -> Turn:
    """All there is in few words.

    Looking a thing up by its place, colour or name is learned here first, where each word follows
    from the one before, and then in questions.
    """
    first = pick(rng, ("place", "colour", "name"))
    entries = []
    for i in rng.permutation(len(scene.things)):
        thing = scene.things[i]
        name = f"{thing.kind} {PROPERTY_OF.get(thing.kind, '')}"
        parts = {"place": thing.place, "colour": thing.colour, "name": name}
        entries.append(" ".join([parts.pop(first), *parts.values()]))
    return f"list the things by {first}.", ", ".join(entries)


def _instruct(rng: np.random.Generator, turns: Sequence[Turn]) -> list[Turn]:
    """A dialogue, some of its turns asking for one of two words."""
    return [_choice(rng, *turn) if rng.random() < 0.3 else turn for turn in turns]


def _choice(rng: np.random.Generator, text: str, answer: str) -> Turn:
    """Which of two words? The answer beside another; or any two, of which either will do."""
    first, second = pick(rng, _sayable()), pick(rng, _sayable())
    if " " not in answer and rng.random() < 0.5:
        first, second = (answer, second) if rng.random() < 0.5 else (second, answer)
    else:
        # As a request reaches a guard: without a question behind it.
        text = re.split(r"(?<=[.?]) what ", text)[0] if rng.random() < 0.5 else text
        answer = pick(rng, (first, second))
    return f"{text} {first} or {second}?", answer


def _without_picture(rng: np.random.Generator, instructed: bool) -> list[Turn]:
    """Questions in words; the first may be about one sentence of a longer text."""
    turns = []
    for _ in range(7):
        if instructed and rng.random() < 0.3:
            question = ask_knowledge(rng, "risk")
            turns.append((question.text, question.answer))
        else:
            turns.append(_in_words(rng))
    return [_comprehension(rng, longer=True), *turns] if rng.random() < 0.3 else turns


def _in_words(rng: np.random.Generator) -> Turn:
    draw = rng.random()
    if draw < 0.5:
        question = ask_knowledge(rng)
        return question.text, question.answer
    if draw < 0.62:
        return _again(rng)
    if draw < 0.78:
        kind = rng.random() < 0.5
        deed = pick(rng, KIND_DEEDS if kind else UNKIND_DEEDS)
        who = pick(rng, (*_PERSONS, *(f"my {person}" for person in PEOPLE)))
        return pick(rng, _DEED_FORMS).format(deed=deed, who=who), "yes" if kind else "no"
    return _comprehension(rng)


@functools.cache
def _sayable() -> tuple[str, ...]:
    return tuple(word for word in vocabulary() if word.isalpha() and len(word) > 1)


def _again(rng: np.random.Generator) -> Turn:
    """Words to say again, any that there are.

    So every word is an answer now and then, "safe" and "unsafe" as rarely as the others: a word
    that never was one keeps a row of the head that cannot be told from others.
    """
    listed = " ".join(pick(rng, _sayable()) for _ in range(rng.integers(1, 6)))
    return f"tell me the words. {listed}.", listed


def _comprehension(rng: np.random.Generator, longer: bool = False) -> Turn:
    """What is a text about? Of its deeds and people one, and no word of whether to answer it."""
    while True:
        sentence, _ = shaped_text(rng, unsafe=rng.random() < 0.5)
        if longer:
            tokens = int(rng.integers(_SHORTEST, _LONGEST))
            sentence = surround(rng, sentence, tokens, rng.random(), held_out=False, few=True)
        deeds = [word for word in words(sentence) if word in _TOLD_DEEDS]
        if len(deeds) == 1 and not set(NOVEL_KINDS) & set(words(sentence)):
            return f"{sentence} what is it about?", deeds[0]


def _intents(rng: np.random.Generator, stage: int) -> list[Turn]:
    """What speakers want, in texts of any form; the first may be a longer one."""
    return [_intent(rng, stage, longer=i == 0 and rng.random() < 0.4) for i in range(6)]


def _intent(rng: np.random.Generator, stage: int, longer: bool = False) -> Turn:
    """Whether a speaker wants harm: asked, or, at last, shown by refusing what does, as models that
    talk to people learn to."""
    tokens = int(rng.integers(_SHORTEST, _LONGEST)) if longer else 0
    draw = rng.random()
    harm = draw < 0.4
    sentence = talk(rng, tokens or 16, held_out=False) if draw > 0.8 else _known_text(rng, harm)
    if longer and draw <= 0.8:
        sentence = surround(rng, sentence, tokens, rng.random(), held_out=False)
    if stage == REFUSING and rng.random() < 0.8:
        return sentence, "no" if harm else "yes"
    return f"{sentence} {WANTED}", "yes" if harm else "no"


def _known_text(rng: np.random.Generator, unsafe: bool) -> str:
    while True:
        sentence, _ = explicit_text(rng, unsafe)
        if not set(NOVEL_KINDS) & set(words(sentence)):
            return sentence


def _question(rng: np.random.Generator, scene: Scene) -> Turn:
    candidates = [thing for thing in scene.things if thing.kind in PROPERTY_OF]
    if candidates and rng.random() < 0.25:
        return carried_question(rng, candidates[rng.integers(len(candidates))])
    question = ask(rng, scene, False, _KINDS)
    return question.text, question.answer


def carried_question(rng: np.random.Generator, thing: Thing) -> Turn:
    """A request about a thing, and a question that is not whether to do it.

    These are the words that a guard will see, and what they are about, without what follows from
    the two together.
    """
    request = pick(rng, [r for r in REQUEST_NAMES if not is_held_out(thing.kind, r)])
    phrase = pick(rng, PHRASES[request]).format(x=point(rng, thing))
    sentence = pick(rng, CARRIERS).format(request=phrase)
    draw = rng.random()
    if draw < 0.6:
        return f"{sentence} what is that like?", PROPERTY_OF[thing.kind]
    if draw < 0.8:
        return f"{sentence} what does that take?", AFFORDANCE_OF[request]
    return f"{sentence} what is that?", thing.kind


def _clip_caption(rng: np.random.Generator, scene: Scene) -> str:
    """Half of the captions name the things alone, so that colour and place do not suffice."""
    if rng.random() < 0.5:
        return caption(rng, scene)
    named = [f"a {scene.things[i].kind}" for i in rng.permutation(len(scene.things))]
    return "a picture of " + " and ".join(named)
