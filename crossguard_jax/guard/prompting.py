"""Texts to tokens: a guard's prompt around them, in windows, by transformers' own tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import neutralize
from crossguard_jax.guard.batches import windows
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.shapes import USUAL_TEXT
from crossguard_jax.guard.turns import Offsets, marker_ids, user_span, without_turns
from crossguard_jax.hf.folder import read_objects
from crossguard_jax.hf.tokens import load_tokenizer, open_ended, without_closing
from crossguard_jax.nn.llava import LlavaConfig

Made = TypeVar("Made")

LEAST_TEXT = 8
"""Tokens of a text that a window has room for, at least."""


@dataclass(frozen=True)
class Row:
    """One window of a request, tokenized.

    Attributes:
        ids: the prompt with the window's part of the text in it.
        pictures: how many it shows; each is a run of picture tokens.
        user: first and last position (exclusive) of the user's own tokens.
    """

    ids: list[int]
    pictures: int
    user: tuple[int, int]


class PromptEncoder:
    """A model folder's tokenizer around a guard's prompt.

    Args:
        folder: the Hub folder.
        config: the model's.
        settings: the prompt and the length limits.

    Raises:
        UserError: the folder has no tokenizer, both label words begin with the same token after
            the prompt, or a picture does not fit into a row.
    """

    def __init__(self, folder: str | Path, config: LlavaConfig, settings: Settings):
        self.tokenizer = load_tokenizer(folder, config.text.vocab_size, [config.image_token_id])
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{folder}: its tokenizer tells no offsets; put its tokenizer.json there"
            )
        limit = settings.max_length or config.text.max_position_embeddings
        self.settings = replace(settings, max_length=limit)
        self.image_token_id = config.image_token_id
        self.image_token = _image_token(self.tokenizer, config.image_token_id, Path(folder))
        self.tokens_per_image = config.tokens_per_image
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = 0 if pad is None else pad
        prompt = self.settings.prompt
        self._turns = marker_ids(self.tokenizer, prompt.markers)
        negative, positive = self.first_tokens([prompt.negative, prompt.positive])
        self.label_ids = (negative, positive)
        (row,) = self._rows(["a text"], [1])
        n_tokens = row.ids.count(config.image_token_id)
        if n_tokens != self.tokens_per_image:
            raise UserError(
                f"{folder}: a prompt with a picture has {n_tokens} tokens of the config's "
                f"image_token_index {config.image_token_id}, and the picture wants "
                f"{self.tokens_per_image}; put the model's own tokenizer there"
            )
        self._frame = len(row.ids) - n_tokens - (row.user[1] - row.user[0])
        self._check_room(Path(folder))

    def _check_room(self, folder: Path) -> None:
        least = self._frame + LEAST_TEXT
        for name, value, needed in (
            ("max_length", self.settings.max_length, least + self.tokens_per_image),
            ("window", self.settings.window or least, least),
        ):
            if value < needed:
                raise UserError(
                    f"{folder}: {name} {value} leaves no room for a text beside the prompt"
                    f"{' and a picture' * (name == 'max_length')}; {needed} or more is needed"
                )

    def first_tokens(self, words: Sequence[str]) -> tuple[int, ...]:
        """The first token of each answer where the prompt ends.

        Raises:
            UserError: two of them begin with the same one.
        """
        prompt = self.settings.prompt
        start = self._tokens(prompt.render("a text", 0))
        word_of: dict[int, str] = {}
        for word in words:
            ids = self._tokens(prompt.render("a text", 0) + " " + word)
            if ids[: len(start)] != start or len(ids) == len(start):
                raise UserError(
                    f"prompt {prompt.name!r}: the label {word!r} changes the prompt's own tokens; "
                    "end the template on a whole token, without a space"
                )
            first = ids[len(start)]
            if first in word_of:
                raise UserError(
                    f"prompt {prompt.name!r}: {word_of[first]!r} and {word!r} begin with one token "
                    f"({first}) of this tokenizer; choose other label words"
                )
            word_of[first] = word
        return tuple(word_of)

    def _tokens(self, text: str) -> list[int]:
        return open_ended(self.tokenizer, [text])[0]

    def windows(
        self, texts: Sequence[object], pictures: Sequence[int]
    ) -> list[list[Row] | UserError]:
        """Each request's prompt, or its overlapping windows where its text is longer than the
        settings' window; or why it has none.

        Args:
            texts: one a request; it may be empty where there is a picture.
            pictures: how many each request shows.
        """
        return self._each(texts, pictures, self._in_windows)

    def whole(
        self, texts: Sequence[object], pictures: Sequence[int], limit: int = 0
    ) -> list[Row | UserError]:
        """Each request's whole prompt, or why there is none; ``limit`` 0 is the settings' length.

        Args:
            texts, pictures: as for `windows`.
            limit: tokens of a row at most.
        """
        limit = limit or self.settings.max_length

        def fitted(row: Row) -> Row | UserError:
            if len(row.ids) <= limit:
                return row
            return UserError(
                f"{len(row.ids):,} tokens with the prompt and its pictures, the limit is "
                f"{limit:,}; shorten the text"
            )

        return self._each(texts, pictures, fitted)

    def _each(
        self,
        texts: Sequence[object],
        pictures: Sequence[int],
        make: Callable[[Row], Made | UserError],
    ) -> list[Made | UserError]:
        if not texts:
            return []
        refused = [_text_error(text, n) for text, n in zip(texts, pictures, strict=True)]
        fit = [
            text if isinstance(text, str) and not error else ""
            for text, error in zip(texts, refused, strict=True)
        ]
        rows = self._rows(fit, pictures)
        return [error or make(row) for error, row in zip(refused, rows, strict=True)]

    def _rows(self, texts: Sequence[str], pictures: Sequence[int]) -> list[Row]:
        """Prompts around texts, picture tokens expanded, whatever their length.

        What a text loses to `without_turns` may leave another marker, so it is looked at again.
        """
        texts, rows = list(texts), [Row([], 0, (0, 0))] * len(texts)
        places = list(range(len(texts)))
        while places:
            again = []
            parts = [self._around(texts[i], pictures[i]) for i in places]
            encoded = self._encoded(["".join(part) for part in parts])
            for i, (before, text, behind), (ids, offsets) in zip(
                places, parts, encoded, strict=True
            ):
                prompt, start = before + text + behind, len(before)
                first, last = user_span(offsets, prompt, start, start + len(text))
                inner = [(max(a - start, 0), b - start) for a, b in offsets[first:last]]
                texts[i] = without_turns(text, ids[first:last], inner, self._turns)
                if texts[i] != text:
                    again.append(i)
                rows[i] = Row(ids, pictures[i], (first, last))
            places = again
        return rows

    def _around(self, text: str, pictures: int) -> tuple[str, str, str]:
        """What stands before the text, the text without anything that is none, what is behind."""
        prompt, special = self.settings.prompt, self.tokenizer.all_special_tokens
        run = self.image_token * self.tokens_per_image
        before, behind = prompt.around(pictures, run)
        return before, neutralize(text, (self.image_token, *special), prompt.markers), behind

    def _encoded(self, prompts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        # Not verbose: that a text is longer than the model takes is what windows are for.
        encoded = self.tokenizer(list(prompts), return_offsets_mapping=True, verbose=False)
        ids = without_closing(self.tokenizer, encoded["input_ids"])
        offsets = [o[: len(i)] for i, o in zip(ids, encoded["offset_mapping"], strict=True)]
        return list(zip(ids, offsets, strict=True))

    def _in_windows(self, row: Row) -> list[Row] | UserError:
        limit = self.settings.max_length
        window = self.settings.window or limit
        rows = split(row, min(window + self._beside(row), limit))
        if not rows:
            frame = len(row.ids) - (row.user[1] - row.user[0])
            return UserError(
                f"{row.pictures} pictures and the prompt take {frame:,} tokens, the limit is "
                f"{limit:,}; max_length {frame + LEAST_TEXT:,} or more is needed"
            )
        if len(rows) > self.settings.max_windows:
            return UserError(
                f"the text takes {len(rows):,} windows, at most {self.settings.max_windows:,} are "
                "read; shorten it, or raise max_windows"
            )
        return rows

    def _beside(self, row: Row) -> int:
        """Tokens that a row has for its pictures, and that are no part of a window."""
        pictures = row.pictures * self.tokens_per_image
        frame = len(row.ids) - (row.user[1] - row.user[0]) - pictures
        return pictures + max(frame - self._frame, 0)

    @property
    def usual(self) -> int:
        """Tokens of a row with a picture and a window of text: what room is reckoned by."""
        text = self.settings.window or USUAL_TEXT
        return min(self.tokens_per_image + text, self.settings.max_length)

    def text_room(self, length: int) -> int:
        """Tokens of a text for which a training row of ``length`` has room."""
        return length - self.tokens_per_image - self._frame

    def text_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of a prompt are each text's own."""
        return [row.user[1] - row.user[0] for row in self._rows(texts, [1] * len(texts))]

    def fits(self, text: str, length: int) -> bool:
        """Whether a text leaves nothing out of a training row (see `training_batch`)."""
        if len(text.encode()) + LEAST_TEXT < self.text_room(length):
            return True  # no token is less than a byte
        (row,) = self._rows([text], [1])
        return len(row.ids) <= length


