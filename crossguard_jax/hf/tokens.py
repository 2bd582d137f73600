"""Texts to padded arrays of token ids, through a folder's own tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Bool, Int

LENGTH_STEP = 16
"""Rows are padded to a multiple of it: few lengths, so few compilations."""


def load_tokenizer(folder: str | Path) -> Any:
    """A folder's tokenizer, as transformers loads it.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{folder}: no tokenizer that transformers can load ({first}); put the model's "
            "tokenizer.json and tokenizer_config.json there"
        ) from error


def encode(tokenizer: Any, texts: Sequence[str], limit: int) -> dict[str, np.ndarray]:
    """Texts as ``input_ids`` (int32) and ``attention_mask`` (bool), both [B, L].

    Longer texts are cut to ``limit`` tokens with the closing token kept. Rows are padded on the
    right with id 0, to the next multiple of `LENGTH_STEP` and at most to ``limit``. Half a
    surrogate pair, which no tokenizer takes, is read as a question mark.
    """
    rows: list[list[int]] = []
    if texts:
        said = [valid(text) for text in texts]
        # What a tokenizer's file says of padding and cutting is for another use of it.
        rows = tokenizer(said, truncation=True, max_length=limit)["input_ids"]
    longest = max([1, *map(len, rows)])
    length = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, limit)
    ids, mask = padded(rows, length)
    return {"input_ids": ids, "attention_mask": mask}


def valid(text: str) -> str:
    """The text with a question mark for half a surrogate pair, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def padded(
    rows: Sequence[Sequence[int]], length: int
) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
    """Rows filled up on the right with id 0 (int32), and which ids are a row's own."""
    ids = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return ids, mask


def check_fit(tokenizer: Any, vocab_size: int, folder: str | Path) -> None:
    """Raises a `UserError` if a tokenizer has ids that the model's table lacks."""
    if len(tokenizer) > vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer):,} tokens, the model {vocab_size:,}; "
            "they are not of one model"
        )
