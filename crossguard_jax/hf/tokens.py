"""Texts to padded arrays of token ids, through a folder's own tokenizer."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError, reason
from crossguard_jax.core.typing import Bool, Int
from crossguard_jax.hf.folder import check_number, read_objects

_CONFIG = "tokenizer_config.json"

LENGTH_STEP = 16
"""Rows are padded to a multiple of it: few lengths, so few compilations."""


def load_tokenizer(
    folder: str | Path, vocab_size: int | None = None, beyond: Collection[int] = ()
) -> Any:
    """A folder's tokenizer, as transformers loads it.

    Args:
        folder: the model's.
        vocab_size: rows of the model's embedding table; None where no model is run.
        beyond: ids that may lie outside the table, as a picture's token may.

    Raises:
        UserError: there is none, a file of it is damaged, or it has ids that the table lacks.
    """
    from transformers import AutoTokenizer

    settings = read_objects(folder, _CONFIG)
    for field in ("model_max_length", "max_len"):  # its name, and its older one
        if settings.get(field) is not None:
            check_number(f"{folder}/{_CONFIG}: {field}", settings[field], 1)
    read_objects(folder, "special_tokens_map.json", "added_tokens.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself
        read_objects(folder, "tokenizer.json")
        raise UserError(
            f"{folder}: no tokenizer that transformers can load ({reason(error)}); put the model's "
            "tokenizer.json and tokenizer_config.json there"
        ) from error
    if vocab_size is not None:
        check_fit(tokenizer, vocab_size, folder, beyond)
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[str], limit: int | None = None) -> dict[str, np.ndarray]:
    """Texts as ``input_ids`` (int32) and ``attention_mask`` (bool), both [B, L].

    Texts longer than a ``limit`` are cut to so many tokens with the closing token kept. Rows are
    padded on the right with id 0, to the next multiple of `LENGTH_STEP` and at most to it. Half a
    surrogate pair, which no tokenizer takes, is read as a question mark.
    """
    rows: list[list[int]] = []
    if texts:
        valid_texts = [valid(text) for text in texts]
        # What a tokenizer's file says of padding and cutting is for another use of it.
        options = {"truncation": limit is not None, "max_length": limit, "verbose": False}
        rows = tokenizer(valid_texts, **options)["input_ids"]
    longest = max([1, *map(len, rows)])
    length = -(-longest // LENGTH_STEP) * LENGTH_STEP
    if limit is not None:
        length = min(length, limit)
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


def check_fit(
    tokenizer: Any, vocab_size: int, folder: str | Path, beyond: Collection[int] = ()
) -> None:
    """Raises a `UserError` if a tokenizer has ids, but those ``beyond``, that the table lacks."""
    missing = {
        id: word
        for word, id in tokenizer.get_vocab().items()
        if id >= vocab_size and id not in beyond
    }
    if missing:
        raise UserError(
            f"{folder}: the tokenizer's {missing[max(missing)]!r} has the id {max(missing):,}, and "
            f"the model's table has {vocab_size:,} rows: they are not of one model, or its "
            "embeddings were not resized"
        )


def open_ended(tokenizer: Any, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """Token ids of texts that a model is to go on with.

    What a tokenizer adds at the end (some add an end of text) is left off.
    """
    return without_closing(tokenizer, tokenizer(list(texts), **options)["input_ids"], **options)


def frame(tokenizer: Any, **options: Any) -> tuple[int, int]:
    """How many tokens a tokenizer, called with these options, puts before and behind a text."""
    (added,) = tokenizer(["a"], return_special_tokens_mask=True, **options)["special_tokens_mask"]
    before, behind = (
        next(n for n, mark in enumerate([*marks, 0]) if not mark) for marks in (added, added[::-1])
    )
    return before, behind


def without_closing(tokenizer: Any, rows: Sequence[list[int]], **options: Any) -> list[list[int]]:
    """Rows of ids without what the tokenizer, called with these options, adds at the end."""
    _, closing = frame(tokenizer, **options)
    return [ids[: len(ids) - closing] for ids in rows]
