"""The suite of a configuration against an immunized model, or any model: from records to curves."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossguard_jax.attacks.named import NamedAttack, RowObjective
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.registry import CLIMBS, REGISTRY, ROWS, SEARCHES, WHOLE, Registered
from crossguard_jax.attacks.suite import Suite, digest
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.operating import at_cut, unit_of
from crossguard_jax.core.errors import UserError, short
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.data.records import LeftOut, Record, rejection
from crossguard_jax.evals.robustness.climbs import (
    TARGETED,
    answering_branch,
    climb,
    target_of,
    tower_states,
)
from crossguard_jax.evals.robustness.figures import Robustness
from crossguard_jax.evals.robustness.fixed import (
    Operating,
    Run,
    attack_at_cuts,
    log_odds,
    operating_of,
)
from crossguard_jax.evals.robustness.runs import cells_of, converge, measure
from crossguard_jax.runtime import processes

NO_PICTURE = "there is no picture to attack"
CHUNK = 256  # validation rows whose pixels are held at once
PICTURE_SEARCHES = tuple(dict.fromkeys(a.search for a in REGISTRY.values() if a.route == ROWS))
"""Searches that go by each row's picture, which is what a configuration may name."""


def make_suite(
    config: Any, system: Immunized, other: Immunized | None = None, keep: bool = False
) -> Suite:
    """The attacks that a configuration names, each on what it is to climb.

    Args:
        config: ``attack`` of ``configs/cmai.py``.
        system: what is attacked; its ``outcome`` judges.
        other: the model that transfer attacks have, with parameters of its own.
        keep: cells keep the pictures that the attacks made.

    Raises:
        UserError: a search, a climb or a field that is unknown, by its attack's name.
    """
    attacks = {
        name: _named(name, attack, config, system, other)
        for name, attack in configured(config).items()
        if attack.route in (ROWS, WHOLE)
    }
    size, draws = config.batch_size, config.draws
    return Suite(attacks, _judge(system), size, draws, keep=keep, spread=processes.spread)


def configured(config: Any) -> dict[str, Registered]:
    """The attacks of a configuration, by the name that it gives them: those of the registry as they
    are there, but for what it says of them; others by their search and climb.

    Raises:
        UserError: a field, a search or a climb that is unknown, by its attack's name.
    """
    attacks = {}
    for name, spec in config.attacks.items():
        where, values = f"attack.attacks.{name}", dict(spec)
        attack = REGISTRY.get(name)
        if attack is None:
            if "search" not in values:
                raise UserError(
                    f"{where}: no attack of that name; give it a search, or see attack --list"
                )
            attack = Registered(name, "picture", "", "", "pgd", "margin")
        if "search" in values and attack.route == ROWS:
            if values["search"] not in PICTURE_SEARCHES:
                raise UserError(
                    f"{where}.search {values['search']!r} is none of {', '.join(PICTURE_SEARCHES)}"
                )
        attacks[name] = attack.changed(where, **values)
    return attacks


def which(config: Any) -> int | None:
    """The picture that ``attack.picture`` lets an attack perturb; None is all."""
    return None if config.picture < 0 else int(config.picture)


def attackable(records: Sequence[Record], labels: Sequence[str], left_out: LeftOut) -> list[Record]:
    """The records that an attack can be made on: with a picture, and a label that is an answer.

    Args:
        records: any.
        labels: the models' answers.
        left_out: takes the others.
    """
    kept = []
    for record in records:
        if record.image is None:
            left_out.add(rejection(record, NO_PICTURE))
        elif record.label not in labels:
            reason = f"label {short(repr(record.label))} is no answer of the model's; mend it"
            left_out.add(rejection(record, reason))
        else:
            kept.append(record)
    return kept


