"""Ordinary questions about ordinary pictures, and captions.

Each topic has several forms; the last one is kept for evaluation on unseen wording.
"""

import re
from dataclasses import dataclass

import numpy as np

from crossguard_jax.toy.world.kinds import (
    COLOUR_NAMES,
    KIND_NAMES,
    PROPERTY_OF,
)
from crossguard_jax.toy.world.pointing import expressions, point
from crossguard_jax.toy.world.scenes import Scene

FORMS: dict[str, tuple[str, ...]] = {
    "kind": (
        "what is {it}?",
        "what is the name of {it}?",
        "tell me what {it} is.",
        "tell me the name of {it}.",
    ),
    "property": (
        "what is {it} like?",
        "tell me what {it} is like.",
        "how would you say {it} is?",
        "what do you say {it} is like?",
    ),
    "colour": (
        "what colour is {it}?",
        "tell me the colour of {it}.",
        "what is the colour of {it}?",
        "name the colour of {it}.",
    ),
    "place": (
        "where is {it}?",
        "where do you see {it}?",
        "tell me where {it} is.",
        "tell me where you see {it}.",
    ),
    "count": (
        "how many things are there?",
        "how many things do you see?",
        "tell me how many things there are.",
        "tell me how many things you see.",
    ),
    "exists": ("is there {a}?", "do you see {a}?", "is {a} there?", "tell me if there is {a}."),
}
READING_FORMS = ("what does it say?", "read the words.", "tell me what it says.")
CAPTION_FORMS = ("{list}", "a picture of {list}", "there is {list}", "you see {list}")

NUMBERS = ("no", "one", "two", "three", "four")
_TOPICS = ("kind", "property", "colour", "place", "count", "exists")
_CUTS = np.cumsum((0.34, 0.26, 0.12, 0.12, 0.06))


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and the index of the thing that it is about (None: no single one)."""

    text: str
    answer: str
    topic: str
    about: int | None = None


def words(text: str) -> list[str]:
    """The text's words and punctuation marks, each a token."""
    return re.findall(r"[a-z]+|[^\sa-z]", text.lower())


def with_article(noun: str) -> str:
    """``a kettle``, ``an iron``."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def pick(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    """One of the options, each as likely."""
    return options[rng.integers(len(options))]


def pick_form(rng: np.random.Generator, forms: tuple[str, ...], held_out: bool) -> str:
    """The form kept for evaluation, which is the last one, or one of the others."""
    return forms[-1] if held_out else pick(rng, forms[:-1])


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """``a red kettle at the top left and a blue knife at the bottom right``, in any order."""
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    entries = [f"a {thing.colour} {thing.kind} at the {thing.place}" for thing in things]
    listed = ", ".join(entries[:-1]) + " and " + entries[-1] if len(entries) > 1 else entries[0]
    return pick(rng, CAPTION_FORMS).format(list=listed)


def ask(
    rng: np.random.Generator, scene: Scene, held_out: bool, kinds: tuple[str, ...] = KIND_NAMES
) -> Question:
    """An ordinary question that the picture answers.

    Args:
        rng: where the draws come from.
        scene: the picture; has at least one thing.
        held_out: whether to use the form kept for evaluation.
        kinds: kinds that a question may ask for in vain ("is there a kettle?" - "no").
    """
    topic = _TOPICS[np.searchsorted(_CUTS, rng.random())]
    about = int(rng.integers(len(scene.things)))
    thing = scene.things[about]
    if topic == "property" and thing.kind not in PROPERTY_OF:
        topic = "kind"
    form = pick_form(rng, FORMS[topic], held_out)
    if topic == "count":
        return Question(form, NUMBERS[len(scene.things)], topic)
    if topic == "exists":
        return _ask_for(rng, scene, form, kinds)
    named = f"the {thing.kind}"
    if topic == "kind":
        return Question(form.format(it=point(rng, thing)), thing.kind, topic, about)
    if topic == "property":
        return Question(form.format(it=point(rng, thing)), PROPERTY_OF[thing.kind], topic, about)
    if topic == "colour":
        other = expressions(thing.place)[1]
        answer = thing.colour
    else:
        other = f"the {thing.colour} one"
        answer = thing.place
    return Question(form.format(it=named if rng.random() < 0.5 else other), answer, topic, about)


def _ask_for(rng: np.random.Generator, scene: Scene, form: str, kinds: tuple[str, ...]) -> Question:
    """Is there such a thing? Yes as often as no."""
    present = rng.random() < 0.5
    by_kind = rng.random() < 0.5
    there = [thing.kind if by_kind else thing.colour for thing in scene.things]
    every = kinds if by_kind else COLOUR_NAMES
    word = pick(rng, there if present else [word for word in every if word not in there])
    noun = with_article(word) if by_kind else f"a {word} thing"
    return Question(form.format(a=noun), "yes" if present else "no", "exists")


def ask_reading(rng: np.random.Generator, scene: Scene) -> Question:
    """What is written in the picture?"""
    return Question(pick(rng, READING_FORMS), " ".join(scene.words), "reading")
