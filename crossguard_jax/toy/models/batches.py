"""Batches that are a function of their number: what a killed run goes on with is exact."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crossguard_jax.core.typing import Int
from crossguard_jax.toy.models.tokenizers import BOS, EOS, IMAGE, PAD, UNK, token_ids
from crossguard_jax.toy.world.vqa import words

Batch = dict[str, np.ndarray]
Turn = tuple[str, str]
"""What the user says, and the answer."""


class Numbered:
    """Endless batches for `train.loop`: batch ``n`` is ``draw`` with the numbers of (seed, n)."""

    def __init__(self, draw: Callable[[np.random.Generator], Batch], seed: int):
        self._draw, self._seed, self._next = draw, seed, 0

    def __next__(self) -> Batch:
        rng = np.random.default_rng([self._seed, self._next])
        self._next += 1
        return self._draw(rng)

    def get_state(self) -> dict[str, Any]:
        return {"next": self._next}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._next = int(state["next"])


def encode(text: str) -> list[int]:
    """The ids that the tokenizers give a text in the world's words, without special tokens."""
    ids = token_ids()
    return [ids.get(word, UNK) for word in words(text)]


def dialogue(turns: Sequence[Turn], length: int, patches: int = 0) -> tuple[list[int], list[bool]]:
    """A dialogue in the guard's short prompt, each answer closed by ``</s>``.

    Args:
        turns: those that do not fit are left out; the first one always stays.
        length: the most tokens.
        patches: tokens of a picture before the first text.

    Returns:
        The ids, and which of them are answers.
    """
    ids, answers = [BOS], [False]
    for i, (text, answer) in enumerate(turns):
        question_ids = (
            encode("user:") + [IMAGE] * (0 if i else patches) + encode(f"{text} assistant:")
        )
        answer_ids = [*encode(answer), EOS]
        if i and len(ids) + len(question_ids) + len(answer_ids) > length:
            break
        ids += question_ids + answer_ids
        answers += [False] * len(question_ids) + [True] * len(answer_ids)
    return ids[:length], answers[:length]


def pad(rows: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, "B L"]:
    """Rows cut or filled up on the right with ``<pad>``, int32."""
    padded = np.full((len(rows), length), PAD, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row[:length]
    return padded


def stack_dialogues(rows: Sequence[tuple[list[int], list[bool]]], length: int) -> Batch:
    """``ids`` int32 and ``answers`` bool, both [B, length]."""
    return {
        "ids": pad([ids for ids, _ in rows], length),
        "answers": pad([answers for _, answers in rows], length).astype(bool),
    }
