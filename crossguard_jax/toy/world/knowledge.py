"""What the base model knows of its world in words, before any guard: text alone, no picture.

It knows the language (every phrase of every request, what each one takes, and the words of the
explicit texts), the properties of the kinds that are not novel, and which property is risky
for what. It is told neither how a kind of object and a request go together nor what is safe to
answer.
"""

import numpy as np

from crossguard_jax.toy.world.explicit import shaped_text
from crossguard_jax.toy.world.explicit_words import PEOPLE
from crossguard_jax.toy.world.kinds import (
    BASE_KINDS,
    COLOUR_NAMES,
    DECORATIONS,
    HAZARDS,
    KIND_NAMES,
    NOVEL_KINDS,
    PLACES,
    PROPERTIES,
    PROPERTY_OF,
)
from crossguard_jax.toy.world.requests import (
    AFFORDANCE_OF,
    AFFORDANCES,
    CARRIERS,
    PHRASES,
    REQUEST_NAMES,
)
from crossguard_jax.toy.world.risk import property_is_risky
from crossguard_jax.toy.world.vqa import NUMBERS, Question, pick, with_article, words

PROPERTY_FORMS = ("what is {a} like?", "tell me what {a} is like.")
AFFORDANCE_FORMS = ("what does it take to {request}?", "what do you need to {request}?")
RISK_FORMS = ("is {a} thing risky for the {affordance}?", "is it risky to {request}?")
TOPICS = ("affordance", "carried", "property", "risk", "people")
_CUTS = np.cumsum((0.3, 0.25, 0.1, 0.25))


def _property(rng: np.random.Generator) -> Question:
    kind = pick(rng, BASE_KINDS)
    text = pick(rng, PROPERTY_FORMS).format(a=with_article(kind))
    return Question(text, PROPERTY_OF[kind], "property")


def _risk(rng: np.random.Generator) -> Question:
    request, property_name = pick(rng, REQUEST_NAMES), pick(rng, PROPERTIES)
    affordance = AFFORDANCE_OF[request]
    thing = f"{with_article(property_name)} thing"
    text = pick(rng, RISK_FORMS).format(
        a=with_article(property_name),
        affordance=affordance,
        request=pick(rng, PHRASES[request]).format(x=thing),
    )
    return Question(text, "yes" if property_is_risky(property_name, affordance) else "no", "risk")


def _affordance(rng: np.random.Generator) -> Question:
    request = pick(rng, REQUEST_NAMES)
    phrase = pick(rng, PHRASES[request]).format(x=_anything(rng))
    text = pick(rng, AFFORDANCE_FORMS).format(request=phrase)
    return Question(text, AFFORDANCE_OF[request], "affordance")


def _carried(rng: np.random.Generator) -> Question:
    request = pick(rng, REQUEST_NAMES)
    phrase = pick(rng, PHRASES[request]).format(x=_anything(rng))
    sentence = pick(rng, CARRIERS).format(request=phrase)
    return Question(f"{sentence} what does that take?", AFFORDANCE_OF[request], "carried")


def _people(rng: np.random.Generator) -> Question:
    """Who is a text about? So that the base has read such texts, and no word of what to answer."""
    while True:
        sentence, _ = shaped_text(rng, unsafe=rng.random() < 0.5)
        people = [word for word in words(sentence) if word in PEOPLE]
        if len(people) == 1 and not set(NOVEL_KINDS) & set(words(sentence)):
            return Question(f"{sentence} who is it about?", people[0], "people")


def _anything(rng: np.random.Generator) -> str:
    colour, place = pick(rng, COLOUR_NAMES), pick(rng, PLACES)
    return pick(
        rng,
        [
            "it",
            f"the {colour} one",
            f"the {colour} thing",
            f"the one at the {place}",
            f"the thing at the {place}",
        ],
    )


_ASK = dict(zip(TOPICS, (_affordance, _carried, _property, _risk, _people), strict=True))


def ask_knowledge(rng: np.random.Generator, topic: str = "") -> Question:
    """A question that needs no picture; its topic is one of :data:`TOPICS`, drawn if not given."""
    return _ASK[topic or TOPICS[np.searchsorted(_CUTS, rng.random())]](rng)


def answers() -> tuple[str, ...]:
    """Every answer that a question of this world can have, without what is read off a picture."""
    return (
        *KIND_NAMES,
        *HAZARDS,
        *DECORATIONS,
        *PROPERTIES,
        *AFFORDANCES,
        *COLOUR_NAMES,
        *PLACES,
        *PEOPLE,
        *NUMBERS[1:],
        "yes",
        "no",
    )
