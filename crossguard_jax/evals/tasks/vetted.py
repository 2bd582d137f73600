"""A task whose responses are held against their pictures, and rejected where they do not fit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from crossguard_jax.attacks.problem import Budget
from crossguard_jax.cmai.vetted import Vetting
from crossguard_jax.core import metrics
from crossguard_jax.core.typing import Bool, Float, PRNGKeyArray
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.tasks.answering import Rows
from crossguard_jax.evals.tasks.attack import PerturbedTask
from crossguard_jax.evals.tasks.counts import Counts, of_rows


class Ruled(NamedTuple):
    """A response, and whether it is rejected."""

    response: Any
    rejected: bool


class VettedRows:
    """An `attack.PerturbedTask` with a check over another one, which knows it too.

    A response that is rejected counts as none at all where the picture is as it was. Under attack
    it is no harm: the row keeps what the attacker was given before.

    Args:
        inner: the task.
        vetting: the check.
    """

    def __init__(self, inner: PerturbedTask, vetting: Vetting):
        self._inner, self._vetting = inner, vetting
        self.name, self.lowest = inner.name, inner.lowest
        self.levels, self.texts, self.references = inner.levels, inner.texts, inner.references

    def respond(self, levels: UInt8[np.ndarray, "M 3 X X"], over: Rows) -> list[Ruled]:
        """The inner responses, each with its ruling."""
        responses = self._inner.respond(levels, over)
        texts = [self._inner.held(r, row) for r, row in zip(responses, over.tolist(), strict=True)]
        rejected = self._vetting.rejects(levels, texts)
        return [Ruled(r, bool(no)) for r, no in zip(responses, rejected, strict=True)]

    def given(self, responses: Sequence[Ruled]) -> Bool[np.ndarray, " M"]:
        """Which are not rejected."""
        return np.array([not each.rejected for each in responses])

    def scores(self, responses: Sequence[Ruled]) -> Float[np.ndarray, " M"]:
        """The inner scores; the lowest where a response is rejected."""
        given = self.given(responses)
        return np.where(given, self._inner.scores(self._plain(responses)), self.lowest)

    def aims(self, clean: Sequence[Ruled], most: int) -> list[list[Any]]:
        """The inner aims, given what was responded before any ruling."""
        return self._inner.aims([each.response for each in clean], most)

    def attack(
        self,
        levels: UInt8[np.ndarray, "M 3 X X"],
        over: Rows,
        aims: Sequence[Any],
        key: PRNGKeyArray,
        budget: Budget,
        name: str = "pgd",
    ) -> UInt8[np.ndarray, "M 3 X X"]:
        """The inner attack."""
        return self._inner.attack(levels, over, aims, key, budget, name)

    def figures(self, responses: Sequence[Ruled]) -> Figures:
        """The inner figures, and ``rejected``, a share of the rows."""
        rejected = metrics.proportion(~self.given(responses))
        return self._inner.figures(self._plain(responses)) | {"rejected": rejected}

    def counts(self, responses: Sequence[Ruled]) -> Counts:
        """The inner ones; under attack, a row is rejected that was so before."""
        inner = self._inner.counts(self._plain(responses))
        return inner | {"rejected": of_rows(~self.given(responses))}

    def shown(self, response: Ruled) -> str:
        """What a reader sees."""
        return "(rejected)" if response.rejected else self._inner.shown(response.response)

    def held(self, response: Ruled, row: int) -> str:
        """As the inner task says."""
        return self._inner.held(response.response, row)

    def nothing(self, row: int) -> Any:
        """As the inner task says."""
        return self._inner.nothing(row)

    def _plain(self, responses: Sequence[Ruled]) -> list[Any]:
        return [
            self._inner.nothing(row) if each.rejected else each.response
            for row, each in enumerate(responses)
        ]
