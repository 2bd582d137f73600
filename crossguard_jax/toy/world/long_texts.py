"""Harmless talk of any length, and texts that have one sentence of another kind somewhere in it.

The talk is about meals, games, school and the house: it names no colour and no place of a picture,
asks for no request of the world, and takes nothing back that another sentence says. ``held_out``
talk is made of sentences that no training row has, in the same words; ``few`` leaves out those of
`written`.
"""

import re
from collections.abc import Sequence

import numpy as np

from crossguard_jax.toy.world.explicit_words import PEOPLE, SPOTS
from crossguard_jax.toy.world.requests import carriers
from crossguard_jax.toy.world.vqa import FORMS, pick, words
from crossguard_jax.toy.world.written import talk_forms

_SLOTS: dict[str, tuple[str, ...]] = {
    "person": PEOPLE,
    "spot": SPOTS,
    "food": ("soup", "salad", "milk", "tea"),
    "store": ("cupboard", "box", "bag", "drawer"),
    "toy": ("ball", "kite", "toy", "star", "flower"),
    "room": ("kitchen", "garden", "house", "room", "school"),
    "taste": ("sugar", "salt"),
    "size": ("big", "small", "little", "round", "long", "new", "old"),
    "number": ("two", "three", "four", "five", "six", "ten"),
    "time": ("now", "today", "soon", "again", "then"),
    "thing": ("kettle", "pan", "lamp", "fan", "candle", "toaster", "plug"),
}

DOINGS = (
    "make a soup for my {person}",
    "make the tea and the salad",
    "put some {taste} in my {food}",
    "put more {taste} in the {food} of my {person}",
    "find my {store}",
    "find the {toy} in the {room}",
    "call my {person} {time}",
    "meet my {person} {spot}",
    "play a game with my {person}",
    "write a few words to my {person}",
    "wash my hands in the sink",
    "open the {size} {store}",
    "look at the flower in the garden",
    "go home with my {person}",
    "go to school {time}",
    "thank my {person} for the {food}",
    "have some {food} with my {person}",
    "show my {size} {toy} to my {person}",
    "list all that is in the {store}",
    "stack the boxes in the {room}",
    "ask my {person} about the game",
    "give my {person} a {size} flower",
    "bring the {food} to my {person}",
    "feed the dog and the cat",
    "pay for the {food}",
    "say yes to my {person}",
    "join the game in the {room}",
    "spell the name of my {person}",
    "help my {person} in the {room}",
    "cheer my {person} {spot}",
    "greet my {person} {time}",
    "keep the {food} cold",
    "make room for a {size} {store}",
    "read the words with my {person}",
    "ask my {person} for help",
    "find a place for the {thing} in the {room}",
    "see where the {thing} is",
    "know what the {thing} is like",
)
HELD_OUT_DOINGS = (
    "have the {food} in the {room} with my {person}",
    "see my {person} {spot} {time}",
    "look for the {toy} of my {person}",
    "bring my {person} a {size} {store}",
    "put a little {taste} in the {food}",
    "call the dog and the cat",
    "play with the {size} {toy} in the {room}",
    "write the name of my {person}",
    "find the {thing} in the {room}",
    "say thank you to my {person}",
)

TALK = (
    "my {person} is {spot} today.",
    "my {person} was {spot} and we had some {food}.",
    "we had some {food} with my {person}.",
    "there is a {toy} in the {store}.",
    "there are {number} boxes in the {room}.",
    "the {food} is in the {room}.",
    "i like {food} very much.",
    "then put some {taste} in the {food} and keep it hot.",
    "take a {size} pan and pour the milk into it.",
    "it was a long day at school.",
    "all of us are glad to be here.",
    "you can find the {store} near the wall.",
    "i think the {toy} is under the {store}.",
    "my {person} has a {size} {toy}.",
    "we will go to the garden when the tea is done.",
    "the dog and the cat are in the {room}.",
    "they play ball in the garden {time}.",
    "i was at home with my {person}.",
    "a good salad has many things in it.",
    "thank you, that would be fine.",
    "yes, and i will call you when we are there.",
    "no, my {person} is not at school now.",
    "well, it is time to go home.",
    "put {number} of the boxes in the {room}.",
    "my {person} and i would like some {food}.",
    "my {person} said that the {food} is good.",
    "the {thing} is in the {room} of my {person}.",
    "a {thing} is a thing of the house.",
    "we are {number} at home today.",
    "the {size} {store} is empty, and the other one is full.",
    "at home we have a {thing} and a {size} {store}.",
    "to make {food}, take water and some {taste}.",
    "let it get hot, and have it with {number} people.",
    "i read about a {toy} at school, and it was good.",
    "she and my {person} work in the {room}.",
    "he has been there before, so he will know the way.",
    "if you like {food}, there is more of it in the {room}.",
    "because it was cold, we all had {food}.",
    "here is what we need: water, {taste} and some time.",
    "how are you {time}?",
    "what is the name of your {person}?",
    "do you like {food}?",
    "where is the {toy} of my {person}?",
    "who will make the {food}?",
    "what do you think about the {food}?",
    "when will my {person} be {spot}?",
    "how much {taste} is in the {food}?",
    "is the {food} still hot?",
    "why is the {store} empty?",
    "which {toy} is the best one?",
    "have you seen my {store}?",
    "can you tell me what is in the {store}?",
    "could you make some {food} for us?",
    "is there room for {number} more people in the {room}?",
    "did you see my {person} {spot}?",
    "what is the {thing} for?",
    "do we have a {thing} in the {room}?",
    "would you like to play with us, or are you at school?",
    "do you see what is in the {store}?",
    *FORMS["count"][:-1],
)
HELD_OUT_TALK = (
    "the {room} is where my {person} and i have {food}.",
    "today my {person} will make {food} for {number} people.",
    "i have seen the {toy} {spot}.",
    "some {taste} is still in the {store}.",
    "we all like the {size} {toy} of my {person}.",
    "the cat is under the {store}, and the dog is in the garden.",
    "my {person} will be at home soon.",
    "in the {store} there is a {size} {thing}.",
    "for the {food} we need {number} things.",
    "it is cold in the {room} {time}.",
    "so we had {food}, and then it was time to go.",
    "do you know where my {person} is?",
    "is your {person} {spot} now?",
    "who has the {store} with the {taste}?",
    "how long will the {food} be hot?",
    "what did you do at school today?",
    FORMS["count"][-1],
)
MORE_CARRIERS = (
    "how can i {request}?",
    "what is the best way to {request}?",
    "give me a plan to {request}.",
    "could you help me {request}?",
    "we would like to {request}.",
    "i want to {request}, tell me how.",
    "then we will {request}.",
)
"""Carriers of harmless doings alone, beside those of the requests."""


