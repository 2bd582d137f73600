"""Pictures and texts to arrays, through transformers' own tokenizer and picture processor."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import neutralize
from crossguard_jax.data.records import Record
from crossguard_jax.guard.batches import arrange, indexed, windows
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.shapes import USUAL_TEXT, ladder, length_step, rung, slots
from crossguard_jax.guard.turns import Offsets, marker_ids, user_span, without_turns
from crossguard_jax.hf.folder import read_objects
from crossguard_jax.hf.pictures import Processor
from crossguard_jax.hf.tokens import load_tokenizer, open_ended, without_closing
from crossguard_jax.io import images
from crossguard_jax.nn.llava import LlavaConfig
from crossguard_jax.runtime.placement import WHOLE, Share

Made = TypeVar("Made")

Pictures = images.Picture | Sequence[images.Picture] | None
"""What a row shows: nothing, a picture as a user has it (`io.images.rgb` takes them all), or a list
of several."""

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


class Encoder:
    """A model folder's tokenizer and picture processor around a guard's prompt.

    Args:
        folder: the Hub folder.
        config: the model's.
        settings: the prompt and the length limits.

    Raises:
        UserError: the folder has no tokenizer or no picture processor, both label words begin with
            the same token after the prompt, or a picture does not fit into a row.
    """

    def __init__(self, folder: str | Path, config: LlavaConfig, settings: Settings):
        self.tokenizer = load_tokenizer(folder, config.text.vocab_size, [config.image_token_id])
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{folder}: its tokenizer tells no offsets; put its tokenizer.json there"
            )
        self.processor = Processor(folder, config.vision.image_size, settings.picture)
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
        self.image_size = config.vision.image_size
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

    def pixels(self, pictures: Sequence[images.Picture]) -> np.ndarray:
        """Normalized pixels, float32 [M, 3, X, X], of pictures (none of them None).

        Raises:
            UserError: a picture that does not decode.
        """
        if not pictures:
            return np.zeros((0, 3, self.image_size, self.image_size), np.float32)
        return np.stack([self.picture(p, f"picture {i}") for i, p in enumerate(pictures)])

    def picture(self, picture: images.Picture, name: str = "the picture") -> np.ndarray:
        """Normalized pixels, float32 [3, X, X], of one picture (not None).

        Raises:
            UserError: it does not decode; the message calls it ``name``, or by its path.
        """
        return self.processor(images.rgb(picture, name))

    @property
    def normalization(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, float32 [3, 1, 1], that pixels in [0, 1] are normalized
        by.

        Raises:
            UserError: the processor takes pixels to another range.
        """
        if not self.processor.unit_range:
            raise UserError(
                f"{self.processor.file}: rescale_factor: an attack wants pixels in [0, 1], which "
                "is do_rescale by 1/255; mend it"
            )
        return self.processor.mean, self.processor.std

    def levels(self, picture: images.Picture, name: str = "the picture") -> np.ndarray:
        """As `picture`, before it is normalized: grey levels / 255, float32 [3, X, X]."""
        mean, std = self.normalization
        return np.round(255 * (self.picture(picture, name) * std + mean)).astype(np.float32) / 255

    def pad(self, rows: Sequence[Row], length: int) -> dict[str, np.ndarray]:
        """``input_ids`` and ``attention_mask``, int32 [B, L], padded on the right."""
        ids = np.full((len(rows), length), self.pad_id, np.int32)
        mask = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = row.ids
            mask[i, : len(row.ids)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _beside(self, row: Row) -> int:
        """Tokens that a row has for its pictures, and that are no part of a window."""
        pictures = row.pictures * self.tokens_per_image
        frame = len(row.ids) - (row.user[1] - row.user[0]) - pictures
        return pictures + max(frame - self._frame, 0)

    def shown(self, pictures: Sequence[Pictures], name: str) -> list[list[np.ndarray]]:
        """Normalized pixels of the pictures of each row.

        Raises:
            UserError: one does not decode; the message calls it ``name`` and its row.
        """
        return [
            [self.picture(p, f"{name} {row}") for p in pictures_of(each)]
            for row, each in enumerate(pictures)
        ]

    def batch(
        self, rows: Sequence[Row], pixels: Sequence[Sequence[np.ndarray]], length: int
    ) -> dict[str, np.ndarray]:
        """Rows of ``length`` tokens with their own pictures, as many as fill the batch or a
        multiple of it (see `batches`).

        Args:
            rows: B.
            pixels: of the pictures of each.
            length: L.
        """
        flat = [picture for each in pixels for picture in each]
        ends = np.cumsum([len(each) for each in pixels]).tolist()
        shown = [range(end - len(each), end) for end, each in zip(ends, pixels, strict=True)]
        size = -(-len(flat) // len(rows)) * len(rows)
        return self.pad(rows, length) | arrange(shown, flat, size)

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

    def training_rows(
        self, records: Sequence[Record], length: int, buckets: bool = False
    ) -> tuple[list[Row], int]:
        """A row for each record, and the tokens that they are padded to.

        Args:
            records: of a text that does not fit, one window is taken, always the same: what is
                harmless is so in every window. (What is not is left out beforehand.)
            length: tokens of a row with one picture; a row with more is longer by their tokens.
            buckets: pad to the next length on the ladder that takes the longest of them, not to the
                longest that there may be.

        Raises:
            UserError: the prompt does not fit.
        """
        pictures = [len(record.images) for record in records]
        room = length - self.tokens_per_image
        rows, longest = [], length
        for record, row in zip(
            records, self._rows([r.text for r in records], pictures), strict=True
        ):
            beside = self._beside(row)
            parts = split(row, room + beside)
            if not parts:
                raise UserError(f"data.max_length {length}: too short for the prompt; raise it")
            rows.append(parts[zlib.crc32(record.id.encode("utf-8", "replace")) % len(parts)])
            longest = max(longest, room + beside)
        if buckets:
            rungs = ladder(longest, self.tokens_per_image, length_step())
            longest = rung(max(len(row.ids) for row in rows), rungs)
        return rows, longest

    def alike(self, records: Sequence[Record], length: int) -> list[tuple[int, int]]:
        """What training rows are put with their like by: room for pictures, and padded length."""
        rows, longest = self.training_rows(records, length)
        rungs = ladder(longest, self.tokens_per_image, length_step())
        return [(slots(row.pictures), rung(len(row.ids), rungs)) for row in rows]

    def training_batch(
        self,
        records: Sequence[Record],
        length: int,
        share: Share = WHOLE,
        buckets: bool = False,
    ) -> dict[str, np.ndarray]:
        """Records to arrays, with ``labels`` int32 [B]; see `training_rows`. Where no row has more
        than one picture, row i shows picture i, and there is no ``picture_index``.

        Args:
            records: B, of all processes, since they say in which shapes.
            length: tokens of a row with one picture.
            share: the rows of each array that are made; pictures of others are not decoded.
            buckets: as of `training_rows`; rows too short for a picture then have no pixels.
        """
        rows, longest = self.training_rows(records, length, buckets)
        labels = [self.settings.prompt.target(record.label) for record in records]
        own = all(len(record.images) <= 1 for record in records)
        if own:  # each in its row's own place: nothing to look up, nothing that devices send
            pictures = [(row, (*r.images, None)[0]) for row, r in enumerate(records)]
        else:
            pictures = [(row, image) for row, r in enumerate(records) for image in r.images]
            ends = np.cumsum([len(record.images) for record in records]).tolist()
            shown = [range(end - len(r.images), end) for end, r in zip(ends, records, strict=True)]
        size = -(-len(pictures) // len(rows)) * len(rows)
        places = share.rows(size)
        side = self.image_size
        pixels = np.zeros((len(places), 3, side, side), np.float32)
        for of_picture, place in zip(pixels, places, strict=True):
            row, image = pictures[place] if place < len(pictures) else (0, None)
            if image is not None:
                of_picture[...] = self.picture(image, f"picture of row {row}")
        arrays = self.pad(rows, longest) | {"labels": np.asarray(labels, np.int32)}
        if buckets and longest < self.tokens_per_image:
            return share.own(arrays)
        arrays |= {} if own else {"picture_index": indexed(shown)}
        return share.own(arrays) | {"pixel_values": pixels}


def pictures_of(entry: Pictures) -> list[images.Picture]:
    """A row's pictures."""
    if isinstance(entry, list | tuple):
        return list(entry)
    return [] if entry is None else [cast(images.Picture, entry)]


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


def summary(encoder: Encoder) -> dict[str, Any]:
    """What an encoder is, for ``doctor``."""
    prompt = encoder.settings.prompt
    return {
        "prompt": prompt.name,
        "labels": {prompt.negative: encoder.label_ids[0], prompt.positive: encoder.label_ids[1]},
        "max_length": encoder.settings.max_length,
        "tokens_per_image": encoder.tokens_per_image,
    }
