"""A task whose pictures are perturbed: each row's worst response over all attacks and radii."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from crossguard_jax.attacks.adaptive import selective
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective, Outcome
from crossguard_jax.attacks.registry import REGISTRY, ROWS, SEARCHES, Registered
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.robustness.figures import level
from crossguard_jax.evals.tasks.counts import Counts, differences_of

ATTACKS = tuple(
    name
    for name, attack in REGISTRY.items()
    if attack.route == ROWS and attack.climb in ("loss", "margin", "selective")
    if not SEARCHES[attack.search].aware and not attack.transfer
)
"""The registry's attacks that go by an answer's loss or margin; and by what checks it, where
something does."""


def searched(
    name: str, objective: Objective, x: Array, key: PRNGKeyArray, budget: Budget
) -> AttackResult:
    """An attack of `ATTACKS` on an objective."""
    attack = REGISTRY[name]

    def climbed(x: Array, key: PRNGKeyArray) -> Outcome:
        outcome = objective(x, key)
        if attack.climb == "loss":
            return outcome
        if attack.climb == "margin" or outcome.detector is None:
            return replace(outcome, loss=outcome.margin)
        return selective(lambda *_: outcome)(x, key)

    return SEARCHES[attack.search].function(climbed, x, key, budget)


@runtime_checkable
class PerturbedTask(Protocol):
    """M rows about a picture each, a model that responds, and what its responses are worth.

    Attributes:
        name: for a reader.
        lowest: no row's score is below it.
        levels: the pictures, uint8 [M, 3, X, X], at the model's resolution.
        texts: the rows' texts.
        references: what people answered or said.
    """

    name: str
    lowest: float
    levels: np.ndarray
    texts: list[str]
    references: list[tuple[str, ...]]

    def respond(self, levels: Any, over: Any) -> list[Any]:
        """A response to each picture, which are those of the rows ``over``."""

    def scores(self, responses: Any) -> np.ndarray:
        """What each row's response is worth, [M]; the higher the better."""

    def aims(self, clean: Any, most: int) -> list[list[Any]]:
        """For each row up to ``most`` things to attack, given its clean responses."""

    def attack(
        self, levels: Any, over: Any, aims: Any, key: Any, budget: Any, name: str = "pgd"
    ) -> Any:
        """Perturbed pictures of the rows ``over``, one aim each; ``name`` is one of `ATTACKS`."""

    def given(self, responses: Any) -> np.ndarray:
        """Which rows' responses are given out, [M] bool: the others are rejected, and do no harm
        beyond that."""

    def figures(self, responses: Any) -> Figures:
        """Figures of all rows' responses, by name."""

    def counts(self, responses: Any) -> Counts:
        """What the same figures are made of, row by row."""

    def shown(self, response: Any) -> str:
        """A response for a reader."""

    def held(self, response: Any, row: int) -> str:
        """The text that a row's picture is to fit, where something checks."""

    def nothing(self, row: int) -> Any:
        """What counts as no response of a row."""


@dataclass(frozen=True)
class Attack:
    """What is done to the pictures.

    Attributes:
        epsilons: radii, in the unit of pixels in [0, 1]; none: nothing is attacked.
        norm: ``linf`` or ``l2``.
        steps: of the search; None is the registry's own.
        restarts: of the search, each from a random point; likewise.
        aims: of each row; see `PerturbedTask.aims`.
        seed: of the random points.
        name: one of `ATTACKS`.

    Raises:
        UserError: no such budget.
    """

    epsilons: tuple[float, ...] = ()
    norm: str = "linf"
    steps: int | None = None
    restarts: int | None = None
    aims: int = 2
    seed: int = 0
    name: str = "pgd"

    def __post_init__(self) -> None:
        if self.name not in ATTACKS:
            raise UserError(
                f"tasks: attack {self.name!r} is none of {', '.join(ATTACKS)}, which climb an "
                "answer's loss or margin, and perhaps what checks it"
            )
        if self.aims < 1:
            raise UserError(f"tasks: aims {self.aims}: a whole number above 0")
        for field in ("steps", "restarts"):  # as they are run, for a report
            object.__setattr__(self, field, getattr(self.registered, field))
        for epsilon in self.epsilons:
            self.budget(epsilon)

    @property
    def registered(self) -> Registered:
        """The search with its steps and restarts."""
        given = {"steps": self.steps, "restarts": self.restarts}
        given = {field: value for field, value in given.items() if value is not None}
        return REGISTRY[self.name].changed("tasks", **given)

    def budget(self, epsilon: float) -> Budget:
        """The budget at a radius."""
        attack, radius = self.registered, np.float32(epsilon)
        return Budget(radius, self.norm, attack.steps, attack.relative_step, attack.restarts)


