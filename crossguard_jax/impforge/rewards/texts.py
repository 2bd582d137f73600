"""The host's side of the rewards: texts to arrays of fixed shapes, for models that read otherwise.

No text is cut. One that is longer than a row is read in overlapping windows, as a guard reads it,
each with the whole prompt around; where a shape has room for one row only, it is not read at all.
"""

import abc
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.core.typing import Bool, Int
from crossguard_jax.data.prompts import neutralize, role_markers
from crossguard_jax.guard.batches import windows
from crossguard_jax.guard.prompting import LEAST_TEXT
from crossguard_jax.guard.turns import marker_ids, user_span, without_turns
from crossguard_jax.hf.tokens import frame, padded, valid, without_closing

CHAT = "chat"
"""In place of a template: the chat template of the tokenizer."""

_MARK = "TEXTHERE"  # no prompt has it
# Three letters or more with something between each two of them: "k e t t l e", "p-a-n".
_SPELLED = re.compile(r"(?<![\w'\u2019])[^\W\d_](?:[ .,_*-]{1,2}[^\W\d_]){2,}(?![\w'\u2019])")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")

STEP = 16
"""Columns that `TextReader.short` adds at once."""

Encoded = tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]
"""Token ids (int32) and which of them are not padding."""


class TextReader(abc.ABC):
    """Texts to rows of at most ``length`` tokens."""

    length: int

    @abc.abstractmethod
    def windows(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """Each text's rows: one, or its overlapping windows where that would be longer."""

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """A row a text, ``length`` wide; one without a token for a text that needs several."""
        parts = self.windows(texts)
        return self.pad([rows[0] if len(rows) == 1 else [] for rows in parts])

    def pad(self, rows: Sequence[list[int]]) -> Encoded:
        """Ids and mask of some `windows`, padded on the right."""
        return padded(rows, self.length)

    def short(self, rows: Sequence[list[int]]) -> Encoded:
        """The same without the columns that no row needs, in steps of 16: few shapes compile."""
        longest = max([1, *map(len, rows)])
        return padded(rows, min(-(-longest // STEP) * STEP, self.length))


class TextEncoder(TextReader):
    """Texts as a text tower or a sentence encoder reads them, its special tokens around.

    Args:
        tokenizer: of the model.
        length: L, of every row.
        prompt: what the model has before every text, and in every window of one.

    Raises:
        UserError: the prompt leaves no room for a text.
    """

    def __init__(self, tokenizer: Any, length: int, prompt: str = ""):
        self.tokenizer, self.length, self.prompt = tokenizer, length, prompt
        _, self._behind = frame(tokenizer)
        self._before = len(self._ids([""])[0]) - self._behind
        if self._before + self._behind >= length:
            raise UserError(
                f"rewards.semantic.max_length {length}: the model's prompt {short(repr(prompt))} "
                f"takes {self._before + self._behind} tokens with what stands around; give more"
            )

    def windows(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """See `TextReader`."""
        rows = self._ids(texts)
        return [_split(row, self._before, len(row) - self._behind, self.length) for row in rows]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        cleaned = [valid(self.prompt + text) for text in texts]
        # What a tokenizer's file says of padding and cutting is for another use of it.
        options = {"truncation": False, "padding": False, "verbose": False}
        return self.tokenizer(cleaned, **options)["input_ids"] if cleaned else []

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text's one row would have."""
        return [*map(len, self._ids(texts))]


class SafetyEncoder(TextReader):
    """Texts inside a safety model's prompt, up to where its verdict begins.

    Args:
        tokenizer: of the model.
        template: ``CHAT``, or a prompt with ``{text}`` in it (an ``{image}`` of the guard's
            templates is left out).
        answer: what the model writes between the prompt and the verdict: a space, or, as some
            Llama Guards do, line breaks.
        labels: the verdicts' words, safe first.
        length: L, of every row.

    Attributes:
        label_ids: the first token of each verdict.
        frame: tokens of the prompt around a text.

    Raises:
        UserError: no such template, verdicts that begin with the same token, a prompt that leaves
            no room for a text, or a tokenizer that tells no offsets.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        answer: str,
        labels: tuple[str, str],
        length: int,
    ):
        if not tokenizer.is_fast:
            raise UserError(
                "safety model: its tokenizer tells no offsets; put tokenizer.json there"
            )
        self.tokenizer, self.length = tokenizer, length
        # A chat template writes the special tokens itself.
        self._options = {"add_special_tokens": template != CHAT, "padding": False}
        self._options |= {"truncation": False, "verbose": False}
        self._before, after = _frame(tokenizer, template)
        self._after = after + answer
        self._markers = role_markers(self._before + self._after)
        self._turns = marker_ids(tokenizer, self._markers)
        self.label_ids = self._label_ids(labels)
        ((ids, (first, last)),) = self._rows(["a text"])
        self.frame = len(ids) - (last - first)
        if self.frame + LEAST_TEXT > length:
            raise UserError(
                f"rewards.safety.max_length {length}: the prompt alone takes {self.frame} "
                f"tokens; raise it to {self.frame + LEAST_TEXT} or more"
            )

    def windows(self, texts: Sequence[str]) -> list[list[list[int]]]:
        """See `TextReader`; no text of a user's writes a special token or takes a turn."""
        rows = self._rows([valid(text) for text in texts])
        return [_split(ids, *user, self.length) for ids, user in rows]

    def _rows(self, texts: Sequence[str]) -> list[tuple[list[int], tuple[int, int]]]:
        """Each text's row, whatever its length, and where in it the text's own tokens lie.

        What a text loses to `without_turns` may leave another marker, so it is looked at again.
        """
        special, start = self.tokenizer.all_special_tokens, len(self._before)
        texts, rows = list(texts), [([0], (0, 0))] * len(texts)
        places = list(range(len(texts)))
        while places:
            again = []
            inner = [neutralize(texts[i], special, self._markers) for i in places]
            prompts = [self._prompt(text) for text in inner]
            encoded = self.tokenizer(prompts, return_offsets_mapping=True, **self._options)
            ids_of = without_closing(self.tokenizer, encoded["input_ids"], **self._options)
            for i, text, prompt, ids, offsets in zip(
                places, inner, prompts, ids_of, encoded["offset_mapping"], strict=True
            ):
                first, last = user_span(offsets[: len(ids)], prompt, start, start + len(text))
                own = [(max(a - start, 0), b - start) for a, b in offsets[first:last]]
                texts[i] = without_turns(text, ids[first:last], own, self._turns)
                if texts[i] != text:
                    again.append(i)
                rows[i] = ids, (first, last)
            places = again
        return rows

    def _prompt(self, text: str) -> str:
        # A space before the verdict is part of the verdict's token.
        return f"{self._before}{text}{self._after}".rstrip(" ")

    def _tokens(self, prompt: str) -> list[int]:
        (ids,) = self.tokenizer([prompt], **self._options)["input_ids"]
        return without_closing(self.tokenizer, [ids], **self._options)[0]

    def _label_ids(self, labels: tuple[str, str]) -> tuple[int, int]:
        """The first token of each verdict where the prompt ends."""
        start = self._tokens(self._prompt(_MARK))
        first_ids = []
        for word in labels:
            ids = self._tokens(f"{self._before}{_MARK}{self._after}{word}")
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


def _split(row: list[int], first: int, last: int, length: int) -> list[list[int]]:
    """A row's windows of at most ``length`` tokens, each with all that is not the text's own, which
    lies from ``first`` to ``last`` (exclusive)."""
    room = length - (len(row) - (last - first))
    return [
        row[:first] + row[first + start : first + end] + row[last:]
        for start, end in windows(last - first, room)
    ]


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