def attack_records(
    config: Any,
    system: Immunized,
    records: Sequence[Record],
    folder: str | Path,
    other: Immunized | None = None,
    *,
    seed: int = 0,
    convergence: bool = True,
    keep: bool = False,
    operating: Operating | None = None,
) -> Robustness:
    """Every attack on every record with a picture; killed and called again, it goes on.

    Args:
        config: ``attack`` of ``configs/cmai.py``.
        system: what is attacked.
        records: labelled; those without a picture are left out.
        folder: of the cells.
        other: the model that transfer attacks have.
        seed: that the system was trained with; the attacks' key does not depend on it.
        keep: the curve's cells keep the pictures that the attacks made.
        convergence: also with twice the steps and the restarts, on the first rows at one radius.
        operating: a guard's cuts, at each of which it is attacked again; None: it is attacked at
            even odds alone.

    Raises:
        UserError: no record with a picture, or whatever `make_suite` and `Suite.run` refuse.
    """
    seen = [record for record in records if record.image is not None]
    if len(seen) < 2:
        raise UserError(f"attack: {len(seen)} of {len(records)} rows have a picture; give two")
    x, rows = system.rows(seen, which(config))
    rows |= _beside(config, x, rows["labels"])
    suite = make_suite(config, system, other, keep)
    params = {"own": system.params, "other": other.params if other else None}
    key, name = jax.random.key(config.seed), _fingerprint(config, system, params)
    folder = Path(folder)
    if operating is not None:
        rows |= at_cut(len(x), 0.0, operating.unit)
    measured = functools.partial(measure, suite, params, x, system=name, key=key)
    radii = list(config.epsilons)
    place = folder / "curve"
    curve = measured(rows, radii, folder=place, alone=config.alone)
    convergence_curves: dict[str, Any] = {}
    if convergence and config.convergence.rows:
        n = min(config.convergence.rows, len(x))
        convergence_curves = converge(
            suite,
            params,
            x[:n],
            jax.tree.map(lambda leaf: leaf[:n], rows),
            float(config.convergence.epsilon),
            key,
            folder / "convergence",
            name,
            steps=(1.0, 2.0),
            restarts=(1.0, 2.0),
        )
    scores = {}
    if operating is not None:
        unit = operating.unit

        def at(cut: str, odds: float, standing: np.ndarray) -> Run:
            there, place = rows | at_cut(len(x), odds, unit), folder / cut
            plan = measured(there, radii, folder=place, among=standing).plan
            return Run(plan, cells_of(place, plan), odds)

        first = Run(curve.plan, cells_of(place, curve.plan), 0.0)
        scores[seed] = attack_at_cuts(at, first, rows["labels"] == 1, operating)
    return Robustness({seed: curve}, convergence_curves, scores, _of_targets(config, system, rows))


def _of_targets(config: Any, system: Immunized, rows: Any) -> dict[str, np.ndarray]:
    """By targeted attack, the rows with another answer than it wants."""
    return {
        name: rows["labels"] != target_of(system, attack.options["target"])
        for name, attack in configured(config).items()
        if attack.climb in TARGETED and attack.route == ROWS
    }


def operating_for(config: Any, system: Immunized, validation: Sequence[Record]) -> Operating:
    """A guard's cuts, by what the judge of attacks makes of clean rows.

    Args:
        config: ``attack`` of ``configs/cmai.py``.
        system: the guard.
        validation: the rows.

    Raises:
        UserError: see `operating_of`.
    """
    suite = Suite({}, _judge(system), config.batch_size, config.draws, spread=processes.spread)
    params, key, parts = {"own": system.params}, jax.random.key(config.seed), []
    for start in range(0, len(validation), CHUNK):
        x, rows = system.rows(validation[start : start + CHUNK], which(config))
        rows |= at_cut(len(x), 0.0, 1.0)
        cell = suite.judged(params, x, rows, jax.random.fold_in(key, start))
        unsafe = rows["labels"] == 1
        parts.append((log_odds(cell, unsafe, 0.0, 1.0), unsafe, cell.rejected))
    odds, unsafe, rejected = (np.concatenate(part) for part in zip(*parts, strict=True))
    threshold = system.settings.threshold
    return operating_of(odds[~unsafe], rejected[~unsafe], config.fpr, threshold, unit_of(odds))


