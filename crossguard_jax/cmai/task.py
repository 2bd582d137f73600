"""A LLaVA that answers with one of a few words, as CMAI asks it: pixels in [0, 1] to answers.

The guard is one (safe, unsafe), reasoning over pairs another (false, true), questions with a closed
list of answers a third. Which regime answers is ``scale``: 0 is the model as it was, 1 the
immunized one, anything between a blend per example (`nn.lora`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.attacks.joint import Inputs
from crossguard_jax.attacks.logits import cross_entropy, margin_from
from crossguard_jax.cmai.consistency import Check
from crossguard_jax.cmai.features import pooled, text_features
from crossguard_jax.cmai.mbat import Answers
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float
from crossguard_jax.data.pipeline import Batch
from crossguard_jax.data.records import Record
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf import tokens
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.nn import lora
from crossguard_jax.nn.llava import Llava
from crossguard_jax.nn.lora import LoraScale

NO_PICTURE = 1.0
"""S_c of a text without a picture: there is nothing for it to disagree with."""


class Reader:
    """What h_t is made from: a text's tokens for the tower that the check reads texts with.

    Args:
        guard: whose language model may be the tower.
        source: a name in `features.TEXT_SOURCES`.
        path: the CLIP folder, where that is the source.
        max_length: of a text in tokens, where the language model is the source.

    Raises:
        UserError: an unknown source, or a folder that is no CLIP.
    """

    def __init__(self, guard: Guard, source: str, path: str, max_length: int):
        self.source, self.path = source, path
        # With the guard's own language model nothing of it is kept twice.
        self.graphdef: Any = None
        self.state: Any = None
        if source == "clip":
            clip = load_clip(path, mesh=guard.mesh, rules=guard.rules)
            self._tokenizer, self.length = clip.tokenizer, clip.context
            self.width = clip.model.config.text.hidden_size
            self.graphdef, self.state = nnx.split(clip.model.text_model, graph=False)
        else:
            self._tokenizer, self.length = guard.encoder.tokenizer, max_length
            self.width = guard.model.config.text.hidden_size

    def __call__(self, texts: Sequence[str]) -> Batch:
        """``read_ids`` (int32) and ``read_mask`` (bool), [B, L] of one length always."""
        rows = self._tokenizer(
            [tokens.valid(text) for text in texts], truncation=True, max_length=self.length
        )["input_ids"]
        ids, mask = tokens.padded(rows, self.length)
        return {"read_ids": ids, "read_mask": mask}


class Task:
    """A guard's model on a closed list of answers, as pure functions of its parts.

    Args:
        guard: its model carries the adapter that is trained or attacked.
        labels: answers, by the words they begin with; none are the prompt's two.
        reader: of texts, for S_c; None where nothing checks.
        check: with a reader, the check that it reads for.

    Raises:
        UserError: two answers that begin with the same token.
    """

    def __init__(
        self,
        guard: Guard,
        labels: Sequence[str] = (),
        reader: Reader | None = None,
        check: Check | None = None,
    ):
        prompt = guard.settings.prompt
        self.guard, self.reader = guard, reader
        self.labels = tuple(labels or (prompt.negative, prompt.positive))
        self.label_ids = guard.encoder.first_tokens(self.labels)
        self.graphdef, self.adapters, self.frozen = lora.split(guard.model)
        self.check_graphdef: Any = check and nnx.split(check, graph=False)[0]
        self.mean, self.std = guard.encoder.normalization

    @property
    def width(self) -> int:
        """D, of the model's token embeddings."""
        return self.guard.model.config.text.hidden_size

    @property
    def frozen_parts(self) -> dict[str, Any]:
        """``frozen``, as the functions below take it."""
        state = None if self.reader is None else self.reader.state
        return {"model": self.frozen} | ({} if state is None else {"reader": state})

    @property
    def dtype(self) -> Any:
        """Of the model's arithmetic."""
        return self.guard.model.language_model.embed_tokens.embedding.dtype

    def batch(self, records: Sequence[Record], length: int) -> Batch:
        """Records as arrays.

        Returns:
            ``input_ids``, ``attention_mask`` [B, length]; ``text_mask`` [B, length], the user's own
            tokens, which an attack on the text may move; ``pixels`` float32 [B, 3, X, X] in [0, 1]
            and ``has_picture`` [B]; ``labels`` int32 [B]; with a reader, its arrays.

        Raises:
            UserError: a label that is no answer, or a row that cannot be encoded.
        """
        encoder = self.guard.encoder
        has_picture = np.array([record.image is not None for record in records])
        rows, length = encoder.training_rows(records, length)
        side = encoder.image_size
        pixels = np.zeros((len(rows), 3, side, side), np.float32)
        for i, record in enumerate(records):
            if record.image is not None:
                pixels[i] = encoder.levels(record.image, record.id)
        arrays = encoder.pad(rows, length)
        text = np.zeros(arrays["input_ids"].shape, bool)
        for mask, row in zip(text, rows, strict=True):
            mask[slice(*row.user)] = True
        arrays |= {"text_mask": text, "pixels": pixels, "has_picture": has_picture}
        arrays["labels"] = np.array([self._label(record) for record in records], np.int32)
        if self.reader is not None:
            arrays |= self.reader([record.text for record in records])
        return arrays

    def _label(self, record: Record) -> int:
        if record.label not in self.labels:
            choices = ", ".join(self.labels[:20])
            raise UserError(f"row {record.id}: label {record.label!r} is none of {choices}")
        return self.labels.index(record.label)

    def read(self, trainable: Any, frozen: Any, batch: Any) -> Any:
        """The batch with ``h_t`` beside a reader's arrays.

        An attack does not change it, so it is taken once: a text's perturbations are those of the
        language model's embeddings as it answers.
        """
        if self.reader is None:
            return batch
        if self.reader.graphdef is None:
            model = self.model(trainable, frozen).language_model
        else:
            model = nnx.merge(self.reader.graphdef, frozen["reader"])
        h_t = text_features(self.reader.source, model, batch["read_ids"], batch["read_mask"], 0.0)
        return batch | {"h_t": jax.lax.stop_gradient(h_t)}

    def model(self, trainable: Any, frozen: Any) -> Llava:
        """The LLaVA, with its adapter."""
        return lora.merge(self.graphdef, trainable["adapters"], frozen["model"])

    def check(self, trainable: Any) -> Check:
        """The consistency check."""
        return nnx.merge(self.check_graphdef, trainable["check"])

    def see(
        self, trainable: Any, frozen: Any, pixels: Float[Array, "B C X Y"], scale: LoraScale = 1.0
    ) -> tuple[Array, Array]:
        """The tower's states that the projector reads, and h_v, of pixels in [0, 1]."""
        model = self.model(trainable, frozen)
        normal = (pixels - self.mean) / self.std
        states = model.see(normal.astype(self.dtype), scale)
        return states, pooled(states)

    def logits(
        self,
        trainable: Any,
        frozen: Any,
        batch: Any,
        inputs: Inputs,
        scale: LoraScale = 1.0,
        vocabulary: bool = False,
    ) -> tuple[Float[Array, "B K"], Float[Array, "B D_v"]]:
        """The answers' logits, float32, and h_v.

        Args:
            trainable: ``adapters`` and, where there is one, ``check``.
            frozen: ``model`` and, where there is one, ``reader``.
            batch: of `batch`; its own pixels are not looked at.
            inputs: pixels [B, C, X, Y] in [0, 1], and what is added to the token embeddings.
            scale: the regime.
            vocabulary: of every token, [B, V], not of the answers' alone.
        """
        pixels, shift = inputs
        model = self.model(trainable, frozen)
        states, h_v = self.see(trainable, frozen, pixels, scale)
        x = model.place(batch["input_ids"], model.project(states, scale))
        x = x + jnp.where(batch["text_mask"][..., None], shift, 0).astype(x.dtype)
        mask = batch["attention_mask"] > 0
        columns = None if vocabulary else jnp.asarray(self.label_ids)
        return model.read(x, mask, columns, scale), h_v

    def s_c(self, trainable: Any, batch: Any, h_v: Float[Array, "B D_v"]) -> Float[Array, " B"]:
        """How well each row's text fits its picture; 1 where there is no picture or no check."""
        none = jnp.full(h_v.shape[0], NO_PICTURE, jnp.float32)
        if self.reader is None:
            return none
        return jnp.where(batch["has_picture"], self.check(trainable)(h_v, batch["h_t"]), none)

    def answers(
        self,
        trainable: Any,
        frozen: Any,
        batch: Any,
        inputs: Inputs,
        scale: LoraScale = 1.0,
        vocabulary: bool = False,
    ) -> Answers:
        """`mbat.Answer`: loss, margin and S_c of a batch that `read` has been through.

        The loss is ``-log p`` of the right answer among the answers, or with ``vocabulary`` among
        all tokens: what the model learns from, so that it gives one of the answers by itself. The
        margin is among the answers in either case.
        """
        logits, h_v = self.logits(trainable, frozen, batch, inputs, scale, vocabulary)
        labels, ids = batch["labels"], jnp.asarray(self.label_ids)
        loss = cross_entropy(logits, ids[labels] if vocabulary else labels)
        margin = margin_from(logits[:, ids] if vocabulary else logits, labels)
        return Answers(loss, margin, self.s_c(trainable, batch, h_v), h_v)

    def pairs(
        self,
        trainable: Any,
        frozen: Any,
        batch: Any,
        joint: bool = False,
        adversarial: bool = False,
    ) -> dict[str, Array]:
        """What the check learns from, for `consistency.pair_loss`.

        Texts that read the same are no misaligned partners of each other's pictures, and rows
        without a picture are nobody's.

        Args:
            trainable, frozen: as above.
            batch: one that `read` has been through.
            joint: let the check's loss move the adapter.
            adversarial: the check learns to tell the batch's ``attacked`` pictures, too.

        Pictures whose ``h_v`` (``attacked_h_v``) is in the batch are not seen again.
        """

        def features(name: str, pixels: str) -> Array:
            h_v = batch[name] if name in batch else self.see(trainable, frozen, batch[pixels])[1]
            return h_v if joint else jax.lax.stop_gradient(h_v)

        ids, there = batch["read_ids"], batch["has_picture"]
        same = (ids[:, None] == ids[None]).all(axis=-1)
        pairs = {
            "h_v": features("h_v", "pixels"),
            "h_t": batch["h_t"],
            "aligned": there,
            "negatives": ~same & there[:, None] & there[None],
        }
        return pairs | ({"attacked_v": features("attacked_h_v", "attacked")} if adversarial else {})

    def add_clean_states(self, trainable: Any, frozen: Any, batch: Any) -> Any:
        """The batch with ``clean_states``, the tower's states of the clean pictures without the
        adapter: what an embedding-preserving tower keeps to (FARE, arXiv 2402.12336)."""
        states, _ = self.see(trainable, frozen, batch["pixels"], 0.0)
        return batch | {"clean_states": jax.lax.stop_gradient(states)}

    def deviations(
        self, trainable: Any, frozen: Any, batch: Any, inputs: Inputs, scale: LoraScale = 1.0
    ) -> Answers:
        """`mbat.Answer` that knows no task: the loss is how far the tower's states are from their
        ``clean_states``, squared, summed over the width, the mean over tokens."""
        states, h_v = self.see(trainable, frozen, inputs[0], scale)
        away = (
            ((states - batch["clean_states"]).astype(jnp.float32) ** 2).sum(axis=-1).mean(axis=-1)
        )
        return Answers(away, jnp.zeros_like(away), jnp.full_like(away, NO_PICTURE), h_v)
