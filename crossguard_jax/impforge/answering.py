"""A LLaVA that is asked a picture and a text and answers in words."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import PromptTemplate
from crossguard_jax.data.records import Record
from crossguard_jax.guard.decoding import likeliest
from crossguard_jax.guard.encoding import Encoder
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.shapes import bucket
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.io.progress import Progress
from crossguard_jax.nn import lora, sampling
from crossguard_jax.nn.llava import Llava


class AnsweringLlava:
    """A LLaVA folder that answers in words.

    Args:
        folder: a Hub folder, or ``toy://NAME``.
        prompt: how a row is put to it; only the template counts, not its label words.
        max_new_tokens: of an answer; a refusal shows at its beginning.
        batch_size: rows at once.
        dtype: of the weights and the arithmetic.

    Raises:
        UserError: see `hf.load.load_model`; or the folder holds no LLaVA.
    """

    def __init__(
        self,
        folder: str,
        prompt: PromptTemplate,
        max_new_tokens: int = 32,
        batch_size: int = 16,
        dtype: str = "float32",
    ):
        path = resolve_folder(folder)
        model = load_model(path, dtype)
        if not isinstance(model, Llava):
            raise UserError(f"{folder}: no LLaVA, but a {type(model).__name__}")
        self._encoder = Encoder(path, model.config, Settings(prompt=prompt))
        self._graphdef, _, self._frozen = lora.split(model)
        self._batch_size, self._n = batch_size, max_new_tokens
        self._answer = jax.jit(self._sample)

    def _sample(self, frozen: object, batch: dict[str, jax.Array]) -> sampling.Sampled:
        model = lora.merge(self._graphdef, frozen)
        return likeliest(model, self._encoder, batch, batch.get("pixel_values"), self._n)

    def fault(self, row: Record) -> UserError | None:
        """Why a row cannot be asked, where it cannot."""
        encoder, pictures = self._encoder, [row.images]
        limit = encoder.settings.max_length - self._n
        (encoded,) = encoder.whole([row.text], [len(row.images)], limit)
        if isinstance(encoded, UserError):
            return encoded
        try:
            encoder.shown([list(each) for each in pictures], "picture of row")
        except UserError as error:
            return error
        return None

    def answers(self, rows: Sequence[Record], what: str = "asking the model") -> list[str]:
        """The likeliest answers; ``what`` names the work on the progress line."""
        answers: list[str] = []
        with Progress(what, len(rows)) as progress:
            for start in range(0, len(rows), self._batch_size):
                part = rows[start : start + self._batch_size]
                # The last batch is filled up with its last row, so that nothing compiles anew.
                filled = [*part, *[part[-1]] * (self._batch_size - len(part))]
                sampled = self._answer(self._frozen, self._batch(filled))
                answers += self._encoder.tokenizer.batch_decode(
                    np.asarray(sampled.tokens)[: len(part)], skip_special_tokens=True
                )
                progress.update(len(part))
        return answers

    def _batch(self, rows: Sequence[Record]) -> dict[str, jax.Array]:
        encoder, pictures = self._encoder, [list(row.images) for row in rows]
        limit = encoder.settings.max_length - self._n
        tokens = []
        for row, encoded in zip(
            rows, encoder.whole([r.text for r in rows], [*map(len, pictures)], limit), strict=True
        ):
            if isinstance(encoded, UserError):
                raise UserError(f"{row.id}: {encoded}") from encoded
            tokens.append(encoded)
        length = bucket(max(len(row.ids) for row in tokens), limit)
        arrays = encoder.batch(tokens, encoder.shown(pictures, "picture of row"), length)
        return {k: jnp.asarray(v) for k, v in arrays.items()}
