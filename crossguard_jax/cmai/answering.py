"""A model with its check, and a LLaVA that answers from a closed list, as pure functions.

They need neither a tokenizer nor weights: what is compiled for a machine that is not here is these
very functions (`plan`). `task.Task` adds how requests become arrays.
"""

from collections.abc import Callable
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
from crossguard_jax.core.typing import Array, Float
from crossguard_jax.nn import lora, verdict
from crossguard_jax.nn.llava import Llava
from crossguard_jax.nn.lora import LoraScale

WINDOWED = ("input_ids", "attention_mask", "text_mask", "read_ids", "read_mask")
"""Arrays of a batch with an axis of windows."""

NO_PICTURE = 1.0
"""S_c of a text without a picture: there is nothing for it to disagree with."""


class Checked:
    """A model that sees pictures, its check, and what they make of a batch, whatever is asked.

    Args:
        model: carries the adapter that is trained or attacked, and sees pictures by ``see``; it
            may be abstract (`jax.eval_shape`).
        normalization: mean and standard deviation of pixels, float32 each.
        width: D, of the embeddings of its tokens.
        dtype: of its arithmetic.
        reader: of texts, for S_c, with ``source``, ``graphdef`` and ``state`` as
            `reader.Reader` has them; None where nothing checks.
        check: with a reader, the check that it reads for.
    """

    def __init__(
        self,
        model: Any,
        normalization: tuple[np.ndarray, np.ndarray],
        width: int,
        dtype: Any,
        reader: Any = None,
        check: Check | None = None,
    ):
        self.reader, self.width, self.dtype = reader, width, dtype
        self.graphdef, self.adapters, self.frozen = lora.split(model)
        self.check_graphdef: Any = check and nnx.split(check, graph=False)[0]
        self.mean, self.std = normalization
        # The adapter's weight in what is frozen: -1 where it is merged into that.
        self.merged = 0.0

    @property
    def _key(self) -> tuple[Any, ...]:
        """All that its functions depend on beside their arguments."""
        reader = self.reader and (self.reader.source, self.reader.graphdef)
        numbers = (self.mean.tobytes(), self.std.tobytes(), self.merged, str(self.dtype))
        return type(self), self.graphdef, self.check_graphdef, reader, numbers

    def __eq__(self, other: object) -> bool:
        """Whether one compiled program serves both."""
        return isinstance(other, Checked) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def frozen_parts(self) -> dict[str, Any]:
        """``frozen``, as the functions below take it."""
        state = None if self.reader is None else self.reader.state
        return {"model": self.frozen} | ({} if state is None else {"reader": state})

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
        ids, mask = (batch[f"read_{name}"] for name in ("ids", "mask"))
        flat_ids, flat_mask = (x.reshape(-1, x.shape[-1]) for x in (ids, mask))
        h_t = text_features(self.reader.source, model, flat_ids, flat_mask, self.merged)
        return batch | {"h_t": jax.lax.stop_gradient(h_t.reshape(*ids.shape[:-1], -1))}

    def model(self, trainable: Any, frozen: Any) -> Any:
        """The model, with its adapter."""
        return lora.merge(self.graphdef, trainable["adapters"], frozen["model"])

    def check(self, trainable: Any) -> Check:
        """The consistency check."""
        return nnx.merge(self.check_graphdef, trainable["check"])

    def see(
        self,
        trainable: Any,
        frozen: Any,
        pixels: Float[Array, "B *I C X Y"],
        scale: LoraScale = 1.0,
    ) -> tuple[Float[Array, "B *I S W"], Float[Array, "B *I D_v"]]:
        """The tower's states that the projector reads, and h_v, of pixels in [0, 1]."""
        model = self.model(trainable, frozen)
        lead, flat = pixels.shape[:-3], pixels.reshape(-1, *pixels.shape[-3:])
        normal = (flat - self.mean) / self.std
        states = model.see(normal.astype(self.dtype), self._tower_scale(scale, lead))
        h_v = pooled(states)
        return states.reshape(*lead, *states.shape[1:]), h_v.reshape(*lead, -1)

    def _tower_scale(self, scale: LoraScale, lead: tuple[int, ...]) -> Any:
        """The regime of each picture, the adapter's weight in the frozen numbers taken off."""
        scale = scale + self.merged
        return jnp.repeat(scale, lead[1]) if jnp.ndim(scale) and len(lead) == 2 else scale

    def s_c(self, trainable: Any, batch: Any, h_v: Float[Array, "B *I D_v"]) -> Float[Array, " B"]:
        """How well each row's text fits its picture, the least over the windows of the text and
        over the pictures; 1 where there is no picture or no check."""
        b = h_v.shape[0]
        if self.reader is None:
            return jnp.full(b, NO_PICTURE, jnp.float32)
        v = h_v.reshape(b, -1, h_v.shape[-1])
        t = batch["h_t"].reshape(b, -1, batch["h_t"].shape[-1])
        i, n = v.shape[1], t.shape[1]
        pairs = jnp.repeat(v, n, axis=1), jnp.tile(t, (1, i, 1))
        scores = self.check(trainable)(*(x.reshape(b * i * n, -1) for x in pairs))
        least = scores.reshape(b, i, n).min(axis=2)
        there = jnp.arange(i) < batch["pictures"][:, None]
        return jnp.where(there, least, NO_PICTURE).min(axis=1)

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
            h_v = h_v if h_v.ndim == 2 else h_v[:, 0]  # of several pictures, the first
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
        squares = (states - batch["clean_states"]).astype(jnp.float32) ** 2
        away = squares.sum(axis=-1).reshape(len(squares), -1).mean(axis=1)
        return Answers(away, jnp.zeros_like(away), jnp.full_like(away, NO_PICTURE), h_v)