def _beside(config: Any, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What else of the rows the attacks of a configuration look at, uint8: ``clean``, the pictures
    as they are, and ``donors`` [B, N, ...], others with another answer."""
    attacks = configured(config).values()
    levels, beside = np.round(255 * x).astype(np.uint8), {}
    if any(attack.climb == "features" for attack in attacks):
        beside["clean"] = levels
    if most := max((attack.options.get("donors", 0) for attack in attacks), default=0):
        rng, n = np.random.default_rng(config.seed), len(x)
        others = [np.flatnonzero(labels != label) for label in labels]
        if not all(map(len, others)):
            raise UserError("attack: donors: all rows have one answer; give rows of two, or more")
        chosen = np.stack([rng.choice(some, most, replace=len(some) < most) for some in others])
        beside["donors"] = levels[chosen.reshape(-1)].reshape(n, most, *x.shape[1:])
    return beside


def _fingerprint(config: Any, system: Immunized, params: Any) -> str:
    """What the cells of a suite are of: numbers, cuts, and what each attack climbs."""
    of_pictures = [name for name, a in configured(config).items() if a.route in (ROWS, WHOLE)]
    attacks = {name: config.attacks[name].to_dict() for name in of_pictures}
    settings = f"{system.policy} {system.regime} {system.task.labels} {json.dumps(attacks)}"
    return f"{digest(params)} {hashlib.sha256(settings.encode()).hexdigest()[:16]}"


def _judge(system: Immunized) -> RowObjective:
    def judge(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
        return system.outcome(params["own"], rows, x, key)

    return judge


def _aimed(system: Immunized, target: int) -> RowObjective:
    """The judge of an attack that wants one answer: fooled is to give that one, where it is not the
    right one."""
    judge = _judge(system)

    def aimed(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
        plain = judge(params, rows, x, key)
        targets = jnp.full_like(rows["labels"], target)
        toward = judge(params, rows | {"labels": targets}, x, key)
        margin = jnp.where(rows["labels"] == target, plain.margin, -toward.margin)
        return replace(plain, margin=margin)

    return aimed


def _named(
    name: str, attack: Registered, config: Any, system: Immunized, other: Immunized | None
) -> NamedAttack:
    moved, whose = (other, "other") if attack.transfer else (system, "own")
    if moved is None:
        raise UserError(f"attack.attacks.{name}: transfer, and there is no other model")
    goal = "deny" if attack.climb == "denial" else "fool"
    judge = None
    if attack.climb in TARGETED:
        judge = _aimed(system, target_of(system, attack.options["target"]))
    attack, kind = _as_watched(attack, moved)
    search: Callable[..., Any] = SEARCHES[attack.search].function
    if attack.route == WHOLE:
        search = functools.partial(_universal, search, config.batch_size)
    elif attack.search == "donors":
        search = functools.partial(_bound, search, moved, whose, attack.options["metric"])
    return NamedAttack(
        search,
        _budget(attack, config.norm),
        functools.partial(climb, moved, whose, attack),
        kind="transfer" if attack.transfer else kind,
        goal=goal,
        samples=attack.samples,
        bound=attack.search == "donors",
        whole=attack.route == WHOLE,
        judge=judge,
    )


def _as_watched(attack: Registered, system: Immunized) -> tuple[Registered, str]:
    """The attack as it is run on a system, and its kind: what is aware of a detector raises the
    margin where there is none of its."""
    aware = CLIMBS[attack.climb].aware or SEARCHES[attack.search].aware
    # To deny is to be rejected; to be accepted is to stay out of every other branch.
    watched = len(system.policy.branches) > 1
    if attack.climb == "denial":
        watched = system.policy.rejects
    elif attack.climb == "pinned":
        watched = answering_branch(system.policy) is not None
    kind = "adaptive" if aware and watched else "white_box"
    if not attack.gradient:
        kind = "noise" if attack.search == "noise" else "gradient_free"
    if aware and not watched:
        search = "apgd" if SEARCHES[attack.search].aware else attack.search
        attack = replace(attack, search=search, climb="margin")
    random = attack.climb in ("policy", "pinned") and not system.policy.plain
    return replace(attack, samples=attack.samples if random else 1), kind


def _budget(attack: Registered, norm: str) -> Budget:
    # What is shared begins at nothing, which a plain loop does and random points did not beat.
    start = attack.route == ROWS or attack.restarts > 1
    step, restarts = attack.relative_step, attack.restarts
    return Budget(0.0, norm, attack.steps, step, restarts, random_start=start)


def _universal(
    search: Callable[..., Any],
    batch: int,
    objective: Any,
    x: Array,
    key: PRNGKeyArray,
    budget: Budget,
) -> Any:
    return search(objective, x, key, budget, chunk=min(batch, len(x)))


def _bound(
    search: Callable[..., Any], system: Immunized, whose: str, metric: str, params: Any, rows: Any
) -> Callable[..., Any]:
    """The search toward each row's donors."""

    def features(x: Array, key: PRNGKeyArray) -> Array:
        return tower_states(system, params[whose], rows, x)

    def one(donors: Array) -> Array:
        return features(donors.astype(jnp.float32) / 255, jax.random.key(0))

    donors = jax.lax.map(one, jnp.swapaxes(rows["donors"], 0, 1)).swapaxes(0, 1)

    def attack(objective: Any, x: Array, key: PRNGKeyArray, budget: Budget) -> Any:
        return search(features, donors, objective, x, key, budget, metric)

    return attack
