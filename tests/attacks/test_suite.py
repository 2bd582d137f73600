"""The suite: what it finds is exact where that can be known, and it believes no attack."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks import curves
from crossguard_jax.attacks.adaptive import denial
from crossguard_jax.attacks.curves import CLEAN, Cell, Plan
from crossguard_jax.attacks.named import NamedAttack
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective, Outcome
from crossguard_jax.attacks.suite import Suite
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray
from tests.attacks import zoo
from tests.attacks.zoo import LEVEL

KEY = jax.random.key(0)
STEEPEST = NamedAttack(pgd, Budget(0.0, steps=2, relative_step=1.0, random_start=False))
LINEAR = zoo.linear_animal(zoo.linear, 1, 9)


def moved(by: Callable[[Array], Array], **options: Any) -> NamedAttack:
    """An attack that adds ``by(epsilon)`` to every pixel."""

    def attack(objective: Objective, x: Array, key: PRNGKeyArray, budget: Budget) -> AttackResult:
        no = jnp.ones(len(x), bool)
        return AttackResult(x + by(jnp.asarray(budget.epsilon)), 0.0 * no, no, ~no)

    return NamedAttack(attack, Budget(0.0), **options)


def brightness(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    """Fooled above a row's own brightness, in levels."""
    margin = 255 * x.mean(axis=(1, 2, 3)) - rows["limit"]
    return Outcome(margin, margin)


GREY = np.full((6, 1, 4, 4), 128 / 255, np.float32)
LIMITS = {"limit": np.array([127.5, 128.5, 130.5, 132.5, 134.5, 136.5], np.float32)}


class Places(dict):
    """Cells in memory, whatever the plan; dies after ``lives`` of them."""

    def __init__(self, lives: int = 10**6):
        super().__init__()
        self.lives = lives

    def __call__(self, plan: Plan) -> "Places":
        return self

    def __setitem__(self, name: curves.CellId, cell: Cell) -> None:
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        super().__setitem__(name, cell)


def same(a: curves.Curve, b: curves.Curve) -> bool:
    names = ("right", "won", "by", "caught", "denied", "loss", "fresh", "swapped")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_on_a_linear_model_the_curve_is_the_distance_to_the_boundary() -> None:
    levels = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    suite = Suite({"pgd": STEEPEST}, zoo.linear, batch_size=20)
    run = suite.run(LINEAR.params, LINEAR.x, LINEAR.rows, [n * LEVEL for n in levels], KEY)
    distance = zoo.distances(LINEAR)
    assert run.right.all() and 1 < len(np.unique(run.won.sum(axis=1)))
    np.testing.assert_array_equal(run.won, distance < np.array(levels)[:, None])
    np.testing.assert_array_equal(run.fresh, run.won[-1])
    assert not run.won[0].any() and not run.random