class Answering(Checked):
    """The functions of a LLaVA that answers from a closed list.

    Args:
        model: as of `Checked`.
        label_ids: the first token of each answer.
        normalization, reader, check: as of `Checked`.
    """

    def __init__(
        self,
        model: Llava,
        label_ids: tuple[int, ...],
        normalization: tuple[np.ndarray, np.ndarray],
        reader: Any = None,
        check: Check | None = None,
    ):
        self.label_ids = label_ids
        width = model.config.text.hidden_size
        dtype = model.language_model.embed_tokens.embedding.dtype
        super().__init__(model, normalization, width, dtype, reader, check)

    @property
    def _key(self) -> tuple[Any, ...]:
        return *super()._key, self.label_ids

    def placing(
        self, trainable: Any, frozen: Any, inputs: Inputs, scale: LoraScale
    ) -> tuple[Llava, Callable[[Array, Array], Array], Array]:
        """The model; ``place(input_ids [B, L], text_mask [B, L]) -> [B, L, D]``, what its language
        model reads of rows that show the inputs' pictures; and h_v. The arguments are `logits`'.
        """
        pixels, shift = inputs
        model = self.model(trainable, frozen)
        states, h_v = self.see(trainable, frozen, pixels, scale)
        lead, flat = states.shape[:-2], states.reshape(-1, *states.shape[-2:])
        features = model.project(flat, self._tower_scale(scale, lead))
        features = features.reshape(lead[0], -1, features.shape[-1])

        def place(ids: Array, text_mask: Array) -> Array:
            x = model.place(ids, features)
            return x + jnp.where(text_mask[..., None], shift, 0).astype(x.dtype)

        return model, place, h_v

    def logits(
        self,
        trainable: Any,
        frozen: Any,
        batch: Any,
        inputs: Inputs,
        scale: LoraScale = 1.0,
        vocabulary: bool = False,
    ) -> tuple[Float[Array, "B K"], Float[Array, "B *I D_v"]]:
        """The answers' logits, float32, and h_v. Of several windows the one that speaks most for
        the second answer counts: one that is unsafe makes the request unsafe.

        Args:
            trainable: ``adapters`` and, where there is one, ``check``.
            frozen: ``model`` and, where there is one, ``reader``.
            batch: of `batch` or `stack`; its own pixels are not looked at.
            inputs: pixels [B, C, X, Y] or [B, I, C, X, Y] in [0, 1], and what is added to the token
                embeddings.
            scale: the regime.
            vocabulary: of every token, [B, V], not of the answers' alone.
        """
        model, place, h_v = self.placing(trainable, frozen, inputs, scale)
        columns = None if vocabulary else jnp.asarray(self.label_ids)
        regime = scale + self.merged

        def read(window: Any) -> Array:
            ids, mask, text_mask = window
            return model.read(place(ids, text_mask), mask > 0, columns, regime)

        window = tuple(batch[name] for name in WINDOWED[:3])
        if window[0].ndim == 2:
            return read(window), h_v
        by_window = tuple(x.swapaxes(0, 1) for x in window)
        if len(by_window[0]) == 1:
            return read(tuple(x[0] for x in by_window)), h_v
        # One after the other: as many rows at once as without windows.
        logits = jax.lax.map(jax.checkpoint(read), by_window)
        worst = jnp.argmax(logits[..., -1] - logits[..., 0], axis=0)
        return jnp.take_along_axis(logits, worst[None, :, None], axis=0)[0], h_v

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
        if vocabulary:
            loss, logits = verdict.vocabulary_loss(logits, ids, labels), logits[:, ids]
        else:
            loss = cross_entropy(logits, labels)
        s_c = self.s_c(trainable, batch, h_v)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        return Answers(loss, margin_from(logits, labels), s_c, h_v, log_p)
