"""Words that came with the data, made safe to show: rows may hold anything."""

import re

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


def escape_markdown(text: str) -> str:
    """Text that a Markdown table, caption or heading shows as it is, on one line."""
    flat = " ".join(printable(text).split())
    return re.sub(r"([\\`*_\[\]|<>~#])", r"\\\1", flat)
