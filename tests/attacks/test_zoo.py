"""The suite tells a robust model from three that only look it."""

import jax
import numpy as np
import pytest

from crossguard_jax.attacks.curves import Curve
from crossguard_jax.attacks.suite import Suite
from tests.attacks import zoo
from tests.attacks.zoo import LEVEL, Animal

EIGHT = 8 * LEVEL


def judged(animal: Animal, donors: bool = False) -> tuple[Curve, dict[str, float]]:
    """The curve at 8 levels, and each attack's own success among the rows that were right."""
    attacks = zoo.attacks(zoo.linear_animal(zoo.linear, 3, 6))
    if donors:
        attacks = {
            "pgd": attacks["pgd"],
            "selective": attacks["selective"],
            "donors": zoo.donor_attack(),
        }
    suite = Suite(attacks, animal.objective, batch_size=len(animal.x))
    run = suite.run(animal.params, animal.x, animal.rows, [EIGHT], jax.random.key(0), alone=True)
    assert run.right.mean() > 0.9
    return run, {name: float(won[0][run.right].mean()) for name, won in run.each.items()}


def test_a_robust_model_stands_whatever_is_tried() -> None:
    curve, asr = judged(zoo.linear_animal(zoo.linear, 10, 16))
    assert set(asr.values()) == {0.0} and curve.robust.all()


@pytest.mark.parametrize("exposes", ["square", "transfer"])
def test_masked_gradients_are_exposed_without_them(exposes: str) -> None:
    curve, asr = judged(zoo.linear_animal(zoo.masked, 3, 6))
    assert asr["pgd"] < 0.05 and asr[exposes] > 0.9
    assert curve.won[0].sum() >= asr[exposes] * curve.right.sum()


def test_a_broken_detector_is_exposed_by_an_attack_that_knows_it() -> None:
    curve, asr = judged(zoo.linear_animal(zoo.watched, 2, 3))
    assert asr["pgd"] < 0.05 and asr["selective"] > 0.9
    assert curve.detects and curve.caught[0].sum() + curve.won[0].sum() == curve.right.sum()


def test_what_looks_at_features_is_exposed_by_donors() -> None:
    curve, asr = judged(zoo.matched_animal(), donors=True)
    assert asr["pgd"] < 0.05 and asr["donors"] > 0.9
    assert np.array_equal(curve.won[0], curve.robust[0] ^ curve.right)