def split(row: Row, length: int) -> list[Row]:
    """A row as windows of at most ``length`` tokens, each with the whole prompt and all pictures;
    none where that leaves no room for the text."""
    first, last = row.user
    room = length - (len(row.ids) - (last - first))
    if room < min(last - first, LEAST_TEXT):
        return []
    return [
        Row(
            row.ids[:first] + row.ids[first + start : first + end] + row.ids[last:],
            row.pictures,
            (first, first + end - start),
        )
        for start, end in windows(last - first, room)
    ]


def _image_token(tokenizer: Any, image_token_id: int, folder: Path) -> str:
    """The token that stands for a picture in a prompt.

    Raises:
        UserError: the tokenizer has no such token, or it is a word's or another mark's.
    """
    where = f"{folder / 'config.json'}: image_token_index {image_token_id}"
    token = str(tokenizer.added_tokens_decoder.get(image_token_id, ""))
    if not token:
        word = tokenizer.convert_ids_to_tokens(image_token_id)
        what = "is no token of the tokenizer" if word is None else f"is the word {word!r}"
        raise UserError(f"{where} {what}; put the model's own tokenizer there")
    processor = read_objects(folder, "processor_config.json")
    named = getattr(tokenizer, "image_token", None) or processor.get("image_token")
    marks = (f"{role}_token" for role in ("bos", "eos", "unk", "pad", "cls", "sep", "mask"))
    if token != (named or token) or (not named and token in [getattr(tokenizer, m) for m in marks]):
        picture = repr(named) if named else "a picture's"
        raise UserError(f"{where} is {token!r}, not {picture}; put the model's own tokenizer there")
    return token


def _text_error(text: object, pictures: int) -> UserError | None:
    """Why a text cannot be put to a tokenizer."""
    if not isinstance(text, str):
        return UserError(f"the text is a {type(text).__name__}; give a str")
    if not text.strip() and not pictures:
        return UserError("the text is empty, and there is no picture")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return UserError("the text holds half a surrogate pair; write it as valid Unicode")
    return None
