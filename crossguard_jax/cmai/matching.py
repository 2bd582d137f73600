"""A CLIP that finds captions and pictures: its task is a contrast among the rows of a batch."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks.joint import Inputs
from crossguard_jax.cmai.answering import Checked
from crossguard_jax.cmai.consistency import Check
from crossguard_jax.cmai.mbat import Answers
from crossguard_jax.cmai.reader import Reader
from crossguard_jax.cmai.spoken import Expand, expanded
from crossguard_jax.core.typing import Array, Float
from crossguard_jax.data.builders import RecordSource
from crossguard_jax.data.pipeline import Batch
from crossguard_jax.data.records import Record
from crossguard_jax.guard.mixture import listed_rows
from crossguard_jax.hf import tokens
from crossguard_jax.hf.clip import ClipEncoder
from crossguard_jax.hf.export import ModelCard, save_model
from crossguard_jax.hf.load import folder_name
from crossguard_jax.hf.trained import TrainedRow
from crossguard_jax.io import images
from crossguard_jax.nn.lora import LoraScale
from crossguard_jax.runtime.placement import WHOLE, Share

_MAX_SCALE = 100.0  # CLIP's own bound


class Matching(Checked):
    """Pictures and texts in one space: each row's text is to be its picture's nearest, and the
    reverse (arXiv 2103.00020).

    Args:
        clip: both towers, with the adapter that is trained or attacked.
        expand: a record to its rows, each a pair of a picture and a text.
        reader: of texts, for S_c; None where nothing checks.
        check: with a reader, the check that it reads for.
    """

    kind = "retrieval"
    encoder = None
    """Nothing is put around a text."""

    def __init__(
        self,
        clip: ClipEncoder,
        expand: Expand,
        reader: Reader | None = None,
        check: Check | None = None,
    ):
        table = clip.model.text_model.token_embedding.embedding
        width, dtype = clip.model.config.text.hidden_size, table.dtype
        super().__init__(clip.model, clip.normalization, width, dtype, reader, check)
        self.clip, self._expand = clip, expand
        self.trained_on: Sequence[TrainedRow] = ()

    @property
    def folder(self) -> Path:
        """Where the model comes from."""
        return self.clip.folder

    def learnable(
        self, sources: Mapping[str, RecordSource], length: int = 0
    ) -> dict[str, RecordSource]:
        """A row for each pair; a text that is too long for the tower is cut, as it always is."""
        return expanded(sources, self._expand)

    def note(self, sources: Mapping[str, RecordSource], opened: Mapping[str, RecordSource]) -> None:
        """As of `task.Task`: rows are those of the records."""
        self.trained_on = listed_rows(opened)

    def alike(self, records: Sequence[Record], length: int) -> Sequence[Any]:
        """As of `task.Task`: all rows are of one shape."""
        return [()] * len(records)

    def save(self, trainable: Any, frozen: Any, folder: Path, card: ModelCard | None) -> None:
        """Writes the model, the adapter merged, as a CLIP's folder."""
        card = card or ModelCard(base=folder_name(self.folder))
        card = replace(card, rows=(*card.rows, *self.trained_on))
        save_model(self.model(trainable, frozen), folder, self.folder, card)

    def batch(
        self,
        records: Sequence[Record],
        length: int,
        share: Share = WHOLE,
        buckets: bool = False,
    ) -> Batch:
        """Pairs as arrays.

        Args:
            records: B, of all processes.
            length, buckets: of rows of a language model; not looked at.
            share: the rows that are made.

        Returns:
            ``input_ids`` int32 and ``attention_mask`` bool, [B, L] of the tower's own length;
            ``text_mask`` [B, L], the tokens that are the text's; ``pixels`` float32 in [0, 1],
            [B, 3, X, X]; ``pictures`` and ``has_picture`` [B]; ``group`` int32 [B], the same for
            rows of one picture; with a reader ``read_ids``, ``read_mask`` [B, L_t].
        """
        own = [records[i] for i in share.rows(len(records)).tolist()]
        texts = [record.text for record in own]
        encoded = self.clip.texts(texts)
        room = ((0, 0), (0, self.clip.context - encoded["input_ids"].shape[1]))
        arrays: Batch = {name: np.pad(x, room) for name, x in encoded.items()}
        mask = arrays["attention_mask"]
        before, behind = tokens.frame(self.clip.tokenizer)
        place, ends = np.arange(mask.shape[1]), mask.sum(axis=1, keepdims=True) - behind
        arrays |= {
            "text_mask": (place >= before) & (place < ends),
            "pixels": np.stack([self.levels(record) for record in own]),
            "pictures": np.ones(len(own), np.int32),
            "has_picture": np.ones(len(own), bool),
            "group": np.array([_number(record.images[0]) for record in own], np.int32),
        }
        if self.reader is not None:
            read = [windows[0] for windows in self.reader.windows(texts)]
            arrays["read_ids"], arrays["read_mask"] = self.reader.pad(read)
        return arrays

    def levels(self, record: Record) -> Float[np.ndarray, "3 X X"]:
        """Grey levels / 255 of a record's picture, as the model sees it."""
        picture = images.decode(record.images[0], f"the picture of {record.id}")
        pixels = self.clip.picture(picture) * self.std + self.mean
        return np.round(255 * pixels).astype(np.float32) / 255

    def answers(
        self,
        trainable: Any,
        frozen: Any,
        batch: Any,
        inputs: Inputs,
        scale: LoraScale = 1.0,
        vocabulary: bool = False,
    ) -> Answers:
        """`mbat.Answer`: the loss is InfoNCE both ways, in nats, among the batch's texts and
        pictures; the margin is above 0 where another picture's text is nearer than the own one.

        Rows of one picture, or of one text, are no negatives of each other.
        """
        pixels, shift = inputs
        model, regime = self.model(trainable, frozen), scale + self.merged
        states, h_v = self.see(trainable, frozen, pixels, scale)
        moved = jnp.where(batch["text_mask"][..., None], shift, 0)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        texts = model.embed_texts(ids, mask, regime, moved)
        similarity = model.picture_vectors(states) @ texts.T
        group = batch["group"]
        same = (group[:, None] == group) | (ids[:, None] == ids).all(axis=-1)
        temperature = jnp.minimum(jnp.exp(model.logit_scale[...].astype(jnp.float32)), _MAX_SCALE)
        ways = [_contrast(temperature * x, same) for x in (similarity, similarity.T)]
        other = jnp.where(same, -jnp.inf, similarity).max(axis=1)
        margin = jnp.where(same.all(axis=1), -1.0, other - jnp.diagonal(similarity))
        return Answers(sum(ways) / 2, margin, self.s_c(trainable, batch, h_v), h_v)


def _contrast(logits: Float[Array, "B B"], same: Array) -> Float[Array, " B"]:
    """``-log softmax`` of a row's own logit among those of its negatives."""
    own = jnp.diagonal(logits)
    others = jnp.where(same, -jnp.inf, logits)
    every = jnp.concatenate([own[:, None], others], axis=1)
    return jax.nn.logsumexp(every, axis=1) - own


def _number(picture: bytes) -> int:
    return zlib.crc32(picture) & 0x7FFFFFFF
