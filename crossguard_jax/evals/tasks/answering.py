"""A LLaVA that answers in its own words, by greedy decoding, and what makes it say otherwise."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from crossguard_jax.attacks import projections
from crossguard_jax.attacks.problem import Budget
from crossguard_jax.cmai.vetted import Vetting
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Int, PRNGKeyArray
from crossguard_jax.evals.tasks.attack import searched
from crossguard_jax.evals.tasks.objectives import answer_objective, vetted
from crossguard_jax.guard.decoding import Forced, answer_arrays, answer_tokens, likeliest
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.prompting import Row
from crossguard_jax.guard.shapes import bucket
from crossguard_jax.io.progress import Progress
from crossguard_jax.nn import lora, sampling
from crossguard_jax.runtime import processes

Rows = Int[np.ndarray, " _"]
"""Numbers of rows."""
Part = tuple[Rows, int]
"""A batch of `in_batches`."""


class Response(NamedTuple):
    """An answer: its text, and its tokens up to and with the one that ends it."""

    text: str
    tokens: tuple[int, ...]


class Aim(NamedTuple):
    """What an attack is after.

    Attributes:
        tokens: an answer's.
        toward: it is to be said; else it is not to be.
        held: what the picture is to fit, where something checks that; None: not known.
    """

    tokens: tuple[int, ...]
    toward: bool = False
    held: str | None = None


def tokenize(model: Guard, texts: Sequence[str], max_new_tokens: int) -> list[Row | UserError]:
    """Prompts about a picture each, or why a text makes none (it is empty, or too long)."""
    limit = model.settings.max_length - max_new_tokens
    return model.encoder.whole(texts, [1] * len(texts), limit)


class Answerer:
    """Answers to texts about pictures, one picture a text.

    Args:
        model: a LLaVA folder as `Guard.from_pretrained` loads it, with its prompt.
        rows: what is asked (see `tokenize`), one or more.
        max_new_tokens: of an answer.
        batch_size: rows at once.
        vetting: what an attack is caught by, where it knows of that.
    """

    def __init__(
        self,
        model: Guard,
        rows: Sequence[Row],
        max_new_tokens: int,
        batch_size: int,
        vetting: Vetting | None = None,
    ):
        self._vetting = vetting
        self._encoder, self._rows, self._n = model.encoder, rows, max_new_tokens
        self._batch_size = min(batch_size, len(rows))
        # One length for all: one program.
        self._length = bucket(max(len(row.ids) for row in rows), model.settings.max_length)
        graphdef, *params = lora.split(model.model)
        self._params = tuple(params)
        mean, std = self._encoder.normalization
        objective = answer_objective(graphdef, mean, std)
        if vetting is not None:
            objective = vetted(objective, vetting)

        def answer(params: Any, batch: dict[str, Array], levels: Array) -> sampling.Sampled:
            pixels = (levels.astype(jnp.float32) / 255 - mean) / std
            llava = lora.merge(graphdef, *params)
            return likeliest(llava, self._encoder, batch, pixels, max_new_tokens)

        def attack(
            params: Any, batch: Any, levels: Array, key: PRNGKeyArray, budget: Budget, name: str
        ) -> Array:
            x = levels.astype(jnp.float32) / 255
            result = searched(name, functools.partial(objective, params, batch), x, key, budget)
            return projections.to_uint8(x, result.x_adv, budget)

        self._answer, self._attack = jax.jit(answer), jax.jit(attack, static_argnames="name")

    def answers(
        self, levels: UInt8[np.ndarray, "M 3 X X"], over: Rows, what: str = "answering"
    ) -> list[Response]:
        """The likeliest answers of some rows, each about its own picture of ``levels``.

        Args:
            levels: grey levels at the model's resolution, one picture a row of ``over``.
            over: the rows.
            what: for the progress line.
        """
        with Progress(what, len(over)) as progress:

            def one(of_batch: Part) -> list[Response]:
                part, n = of_batch
                batch = self._encoder.pad([self._rows[i] for i in over[part]], self._length)
                sampled = self._answer(self._params, batch, levels[part])
                tokens, mask = np.asarray(sampled.tokens)[:n], np.asarray(sampled.mask)[:n]
                texts = self._encoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                progress.update(n)
                return [
                    Response(text.strip(), tuple(int(i) for i in ids[there]))
                    for text, ids, there in zip(texts, tokens, mask, strict=True)
                ]

            parts = processes.spread(one, in_batches(len(over), self._batch_size))
        return [response for part in parts for response in part]

    def attack(
        self,
        levels: UInt8[np.ndarray, "M 3 X X"],
        over: Rows,
        aims: Sequence[Aim],
        key: PRNGKeyArray,
        budget: Budget,
        name: str = "pgd",
    ) -> UInt8[np.ndarray, "M 3 X X"]:
        """An attack on each row's picture, away from an answer or toward it.

        Args:
            levels, over: as of `answers`.
            aims: one for each of these rows.
            key: for random starts.
            budget: of the attack; another epsilon compiles nothing.
            name: one of `attack.ATTACKS`.

        Returns:
            Pictures of grey levels inside the budget.
        """
        with Progress("attacking answers", len(over)) as progress:

            def one(numbered: tuple[int, Part]) -> UInt8[np.ndarray, "M 3 X X"]:
                i, (part, n) = numbered
                params, batch = self._at(over[part], [aims[p] for p in part])
                key_of = jax.random.fold_in(key, i)
                pictures = self._attack(params, batch, levels[part], key_of, budget, name=name)
                progress.update(n)
                return np.asarray(pictures)[:n]

            batches = enumerate(in_batches(len(over), self._batch_size))
            return np.concatenate(processes.spread(one, batches))

    def _at(self, over: Rows, aims: Sequence[Aim]) -> tuple[Any, dict[str, Any]]:
        """The attack's parameters and rows."""
        batch: dict[str, Any] = self.forced(over, [goal.tokens for goal in aims])
        if self._vetting is None:
            return self._params, batch
        batch |= self._vetting.read([goal.held or "" for goal in aims])
        batch["held"] = np.array([goal.held is not None for goal in aims])
        batch["toward"] = np.array([goal.toward for goal in aims])
        return (self._params, self._vetting.params), batch

    def tokens(self, answer: str) -> tuple[int, ...]:
        """The tokens of an answer where the prompt ends, closed, and at most as many as are
        decoded; see `answer_tokens`."""
        return answer_tokens(self._encoder, answer, self._n)

    def forced(self, over: Rows, answers: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Some rows' prompts, each with an answer's tokens behind it, as
        `objectives.answer_objective` reads them."""
        forced = [Forced.of(self._rows[r], answer) for r, answer in zip(over, answers, strict=True)]
        batch = self._encoder.pad([each.row for each in forced], self._length + self._n)
        return batch | answer_arrays(forced, self._n)


def in_batches(n: int, size: int) -> list[Part]:
    """Positions 0 to n in batches of one size, the last filled up with its last; and how many of
    each batch are no filling."""
    parts = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    return [(np.pad(part, (0, size - len(part)), mode="edge"), len(part)) for part in parts]
