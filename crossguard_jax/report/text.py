"""Words that came with the data, made safe to show: rows may hold anything."""

import re
from collections.abc import Callable

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters and lone surrogates replaced by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def shortened(text: str, most: int = 1000) -> str:
    """The text's first characters, and how many there are where it has more."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


def first_sentence(text: str) -> str:
    """What a longer text begins with."""
    return re.split(r"(?<=\w)[.:] ", text, maxsplit=1)[0]


_MARKS = "{`*[]<>_|\\"
_QUOTED = str.maketrans({mark: chr(0xE000 + i) for i, mark in enumerate(_MARKS)})
_QUOTES = re.compile(f"[\ue000-{chr(0xE000 + len(_MARKS) - 1)}]")


def quoted(text: str) -> str:
    """Foreign words for a text of a report, such as a path or an error: they are shown as they are,
    cite no figure, and mark nothing. On one line."""
    return " ".join(text.split()).translate(_QUOTED)


def unquoted(text: str, escape: Callable[[str], str]) -> str:
    """A text with what `quoted` made of marks as those again, each escaped."""
    return _QUOTES.sub(lambda match: escape(_MARKS[ord(match[0]) - 0xE000]), text)


def escape_markdown(text: str) -> str:
    """Text that a Markdown table, caption or heading shows as it is, on one line."""
    flat = " ".join(printable(text).split())
    return re.sub(r"([\\`*_\[\]|<>~#])", r"\\\1", flat)
