"""Expressions that point at an object by its colour or its place, and name nothing."""

import numpy as np

from crossguard_jax.toy.world.kinds import COLOUR_NAMES, PLACES
from crossguard_jax.toy.world.scenes import Scene, Thing

BY_COLOUR = ("the {colour} one", "the {colour} thing")
IN_PICTURE = ("{x} in picture {number}", "{x} of picture {number}", "{x} from picture {number}")
"""Which of several pictures is meant; the last form is kept for evaluation on unseen wording."""

PICTURE_NUMBERS = ("one", "two")
BY_PLACE = ("the one at the {place}", "the thing at the {place}")
IN_LINE = ("the {place} one", "the {place} thing")
"""By place where things stand in a line (`kinds.LINES`)."""


def expressions(place: str) -> list[str]:
    """What a thing at that place may be called."""
    return [form.format(place=place) for form in (BY_PLACE if place in PLACES else IN_LINE)]


def point(rng: np.random.Generator, thing: Thing) -> str:
    """An expression for the thing, by colour as often as by place."""
    form = rng.integers(2)
    if rng.random() < 0.5:
        return BY_COLOUR[form].format(colour=thing.colour)
    return expressions(thing.place)[form]


def point_past(rng: np.random.Generator, scene: Scene) -> str:
    """An expression, from the same distribution, that holds of nothing in the scene."""
    form = rng.integers(2)
    if rng.random() < 0.5:
        free = [name for name in COLOUR_NAMES if name not in {t.colour for t in scene.things}]
        return BY_COLOUR[form].format(colour=free[rng.integers(len(free))])
    free = [name for name in PLACES if name not in {t.place for t in scene.things}]
    return BY_PLACE[form].format(place=free[rng.integers(len(free))])


def point_into(rng: np.random.Generator, expression: str, picture: int, held_out: bool) -> str:
    """The expression, said of one of two pictures.

    Args:
        rng: where the draws come from.
        expression: what `point` gave.
        picture: 0 or 1.
        held_out: whether to use the form kept for evaluation.
    """
    forms = IN_PICTURE[-1:] if held_out else IN_PICTURE[:-1]
    form = forms[rng.integers(len(forms))]
    return form.format(x=expression, number=PICTURE_NUMBERS[picture])


def referents(text: str, scene: Scene) -> list[int]:
    """The indices of the scene's things that a pointing expression in the text holds of."""
    return [
        i
        for i, thing in enumerate(scene.things)
        if any(form.format(colour=thing.colour) in text for form in BY_COLOUR)
        or any(expression in text for expression in expressions(thing.place))
    ]
