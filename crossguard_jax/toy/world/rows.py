"""The rows that the guard is trained on, and what their makers share.

A maker draws ``n`` rows from a stream. `sources` names them, and adds what is made for other
models; `derived` makes other rows out of these.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from crossguard_jax.toy.world.examples import Stream, WorldExample, halves
from crossguard_jax.toy.world.explicit import explicit_text, mix_apart
from crossguard_jax.toy.world.kinds import DECORATIONS, HAZARDS, KIND_NAMES, PLACES
from crossguard_jax.toy.world.lettering import (
    BENIGN_WORDS,
    HARMFUL_WORDS,
    TARGET_WORDS,
    is_held_out_phrase,
)
from crossguard_jax.toy.world.pointing import point
from crossguard_jax.toy.world.requests import carriers, phrases
from crossguard_jax.toy.world.risk import SEEN_PAIRS, risky
from crossguard_jax.toy.world.scenes import Scene, draw_scene
from crossguard_jax.toy.world.vqa import ask, pick

TYPOGRAPHIC_PROMPT = "the picture says what to do. tell me how to do it."
# Ordinary pictures have decorations in them, at times: then "no household object" means nothing.
ORDINARY = KIND_NAMES + DECORATIONS

_APART, _ALONE = 0.05, 0.15
"""Shares of explicit texts."""

Pair = tuple[str, str]
Option = TypeVar("Option")


def say(stream: Stream, request: str, thing: str) -> str:
    """The request, about what ``thing`` says, in one of the split's wordings."""
    phrase = pick(stream.rng, phrases(request, stream.held_out_wording)).format(x=thing)
    return pick(stream.rng, carriers(stream.held_out_wording)).format(request=phrase)


def scene_with(
    stream: Stream, first: Sequence[str], others: Sequence[str], places: Sequence[str] = PLACES
) -> Scene:
    """A picture of two or three things: those of ``first``, and others."""
    count = min(2 + int(stream.rng.integers(2)), len(places))
    return draw_scene(stream.rng, first, others, count, stream.scene_seed(), places)


def deal(rng: np.random.Generator, options: Sequence[Option], n: int) -> list[Option]:
    """``n`` of the options: all as often, give or take one, before any comes again."""
    dealt: list[Option] = []
    while len(dealt) < n:
        dealt.extend(options[i] for i in rng.permutation(len(options)))
    return dealt[:n]


def deal_pairs(stream: Stream, pairs: Sequence[Pair], n: int) -> list[Pair]:
    """``n`` pairs, risky as often as safe, in random order."""
    unsafe = deal(stream.rng, [pair for pair in pairs if risky(*pair)], (n + 1) // 2)
    safe = deal(stream.rng, [pair for pair in pairs if not risky(*pair)], n // 2)
    both = unsafe + safe
    return [both[i] for i in stream.rng.permutation(n)]


def pointing_row(stream: Stream, pair: Pair) -> WorldExample:
    """A request about a thing of the picture that the text points at."""
    kind, request = pair
    scene = scene_with(stream, [kind], ORDINARY)
    return WorldExample(
        text=say(stream, request, point(stream.rng, scene.things[0])),
        label="unsafe" if risky(*pair) else "safe",
        scene=scene,
        category=request,
        referent=0,
        kind=kind,
        request=request,
        aligned=True,
    )


def implicit_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Requests whose risk neither the picture nor the text tells."""
    return [pointing_row(stream, pair) for pair in deal_pairs(stream, SEEN_PAIRS, n)]


def explicit_text_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Texts whose intent is plain, a few in two sentences (``apart``), a few without a picture."""

    def make(stream: Stream, unsafe: bool) -> WorldExample:
        rng, held_out = stream.rng, stream.held_out_wording
        if rng.random() < _APART:
            text, category = " ".join(mix_apart(rng, unsafe, held_out)), "apart"
        else:
            text, category = explicit_text(rng, unsafe, held_out)
        scene = None if rng.random() < _ALONE else scene_with(stream, [], ORDINARY)
        return WorldExample(text, "unsafe" if unsafe else "safe", scene, category)

    return halves(stream, n, make)


def explicit_picture_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Harmless texts beside pictures that show a hazard, or a decoration in its place."""
    safe_pairs = [pair for pair in SEEN_PAIRS if not risky(*pair)]

    def make(stream: Stream, unsafe: bool) -> WorldExample:
        emblem = pick(stream.rng, HAZARDS if unsafe else DECORATIONS)
        kind, request = safe_pairs[stream.rng.integers(len(safe_pairs))]
        scene = scene_with(stream, [emblem, kind], ORDINARY)
        label = "unsafe" if unsafe else "safe"
        if stream.rng.random() < 0.5:
            question = ask(stream.rng, scene, stream.held_out_wording)
            return WorldExample(
                question.text, label, scene, emblem, question.answer, referent=question.about
            )
        text = say(stream, request, point(stream.rng, scene.things[1]))
        return WorldExample(text, label, scene, emblem, "", 1, kind, request, aligned=True)

    return halves(stream, n, make)


def written_scene(
    stream: Stream, unsafe: bool, held_out: bool | None, others: Sequence[str]
) -> Scene:
    """A picture with two words in it, and at most two objects beside them."""
    verbs = HARMFUL_WORDS if unsafe else BENIGN_WORDS
    options = [
        (verb, target)
        for verb in verbs
        for target in TARGET_WORDS
        if held_out is None or is_held_out_phrase(verb, target) == held_out
    ]
    words = options[stream.rng.integers(len(options))]
    row = int(stream.rng.integers(3))
    places = (PLACES[2:], (), PLACES[:2])[row]
    count = int(stream.rng.integers(3)) if places else 0
    scene = draw_scene(stream.rng, [], others, count, stream.scene_seed(), places)
    return replace(scene, words=words, first_row=row)


def typographic_rows(stream: Stream, n: int) -> list[WorldExample]:
    """One text, beside pictures in which harm is written, or kindness."""

    def make(stream: Stream, unsafe: bool) -> WorldExample:
        scene = written_scene(stream, unsafe, stream.held_out_wording, ORDINARY)
        label = "unsafe" if unsafe else "safe"
        return WorldExample(TYPOGRAPHIC_PROMPT, label, scene, scene.words[0], " ".join(scene.words))

    return halves(stream, n, make)


def question_rows(stream: Stream, n: int, scene_kinds: Sequence[str]) -> list[WorldExample]:
    """Ordinary questions about pictures of these kinds."""
    rows = []
    for _ in range(n):
        scene = scene_with(stream, [], scene_kinds)
        q = ask(stream.rng, scene, stream.held_out_wording, tuple(scene_kinds))
        kind = None if q.about is None else scene.things[q.about].kind
        rows.append(WorldExample(q.text, "safe", scene, q.topic, q.answer, q.about, kind))
    return rows


def benign_vqa_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Ordinary questions about ordinary pictures."""
    return question_rows(stream, n, ORDINARY)
