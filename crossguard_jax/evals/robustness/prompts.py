"""One picture that goes with many prompts, perturbed so that all are answered as an attacker wants.

Whose picture it is does not matter to the prompts' own labels, which are of other pictures: counted
are the prompts that the system answers otherwise with the picture as it is.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks import projections
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.registry import PROMPTS, REGISTRY, SEARCHES, Registered
from crossguard_jax.attacks.suite import digest
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.operating import at_cut
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness.climbs import climb, target_of
from crossguard_jax.evals.robustness.texts import kept


@dataclass(frozen=True)
class SharedPicture:
    """What one picture did to N prompts.

    Attributes:
        attack: which one.
        target: the answer that was wanted.
        texts: the prompts, none of which had it with the picture as it is.
        won: which have it now, and are not rejected, [N].
        clean, attacked: the picture, uint8 [C, X, Y].
    """

    attack: Registered
    target: str
    texts: list[str]
    won: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray


def share_pictures(
    attacks: dict[str, Registered],
    system: Immunized,
    records: Sequence[Record],
    folder: str | Path,
    *,
    norm: str,
    epsilon: float,
    batch_size: int,
    seed: int,
    at: tuple[float, float] | None = None,
) -> dict[str, SharedPicture]:
    """The registered attacks of that kind, each with the picture of one record, drawn at random.

    Args:
        attacks: by name; those of another route are no concern of it.
        system: what answers.
        records: with pictures.
        folder: of the results.
        norm, epsilon: of the picture's ball.
        batch_size: prompts of a step.
        seed: of everything drawn.
        at: log odds that a guard cuts at, and the unit of its margins; None: even odds. An attack
            with too few prompts at a cut is left out.

    Raises:
        UserError: fewer than two prompts that are not answered so already, or a prompt that is not
            read in one window beside others that are.
    """
    results = {}
    for name, attack in attacks.items():
        if attack.route == PROMPTS:
            place = Path(folder) / name
            given = norm, epsilon, batch_size, seed
            if (shared := _shared(attack, system, records, place, given, at)) is not None:
                results[name] = shared
    return results


def _shared(
    attack: Registered,
    system: Immunized,
    records: Sequence[Record],
    place: Path,
    given: tuple[str, float, int, int],
    at: tuple[float, float] | None,
) -> SharedPicture | None:
    norm, epsilon, batch, seed = given
    target = target_of(system, attack.options["target"])
    single = [record for record in records if len(record.images) == 1]
    if not single:
        raise UserError(f"attack {attack.name}: no row with one picture to share; give some")
    owner = single[int(np.random.default_rng(seed).integers(len(single)))]
    texts = list(dict.fromkeys(record.text for record in records))
    prompts = [
        Record(str(i), owner.images, text, system.task.labels[target])
        for i, text in enumerate(texts)
    ]
    x, rows = system.rows(prompts)
    if at is not None:
        rows |= at_cut(len(x), *at)
    size = min(batch, len(prompts))
    answered = _answered(system, rows, x, size, seed)
    chosen = np.flatnonzero(~answered)[: attack.options["prompts"]]
    if len(chosen) < 2 and at is not None:
        return None
    if len(chosen) < 2:
        raise UserError(
            f"attack {attack.name}: {len(chosen)} of {len(prompts)} prompts are not answered "
            f"{system.task.labels[target]!r} beside {owner.id}'s picture already; give more rows"
        )
    rows, size = jax.tree.map(lambda leaf: leaf[chosen], rows), min(batch, len(chosen))
    facts = f"{digest(system.params)} {attack} {given} {digest(rows)} {digest(x[:1])}"
    facts += f"{system.policy} {system.regime} {system.task.labels}"

    def make() -> dict[str, Any]:
        key, n = jax.random.key(seed), len(chosen)
        epsilon_of = jnp.float32(epsilon)
        statics = system, attack.name, attack.search, norm, attack.steps, attack.restarts, size
        targets = attack.options["target"]
        moved = _perturb(*statics, targets, system.params, rows, x[:1], key, epsilon_of)
        won = _answered(system, rows, np.repeat(np.asarray(moved), n, axis=0), size, seed)
        levels = np.round(255 * np.asarray(moved[0])).astype(int)
        return {"won": won.tolist(), "attacked": levels.tolist()}

    part = kept(place, facts, make)
    clean = np.round(255 * x[0]).astype(np.uint8)
    attacked = np.array(part["attacked"], np.uint8)
    written = [texts[i] for i in chosen]
    won = np.array(part["won"], bool)
    return SharedPicture(attack, system.task.labels[target], written, won, clean, attacked)


@functools.partial(jax.jit, static_argnums=tuple(range(8)))
def _perturb(
    system: Immunized,
    name: str,
    search: str,
    norm: str,
    steps: int,
    restarts: int,
    batch: int,
    target: str,
    params: Any,
    rows: Any,
    x: Array,
    key: PRNGKeyArray,
    epsilon: Array,
) -> Array:
    budget = Budget(epsilon, norm, steps, restarts=restarts, random_start=restarts > 1)
    climbed = REGISTRY[name].changed("", target=target)
    rows = jax.tree.map(jnp.asarray, rows)

    def objective(x: Array, at: Array, key: PRNGKeyArray) -> Outcome:
        some = jax.tree.map(lambda leaf: leaf[at], rows)
        pictures = jnp.broadcast_to(x, (len(at), *x.shape[1:]))
        return climb(system, "own", climbed, {"own": params}, some, pictures, key)

    n = len(rows["labels"])
    result = SEARCHES[search].function(objective, x, key, budget, n, chunk=batch).result
    return projections.through_uint8(x, result.x_adv, budget)


def _answered(system: Immunized, rows: Any, x: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Which rows have their label for an answer and are not rejected."""
    parts = []
    for start in range(0, len(x), size):
        here = np.minimum(np.arange(start, start + size), len(x) - 1)
        some = jax.tree.map(lambda leaf, here=here: leaf[here], rows)
        key = jax.random.fold_in(jax.random.key(seed), start)
        outcome = _outcome(system, system.params, some, x[here], key)
        fine = ~(np.asarray(outcome.margin) > 0) & ~np.asarray(outcome.rejected)
        parts.append(fine[: len(x) - start])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=0)
def _outcome(system: Immunized, params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    return system.outcome(params, rows, x, key)
