"""No text of a user's takes a turn in the conversation: judged on tokens, as the model reads."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

Ids = Sequence[int]
Offsets = Sequence[tuple[int, int]]
"""Where in a text each token begins and ends, in characters."""


def marker_ids(tokenizer: Any, markers: Collection[str]) -> frozenset[tuple[int, ...]]:
    """Every way in which a tokenizer writes the markers of a template inside a text.

    They differ by case, by a space before the colon, and by what the marker stands behind.
    """
    spellings = {
        spelled
        for marker in markers
        for word in (marker, marker.lower(), marker.title())
        for spelled in (word, f"{word[:-1]} :")
    }
    ways = set()
    for spelled in sorted(spellings):
        for before in ("", "a ", "a\n", "(", "a"):
            encoded = tokenizer(
                before + spelled, add_special_tokens=False, return_offsets_mapping=True
            )
            pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            ways.add(tuple(id for id, (_, end) in pairs if end > len(before)))
    return frozenset(ways - {()})


def occurrences(ids: Ids, ways: Collection[tuple[int, ...]]) -> Iterator[int]:
    """The last position of each marker in a row of tokens."""
    by_first: dict[int, list[tuple[int, ...]]] = {}
    for way in ways:
        by_first.setdefault(way[0], []).append(way)
    for start, id in enumerate(ids):
        for way in by_first.get(id, ()):
            if tuple(ids[start : start + len(way)]) == way:
                yield start + len(way) - 1


def without_turns(text: str, ids: Ids, offsets: Offsets, ways: Collection[tuple[int, ...]]) -> str:
    """The text with spaces for the end of each marker that its tokens hold.

    Args:
        text: a user's.
        ids: its tokens.
        offsets: of the tokens, in ``text``.
        ways: of `marker_ids`.
    """
    characters = list(text)
    for position in occurrences(ids, ways):
        start, end = offsets[position]
        characters[start:end] = " " * (end - start)
    return "".join(characters)


def user_span(offsets: Offsets, prompt: str, start: int, end: int) -> tuple[int, int]:
    """First and last position (exclusive) of the tokens that lie in ``prompt[start:end]`` alone.

    Spaces that a token begins with count for nothing: they stand before the text, too.
    """

    def inside(token: tuple[int, int]) -> bool:
        first, last = token
        lead = len(prompt[first:last]) - len(prompt[first:last].lstrip())
        return start <= (first + lead if first + lead < last else first) and first < last <= end

    places = [place for place, token in enumerate(offsets) if inside(token)]
    return (places[0], places[-1] + 1) if places else (0, 0)
