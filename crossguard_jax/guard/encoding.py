"""Pictures and texts to arrays, through transformers' own tokenizer and picture processor."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import LLAVA_V1, PromptTemplate
from crossguard_jax.data.records import Record
from crossguard_jax.hf.folder import check_number, read_object, read_objects
from crossguard_jax.hf.pictures import Processor
from crossguard_jax.hf.tokens import load_tokenizer, open_ended
from crossguard_jax.io import images
from crossguard_jax.nn.llava import LlavaConfig

Picture = images.Picture | None
"""A picture as a user has it (`io.images.rgb` takes them all); None is no picture."""

SETTINGS = "guard_config.json"
LENGTH_STEP = 16


@dataclass(frozen=True)
class Settings:
    """What a guard needs beside its weights; kept in ``guard_config.json`` of a model folder.

    Attributes:
        prompt: the template that puts a request to the model, with its two label words.
        threshold: the least ``p_unsafe`` that is unsafe.
        max_length: tokens of a row, the picture's among them; 0 is the model's context.
    """

    prompt: PromptTemplate = LLAVA_V1
    threshold: float = 0.5
    max_length: int = 0

    def __post_init__(self):
        check_number("threshold", self.threshold, 0, 1)
        check_number("max_length", self.max_length, 0, whole=True)

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """A folder's settings; the defaults for one that has none (any LLaVA from the Hub).

        Raises:
            UserError: the file is damaged, or a field of it is missing, unknown or no such value.
        """
        path = folder / SETTINGS
        if not path.exists():
            return cls()
        raw = read_object(path)
        try:
            settings = {"threshold": 0.5, "max_length": 0} | raw
            if unknown := settings.keys() - {field.name for field in fields(cls)}:
                raise UserError(f"no setting of a guard: {', '.join(sorted(unknown))}; mend it")
            check_number("threshold", settings["threshold"], 0, 1)
            check_number("max_length", settings["max_length"], 0, whole=True)
            prompt = PromptTemplate.from_fields(raw.get("prompt"))
            return cls(prompt, float(settings["threshold"]), settings["max_length"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def write(self, folder: Path) -> None:
        """Writes the file into a folder."""
        (folder / SETTINGS).write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True)
class Row:
    """One request, tokenized."""

    ids: list[int]
    has_picture: bool
    truncated: bool


class Encoder:
    """A model folder's tokenizer and picture processor around a guard's prompt.

    Args:
        folder: the Hub folder.
        config: the model's.
        settings: the prompt and the length limit.

    Raises:
        UserError: the folder has no tokenizer or no picture processor, or both label words begin
            with the same token after the prompt.
    """

    def __init__(self, folder: str | Path, config: LlavaConfig, settings: Settings):
        self.tokenizer = load_tokenizer(folder, config.text.vocab_size, [config.image_token_id])
        self.processor = Processor(folder, config.vision.image_size)
        limit = settings.max_length or config.text.max_position_embeddings
        self.settings = replace(settings, max_length=limit)
        self.image_token = _image_token(self.tokenizer, config.image_token_id, Path(folder))
        self.tokens_per_image = config.tokens_per_image
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = 0 if pad is None else pad
        prompt = self.settings.prompt
        negative, positive = self.first_tokens([prompt.negative, prompt.positive])
        self.label_ids = (negative, positive)
        self.image_size = config.vision.image_size
        n_tokens = self._ids(["a text"], [True])[0].count(config.image_token_id)
        if n_tokens != self.tokens_per_image:
            raise UserError(
                f"{folder}: a prompt with a picture has {n_tokens} tokens of the config's "
                f"image_token_index {config.image_token_id}, and the picture wants "
                f"{self.tokens_per_image}; put the model's own tokenizer there"
            )

    def first_tokens(self, words: Sequence[str]) -> tuple[int, ...]:
        """The first token of each answer where the prompt ends.

        Raises:
            UserError: two of them begin with the same one.
        """
        prompt = self.settings.prompt
        start = self._tokens(prompt.render("a text", has_image=False))
        word_of: dict[int, str] = {}
        for word in words:
            ids = self._tokens(prompt.render("a text", has_image=False) + " " + word)
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

    def tokenize(
        self,
        texts: Sequence[str],
        has_picture: Sequence[bool],
        truncate: bool = False,
        limit: int = 0,
    ) -> list[Row]:
        """Prompts around texts, picture tokens expanded; ``limit`` 0 is the settings' length.

        Raises:
            UserError: a text is empty, or longer than the context and ``truncate`` is not set.
        """
        rows = []
        for i, row in enumerate(self.tokenize_each(texts, has_picture, truncate, limit)):
            if isinstance(row, UserError):
                raise UserError(f"row {i}: {row}") from row
            rows.append(row)
        return rows

    def tokenize_each(
        self,
        texts: Sequence[object],
        has_picture: Sequence[bool],
        truncate: bool = False,
        limit: int = 0,
    ) -> list[Row | UserError]:
        """As `tokenize`, with the error of each row that has one in its place."""
        limit = limit or self.settings.max_length
        refused = [_text_error(text) for text in texts]
        fit = [
            text if isinstance(text, str) and not error else ""
            for text, error in zip(texts, refused, strict=True)
        ]
        rows = self._ids(fit, has_picture)
        return [
            error or self._fitted(ids, text, picture, truncate, limit)
            for error, ids, text, picture in zip(refused, rows, fit, has_picture, strict=True)
        ]

    def _fitted(
        self, ids: list[int], text: str, picture: bool, truncate: bool, limit: int
    ) -> Row | UserError:
        if len(ids) <= limit:
            return Row(ids, picture, False)
        if not truncate:
            return UserError(
                f"{len(ids):,} tokens with the prompt and its picture, the limit is {limit:,}; "
                "shorten the text, or allow truncation"
            )
        try:
            return Row(self._shortened(text, picture, len(ids), limit), picture, True)
        except UserError as error:
            return error

    def _ids(self, texts: Sequence[str], has_picture: Sequence[bool]) -> list[list[int]]:
        special = self.tokenizer.all_special_tokens
        prompts = [
            self.settings.prompt.render(text, picture, self.image_token, special).replace(
                self.image_token, self.image_token * self.tokens_per_image
            )
            for text, picture in zip(texts, has_picture, strict=True)
        ]
        return open_ended(self.tokenizer, prompts)

    def _shortened(self, text: str, picture: bool, length: int, limit: int) -> list[int]:
        """The row of ``length`` tokens with the end of its text (never of the prompt) left out."""
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in offsets["offset_mapping"]]
        excess = length - limit
        while excess > 0:
            ends = ends[: max(len(ends) - excess, 0)]
            (ids,) = self._ids([text[: ends[-1]] if ends else ""], [picture])
            # Cutting can change how the last word is split, so look again.
            excess = len(ids) - limit
            if not ends and excess > 0:
                raise UserError(
                    f"max_length {limit}: the prompt and the picture alone "
                    f"take {len(ids)} tokens; raise it"
                )
        return ids

    def pixels(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Normalized pixels, float32 [M, 3, X, X], of pictures (none of them None).

        Raises:
            UserError: a picture that does not decode.
        """
        if not pictures:
            return np.zeros((0, 3, self.image_size, self.image_size), np.float32)
        return np.stack([self.picture(p, f"picture {i}") for i, p in enumerate(pictures)])

    def picture(self, picture: Picture, name: str = "the picture") -> np.ndarray:
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

    def levels(self, picture: Picture, name: str = "the picture") -> np.ndarray:
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

    def slots(self, pictures: Sequence[Picture]) -> np.ndarray | None:
        """One picture slot a row, float32 [B, 3, X, X], zero where there is none; None if all."""
        named = enumerate(pictures)
        return side_by_side([p if p is None else self.picture(p, f"picture {i}") for i, p in named])

    def training_batch(self, records: Sequence[Record], length: int) -> dict[str, np.ndarray]:
        """Records to arrays of ``length`` tokens a row, with ``labels`` int32 [B].

        A text that does not fit is cut; every row gets a picture slot.
        """
        pictures = [record.image for record in records]
        texts = [record.text for record in records]
        rows = self.tokenize(texts, [p is not None for p in pictures], True, length)
        slots = self.slots(pictures)
        if slots is None:
            slots = np.zeros((len(rows), 3, self.image_size, self.image_size), np.float32)
        labels = [self.settings.prompt.target(record.label) for record in records]
        return {
            **self.pad(rows, length),
            "pixel_values": slots,
            "labels": np.asarray(labels, np.int32),
        }


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


def _text_error(text: object) -> UserError | None:
    """Why a text cannot be put to a tokenizer."""
    if not isinstance(text, str):
        return UserError(f"the text is a {type(text).__name__}; give a str")
    if not text.strip():
        return UserError("the text is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return UserError("the text holds half a surrogate pair; write it as valid Unicode")
    return None


def side_by_side(pixels: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Pixels [3, X, X] of each row, zero for a row without, as [B, 3, X, X]; None if all are."""
    shape = next((values.shape for values in pixels if values is not None), None)
    if shape is None:
        return None
    return np.stack([np.zeros(shape, np.float32) if v is None else v for v in pixels])


def bucket(length: int, limit: int) -> int:
    """The padded length of a row: few lengths, so few compilations."""
    return min(-(-length // LENGTH_STEP) * LENGTH_STEP, max(limit, length))


def summary(encoder: Encoder) -> dict[str, Any]:
    """What an encoder is, for ``doctor``."""
    prompt = encoder.settings.prompt
    return {
        "prompt": prompt.name,
        "labels": {prompt.negative: encoder.label_ids[0], prompt.positive: encoder.label_ids[1]},
        "max_length": encoder.settings.max_length,
        "tokens_per_image": encoder.tokens_per_image,
    }