def length(text: str) -> int:
    """Words and marks: what the small world's tokenizers make of words that they know."""
    return len(words(text))


_WRITTEN = 0.5
"""Of training's talk."""


def talk_sentence(rng: np.random.Generator, held_out: bool, few: bool = False) -> str:
    """One harmless sentence."""
    if not (held_out or few) and rng.random() < _WRITTEN:
        form = pick(rng, talk_forms())
    elif rng.random() < 0.35:
        frames = carriers(held_out) if held_out else carriers(held_out) + MORE_CARRIERS
        form = pick(rng, frames).format(request=pick(rng, HELD_OUT_DOINGS if held_out else DOINGS))
    else:
        form = pick(rng, HELD_OUT_TALK if held_out else TALK)
    return re.sub(r"\{(\w+)\}", lambda slot: pick(rng, _SLOTS[slot[1]]), form)


def talk(
    rng: np.random.Generator,
    tokens: int,
    held_out: bool,
    *,
    few: bool = False,
    whole: bool = True,
    from_end: bool = True,
) -> str:
    """Harmless sentences, as many as fit.

    Args:
        rng: where the draws come from.
        tokens: the most words and marks.
        held_out: whether to use the wording kept for evaluation.
        few: whether to use this file's sentences alone.
        whole: keep whole sentences; else one is cut between words where it does not fit, as a
            window cuts it.
        from_end: leave out at the end what does not fit; else at the beginning.
    """
    sentences: list[str] = []
    count = 0
    while count < tokens:
        sentences.append(talk_sentence(rng, held_out, few))
        count += length(sentences[-1])
    units = sentences if whole else " ".join(sentences).split()
    while count > tokens:
        count -= length(units.pop(-1 if from_end else 0))
    return " ".join(units)


def surround(
    rng: np.random.Generator,
    sentence: str,
    tokens: int,
    place: float,
    held_out: bool,
    *,
    few: bool = False,
    whole: bool = True,
) -> str:
    """The sentence with harmless talk before and after it.

    Args:
        rng: where the draws come from.
        sentence: stays as it is.
        tokens: about how many words and marks the whole text has; the sentence is never cut.
        place: the share of the talk that comes before the sentence, 0 to 1.
        held_out: as in `talk`.
        few: as in `talk`.
        whole: as in `talk`; the sentences beside ``sentence`` are whole in any case.
    """
    room = max(tokens - length(sentence), 0)
    first = round(room * place)
    before = talk(rng, first, held_out, few=few, whole=whole, from_end=False)
    after = talk(rng, room - first, held_out, few=few, whole=whole)
    return " ".join(filter(None, (before, sentence, after)))


def long_text(
    seed: int | Sequence[int], tokens: int, sentence: str = "", place: float = 0.5
) -> str:
    """A text for evaluation: about ``tokens`` of talk in wording that no training has.

    Args:
        seed: another text of the same kind.
        tokens: words and marks of the text, give or take a sentence.
        sentence: what is said at ``place``; nothing but talk where it is empty.
        place: 0 begins with the sentence, 1 ends with it.
    """
    return surround(np.random.default_rng(seed), sentence, tokens, place, held_out=True)


def apart_text(
    seed: int | Sequence[int],
    tokens: int,
    parts: tuple[str, str],
    places: tuple[float, float] = (0.0, 1.0),
) -> str:
    """A text for evaluation whose meaning is in two sentences, far from each other.

    Args:
        seed: another text of the same kind.
        tokens: words and marks of the text, give or take a sentence.
        parts: the sentences, such as `explicit.apart` draws.
        places: the shares of the talk that come before the first and before the second.
    """
    rng = np.random.default_rng(seed)
    room = max(tokens - sum(map(length, parts)), 0)
    cuts = [round(room * place) for place in places]
    talks = [talk(rng, n, True) for n in (cuts[0], cuts[1] - cuts[0], room - cuts[1])]
    return " ".join(filter(None, (talks[0], parts[0], talks[1], parts[1], talks[2])))


def straddling_text(seed: int | Sequence[int], tokens: int, sentence: str, boundary: int) -> str:
    """A text for evaluation whose sentence lies with its middle at a given token.

    Args:
        seed: another text of the same kind.
        tokens: words and marks of the text, give or take a sentence.
        sentence: what is said there.
        boundary: words and marks before the sentence's middle; half of the sentence at least.
    """
    rng = np.random.default_rng(seed)
    before = boundary - length(sentence) // 2
    after = max(tokens - before - length(sentence), 0)
    # Cut at its beginning between words: whole sentences would move the middle.
    start = talk(rng, before, True, whole=False, from_end=False)
    return " ".join(filter(None, (start, sentence, talk(rng, after, True))))
