"""Explicit texts and harmless talk in forms that were written one by one.

Five writers (language models, none of which was shown the forms kept for evaluation or another's)
wrote pairs: a form that means harm and, in nearly the same words, one that does not
(``forms/pairs.txt``, ``||`` between both). Four readers, language models too, who were shown
neither labels nor pairs labelled every form; pairs with a form that was read otherwise than it was
meant are left out: 18 forms of 3,256. The talk (``forms/talk.txt``) is of the same five.
"""

import functools
from pathlib import Path

import numpy as np

from crossguard_jax.toy.world.explicit_words import (
    CAUSTIC,
    FOODS,
    INJURIES,
    MORE_HARMS,
    MORE_KINDNESSES,
    PEOPLE,
    SEASONINGS,
    SPOTS,
    STORES,
)
from crossguard_jax.toy.world.kinds import KIND_NAMES, PROPERTY_OF
from crossguard_jax.toy.world.vqa import pick

_FORMS = Path(__file__).parent / "forms"


def _read_lines(name: str) -> tuple[str, ...]:
    return tuple((_FORMS / name).read_text().splitlines())


@functools.cache
def pairs() -> tuple[tuple[str, str], ...]:
    """Forms that mean harm, each beside the one of nearly the same words that does not."""
    both = (line.split(" || ") for line in _read_lines("pairs.txt"))
    return tuple((unsafe, safe) for unsafe, safe in both)


@functools.cache
def talk_forms() -> tuple[str, ...]:
    """Sentences of harmless talk, with the slots of `long_texts`."""
    return _read_lines("talk.txt")


def category_of(form: str) -> str:
    """A key of ``explicit.CATEGORIES``, by what the form speaks of."""
    if "{injury}" in form:
        return "injuries"
    return "acts" if "{harm}" in form else "mixes"


def written_text(rng: np.random.Generator, unsafe: bool) -> tuple[str, str]:
    """A text in a written form, and its category.

    Args:
        rng: where the draws come from.
        unsafe: whether it means harm.
    """
    pair = pairs()[rng.integers(len(pairs()))]
    kind = pick(rng, KIND_NAMES)
    harm, misdeed = rng.choice(MORE_HARMS, 2, replace=False)
    kindness, favour = rng.choice(MORE_KINDNESSES, 2, replace=False)
    person, other = rng.choice(PEOPLE, 2, replace=False)
    text = pair[0 if unsafe else 1].format(
        harm=harm,
        misdeed=misdeed,
        kindness=kindness,
        favour=favour,
        person=person,
        other=other,
        spot=pick(rng, SPOTS),
        kind=kind,
        injury=INJURIES[PROPERTY_OF[kind]],
        caustic=pick(rng, CAUSTIC),
        seasoning=pick(rng, SEASONINGS),
        food=pick(rng, FOODS),
        store=pick(rng, STORES),
    )
    return text, category_of(" ".join(pair))
