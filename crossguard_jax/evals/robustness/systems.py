"""The suite of a configuration against an immunized model, or any model: from records to curves."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from crossguard_jax.attacks import adaptive
from crossguard_jax.attacks.apgd import apgd
from crossguard_jax.attacks.constrained import lagrangian_pgd, orthogonal_pgd
from crossguard_jax.attacks.named import NamedAttack, RowObjective
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Objective, Outcome
from crossguard_jax.attacks.square import square
from crossguard_jax.attacks.suite import Suite, digest
from crossguard_jax.attacks.transfer import noise
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.errors import UserError, short
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.data.records import LeftOut, Record, rejection
from crossguard_jax.evals.robustness.figures import Robustness
from crossguard_jax.evals.robustness.runs import converge, measure
from crossguard_jax.runtime import processes

SEARCHES: Mapping[str, Callable[..., Any]] = {
    "pgd": pgd,
    "apgd": apgd,
    "square": square,
    "noise": noise,
    "orthogonal": orthogonal_pgd,
    "lagrangian": lagrangian_pgd,
}
CLIMBS = ("loss", "margin", "policy", "selective", "weighted", "denial")
"""What a search may raise: loss or margin of the plain answer, the margin of what the whole policy
answers (through its noise and all its branches), or something that knows the detector. Of these,
``selective`` and ``weighted`` stay in the branch that answers plainly. Where nothing detects, all
raise the margin, and so does a search that needs a detector: every system has the same budget."""

_AWARE = ("selective", "weighted", "denial")
_NEED_A_DETECTOR = ("orthogonal", "lagrangian")
SLACK = 0.05  # of a margin: what rounding to grey levels may take away
NO_PICTURE = "there is no picture to attack"
_FIELDS = {"search", "climb", "steps", "restarts", "samples", "transfer"}


def make_suite(config: Any, system: Immunized, other: Immunized | None = None) -> Suite:
    """The attacks that a configuration names, each on what it is to climb.

    Args:
        config: ``attack`` of ``configs/cmai.py``.
        system: what is attacked; its ``outcome`` judges.
        other: the model that transfer attacks have, with parameters of its own.

    Raises:
        UserError: a search, a climb or a field that is unknown, by its attack's name.
    """
    attacks = {}
    for name, spec in config.attacks.items():
        unknown = sorted(set(spec) - _FIELDS)
        if unknown:
            raise UserError(f"attack.attacks.{name}: unknown {', '.join(unknown)}")
        attacks[name] = _named(name, dict(spec), config.norm, system, other)
    size, draws = config.batch_size, config.draws
    return Suite(attacks, _judge(system), size, draws, spread=processes.spread)


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
) -> Robustness:
    """Every attack on every record with a picture; killed and called again, it goes on.

    Args:
        config: ``attack`` of ``configs/cmai.py``.
        system: what is attacked.
        records: labelled; those without a picture are left out.
        folder: of the cells.
        other: the model that transfer attacks have.
        seed: that the system was trained with; the attacks' key does not depend on it.
        convergence: also with twice the steps and the restarts, on the first rows at one radius.

    Raises:
        UserError: no record with a picture, or whatever `make_suite` and `Suite.run` refuse.
    """
    seen = [record for record in records if record.image is not None]
    if len(seen) < 2:
        raise UserError(f"attack: {len(seen)} of {len(records)} rows have a picture; give two")
    x, rows = system.rows(seen, which(config))
    suite = make_suite(config, system, other)
    params = {"own": system.params, "other": other.params if other else None}
    key, name = jax.random.key(config.seed), _fingerprint(config, system, params)
    folder = Path(folder)
    place, radii = folder / "curve", list(config.epsilons)
    curve = measure(suite, params, x, rows, radii, key, place, name, alone=config.alone)
    convergence_curves: dict[str, Any] = {}
    if convergence:
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
    return Robustness({seed: curve}, convergence_curves)


def _fingerprint(config: Any, system: Immunized, params: Any) -> str:
    """What the cells of a suite are of: numbers, cuts, and what each attack climbs."""
    settings = f"{system.policy} {system.regime} {system.task.labels} {config.attacks.to_json()}"
    return f"{digest(params)} {hashlib.sha256(settings.encode()).hexdigest()[:16]}"


def _judge(system: Immunized) -> RowObjective:
    def judge(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
        return system.outcome(params["own"], rows, x, key)

    return judge


def _named(
    name: str, spec: dict[str, Any], norm: str, system: Immunized, other: Immunized | None
) -> NamedAttack:
    search, climb = spec.get("search", ""), spec.get("climb", "margin")
    for field, value, choices in (("search", search, SEARCHES), ("climb", climb, CLIMBS)):
        if value not in choices:
            raise UserError(
                f"attack.attacks.{name}.{field} {value!r} is none of {', '.join(choices)}"
            )
    moved, whose = (other, "other") if spec.get("transfer") else (system, "own")
    if moved is None:
        raise UserError(f"attack.attacks.{name}: transfer, and there is no other model")
    aware = climb in _AWARE or search in _NEED_A_DETECTOR
    # To deny is to be rejected; to be accepted is to stay out of every other branch.
    goal = "deny" if climb == "denial" else "fool"
    watched = moved.policy.rejects if goal == "deny" else len(moved.policy.branches) > 1
    if aware and not watched:
        climb, search = "margin", "apgd" if search in _NEED_A_DETECTOR else search
    climbed = functools.partial(_climb, moved, whose, climb)
    kind = "adaptive" if aware and watched else "white_box"
    if search in ("square", "noise"):
        kind = "gradient_free" if search == "square" else "noise"
    return NamedAttack(
        SEARCHES[search],
        Budget(0.0, norm, int(spec["steps"]), restarts=int(spec.get("restarts", 1))),
        climbed,
        kind="transfer" if spec.get("transfer") else kind,
        goal=goal,
        samples=1 if moved.policy.plain or climb != "policy" else int(spec.get("samples", 1)),
    )


def _climb(
    system: Immunized, whose: str, climb: str, params: Any, rows: Any, x: Array, key: PRNGKeyArray
) -> Outcome:
    def answers(x: Array, key: PRNGKeyArray) -> Outcome:
        return system.accepted(params[whose], rows, x, key)

    def policy(x: Array, key: PRNGKeyArray) -> Outcome:
        return system.outcome(params[whose], rows, x, key)

    def margin(of: Objective) -> Objective:
        def by_margin(x: Array, key: PRNGKeyArray) -> Outcome:
            outcome = of(x, key)
            return replace(outcome, loss=outcome.margin)

        return by_margin

    ways: dict[str, Callable[[], Objective]] = {
        "loss": lambda: answers,
        "margin": lambda: margin(answers),
        "policy": lambda: margin(policy),
        "selective": lambda: adaptive.selective(margin(answers), SLACK),
        "weighted": lambda: adaptive.weighted(margin(answers), 1.0),
        "denial": lambda: adaptive.denial(policy),
    }
    return ways[climb]()(x, key)
