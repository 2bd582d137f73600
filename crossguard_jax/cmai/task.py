"""A LLaVA that answers with one of a few words, as CMAI asks it: pixels in [0, 1] to answers.

The guard is one (safe, unsafe), reasoning over pairs another (false, true), questions with a closed
list of answers a third. Which regime answers is ``scale``: 0 is the model as it was, 1 the
immunized one, anything between a blend per example (`nn.lora`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.attacks.joint import Inputs
from crossguard_jax.attacks.logits import cross_entropy, margin_from
from crossguard_jax.cmai.consistency import Check
from crossguard_jax.cmai.features import pooled, text_features
from crossguard_jax.cmai.mbat import Answers
from crossguard_jax.cmai.reader import Reader
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float
from crossguard_jax.data.pipeline import Batch
from crossguard_jax.data.records import Record
from crossguard_jax.guard.encoding import Row
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.shapes import Planned, bucket, ladder, length_step, plan, slots
from crossguard_jax.io.ahead import ahead
from crossguard_jax.io.images import Picture
from crossguard_jax.nn import lora, verdict
from crossguard_jax.nn.llava import Llava
from crossguard_jax.nn.lora import LoraScale
from crossguard_jax.runtime.placement import WHOLE, Share

Item = TypeVar("Item")
WINDOWED = ("input_ids", "attention_mask", "text_mask", "read_ids", "read_mask")
"""Arrays of a batch with an axis of windows."""

NO_PICTURE = 1.0
"""S_c of a text without a picture: there is nothing for it to disagree with."""


@dataclass(frozen=True)
class TaskRequest:
    """A request as a task takes it.

    Attributes:
        text: the user's.
        rows: the prompt, or its windows.
        levels: of each picture, grey levels / 255, float32 [3, X, X].
        read: the text's windows, as the check's reader has them; one empty window without a reader.
        label: place of the right answer; 0 where nobody asks.
    """

    text: str
    rows: Sequence[Row]
    levels: Sequence[np.ndarray]
    read: Sequence[Sequence[int]]
    label: int = 0


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
        # The adapter's weight in what is frozen: -1 where it is merged into that.
        self.merged = 0.0

    @property
    def _key(self) -> tuple[Any, ...]:
        """All that its functions depend on beside their arguments."""
        reader = self.reader and (self.reader.source, self.reader.graphdef)
        numbers = (self.mean.tobytes(), self.std.tobytes(), self.merged, str(self.dtype))
        return self.graphdef, self.check_graphdef, reader, self.label_ids, numbers

    def __eq__(self, other: object) -> bool:
        """Whether one compiled program serves both."""
        return isinstance(other, Task) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

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

    def batch(self, records: Sequence[Record], length: int, share: Share = WHOLE) -> Batch:
        """Records as arrays to learn from: of a long text, one window.

        Args:
            records: B, with labels, of all processes, since they say in which shapes.
            length: tokens of a row with one picture (see `Encoder.training_rows`).
            share: the rows that are made; pictures of others are not decoded.

        Returns:
            As `stack`, without the axes of windows.

        Raises:
            UserError: a label that is no answer, or a row that cannot be encoded.
        """
        rows, longest = self.guard.encoder.training_rows(records, length)
        most = max(len(record.images) for record in records)
        places = share.rows(len(records)).tolist()
        own, requests = [records[i] for i in places], []
        read = self.reader.windows([r.text for r in own]) if self.reader else [[[]]] * len(own)
        for place, record, windows in zip(places, own, read, strict=True):
            levels, label = self._levels(record), self.label(record)
            requests.append(TaskRequest(record.text, [rows[place]], levels, windows[:1], label))
        arrays = self.stack(requests, longest, most)
        return {k: v[:, 0] if k in WINDOWED else v for k, v in arrays.items()}

    def encode(
        self, texts: Sequence[object], shown: Sequence[Sequence[Picture]]
    ) -> list[TaskRequest | UserError]:
        """Each request whole, in windows where its text is long, or what is wrong with it.

        Args:
            texts: one a request; it may be empty beside a picture.
            shown: the pictures of each.
        """
        encoder = self.guard.encoder
        rows_of = encoder.windows(texts, [*map(len, shown)])
        read = self.reader.windows([*map(str, texts)]) if self.reader else [[[]]] * len(texts)

        def request(i: int) -> TaskRequest | UserError:
            rows = rows_of[i]
            if isinstance(rows, UserError):
                return rows
            if len(rows) > 1 and len(self.labels) != 2:
                return UserError("the text is longer than is read at once; shorten it")
            try:
                levels = [encoder.levels(picture) for picture in shown[i]]
            except UserError as error:
                return error
            return TaskRequest(str(texts[i]), rows, levels, read[i])

        return list(ahead(request, range(len(texts))))

    def plan(self, requests: Sequence[TaskRequest], batch_size: int, windows: int) -> list[Planned]:
        """Requests as batches of few shapes; see `guard.shapes.plan`.

        Args:
            requests: that are read in as many windows and show as many pictures.
            batch_size: windows of the usual length to a forward pass.
            windows: of a request.
        """
        encoder = self.guard.encoder
        return plan(
            [max(len(row.ids) for row in request.rows) for request in requests],
            [len(request.levels) for request in requests],
            range(len(requests)),
            ladder(encoder.settings.max_length, encoder.tokens_per_image, length_step()),
            max(batch_size // windows, 1) * encoder.usual,
        )

    def stack(self, requests: Sequence[TaskRequest], length: int = 0, most: int = 0) -> Batch:
        """Requests as arrays. The number W of windows, I of pictures and T of the check's windows
        are powers of two; what is missing repeats the last one, and the number of pictures is told.

        Args:
            requests: B.
            length: L; 0 is as long as the longest window needs.
            most: pictures that there is room for at least.

        Returns:
            ``input_ids``, ``attention_mask`` [B, W, L]; ``text_mask`` [B, W, L], the user's own
            tokens, which an attack on the text may move; ``pixels`` float32 in [0, 1], [B, 3, X, X]
            if I is 1 or else [B, I, 3, X, X]; ``pictures`` int32 [B]; ``has_picture`` [B];
            ``labels`` int32 [B]; with a reader ``read_ids``, ``read_mask`` [B, T, L_t].
        """
        encoder = self.guard.encoder
        rows = _repeated([request.rows for request in requests])
        longest = max(len(row.ids) for row in rows)
        length = length or bucket(longest, encoder.settings.max_length)
        flat = encoder.pad(rows, length)
        flat["text_mask"] = np.zeros(flat["input_ids"].shape, bool)
        for mask, row in zip(flat["text_mask"], rows, strict=True):
            mask[slice(*row.user)] = True
        counts = [len(request.levels) for request in requests]
        side = encoder.image_size
        pixels = np.zeros((len(requests), slots(max(*counts, most)), 3, side, side), np.float32)
        for of_request, request in zip(pixels, requests, strict=True):
            for place, levels in enumerate(request.levels):
                of_request[place] = levels
        arrays: Batch = {
            "pixels": pixels[:, 0] if pixels.shape[1] == 1 else pixels,
            "pictures": np.array(counts, np.int32),
            "has_picture": np.array(counts) > 0,
            "labels": np.array([request.label for request in requests], np.int32),
        }
        if self.reader is not None:
            ids, mask = self.reader.pad(_repeated([request.read for request in requests]))
            flat |= {"read_ids": ids, "read_mask": mask}
        b = len(requests)
        return arrays | {name: x.reshape(b, -1, x.shape[-1]) for name, x in flat.items()}

    def _levels(self, record: Record) -> list[np.ndarray]:
        encoder = self.guard.encoder
        return [encoder.levels(image, f"the picture of {record.id}") for image in record.images]

    def label(self, record: Record) -> int:
        """The place of a record's label among the answers.

        Raises:
            UserError: it is none.
        """
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
        ids, mask = (batch[f"read_{name}"] for name in ("ids", "mask"))
        flat_ids, flat_mask = (x.reshape(-1, x.shape[-1]) for x in (ids, mask))
        h_t = text_features(self.reader.source, model, flat_ids, flat_mask, self.merged)
        return batch | {"h_t": jax.lax.stop_gradient(h_t.reshape(*ids.shape[:-1], -1))}

    def model(self, trainable: Any, frozen: Any) -> Llava:
        """The LLaVA, with its adapter."""
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
        pixels, shift = inputs
        model = self.model(trainable, frozen)
        states, h_v = self.see(trainable, frozen, pixels, scale)
        lead, flat = states.shape[:-2], states.reshape(-1, *states.shape[-2:])
        features = model.project(flat, self._tower_scale(scale, lead))
        features = features.reshape(lead[0], -1, features.shape[-1])
        columns = None if vocabulary else jnp.asarray(self.label_ids)
        regime = scale + self.merged

        def read(window: Any) -> Array:
            ids, mask, text_mask = window
            x = model.place(ids, features)
            x = x + jnp.where(text_mask[..., None], shift, 0).astype(x.dtype)
            return model.read(x, mask > 0, columns, regime)

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
        return Answers(loss, margin_from(logits, labels), self.s_c(trainable, batch, h_v), h_v)

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


def _repeated(each: Sequence[Sequence[Item]]) -> list[Item]:
    """As many of each, a power of two, the last one repeated; one after the other."""
    size = slots(max(map(len, each)))
    return [item for some in each for item in [*some, *[some[-1]] * (size - len(some))]]
