"""Pictures and texts to arrays, through transformers' own tokenizer and picture processor."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.guard.batches import arrange, indexed
from crossguard_jax.guard.prompting import PromptEncoder, Row, split
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.shapes import ladder, length_step, rung, slots
from crossguard_jax.hf.pictures import Processor
from crossguard_jax.io import images
from crossguard_jax.nn.llava import LlavaConfig
from crossguard_jax.runtime.placement import WHOLE, Share

Pictures = images.Picture | Sequence[images.Picture] | None
"""What a row shows: nothing, a picture as a user has it (`io.images.rgb` takes them all), or a list
of several."""


class Encoder(PromptEncoder):
    """A model folder's tokenizer and picture processor around a guard's prompt.

    Args:
        folder: the Hub folder.
        config: the model's.
        settings: the prompt, the length limits, and how pictures become square.

    Raises:
        UserError: see `PromptEncoder`; or the folder has no picture processor.
    """

    def __init__(self, folder: str | Path, config: LlavaConfig, settings: Settings):
        super().__init__(folder, config, settings)
        self.processor = Processor(folder, config.vision.image_size, settings.picture)
        self.image_size = config.vision.image_size

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


def summary(encoder: Encoder) -> dict[str, Any]:
    """What an encoder is, for ``doctor``."""
    prompt = encoder.settings.prompt
    return {
        "prompt": prompt.name,
        "labels": {prompt.negative: encoder.label_ids[0], prompt.positive: encoder.label_ids[1]},
        "max_length": encoder.settings.max_length,
        "tokens_per_image": encoder.tokens_per_image,
    }