@dataclass(frozen=True)
class Measured:
    """What a task's model does, clean and attacked.

    Attributes:
        task: the rows.
        attack: what was done to them.
        clean: the responses to the pictures as they are.
        attacked: by radius, the worst responses.
    """

    task: PerturbedTask
    attack: Attack
    clean: list[Any]
    attacked: dict[float, list[Any]]

    def figures(self) -> dict[str, Figures]:
        """By ``clean``, ``linf.8`` and so on: the figures, and NAME_difference less clean."""
        figures: dict[str, Figures] = {"clean": self.task.figures(self.clean)}
        before = self.task.counts(self.clean)
        for epsilon, responses in self.attacked.items():
            differences = differences_of(self.task.counts(responses), before)
            figures[where(self.attack.norm, epsilon)] = self.task.figures(responses) | {
                f"{name}_difference": estimate for name, estimate in differences.items()
            }
        return figures

    def counts(self) -> dict[str, Counts]:
        """By the same places: what the figures are made of."""
        places = {where(self.attack.norm, e): responses for e, responses in self.attacked.items()}
        places = {"clean": self.clean} | places
        return {place: self.task.counts(responses) for place, responses in places.items()}


def where(norm: str, epsilon: float) -> str:
    """A radius in a dotted name, as in `robustness`."""
    return f"{norm}.{level(norm, epsilon)}"


def measure(task: PerturbedTask, attack: Attack) -> Measured:
    """Responds clean, then under attack, the smallest radius first.

    What an attack found is responded to anew, as rounded to grey levels. A row keeps its worst
    response: what did harm in a smaller ball lies in the larger one too, and the picture as it is
    in every ball. Rows at the lowest score are left alone.
    """
    clean = task.respond(task.levels, np.arange(len(task.levels)))
    worst, aims = list(clean), task.aims(clean, attack.aims)
    key = jax.random.key(attack.seed)
    attacked = {}
    for i, epsilon in enumerate(sorted(set(attack.epsilons))):
        for j in range(attack.aims):
            key_of = jax.random.fold_in(jax.random.fold_in(key, i), j)
            worst = _worse(task, worst, aims, j, key_of, attack.budget(epsilon), attack.name)
        attacked[epsilon] = worst
    return Measured(task, attack, clean, attacked)


def _worse(
    task: PerturbedTask,
    worst: list[Any],
    aims: Sequence[list],
    j: int,
    key: PRNGKeyArray,
    budget: Budget,
    name: str,
) -> list[Any]:
    """The responses, with those replaced that an attack on aim ``j`` makes worse."""
    before = task.scores(worst)
    over = np.array([r for r, s in enumerate(before) if s > task.lowest and j < len(aims[r])], int)
    if not over.size:
        return worst
    chosen = [aims[r][j] for r in over]
    pictures = task.attack(task.levels[over], over, chosen, key, budget, name)
    candidates = list(worst)
    for r, response in zip(over, task.respond(pictures, over), strict=True):
        candidates[r] = response
    harmful = (task.scores(candidates) < before) & task.given(candidates)
    return [new if harmful[r] else worst[r] for r, new in enumerate(candidates)]
