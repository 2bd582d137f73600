"""The host's side of the rewards: texts to arrays of fixed shapes, for models that read otherwise.

A text that is too long loses its beginning: what it asks for stands at its end.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.core.typing import Bool, Int
from crossguard_jax.data.prompts import neutralize
from crossguard_jax.hf.tokens import open_ended, padded, valid

CHAT = "chat"
"""In place of a template: the chat template of the tokenizer."""

_MARK = "TEXTHERE"  # no prompt has it
# Three letters or more with something between each two of them: "k e t t l e", "p-a-n".
_SPELLED = re.compile(r"(?<![\w'\u2019])[^\W\d_](?:[ .,_*-]{1,2}[^\W\d_]){2,}(?![\w'\u2019])")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")

STEP = 16
"""Columns that `TextEncoder.short` adds at once."""

Encoded = tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]
"""Token ids (int32) and which of them are not padding."""


class TextEncoder:
    """Texts as a text tower or a sentence encoder reads them, its special tokens around.

    Args:
        tokenizer: of the model.
        length: L, of every row.
        prompt: what the model has before every text; of a long text it stays.
    """

    def __init__(self, tokenizer: Any, length: int, prompt: str = ""):
        self.tokenizer, self.length, self.prompt = tokenizer, length, prompt
        tokenizer.truncation_side = "left"
        self._start = tokenizer(prompt)["input_ids"][:-1] if prompt else []
        if len(self._start) > length - 2:
            raise UserError(
                f"rewards.semantic.max_length {length}: the model's prompt {short(repr(prompt))} "
                f"takes {len(self._start)} tokens of them; give more"
            )

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Ids and mask, padded on the right."""
        cleaned = [valid(self.prompt + text) for text in texts]
        if not cleaned:
            return padded([], self.length)
        # What a tokenizer's file says of padding is for another use of it.
        options = {"truncation": True, "max_length": self.length, "padding": False}
        rows = self.tokenizer(cleaned, **options)["input_ids"]
        # The cut is on the left, where the prompt stands.
        start, room = self._start, self.length - len(self._start)
        rows = [row if len(row) < self.length or not start else start + row[-room:] for row in rows]
        return padded(rows, self.length)

    def short(self, texts: Sequence[str]) -> Encoded:
        """The same without the columns that no row needs, in steps of 16: few shapes compile."""
        ids, mask = self(texts)
        longest = int(mask.sum(axis=1).max(initial=1))
        width = min(-(-longest // STEP) * STEP, self.length)
        return ids[:, :width], mask[:, :width]


class SafetyEncoder:
    """Texts inside a safety model's prompt, up to where its verdict begins.

    Args:
        tokenizer: of the model.
        template: ``CHAT``, or a prompt with ``{text}`` in it (an ``{image}`` of the guard's
            templates is left out).
        answer: what the model writes between the prompt and the verdict: a space, or, as some
            Llama Guards do, line breaks.
        labels: the verdicts' words, safe first.
        length: L, of every row.

    Raises:
        UserError: no such template, verdicts that begin with the same token, or a prompt that
            leaves no room for a text.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        answer: str,
        labels: tuple[str, str],
        length: int,
    ):
        self.tokenizer, self.length = tokenizer, length
        # A chat template writes the special tokens itself.
        self._add_special = template != CHAT
        self._before, after = _frame(tokenizer, template)
        self._after = after + answer
        self.label_ids = self._label_ids(labels)
        if (needed := max(map(len, self._ids(["", _MARK])))) > length:
            raise UserError(
                f"rewards.safety.max_length {length}: the prompt alone takes about {needed} "
                "tokens; raise it"
            )

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Ids and mask, padded on the right; the prompt around a text is always whole."""
        cleaned = [neutralize(valid(text), self.tokenizer.all_special_tokens) for text in texts]
        rows = self._ids(cleaned)
        for i, row in enumerate(rows):
            if len(row) > self.length:
                rows[i] = self._shortened(cleaned[i], len(row))
        return padded(rows, self.length)

    def _prompt(self, text: str) -> str:
        # A space before the verdict is part of the verdict's token.
        return f"{self._before}{text}{self._after}".rstrip(" ")

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokens([self._prompt(text) for text in texts])

    def _tokens(self, prompts: list[str]) -> list[list[int]]:
        if not prompts:
            return []
        options = {"add_special_tokens": self._add_special, "truncation": False, "padding": False}
        return open_ended(self.tokenizer, prompts, **options)

    def _shortened(self, text: str, length: int) -> list[int]:
        """The row of ``length`` tokens without the beginning of its text."""
        while length > self.length:
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            starts = [start for start, _ in offsets["offset_mapping"]]
            excess = length - self.length
            # Cutting can change how the first word is split, so look again.
            text = text[max(starts[excess], 1) if excess < len(starts) else len(text) :]
            (row,) = self._ids([text])
            length = len(row)
        return row

    def _label_ids(self, labels: tuple[str, str]) -> tuple[int, int]:
        """The first token of each verdict where the prompt ends."""
        (start,) = self._ids([_MARK])
        first_ids = []
        for word in labels:
            (ids,) = self._tokens([f"{self._before}{_MARK}{self._after}{word}"])
            if ids[: len(start)] != start or len(ids) == len(start):
                raise UserError(
                    f"safety model: the label {word!r} changes the tokens of the prompt before "
                    "it; correct rewards.safety.prompt or .answer"
                )
            first_ids.append(ids[len(start)])
        if first_ids[0] == first_ids[1]:
            raise UserError(
                f"safety model: the labels {labels[0]!r} and {labels[1]!r} begin with one token "
                f"({first_ids[0]}) of its tokenizer; correct the labels or rewards.safety.answer"
            )
        return first_ids[0], first_ids[1]


def _frame(tokenizer: Any, template: str) -> tuple[str, str]:
    """What stands before a text and behind it."""
    if template == CHAT:
        try:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs, and raise what they like
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"safety model: its tokenizer has no chat template for a user's text ({first}); "
                "give rewards.safety.prompt with {text} in it"
            ) from error
        parts = prompt.split(_MARK)
    else:
        parts = template.replace("{image}", "").split("{text}")
    if len(parts) != 2:
        raise UserError(f"rewards.safety.prompt {template!r}: write {{text}} exactly once")
    return parts[0], parts[1]


def token_texts(tokenizer: Any, size: int) -> list[str]:
    """What each token of a vocabulary says, without space around; "" for special tokens.

    Args:
        tokenizer: of the policy.
        size: of the policy's vocabulary, which may be larger than the tokenizer's.
    """
    # Behind another token, as a tokenizer may treat a text's first one differently.
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    n_tokens = min(size, len(tokenizer))
    decoded = tokenizer.batch_decode(
        [anchor, *([*anchor, i] for i in range(n_tokens))],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    # A token may be a part of a character only, which says nothing.
    texts = [text.removeprefix(decoded[0]).replace("\ufffd", "").strip() for text in decoded[1:]]
    return texts + [""] * (size - n_tokens)


def words(text: str) -> list[str]:
    """A text's words in lower case; a word spelled letter by letter counts as the word."""
    joined = _SPELLED.sub(lambda spelled: re.sub(r"[\W_]", "", spelled.group()), text)
    return [word.lower() for word in _WORD.findall(joined)]
