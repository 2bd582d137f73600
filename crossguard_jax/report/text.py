"""Words that came with the data, made safe to show: rows may hold anything."""

import re

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters and lone surrogates replaced by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def escape_markdown(text: str) -> str:
    """Text that a Markdown table, caption or heading shows as it is, on one line."""
    flat = " ".join(printable(text).split())
    return re.sub(r"([\\`*_\[\]|<>~#])", r"\\\1", flat)
