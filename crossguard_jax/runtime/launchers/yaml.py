"""Writes YAML without a library, since launching works with nothing installed.

Only what the launchers write: mappings, lists, strings, whole numbers and booleans. A string is
quoted as JSON quotes it, which YAML reads the same, unless it cannot be taken for anything else;
one of several lines is a literal block.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

Node: TypeAlias = str | int | Mapping[str, Any] | Sequence[Any]

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")
_TAKEN = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""Words that some reader takes for a boolean or nothing."""


def dump(*documents: Node) -> str:
    """The documents as one stream of YAML."""
    return "---\n".join("\n".join(_lines(document)) + "\n" for document in documents)


def _lines(node: Node) -> Iterator[str]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _entry(f"{_scalar(key)}:", value)
    elif isinstance(node, Sequence) and not isinstance(node, str) and node:
        for value in node:
            first, *rest = _block(value) if _is_long(value) else _lines(value)
            yield f"- {first}"
            yield from (f"  {line}" if line else "" for line in rest)
    else:
        yield _scalar(node)


def _entry(key: str, value: Node) -> Iterator[str]:
    if _is_long(value):
        first, *rest = _block(value)
        yield f"{key} {first}"
        yield from rest
    elif isinstance(value, str | int) or not value:
        yield f"{key} {_scalar(value)}"
    else:
        yield key
        # A list stands under its key, a mapping is indented.
        indent = "  " if isinstance(value, Mapping) else ""
        yield from (f"{indent}{line}" if line else "" for line in _lines(value))


def _is_long(value: Node) -> TypeGuard[str]:
    return isinstance(value, str) and "\n" in value


def _block(text: str) -> Iterator[str]:
    yield "|"
    yield from (f"  {line}" if line else "" for line in text.rstrip("\n").split("\n"))


def _scalar(value: Node) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _TAKEN:
        return value
    return json.dumps(value, ensure_ascii=False)
