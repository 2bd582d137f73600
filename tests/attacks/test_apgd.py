"""Auto-PGD against torchattacks' APGD, on the same weights and the same pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchattacks

from crossguard_jax.attacks import projections
from crossguard_jax.attacks.apgd import apgd, checkpoints
from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.attacks.problem import Budget
from tests.attacks.small_classifier import (
    L2,
    LINF,
    assert_as_strong,
    pictures,
    robust,
    robust_against,
    trained,
)

pytestmark = pytest.mark.usefixtures("compiled_as_users_do")

RADII = {"linf": LINF, "l2": L2}
THEIR_NORM = {"linf": "Linf", "l2": "L2"}


@pytest.mark.parametrize("norm", RADII)
def test_apgd_follows_torchattacks_from_the_same_start(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, steps = 60, 50
    x, labels = pictures(n, seed=2)
    drawn = torch.from_numpy(np.random.default_rng(0).uniform(0.01, 0.99, x.shape))
    monkeypatch.setattr(torch, "rand", lambda shape: drawn)
    monkeypatch.setattr(torch, "randn", lambda shape: drawn)
    model = trained().torch_in(torch.float64)
    theirs = torchattacks.APGD(model, norm=THEIR_NORM[norm], eps=RADII[norm], steps=steps)
    peak, _, peak_loss, _ = theirs.attack_single_run(
        torch.from_numpy(x).double(), torch.from_numpy(labels).long()
    )
    with jax.enable_x64(True):
        # Their start is on the ball's surface.
        delta = 2 * drawn.numpy() - 1 if norm == "linf" else drawn.numpy()
        size = (
            np.abs(delta).max((1, 2, 3)) if norm == "linf" else np.sqrt((delta**2).sum((1, 2, 3)))
        )
        start = np.clip(x + RADII[norm] * delta / size[:, None, None, None], 0, 1)
        monkeypatch.setattr(projections, "random_start", lambda *_: jnp.asarray(start))
        goal = from_logits(trained().logits_of, labels)
        budget = Budget(RADII[norm], norm, steps=steps)
        ours = jax.jit(lambda x, budget: apgd(goal, x, jax.random.key(0), budget))(
            jnp.asarray(x, np.float64), budget
        )
    x_adv, success, loss = (np.asarray(a) for a in (ours.x_adv, ours.success, ours.loss))
    turned = (model(peak).argmax(dim=1) != torch.from_numpy(labels)).numpy()
    # Where its own peak is no success, a success with less loss is kept instead; and at a loss
    # of 1e-8 theirs has few digits left, since it subtracts two logarithms.
    same = (turned == success) & (peak_loss.numpy() > 1e-3)
    apart = np.abs(x_adv - peak.numpy()).max(axis=(1, 2, 3))
    assert same.mean() > 0.8
    # They count rises in float32, which sees fewer.
    assert (apart[same] <= 1e-5).mean() > 0.95
    np.testing.assert_allclose(loss.mean(), peak_loss.mean(), rtol=1e-3)


@pytest.mark.parametrize(
    "steps, expected",
    [
        (1, {0: 1}),
        (10, {1: 2, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1}),
        (100, {21: 22, 40: 19, 56: 16, 69: 13, 79: 10, 86: 7, 92: 6, 98: 6}),
    ],
)
def test_windows_shrink_as_in_the_paper(steps: int, expected: dict[int, int]) -> None:
    windows = checkpoints(steps)
    assert {i: int(n) for i, n in enumerate(windows) if n} == expected


@pytest.mark.parametrize(
    "norm, ours, theirs",
    [
        pytest.param("linf", "cross_entropy", "ce", marks=pytest.mark.parity),
        pytest.param("l2", "cross_entropy", "ce", marks=pytest.mark.parity),
        pytest.param("linf", "dlr", "dlr", marks=pytest.mark.parity),
        ("linf", "margin", "dlr"),
    ],
)
@pytest.mark.parametrize("n", [200, pytest.param(1000, marks=pytest.mark.parity)])
def test_apgd_is_as_strong_as_torchattacks(norm: str, ours: str, theirs: str, n: int) -> None:
    left = robust(apgd, ours, Budget(RADII[norm], norm, steps=20), n)
    their_norm = THEIR_NORM[norm]
    left_by_theirs = robust_against(
        lambda model: torchattacks.APGD(model, their_norm, RADII[norm], steps=20, loss=theirs), n
    )
    assert_as_strong(left, left_by_theirs)
