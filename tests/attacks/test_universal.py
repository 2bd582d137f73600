"""One perturbation for many rows, on linear models where the best one is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.universal import shared_perturbation, shared_picture
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray

KEY = jax.random.key(0)
N, D, EPSILON = 12, 30, 0.1
RNG = np.random.default_rng(0)
PROMPTS = (RNG.normal(size=D) + RNG.normal(size=(N, D))).astype(np.float32)  # alike, and not
OWNERS = jnp.arange(N) % 3
RULES = [("linf", "momentum"), ("linf", "adam"), ("l2", "momentum")]
rules = pytest.mark.parametrize("norm, rule", RULES)


def of_prompts(x: Array, rows: Array, key: PRNGKeyArray) -> Outcome:
    """Prompts on one picture, which is read once."""
    assert x.shape == (1, D)
    loss = ((x - 0.5) @ PROMPTS.T)[0, rows]
    return Outcome(loss, loss, loss - 1e3)


def of_three(x: Array, rows: Array, key: PRNGKeyArray) -> Outcome:
    """Prompts on three pictures."""
    assert x.shape == (3, D)
    loss = ((x - 0.5)[OWNERS[rows]] * jnp.asarray(PROMPTS)[rows]).sum(axis=1)
    return Outcome(loss, loss)


def of_pictures(x: Array, rows: Array, key: PRNGKeyArray) -> Outcome:
    assert x.shape == (len(rows), D)
    loss = ((x - 0.5) * jnp.asarray(PROMPTS)[rows]).sum(axis=1)
    return Outcome(loss, loss)


def most(total: np.ndarray, norm: str) -> float:
    return EPSILON * (np.abs(total).sum() if norm == "linf" else np.linalg.norm(total))


@rules
@pytest.mark.parametrize("batch", [0, 5])
def test_one_picture_gets_the_perturbation_that_is_best_for_all_prompts(
    norm: str, rule: str, batch: int
) -> None:
    x = jnp.full((1, D), 0.5)
    budget = Budget(EPSILON, norm, steps=80, restarts=2)

    @jax.jit
    def run(budget: Budget) -> object:
        return shared_picture(of_prompts, x, KEY, budget, N, batch=batch, rule=rule)

    found = run(budget)
    best = most(PROMPTS.sum(axis=0), norm)
    assert found.result.loss.shape == found.result.success.shape == (N,)
    reached = float(found.result.loss.sum()) / best
    assert (0.98 if batch == 0 else 0.9) < reached < 1 + 1e-4
    delta = np.asarray(found.delta)
    size = np.abs(delta).max() if norm == "linf" else np.linalg.norm(delta)
    assert size <= EPSILON * (1 + 1e-5)
    np.testing.assert_allclose(found.result.x_adv, x + delta, atol=1e-6)
    each = (delta @ PROMPTS.T)[0]
    np.testing.assert_allclose(found.result.loss, each, atol=1e-5)
    assert (np.asarray(found.result.success) == (each > 0)).all()


def test_each_of_several_pictures_is_perturbed_for_its_own_prompts_in_its_own_ball() -> None:
    x = jnp.full((3, D), 0.5)
    radii = jnp.array([0.0, 0.05, 0.1])
    found = shared_picture(of_three, x, KEY, Budget(radii, steps=40), N, batch=7, owners=OWNERS)
    for i, radius in enumerate(np.asarray(radii)):
        mine = np.asarray(OWNERS) == i
        best = radius * np.abs(PROMPTS[mine].sum(axis=0)).sum()
        assert 0.9 * best <= found.result.loss[mine].sum() <= best + 1e-4
        assert (np.abs(found.delta[i]) <= radius * (1 + 1e-5)).all()


@rules
def test_one_perturbation_is_best_for_all_pictures(norm: str, rule: str) -> None:
    x = jax.random.uniform(KEY, (N, D), minval=0.2, maxval=0.8)
    run = jax.jit(lambda b: shared_perturbation(of_pictures, x, KEY, b, batch=5, rule=rule))
    found = run(Budget(EPSILON, norm, steps=80))
    gained = found.result.loss.sum() - of_pictures(x, jnp.arange(N), KEY).loss.sum()
    best = most(PROMPTS.sum(axis=0), norm)
    assert 0.9 * best < float(gained) < best * (1 + 1e-4)
    assert found.delta.shape == (1, D) and found.result.x_adv.shape == (N, D)
    np.testing.assert_allclose(found.result.x_adv, x + found.delta, atol=1e-6)


def test_a_shared_perturbation_is_clipped_with_each_picture_and_not_before() -> None:
    x = jnp.round(jax.random.uniform(KEY, (N, D)))
    found = shared_perturbation(of_pictures, x, KEY, Budget(0.3, steps=20))
    assert (jnp.abs(found.delta) <= 0.3 * (1 + 1e-6)).all() and (found.delta < 0).any()
    np.testing.assert_allclose(found.result.x_adv, np.clip(x + found.delta, 0, 1), atol=1e-6)
    judged = of_pictures(found.result.x_adv, jnp.arange(N), KEY)
    np.testing.assert_allclose(found.result.loss, judged.loss, rtol=1e-5)


def test_restarts_keep_each_pictures_perturbation_with_most_successes() -> None:
    owners = jnp.repeat(jnp.arange(8), 6)

    def objective(x: Array, rows: Array, key: PRNGKeyArray) -> Outcome:
        # Away from the middle it climbs; on the left all rows succeed, on the right but few.
        side = x[owners[rows], 0] - 0.5
        margin = jnp.where(side < 0, 1.0, 1.0 - rows % 6)
        return Outcome(jnp.abs(side) * jnp.where(side < 0, 1, 9), margin)

    x = jnp.full((8, 1), 0.5)

    @jax.jit
    def run(budget: Budget) -> object:
        return shared_picture(objective, x, KEY, budget, 48, owners=owners).result

    assert 6 < run(Budget(0.3)).success.sum() < 48
    assert run(Budget(0.3, restarts=12)).success.all()

    def hopeless(x: Array, rows: Array, key: PRNGKeyArray) -> Outcome:
        return Outcome(objective(x, rows, key).loss, -jnp.ones(len(rows)))

    found = shared_picture(hopeless, x, KEY, Budget(0.3, restarts=12), 48, owners=owners)
    assert (found.delta > 0).all()  # the greater loss, where nothing succeeds


def test_a_batch_that_does_not_divide_the_rows_judges_each_row_once() -> None:
    seen = []

    def objective(x: Array, rows: Array, key: PRNGKeyArray) -> Outcome:
        jax.debug.callback(lambda rows: seen.append(rows.tolist()), rows)
        return Outcome(rows + x.sum(), rows - 5.5)

    found = shared_picture(objective, jnp.zeros((1, 2)), KEY, Budget(0.0, steps=4), 10, batch=4)
    jax.effects_barrier()
    assert found.result.loss.tolist() == list(range(10))
    assert found.result.success.tolist() == [False] * 6 + [True] * 4
    assert all(len(set(rows)) == len(rows) == 4 for rows in seen)
    drawn = [rows for rows in seen if rows not in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1])]
    assert len({tuple(rows) for rows in drawn}) > 1  # another minibatch each step


def test_another_radius_compiles_nothing() -> None:
    chex.clear_trace_counter()  # it counts by the function's name
    x = jnp.full((1, D), 0.5)
    run = lambda b: shared_picture(of_prompts, x, KEY, b, N, batch=4).result.loss  # noqa: E731
    compiled = jax.jit(chex.assert_max_traces(run, n=1))
    for epsilon in (0.0, 0.1, 0.2):
        assert jnp.isfinite(compiled(Budget(epsilon, steps=2))).all()


def test_what_cannot_be_used_is_refused() -> None:
    x, budget = jnp.full((1, D), 0.5), Budget(0.1, steps=2)
    three = jnp.full((3, D), 0.5)
    for says, call in {
        "rule 'sgd'": lambda: shared_picture(of_prompts, x, KEY, budget, N, rule="sgd"),
        "adam is for linf": lambda: shared_picture(
            of_prompts, x, KEY, Budget(0.1, "l2"), N, rule="adam"
        ),
        "batch 13 of 12": lambda: shared_picture(of_prompts, x, KEY, budget, N, batch=13),
        "batch 0 of 0": lambda: shared_picture(of_prompts, x, KEY, budget, 0),
        "by owners": lambda: shared_picture(of_three, three, KEY, budget, N),
        r"owners \[3\] for 12": lambda: shared_picture(
            of_three, three, KEY, budget, N, owners=jnp.arange(3)
        ),
        r"loss is \[1\] for 12": lambda: shared_picture(
            lambda x, rows, key: Outcome(x.sum(1), x.sum(1)), x, KEY, budget, N
        ),
        "from 2 to 2": lambda: shared_perturbation(of_pictures, three * 4, KEY, budget),
        "one radius": lambda: shared_perturbation(
            of_pictures, three, KEY, Budget(jnp.full(3, 0.1))
        ),
    }.items():
        with pytest.raises(UserError, match=says):
            call()
