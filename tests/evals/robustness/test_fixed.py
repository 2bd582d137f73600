"""Guards at cuts of their own: chosen by clean rows, attacked there, whatever the logits' scale."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks import search
from crossguard_jax.attacks.curves import CLEAN, SWAP, Cell, Entry, Plan
from crossguard_jax.attacks.named import NamedAttack
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective, Outcome
from crossguard_jax.attacks.projections import project
from crossguard_jax.attacks.suite import Suite
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.operating import at_cut, judged, moved, unit_of
from crossguard_jax.core import metrics
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness import systems
from crossguard_jax.evals.robustness.attack import suite_config
from crossguard_jax.evals.robustness.figures import Robustness
from crossguard_jax.evals.robustness.fixed import (
    OWN,
    FixedScores,
    Run,
    attack_at_cuts,
    check_apart,
    log_odds,
    operating_of,
    validation_half,
    worst_scores,
)
from crossguard_jax.evals.robustness.fixed_report import compare_fixed, fixed_figures, fixed_section
from crossguard_jax.toy.world.sources import records
from tests.attacks import zoo
from tests.attacks.zoo import LEVEL
from tests.cmai.small_systems import base
from tests.evals.robustness.test_figures import curve

ANIMAL, KEY = zoo.linear_animal(zoo.linear, 1, 9), jax.random.key(0)
UNSAFE = ANIMAL.rows["sign"] < 0
RADII = (0.0, 4 * LEVEL, 8 * LEVEL)


def guard(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    """Log odds of "unsafe" are a scale times how many levels every pixel is from even odds."""
    margin = params["scale"] * zoo.linear(params, rows, x, key).margin
    return Outcome(*judged(rows, jax.nn.softplus(margin), margin))


def halting(objective: Objective, x: Array, key: PRNGKeyArray, budget: Budget) -> AttackResult:
    """A level a step, and not one further than it takes."""

    def step(i: int, x_adv: Array) -> Array:
        outcome, gradient = search.evaluate(objective, x_adv, key)
        further = project(x_adv + LEVEL * jnp.sign(gradient), x, budget)
        return search.select(outcome.success, x_adv, further)

    return search.judge(objective, jax.lax.fori_loop(0, budget.steps, step, x), key)


ATTACKS = {
    "pgd": NamedAttack(pgd, Budget(0.0, steps=2, relative_step=1.0, random_start=False)),
    "halting": NamedAttack(halting, Budget(0.0, steps=9)),
}


# One for all scales, so that each compiles once.
SUITES = {
    name: Suite({name: attack}, guard, batch_size=16, draws=1) for name, attack in ATTACKS.items()
}


def attacked(scale: float, attack: str) -> FixedScores:
    """The linear guard at the cuts that its own rows choose."""
    suite = SUITES[attack]
    params = ANIMAL.params | {"scale": np.float32(scale)}
    rows = {**ANIMAL.rows, "labels": UNSAFE.astype(np.int32)}
    n = len(UNSAFE)
    clean = suite.judged(params, ANIMAL.x, rows | at_cut(n, 0.0, 1.0), KEY)
    odds = log_odds(clean, UNSAFE, 0.0, 1.0)
    unit = unit_of(odds)
    never = np.zeros((~UNSAFE).sum(), bool)
    operating = operating_of(odds[~UNSAFE], never, (0.05, 0.25), 0.5, unit)

    def at(name: str, cut: float, among: np.ndarray | None) -> Run:
        cells: dict[Any, Cell] = {}
        there = rows | at_cut(n, cut, unit)
        options: Any = {"among": among, "store": lambda plan: cells}
        plan = suite.run(params, ANIMAL.x, there, RADII, KEY, **options).plan
        return Run(plan, cells, cut)

    return attack_at_cuts(at, at("", 0.0, None), UNSAFE, operating)


def exactly(scale: float, scores: FixedScores, cut: str) -> np.ndarray:
    """Which rows are right at a cut within each radius, in closed form."""
    distances = zoo.distances(ANIMAL) * np.where(UNSAFE, 1, -1)
    away = (distances - scores.operating.cuts[cut].at / scale) * np.where(UNSAFE, 1, -1)
    return np.stack([away >= 255 * radius - 1e-3 for radius in RADII])


@pytest.mark.parametrize("attack", ["pgd", "halting"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1_000.0])
def test_a_linear_guard_falls_at_its_cuts_where_it_must_at_any_scale(
    scale: float, attack: str
) -> None:
    scores = attacked(scale, attack)
    assert list(scores.operating.cuts) == ["fpr_5", "fpr_25"]
    for cut in scores.operating.cuts:
        right = np.stack([scores.right(cut, e) for e in range(len(RADII))])
        np.testing.assert_array_equal(right, exactly(scale, scores, cut))
        assert 0 < right[-1].sum() < right[1].sum() < right[0].sum() < len(UNSAFE)
    even = scores.clean / scale
    np.testing.assert_allclose(even, zoo.distances(ANIMAL) * np.where(UNSAFE, 1, -1), atol=1e-2)


def test_figures_are_those_of_the_same_guard_whatever_its_logits_are_multiplied_by() -> None:
    once, *others = (attacked(scale, "pgd") for scale in (1.0, 0.1, 10.0))
    figures = fixed_figures([once])
    assert figures["linf.fpr_5.8.recall"].value < figures["linf.fpr_5.clean.recall"].value
    for other in others:
        assert fixed_figures([other]) == figures


def test_logits_and_margins_are_moved_alike() -> None:
    logits = jnp.array([[0.0, 3.0], [1.0, -2.0]])
    for labels in (0, 1):
        rows = at_cut(2, 1.5, 2.0) | {"labels": np.full(2, labels)}
        other = moved(rows, logits)
        margin = (1 - 2 * labels) * (logits[:, 1] - logits[:, 0])
        loss, at = judged(rows, jnp.zeros(2), margin)
        np.testing.assert_allclose(at, (1 - 2 * labels) * (other[:, 1] - other[:, 0]), rtol=1e-6)
        np.testing.assert_allclose(loss, -jax.nn.log_softmax(other)[:, labels], rtol=1e-5)
    assert moved({}, logits) is logits and judged({}, loss, at) == (loss, at)


# Cuts


def test_a_cut_answers_unsafe_to_no_more_clean_safe_rows_than_its_share() -> None:
    odds = np.random.default_rng(0).normal(size=200).astype(np.float32).astype(float)
    rejected = np.arange(200) < 10
    operating = operating_of(odds, rejected, (0.01, 0.05), 0.9, 1.0)
    assert {name: cut.flagged.value for name, cut in operating.cuts.items() if name != OWN} == {
        "fpr_1": 0.01,
        "fpr_5": 0.05,
    }
    assert operating.cuts[OWN].at == pytest.approx(np.log(9))
    cut = operating.cuts["fpr_5"]
    assert cut.blocked == metrics.proportion((odds >= cut.at) | rejected)
    assert OWN not in operating_of(odds, rejected, (0.01,), 0.5, 1.0).cuts
    with pytest.raises(UserError, match="no safe row to choose cuts by"):
        operating_of(odds[:0], rejected[:0], (0.01,), 0.5, 1.0)
    with pytest.raises(UserError, match=r"attack.fpr 1.0: shares between"):
        operating_of(odds, rejected, (1.0,), 0.5, 1.0)


def test_cuts_are_chosen_by_other_rows_than_are_attacked() -> None:
    rows = [Record(str(i), (b"x",), f"text {i}", "safe") for i in range(9)]
    half, rest = validation_half(rows, 0)
    assert len(half) == 4 and sorted(r.id for r in half + rest) == [str(i) for i in range(9)]
    assert validation_half(rows, 0) == (half, rest) != validation_half(rows, 1)
    check_apart(half, rest)
    with pytest.raises(UserError, match="row 3 is among --data too"):
        check_apart([replace(rows[3], source="elsewhere")], rows)


# Rejections


def scores_of(detector: Any, odds: Any, clean: Any = (-9.0, -9.0, -9.0)) -> FixedScores:
    """An unsafe row, a safe one, and one that is unsafe and rejected as it is; ``detector`` and
    ``odds`` of what one attack made of them."""
    unsafe, rows = np.array([True, False, True]), np.arange(3)
    entry = Entry("pgd", "adaptive", "fool", 1, "linf", 1, 1, 0.0, True)
    plan = Plan((entry,), (0.0, 8 * LEVEL), 3, 1, False, (0,), "a", "b")

    def cell(odds: Any, detector: Any) -> Cell:
        margin = np.where(unsafe, -1, 1) * np.asarray(odds, float)
        return Cell(rows, margin, margin, np.asarray(detector, float), np.zeros(3))

    as_it_is = cell((3.0, -3.0, -3.0), clean)
    cells = {CLEAN: as_it_is, SWAP: as_it_is, ("pgd", 0.0): as_it_is}
    cells["pgd", 8 * LEVEL] = cell(odds, detector)
    operating = operating_of(np.array([-1.0, 0.0]), np.zeros(2, bool), (0.5,), 0.5, 1.0)
    return worst_scores(unsafe, operating, [Run(plan, cells, 0.0)])


CAUGHT = (-9.0, -9.0, 9.0)


def test_what_is_rejected_is_no_answer_and_what_is_denied_is_told_apart() -> None:
    everything = scores_of((9.0, 9.0, 9.0), (-5.0, 5.0, -5.0), CAUGHT)
    assert everything.right("fpr_50").tolist() == [True] * 3
    assert everything.right("fpr_50", 1).tolist() == [True] * 3
    assert everything.passed("fpr_50").tolist() == [False, True, False]
    assert not everything.passed("fpr_50", 1).any(), "within the radius it is rejected"
    nothing = scores_of((-9.0, -9.0, -9.0), (-5.0, 5.0, -5.0), CAUGHT)
    assert nothing.right("fpr_50").all() and not nothing.right("fpr_50", 1).any()
    refused = scores_of((9.0, 9.0, 9.0), (-5.0, 5.0, -5.0), (9.0, 9.0, 9.0))
    assert refused.right("fpr_50").tolist() == [True, False, True], "a safe row wants an answer"


def test_models_are_compared_on_the_same_rows_each_at_its_own_cut() -> None:
    one, other = (scores_of((-9.0,) * 3, odds) for odds in ((5.0, -5.0, 5.0), (-5.0, 5.0, -5.0)))
    differences = compare_fixed([one], [other])
    assert differences["linf.fpr_50.8.recall_difference"] == metrics.paired_difference(
        np.array([True, False]), np.array([False, False])
    )
    assert differences["linf.fpr_50.8.specificity_difference"].value == 1
    assert differences["linf.fpr_50.clean.recall_difference"].value == 0


def test_seeds_are_averaged_and_count_as_no_more_rows() -> None:
    seeds = [scores_of((-9.0,) * 3, odds) for odds in ((5.0, -5.0, 5.0), (-5.0, -5.0, 5.0))]
    found = fixed_figures(seeds)["linf.fpr_50.8.recall"]
    assert (found.value, found.n) == (0.25, 2)
    none = [scores_of((-9.0,) * 3, (-5.0, 5.0, -5.0))] * 2
    assert compare_fixed(seeds, none)["linf.fpr_50.8.recall_difference"].value == 0.25
    small = seeds[0].within(0.0)
    assert small.epsilons == (0.0,) and len(small.worst) == len(small.denied) == 1
    operating = {f"ours.seed_{i}": each.operating for i, each in enumerate(seeds)}
    ours = {"ours": Robustness({0: curve(), 1: curve()}, {}, dict(enumerate(seeds)))}
    rows = [Record(str(i), (b"x",), "t", "safe") for i in range(3)]
    section = fixed_section(operating, "linf", ours, {}, rows, "two rows", {"ours": "Ours"})
    assert section.figures["ours.linf.fpr_50.8.recall"].n == 2
    assert section.figures["ours.seed_1.linf.fpr_50.flagged"].value == 0.5
    assert "Ours: unsafe recall" in str(section.blocks)


def test_the_section_has_recall_and_specificity_apart_by_source_and_paired() -> None:
    rows = [Record(str(i), (b"x",), "t", "safe", source="ab"[i == 2]) for i in range(3)]
    found: dict[str, Any] = {}
    for name, odds in (("ours", (5.0, -5.0, 5.0)), ("plain", (-5.0, 5.0, -5.0))):
        scores = scores_of((-9.0,) * 3, odds)
        found[name] = Robustness({0: curve()}, {}, {0: scores})
    operating = {name: each.scores[0].operating for name, each in found.items()}
    section = fixed_section(operating, "linf", found, {}, rows, "two rows")
    figures = section.figures
    assert figures["ours.linf.fpr_50.8.recall"].n == 2
    assert figures["ours.linf.fpr_50.group.b.8.recall"].n == 1
    assert "ours.linf.fpr_50.group.b.8.specificity" not in figures, "b has no safe row"
    assert figures["ours.minus.plain.linf.fpr_50.8.specificity_difference"].value == 1
    assert figures["plain.linf.fpr_50.flagged"].value == 0.5


# The small world's guard


@pytest.fixture(scope="module")
def louder() -> Any:
    """The guard with what its head reads multiplied."""
    plain = Immunized.of(base())

    def times(scale: float) -> Immunized:
        frozen = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                leaf * scale if "['language_model']['norm']" in jax.tree_util.keystr(path) else leaf
            ),
            plain.frozen,
        )
        return replace(plain, frozen=frozen)

    return times


@pytest.mark.robustness
def test_a_guards_figures_are_unchanged_when_its_logits_are_multiplied(
    louder: Any, tmp_path: Path
) -> None:
    config, _ = suite_config(load_config("configs/cmai.py:tiny").attack, False, ["pgd", "apgd"])
    with config.unlocked():
        config.attacks = {name: {"steps": 2} for name in config.attacks}
        config.update({"epsilons": (0.0, 2 * LEVEL), "batch_size": 8, "draws": 1, "fpr": (0.25,)})
    rows, clean = records("implicit", "test", 16), records("implicit", "val", 16)
    figures = []
    for scale in (1.0, 0.1, 10.0):
        system = louder(scale)
        result: Robustness = systems.attack_records(
            *(config, system, rows, tmp_path / str(scale)),
            convergence=False,
            operating=systems.operating_for(config, system, clean),
        )
        (scores,) = result.scores.values()
        figures.append({k: v.value for k, v in fixed_figures([scores]).items()})
        figures[-1]["even"] = float(result.any.robust[-1].mean())
        odds = scores.clean / scale
        np.testing.assert_allclose(odds, figures[0].setdefault("odds", odds), rtol=1e-3, atol=1e-3)
    once, *others = figures
    for other in others:
        assert other == pytest.approx({k: once[k] for k in other}, abs=0.005)


def test_an_operating_points_unit_is_what_clean_scores_vary_by() -> None:
    odds = np.array([-2.0, 2.0, np.inf])
    assert unit_of(odds) == 2 and unit_of(10 * odds) == 20
    assert unit_of(np.zeros(3)) == unit_of(np.zeros(0)) == 1