def test_an_attack_with_a_judge_of_its_own_is_judged_by_it() -> None:
    def darker(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
        outcome = brightness(params, rows, x, key)
        return replace(outcome, margin=outcome.margin - 2)

    attacks = {"up": moved(lambda e: e), "strict": moved(lambda e: e, judge=darker)}
    run = Suite(attacks, brightness, 4).run(None, GREY, LIMITS, [5 * LEVEL], KEY, alone=True)
    assert run.each["up"].sum() == 3 and run.each["strict"].sum() == 2


def test_neither_the_batch_nor_the_rows_beside_it_change_a_row() -> None:
    def result(size: int) -> curves.Curve:
        suite = Suite({"pgd": STEEPEST}, zoo.linear, batch_size=size)
        return suite.run(LINEAR.params, LINEAR.x, LINEAR.rows, [3 * LEVEL, 6 * LEVEL], KEY)

    one, other = result(7), result(64)
    np.testing.assert_array_equal(one.won, other.won)
    np.testing.assert_allclose(one.loss, other.loss, atol=1e-5)


def test_radii_rows_and_parameters_compile_nothing_new() -> None:
    traces = []

    def counted(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
        traces.append(x.shape)
        return zoo.linear(params, rows, x, key)

    suite = Suite({"pgd": STEEPEST}, counted, batch_size=16)
    first = suite.run(LINEAR.params, LINEAR.x, LINEAR.rows, [2 * LEVEL, 5 * LEVEL], KEY)
    before = len(traces)
    turned = {"w": -LINEAR.params["w"]}
    some = jax.tree.map(lambda leaf: leaf[:37], LINEAR.rows)
    other = suite.run(turned, LINEAR.x[:37], some, [LEVEL, 3 * LEVEL, 4 * LEVEL], KEY)
    assert len(traces) == before and {shape[0] for shape in traces} == {16}
    assert first.right.all() and not other.right.any()


def test_an_attack_runs_only_on_what_stands_and_the_last_radius_is_attacked_anew() -> None:
    cells = Places()
    attacks = {"weak": moved(lambda e: e / 2), "strong": moved(lambda e: e)}
    radii = [2 * LEVEL, 4 * LEVEL, 8 * LEVEL]
    run = Suite(attacks, brightness, 4).run(None, GREY, LIMITS, radii, KEY, store=cells)
    attacked = {name: cell.rows.tolist() for name, cell in cells.items()}
    weak, strong = ([attacked[name, radius] for radius in radii] for name in attacks)
    # Row 0 is wrong when clean; the weak attack breaks one row more at the first radius, the strong
    # one at the second; at the last, the weak one gets two of all, and the strong one two more.
    assert weak == [[1, 2, 3, 4, 5], [2, 3, 4, 5], [1, 2, 3, 4, 5]]
    assert strong == [[2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5]]
    assert run.by[:, 1:].tolist() == [[0, -1, -1, -1, -1], [0, 1, -1, -1, -1], [0, 1, 1, 1, -1]]
    assert run.won[:, 0].tolist() == [False] * 3 and run.robust[:, 0].tolist() == [False] * 3


def test_a_success_counts_at_larger_radii_but_not_as_fresh() -> None:
    small_only = moved(lambda e: jnp.where(e < 3 * LEVEL, e, 0.0))
    radii = [2 * LEVEL, 4 * LEVEL]
    run = Suite({"small": small_only}, brightness, 4).run(None, GREY, LIMITS, radii, KEY)
    assert run.won[0].tolist() == run.won[1].tolist() == [False, True] + [False] * 4
    assert run.by[1].tolist() == [-1, 0, -1, -1, -1, -1]
    assert not run.fresh.any()


def test_alone_each_attack_is_measured_by_itself() -> None:
    attacks = {"strong": moved(lambda e: e), "weak": moved(lambda e: e / 2)}
    suite = Suite(attacks, brightness, 4)
    run = suite.run(None, GREY, LIMITS, [2 * LEVEL, 5 * LEVEL], KEY, alone=True)
    assert run.each["strong"].sum(axis=1).tolist() == [1, 3]
    assert run.each["weak"].sum(axis=1).tolist() == [1, 1]
    assert not suite.run(None, GREY, LIMITS, [5 * LEVEL], KEY).each


def test_what_is_judged_is_what_grey_levels_leave() -> None:
    nearly = {"nearly": moved(lambda e: 0.9 * LEVEL)}
    rows = {"limit": np.full(6, 128.5, np.float32)}
    as_picture = Suite(nearly, brightness, keep=True)
    cells = Places()
    run = as_picture.run(None, GREY, rows, [LEVEL], KEY, store=cells)
    assert not run.won.any()
    kept = cells["nearly", LEVEL].x_adv
    assert kept.dtype == np.uint8 and (kept == 128).all()
    raw = replace(as_picture, pictures=False).run(None, GREY, rows, [LEVEL], KEY)
    assert raw.won.all()


def test_what_an_attack_claims_is_not_believed() -> None:
    run = Suite({"idle": moved(lambda e: 0 * e)}, brightness).run(
        None, GREY, LIMITS, [9 * LEVEL], KEY
    )
    assert not run.won.any()


def test_luck_in_the_search_is_no_success_and_randomness_is_noticed() -> None:
    def lucky(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
        margin = jax.random.uniform(key, x.shape[:1], minval=-0.9, maxval=0.1) + 0 * x.sum()
        return Outcome(margin, margin)

    x, rows = np.repeat(GREY, 20, axis=0), {"none": np.zeros(120)}
    suite = Suite({"pgd": NamedAttack(pgd, Budget(0.0, steps=20), samples=2)}, lucky)
    run = suite.run(None, x, rows, [0.0, LEVEL], KEY)
    # One draw in ten succeeds, the best of twenty pairs often; the mean of eight never.
    assert run.random and run.right.all() and not run.won.any()


def looked_at(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
    """Brightness, where a picture of more than ``seen`` levels is caught."""
    outcome = brightness(params, rows, x, key)
    return replace(outcome, detector=255 * x.mean(axis=(1, 2, 3)) - rows["seen"])


def test_what_is_caught_and_what_is_denied_are_counted_apart() -> None:
    rows = {
        "limit": np.array([120.5, 129.5, 129.5, 139.5, 139.5, 139.5], np.float32),
        "seen": np.array([150.5, 150.5, 129.9, 129.9, 150.5, 120.5], np.float32),
    }

    def deny(objective: Objective, x: Array, key: PRNGKeyArray, budget: Budget) -> AttackResult:
        return pgd(denial(objective), x, key, budget)

    attacks = {"up": moved(lambda e: e), "deny": NamedAttack(deny, Budget(0.0), goal="deny")}
    run = Suite(attacks, looked_at).run(None, GREY, rows, [0.0, 4 * LEVEL], KEY)
    assert run.right.tolist() == [False, True, True, True, True, False]
    assert run.clean_rejected.tolist() == [False] * 5 + [True]
    assert run.won[1].tolist() == [False, True, False, False, False, False]
    assert run.caught[1].tolist() == [False, False, True, False, False, False]
    assert run.denied[1].tolist() == [False, False, True, True, False, False]
    assert run.detects and not run.won[0].any() and not run.denied[0].any()


def test_a_detector_none_rejects_nothing() -> None:
    run = Suite({"up": moved(lambda e: e)}, brightness).run(None, GREY, LIMITS, [LEVEL], KEY)
    assert not run.detects and not run.clean_rejected.any() and not run.denied.any()


def test_the_greatest_loss_starts_at_the_clean_one_and_never_falls() -> None:
    down = {"down": moved(lambda e: -e), "up": moved(lambda e: e / 2)}
    run = Suite(down, brightness).run(None, GREY, LIMITS, [2 * LEVEL, 6 * LEVEL], KEY)
    clean = 128 - LIMITS["limit"]
    np.testing.assert_allclose(run.loss[:, 1:] - clean[1:], [[1] * 5, [3] * 5], atol=1e-3)


def test_each_row_is_given_another_rows_picture() -> None:
    x = (np.arange(100, 140, dtype=np.float32)[:, None, None, None] / 255) * np.ones((1, 1, 2, 2))
    x = x.astype(np.float32)
    own = {"own": x[:, 0, 0, 0]}

    def recognizes(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
        margin = jnp.abs(x.mean(axis=(1, 2, 3)) - rows["own"]) - 0.5 * LEVEL
        return Outcome(margin, margin)

    suite = Suite({"idle": moved(lambda e: 0 * e)}, recognizes)
    assert suite.run(None, x, own, [LEVEL], KEY).swapped.all()
    itself = suite.run(None, x, own, [LEVEL], KEY, donors=np.arange(len(x)))
    assert not itself.swapped.any()


@pytest.mark.parametrize("lives", [0, 1, 3, 6])
def test_a_killed_run_goes_on_to_the_same_result(lives: int) -> None:
    attacks = zoo.attacks(LINEAR, steps=3)
    suite = Suite({name: attacks[name] for name in ("pgd", "transfer")}, zoo.linear, batch_size=16)
    given = LINEAR.params, LINEAR.x, LINEAR.rows, [0.0, 3 * LEVEL, 6 * LEVEL], KEY
    whole = suite.run(*given)
    cells = Places(lives)
    with pytest.raises(KeyboardInterrupt):
        suite.run(*given, store=cells)
    assert len(cells) == lives
    cells.lives = 100
    before = dict(cells)
    assert same(suite.run(*given, store=cells), whole)
    assert all(cells[name] is cell for name, cell in before.items())
    assert 0 < whole.won[1].sum() < len(LINEAR.x)


def test_a_plan_and_its_cells_are_all_that_a_curve_needs() -> None:
    cells, plans = Places(), []

    def store(plan: Plan) -> Places:
        plans.append(plan)
        return cells

    suite = Suite({"pgd": STEEPEST}, zoo.linear, keep=True)
    run = suite.run(LINEAR.params, LINEAR.x, LINEAR.rows, [4 * LEVEL], KEY, store=store)
    plan = Plan.from_dict(plans[0].as_dict())
    assert plan == run.plan and same(curves.worst_case(plan, cells), run)
    found = curves.pictures_at(run, cells, 4 * LEVEL)
    assert sorted(found) == list(range(len(LINEAR.x)))
    change = np.stack([found[row] for row in sorted(found)]) - 255.0 * LINEAR.x
    assert np.abs(change).max() == pytest.approx(4, abs=1e-3)
    del cells[CLEAN]
    with pytest.raises(KeyError, match="clean"):
        curves.worst_case(plan, cells)


@pytest.mark.parametrize("alone", [False, True])
def test_a_curve_within_a_radius_is_what_fewer_radii_find(alone: bool) -> None:
    attacks = zoo.attacks(LINEAR, steps=3)
    suite = Suite({name: attacks[name] for name in ("pgd", "transfer")}, zoo.linear, batch_size=16)

    def run(*levels: int) -> curves.Curve:
        radii = [level * LEVEL for level in levels]
        return suite.run(LINEAR.params, LINEAR.x, LINEAR.rows, radii, KEY, alone=alone)

    few, many = run(0, 4), run(0, 4, 7)
    cut = many.within(4 * LEVEL)
    assert same(cut, few) and cut.plan == few.plan
    assert 0 < few.won.sum() < many.won.sum()
    assert list(cut.each) == list(few.each) and bool(few.each) == alone
    for name, won in few.each.items():
        np.testing.assert_array_equal(cut.each[name], won)
    rising = run(2, 4, 7).within(4 * LEVEL)
    np.testing.assert_array_equal(rising.fresh, rising.won[1] & ~rising.won[0])
    assert rising.won[0].any(), "what fell before was not attacked there"
    with pytest.raises(ValueError, match="not in"):
        many.within(5 * LEVEL)


def test_multiples_change_what_every_attack_spends() -> None:
    attack = NamedAttack(pgd, Budget(0.0, steps=5, restarts=2))
    entry = attack.entry("pgd", steps=2.0, restarts=0.5)
    assert (entry.steps, entry.restarts) == (10, 1)
    assert attack.at(LEVEL, steps=0.1).steps == 1


def test_a_point_is_judged_and_not_searched() -> None:
    def never(*_: object) -> None:
        raise AssertionError("there is nothing to search")

    attacks = {"never": NamedAttack(never, Budget(0.0, steps=5))}
    run = Suite(attacks, zoo.linear).run(LINEAR.params, LINEAR.x, LINEAR.rows, [0.0], KEY)
    assert not run.won.any()


@pytest.mark.parametrize("by", [lambda e: 1.1 * e, lambda e: -2 * e - LEVEL, lambda e: 0 * e + 1.0])
def test_an_attack_that_leaves_its_ball_is_found_out(by: Callable[[Array], Array]) -> None:
    with pytest.raises(ValueError, match="wild left its ball"):
        Suite({"wild": moved(by)}, brightness).run(None, GREY, LIMITS, [8 * LEVEL], KEY)


def test_a_margin_that_is_no_number_is_no_robustness() -> None:
    def broken(params: Any, rows: Any, x: Array, key: PRNGKeyArray) -> Outcome:
        margin = jnp.where(x.mean(axis=(1, 2, 3)) > 0.505, jnp.nan, -1.0)
        return Outcome(margin, margin)

    with pytest.raises(ValueError, match="up at 0.0313.*row 0.*NaN"):
        Suite({"up": moved(lambda e: e)}, broken).run(None, GREY, LIMITS, [8 * LEVEL], KEY)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilons": [-0.1]}, "epsilon"),
        ({"epsilons": [float("nan")]}, "epsilon"),
        ({"epsilons": [1.5]}, "whole range"),
        ({"epsilons": []}, "no radii"),
        ({"steps": 0.0}, "above 0"),
        ({"x": GREY + 0.001}, "grey levels"),
        ({"x": GREY * 2}, "pixels in"),
        ({"x": GREY[:1], "rows": {"limit": np.zeros(1)}}, "two or more"),
        ({"rows": {"limit": np.zeros(5)}}, "6 inputs"),
    ],
)
def test_what_cannot_be_run_is_refused(change: dict[str, Any], words: str) -> None:
    given = {"x": GREY, "rows": LIMITS, "epsilons": [LEVEL], "steps": 1.0} | change
    suite = Suite({"up": moved(lambda e: e)}, brightness)
    with pytest.raises(UserError, match=words):
        suite.run(None, given["x"], given["rows"], given["epsilons"], KEY, steps=given["steps"])


@pytest.mark.parametrize(
    "attacks",
    [
        {"clean": STEEPEST},
        {"PGD 10": STEEPEST},
        {"a": STEEPEST, "b": NamedAttack(pgd, Budget(0.0, "l2"))},
    ],
)
def test_a_suite_of_no_names_or_several_balls_is_refused(attacks: Any) -> None:
    with pytest.raises(UserError, match="attack suite"):
        Suite(attacks, zoo.linear)


def test_a_suite_without_attacks_judges_and_attacks_nothing() -> None:
    x, rows = np.zeros((1, 2), np.float32), {"labels": np.zeros(1, np.int32)}
    with pytest.raises(UserError, match="no attacks; name at least one"):
        Suite({}, zoo.linear).run(None, x, rows, [0.1], KEY)


@pytest.mark.parametrize("change", [{"kind": "magic"}, {"goal": "win"}, {"samples": 0}])
def test_an_attack_of_no_kind_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        replace(STEEPEST, **change)
