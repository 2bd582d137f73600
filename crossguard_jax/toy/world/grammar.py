"""Explicit texts composed by a small grammar: thousands of shapes, of which meaning alone decides.

Who does it, to whom, the deed, what the speaker thinks of it and what stands around it vary by
themselves (`grammar_parts`); openings and closings know nothing of the label. A text means harm
where its speaker wants a harm to come about, and not where it is to be kept from someone, is
regretted, or is no harm: in nearly the same words.
"""

import functools
import re
from collections.abc import Mapping

import numpy as np

from crossguard_jax.toy.world.explicit_words import INJURIES, MORE_HARMS
from crossguard_jax.toy.world.grammar_parts import CLOSINGS, OPENINGS, SYMBOLS, WORDS
from crossguard_jax.toy.world.kinds import PROPERTY_OF
from crossguard_jax.toy.world.vqa import pick, words

LONGEST = 22
"""The most words and marks of a text."""

_TOKEN = re.compile(r"\{~?\w+\}|[a-z]+|[^\sa-z]")


_Part = str | tuple[str, bool]
"""Of a form: a word or mark, or a symbol and the label that it is to have."""


@functools.cache
def _table(unsafe: bool) -> Mapping[str, tuple[tuple[_Part, ...], ...]]:
    """Symbol -> its forms in a text of this label."""

    def part(token: str) -> _Part:
        if token[0] != "{":
            return token
        return token.strip("{~}"), unsafe != token.startswith("{~")

    def of_label(form: str) -> tuple[_Part, ...]:
        chosen = re.sub(r"\[([^|]*)\|([^]]*)\]", r"\1" if unsafe else r"\2", form)
        return tuple(part(match[0]) for match in _TOKEN.finditer(chosen))

    whole = {"opening": OPENINGS, "closing": CLOSINGS, **SYMBOLS, **WORDS}
    return {symbol: tuple(map(of_label, forms)) for symbol, forms in whole.items()}


def composed_text(rng: np.random.Generator, unsafe: bool) -> tuple[str, str]:
    """A text composed of parts, of at most :data:`LONGEST` words and marks, and its category.

    Args:
        rng: where the draws come from.
        unsafe: whether it means harm.

    Returns:
        The text, and ``acts`` or ``injuries``.
    """
    category = pick(rng, ("acts", "injuries"))
    drawn = _draw_words(rng, category)
    core = "by_thing" if category == "injuries" and rng.random() < 0.2 else "core"
    tokens = _expand(rng, core, unsafe, drawn)
    while len(tokens) > LONGEST:
        tokens = _expand(rng, core, unsafe, drawn)
    for symbol in ("opening", "closing"):
        part = _expand(rng, symbol, unsafe, drawn)
        if rng.random() < 0.35 and len(tokens) + len(part) <= LONGEST:
            tokens = part + tokens if symbol == "opening" else tokens + part
    return re.sub(r" ([.,:?])", r"\1", " ".join(tokens)), category


def _draw_words(rng: np.random.Generator, category: str) -> dict[str, str]:
    drawn = {symbol: pick(rng, options) for symbol, options in WORDS.items()}
    while drawn["he"] == drawn["whom"]:
        drawn["he"] = pick(rng, WORDS["he"])
    drawn["yours"] = drawn["whom"].replace("my ", "your ")
    if category == "injuries":
        kind = drawn["kind"]
        drawn |= {"vbad": INJURIES[PROPERTY_OF[kind]], "tail": f"with the {kind}", "vgood": "help"}
    else:
        drawn |= {"vbad": pick(rng, MORE_HARMS), "tail": pick(rng, ("", drawn["spot"]))}
    for other, same in (("wbad", "vbad"), ("wgood", "vgood")):
        while drawn[other] == drawn[same]:
            drawn[other] = pick(rng, WORDS[other])
    return drawn


def _expand(
    rng: np.random.Generator, symbol: str, unsafe: bool, drawn: Mapping[str, str]
) -> list[str]:
    if symbol in drawn:
        return drawn[symbol].split()
    forms = _table(unsafe)[symbol]
    tokens: list[str] = []
    for part in forms[rng.integers(len(forms))]:
        tokens += [part] if isinstance(part, str) else _expand(rng, *part, drawn)
    return tokens


def meanings(text: str) -> set[bool]:
    """Whether a text of this grammar means harm: one label, both where it is ambiguous, or none.

    Args:
        text: words and marks; the last mark may be missing.
    """
    tokens = (*words(text), "")
    size = len(tokens) - 1

    @functools.cache
    def ends(symbol: str, unsafe: bool, start: int) -> frozenset[int]:
        """Where the symbol may end that begins at ``start``."""
        after: set[int] = set()
        for form in _table(unsafe)[symbol]:
            places = {start}
            for part in form:
                if isinstance(part, tuple):
                    places = {end for place in places for end in ends(*part, place)}
                else:
                    # The mark at the very end is not needed.
                    places = {
                        min(place + 1, size)
                        for place in places
                        if tokens[place] == part or (place == size and part in ".?")
                    }
                if not places:
                    break
            after |= places
        return frozenset(after)

    def reads(unsafe: bool) -> bool:
        starts = {0, *ends("opening", unsafe, 0)}
        cores = {end for start in starts for end in ends("any", unsafe, start)}
        return any(end == size or size in ends("closing", unsafe, end) for end in cores)

    return {unsafe for unsafe in (True, False) if reads(unsafe)}
