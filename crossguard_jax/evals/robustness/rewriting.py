"""Rows whose texts may be replaced: what a system makes of a text that a user could type instead.

Only the user's own text is: the prompt, the picture and the label stay, and what is judged is what
the tokenizer makes of the whole. A text that is longer than is read at once is read in windows, and
one that would be cut is an error.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks.problem import Outcome
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.operating import at_cut
from crossguard_jax.cmai.task import TaskRequest
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Float, Int, PRNGKeyArray
from crossguard_jax.data.pipeline import Batch
from crossguard_jax.data.records import Record
from crossguard_jax.guard.encoding import pictures_of
from crossguard_jax.guard.prompting import Row
from crossguard_jax.hf.sentence import SentenceEncoder


class Rewriting:
    """Records, and a system that is given other texts of theirs.

    Args:
        system: what reads them.
        records: labelled.
        which: as of `Immunized.rows`.
        at: log odds that a guard cuts at, and the unit of its margins; None: even odds.

    Raises:
        UserError: a record that cannot be encoded.
    """

    def __init__(
        self,
        system: Immunized,
        records: Sequence[Record],
        which: int | None = None,
        at: tuple[float, float] | None = None,
    ):
        self.system, self.records, self.which, self._at = system, list(records), which, at
        encoder = system.task.guard.encoder
        self.labels = [system.task.label(record) for record in records]
        self._levels = [
            [encoder.levels(image, f"the picture of {r.id}") for image in pictures_of(r.images)]
            for r in records
        ]

    def requests(self, texts: Sequence[str], at: Sequence[int]) -> list[TaskRequest]:
        """The rows ``at`` with other texts.

        Raises:
            UserError: a text that does not fit, with its row.
        """
        task = self.system.task
        rows_of = task.guard.encoder.windows(texts, [len(self._levels[i]) for i in at])
        read = task.reader.windows([*texts]) if task.reader else [[[]]] * len(texts)
        requests = []
        for text, i, rows, windows in zip(texts, at, rows_of, read, strict=True):
            if isinstance(rows, UserError):
                raise UserError(f"row {self.records[i].id}, rewritten: {rows}")
            requests.append(TaskRequest(text, rows, self._levels[i], windows, self.labels[i]))
        return requests

    def arrays(self, texts: Sequence[str], at: Sequence[int]) -> tuple[np.ndarray, Batch]:
        """As `Immunized.rows`, of the rows ``at`` with other texts."""
        x, rows = self.system.arrays(self.requests(texts, at), self.which)
        return x, rows if self._at is None else rows | at_cut(len(x), *self._at)

    def whole(self, texts: Sequence[str], at: Sequence[int], what: str) -> list[Row]:
        """Each text's prompt in one window.

        Args:
            texts: of the rows.
            at: which rows.
            what: has to be read at once, for a message.

        Raises:
            UserError: one takes several.
        """
        requests, task = self.requests(texts, at), self.system.task
        for request, i in zip(requests, at, strict=True):
            if len(request.rows) > 1:
                limit, n = task.guard.encoder.settings.max_length, len(request.rows)
                raise UserError(
                    f"row {self.records[i].id}: {what} takes {n} windows of {limit} tokens, and "
                    "is not read at once; raise max_length, or leave the row out"
                )
        return [request.rows[0] for request in requests]

    def climbed(self, texts: list[str], at: Int[np.ndarray, " N"], key: PRNGKeyArray) -> Outcome:
        """`edit_search.Score`: the plain answer's margin; what any other branch deals with is
        caught."""
        x, rows = self.arrays(texts, at.tolist())
        outcome = _accepted(self.system, self.system.params, rows, x, key)
        return Outcome(outcome.margin, outcome.margin, outcome.detector)

    def judged(
        self, texts: Sequence[str], at: Sequence[int], key: PRNGKeyArray, draws: int, size: int
    ) -> dict[str, Float[np.ndarray, " N"]]:
        """``loss``, ``margin`` and ``detector`` (NaN without one) of texts, by the policy: the mean
        of draws."""
        parts: list[dict[str, np.ndarray]] = []
        for start in range(0, len(texts), size):
            here = np.minimum(np.arange(start, start + size), len(texts) - 1)
            x, rows = self.arrays([texts[i] for i in here], [at[i] for i in here])
            keys = jax.random.split(jax.random.fold_in(key, start), draws)
            outcome = _outcome(self.system, self.system.params, rows, x, keys)
            parts.append({name: np.asarray(value) for name, value in outcome.items()})
        return {
            name: np.concatenate([part[name] for part in parts])[: len(texts)] for name in parts[0]
        }


@functools.partial(jax.jit, static_argnums=0)
def _accepted(system: Immunized, params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    return system.accepted(params, rows, x, key)


@functools.partial(jax.jit, static_argnums=0)
def _outcome(system: Immunized, params: Any, rows: Any, x: Array, keys: Array) -> dict[str, Array]:
    draws = jax.vmap(lambda key: system.outcome(params, rows, x, key))(keys)
    detector = draws.detector
    if detector is None:
        detector = jnp.full_like(draws.margin, jnp.nan)
    fields = {"loss": draws.loss, "margin": draws.margin, "detector": detector}
    return {name: value.mean(axis=0) for name, value in fields.items()}


class Sentences:
    """How near texts are to others, by a sentence encoder."""

    def __init__(self, encoder: SentenceEncoder):
        self._encoder = encoder
        self._embed = jax.jit(lambda model, ids, mask: model.embed_sentences(ids, mask))

    @property
    def name(self) -> str:
        """The encoder's folder."""
        return str(self._encoder.folder)

    def vectors(self, texts: Sequence[str], size: int = 64) -> Float[np.ndarray, "N D"]:
        """Unit vectors."""
        parts = []
        for start in range(0, len(texts), size):
            some = [*texts[start : start + size]]
            arrays = self._encoder.texts(some + [some[-1]] * (size - len(some)))
            width = self._encoder.max_length - arrays["input_ids"].shape[1]
            ids, mask = (np.pad(arrays[n], ((0, 0), (0, width))) for n in _FIELDS)
            out = np.asarray(self._embed(self._encoder.model, ids, mask), np.float32)
            parts.append(out[: len(some)])
        vectors = np.concatenate(parts)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def similarity(self, texts: Sequence[str], others: Sequence[str]) -> Float[np.ndarray, " N"]:
        """The cosine of each text and its other one."""
        both = self.vectors([*texts, *others])
        return (both[: len(texts)] * both[len(texts) :]).sum(axis=1)

    def neighbours(self, words: Sequence[str], n: int) -> dict[str, list[str]]:
        """Of each word the ``n`` nearest others, the nearest first."""
        vectors = self.vectors(words)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -np.inf)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, : min(n, len(words) - 1)]
        return {word: [words[i] for i in row] for word, row in zip(words, order, strict=True)}


_FIELDS = ("input_ids", "attention_mask")
