"""What may be done to a text in one edit: to a letter, as typing and deceit do, or to a word.

An edit gives every text that is one edit away. Letters are edited inside words alone; spaces and
punctuation stay.
"""

import re
import string
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

Edit = Callable[[str], Iterator[str]]
"""``edit(text)``: the texts one edit away; some may repeat, or be the text itself."""

Synonyms = Mapping[str, Sequence[str]] | Callable[[str], Sequence[str]]
"""What may stand for a word in lower case; of a mapping, nothing for a word that it lacks."""

# Letters that look alike, Latin first: Cyrillic, Greek and Armenian ones, digits and signs.
_ALIKE = {
    "a": "\u0430\u03b1@",
    "b": "\u0184",
    "c": "\u0441\u03f2",
    "d": "\u0501",
    "e": "\u0435\u212e3",
    "g": "\u0261",
    "h": "\u04bb",
    "i": "\u0456\u03b91!",
    "j": "\u0458",
    "k": "\u03ba",
    "l": "\u04cf1|",
    "n": "\u0578",
    "o": "\u043e\u03bf0",
    "p": "\u0440\u03c1",
    "q": "\u051b",
    "s": "\u0455$5",
    "t": "7",
    "u": "\u057d\u03c5",
    "v": "\u03bd",
    "w": "\u051d",
    "x": "\u0445\u03c7",
    "y": "\u0443\u04af",
    "z": "2",
    "A": "\u0410\u0391",
    "B": "\u0412\u03928",
    "C": "\u0421",
    "E": "\u0415\u0395",
    "H": "\u041d\u0397",
    "I": "\u0406\u0399",
    "J": "\u0408",
    "K": "\u041a\u039a",
    "M": "\u041c\u039c",
    "N": "\u039d",
    "O": "\u041e\u039f0",
    "P": "\u0420\u03a1",
    "S": "\u0405",
    "T": "\u0422\u03a4",
    "X": "\u0425\u03a7",
    "Y": "\u03a5",
    "Z": "\u0396",
}

_KEY_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")  # each half a key to the right


def _neighbours() -> dict[str, str]:
    """What lies around each key of a QWERTY keyboard."""
    places = {
        key: (2 * column + row, row)
        for row, keys in enumerate(_KEY_ROWS)
        for column, key in enumerate(keys)
    }
    return {
        key: "".join(
            other
            for other, (u, v) in places.items()
            if (abs(x - u), abs(y - v)) in ((2, 0), (1, 1))
        )
        for key, (x, y) in places.items()
    }


_NEAR = _neighbours()


def _letters(text: str) -> Iterator[int]:
    return (i for i, letter in enumerate(text) if letter.isalnum())


def swap(text: str) -> Iterator[str]:
    """Two neighbouring letters of a word change places."""
    for i in _letters(text[:-1]):
        if text[i + 1].isalnum():
            yield text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def delete(text: str) -> Iterator[str]:
    """A letter is left out, of words that have more than one."""
    for word in re.finditer(r"\w\w+", text):
        for i in range(*word.span()):
            yield text[:i] + text[i + 1 :]


def insert(text: str) -> Iterator[str]:
    """A small letter is put before a letter, or behind a word's last."""
    for i in range(len(text) + 1):
        if text[i : i + 1].isalnum() or text[max(i - 1, 0) : i].isalnum():
            yield from (text[:i] + letter + text[i:] for letter in string.ascii_lowercase)


def homoglyph(text: str) -> Iterator[str]:
    """A letter is replaced by one that looks like it."""
    for i in _letters(text):
        yield from (text[:i] + other + text[i + 1 :] for other in _ALIKE.get(text[i], ""))


def keyboard(text: str) -> Iterator[str]:
    """A neighbouring key is hit, in a letter's own case."""
    for i in _letters(text):
        near = _NEAR.get(text[i].lower(), "")
        for other in near.upper() if text[i].isupper() else near:
            yield text[:i] + other + text[i + 1 :]


CHARACTER_EDITS: dict[str, Edit] = {
    edit.__name__: edit for edit in (swap, delete, insert, homoglyph, keyboard)
}
"""Edits of letters, by the name a config may ask for."""


def synonym(synonyms: Synonyms) -> Edit:
    """An edit that puts another word for a word, with a capital where that had one.

    Args:
        synonyms: of a word in lower case.
    """
    of = synonyms if callable(synonyms) else lambda word: synonyms.get(word, ())

    def edit(text: str) -> Iterator[str]:
        for match in re.finditer(r"\w+", text):
            word = match[0]
            for other in of(word.lower()):
                other = other[:1].upper() + other[1:] if word[0].isupper() else other
                yield text[: match.start()] + other + text[match.end() :]

    return edit


def protected_words(text: str, protected: Collection[str]) -> list[str]:
    """Which of the protected words (in lower case) a text has, in order: edits must keep them."""
    return [word for word in re.findall(r"\w+", text.lower()) if word in protected]
