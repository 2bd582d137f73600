"""PGD against torchattacks, on the same weights and the same pictures."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchattacks

from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import AttackResult, Budget, Outcome
from crossguard_jax.core.errors import UserError
from tests.attacks.small_classifier import (
    CLASSES,
    L2,
    LINF,
    assert_as_strong,
    pictures,
    robust,
    robust_against,
    trained,
)
from tests.draws import few

RADII = {"linf": LINF, "l2": L2}
norms = pytest.mark.parametrize("norm", RADII)


def attacked(
    n: int, budget: Budget, keep: str = "best", dtype: type = np.float32, **objective: object
) -> AttackResult:
    x, labels = pictures(n, seed=2)
    goal = from_logits(trained().logits_of, labels, **objective)
    run = jax.jit(lambda x, key, budget: pgd(goal, x, key, budget, keep))
    return run(jnp.asarray(x, dtype), jax.random.key(0), budget)


def torch_attack(norm: str, model: torch.nn.Module, start: bool) -> object:
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    return kind(model, RADII[norm], RADII[norm] / 4, steps=10, random_start=start)


def iterates(norm: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Ours and theirs after ten steps from the clean pictures."""
    x, labels = (torch.from_numpy(a) for a in pictures(100, seed=2))
    x = x.to(torch.from_numpy(np.zeros(0, dtype)).dtype)
    theirs = torch_attack(norm, trained().torch_in(x.dtype), start=False)(x, labels.long())
    budget = Budget(RADII[norm], norm, relative_step=0.25, random_start=False)
    ours = attacked(100, budget, "last", dtype).x_adv
    return np.asarray(ours), theirs.numpy()


@norms
def test_plain_pgd_follows_torchattacks_in_float64(norm: str) -> None:
    with jax.enable_x64(True):
        ours, theirs = iterates(norm, np.float64)
    assert ours.dtype == theirs.dtype == np.float64
    assert np.abs(ours - theirs).max() <= 1e-5


@pytest.mark.parity
@norms
def test_plain_pgd_leaves_torchattacks_in_few_pixels_in_float32(norm: str) -> None:
    ours, theirs = iterates(norm, np.float32)
    assert (np.abs(ours - theirs) > 1e-5).mean() <= 1e-3


@pytest.mark.parametrize("norm", few(RADII, 1))
@pytest.mark.parametrize("n", few([200, 1000], 1))
def test_pgd_is_as_strong_as_torchattacks(norm: str, n: int) -> None:
    budget = Budget(RADII[norm], norm, relative_step=0.25)
    ours = robust(pgd, "cross_entropy", budget, n)
    torch.manual_seed(0)
    theirs = robust_against(lambda model: torch_attack(norm, model, start=True), n)
    assert_as_strong(ours, theirs)


@norms
def test_the_best_iterate_is_no_worse_than_the_last(norm: str) -> None:
    # Steps this long jump back and forth over the peak.
    budget = Budget(RADII[norm], norm, steps=7, relative_step=3.0, random_start=False)
    best, last = (attacked(60, budget, keep, loss="margin") for keep in ("best", "last"))
    assert (best.loss >= last.loss - 1e-5).all() and (best.loss > last.loss + 1e-3).any()
    assert (best.success >= last.success).all()


def test_restarts_keep_each_rows_best() -> None:
    one, four = (
        attacked(60, Budget(LINF, steps=2, restarts=n), loss="margin", keep="last") for n in (1, 4)
    )
    assert four.loss.mean() > one.loss.mean()
    assert (four.loss >= one.loss - 0.05).mean() > 0.9


def test_a_success_with_less_loss_beats_a_failure_with_more() -> None:
    def objective(x: jax.Array, key: jax.Array) -> Outcome:
        rise = x[:, 0]
        return Outcome(rise, 0.52 - rise, rise - 0.55)  # the goal lies behind, at the start

    x = jnp.full((2, 1), 0.5)
    budget = Budget(0.3, steps=5, random_start=False)
    best = pgd(objective, x, jax.random.key(0), budget)
    last = pgd(objective, x, jax.random.key(0), budget, keep="last")
    assert best.success.all() and (best.x_adv == 0.5).all() and not best.rejected.any()
    assert not last.success.any() and last.rejected.all()
    np.testing.assert_allclose(last.x_adv, 0.8, rtol=1e-6)


def test_a_failed_attack_returns_its_best_try_and_not_the_clean_picture() -> None:
    result = attacked(200, Budget(1 / 255))
    x, _ = pictures(200, seed=2)
    failed = ~np.asarray(result.success)
    assert failed.any() and (np.asarray(result.x_adv) != x)[failed].any(axis=(1, 2, 3)).all()


@pytest.mark.parity
def test_a_targeted_attack_reaches_its_target_and_not_another_class() -> None:
    x, labels = pictures(60, seed=2)
    targets = (labels + 1) % CLASSES
    budget = Budget(32 / 255, steps=20)
    result = attacked(60, budget, loss="cross_entropy", targets=targets)
    reached = np.asarray(trained().logits_of(result.x_adv, jax.random.key(0))).argmax(axis=1)
    assert (np.asarray(result.success) == (reached == targets)).all()
    assert result.success.mean() > 0.8


@norms
def test_each_row_has_its_own_radius_and_a_radius_of_zero_changes_nothing(norm: str) -> None:
    x, _ = pictures(4, seed=2)
    radii = np.array([0, 0.25, 0.5, 1]) * RADII[norm]
    together = attacked(4, Budget(radii, norm, random_start=False))
    for row, radius in enumerate(radii):
        alone = attacked(4, Budget(radius, norm, random_start=False))
        np.testing.assert_allclose(together.x_adv[row], alone.x_adv[row], atol=1e-6)
    assert (together.x_adv[0] == x[0]).all()
    assert (together.x_adv[3] != x[3]).any()


def test_another_radius_compiles_nothing() -> None:
    chex.clear_trace_counter()  # it counts by the function's name
    x, labels = pictures(4, seed=2)
    goal = from_logits(trained().logits_of, labels)
    run = lambda budget: pgd(goal, jnp.asarray(x), jax.random.key(0), budget).loss  # noqa: E731
    compiled = jax.jit(chex.assert_max_traces(run, n=1))
    for epsilon in (0.0, 0.01, 0.02):
        compiled(Budget(epsilon, steps=2))


def test_what_cannot_be_attacked_is_refused() -> None:
    key, budget = jax.random.key(0), Budget(0.1)

    def objective(x: jax.Array, key: jax.Array) -> Outcome:
        return Outcome(x.sum(), x.sum(axis=1))

    with pytest.raises(UserError, match=r"objective's loss is \[\] for 2 inputs"):
        pgd(objective, jnp.zeros((2, 3)), key, budget)
    with pytest.raises(UserError, match="from 2 to 2"):
        pgd(objective, jnp.full((2, 3), 2.0), key, budget)
    with pytest.raises(UserError, match="keep 'first'"):
        pgd(objective, jnp.zeros((2, 3)), key, budget, keep="first")
