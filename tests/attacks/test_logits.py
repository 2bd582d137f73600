"""Losses on logits against torch and against a second writing; labels that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from crossguard_jax.attacks import logits as ours
from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray

KEY = jax.random.key(0)


def drawn(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels, and targets that are other classes."""
    rng = np.random.default_rng(seed)
    logits = (4 * rng.normal(size=(12, classes))).astype(np.float32)
    labels = rng.integers(0, classes, 12).astype(np.int32)
    targets = (labels + rng.integers(1, classes, 12)) % classes
    return logits, labels, targets.astype(np.int32)


def itself(x: Array, key: PRNGKeyArray) -> Array:
    return x


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_cross_entropy_is_torchs_and_its_margin_is_torchs_verdict(classes: int) -> None:
    logits, labels, targets = drawn(classes, classes)
    x = jnp.asarray(logits)

    def expected(wanted: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            torch.from_numpy(logits).double(), torch.from_numpy(wanted).long(), reduction="none"
        )

    away = from_logits(itself, labels)(x, KEY)
    np.testing.assert_allclose(away.loss, expected(labels), rtol=1e-4)
    assert (away.success == (logits.argmax(axis=1) != labels)).all()
    toward = from_logits(itself, labels, targets=targets)(x, KEY)
    np.testing.assert_allclose(toward.loss, -expected(targets), rtol=1e-4)
    assert (toward.success == (logits.argmax(axis=1) == targets)).all()


@pytest.mark.parametrize("classes", [4, 9])
def test_margin_and_ratio_are_those_of_a_plain_loop(classes: int) -> None:
    logits, labels, targets = drawn(classes, classes)
    x, rows = jnp.asarray(logits), range(len(logits))
    expected: dict[str, list[float]] = {"margin": [], "dlr": [], "margin to": [], "dlr to": []}
    for row in rows:
        z, y, t = logits[row], labels[row], targets[row]
        top = sorted(z, reverse=True)
        margin = max(np.delete(z, y)) - z[y]
        expected["margin"].append(margin)
        expected["dlr"].append(margin / (top[0] - top[2]))
        expected["margin to"].append(z[t] - max(np.delete(z, t)))
        expected["dlr to"].append((z[t] - z[y]) / (top[0] - (top[2] + top[3]) / 2))
    for loss in ("margin", "dlr"):
        away = from_logits(itself, labels, loss)(x, KEY)
        toward = from_logits(itself, labels, loss, targets)(x, KEY)
        np.testing.assert_allclose(away.loss, expected[loss], rtol=1e-4)
        np.testing.assert_allclose(toward.loss, expected[f"{loss} to"], rtol=1e-4)
        np.testing.assert_allclose(away.margin, expected["margin"], rtol=1e-5)
        np.testing.assert_allclose(toward.margin, expected["margin to"], rtol=1e-5)


def test_the_ratio_does_not_change_with_the_scale() -> None:
    logits, labels, _ = drawn(0, 5)
    once, often = (
        from_logits(itself, labels, "dlr")(jnp.asarray(k * logits), KEY).loss for k in (1.0, 1e3)
    )
    np.testing.assert_allclose(once, often, rtol=1e-4)


def test_cross_entropy_keeps_a_gradient_where_the_model_is_sure() -> None:
    labels = np.zeros(1, np.int32)
    sure = jnp.array([[60.0, 0.0, -1.0]])
    gradient = jax.grad(lambda z: ours.cross_entropy(z, labels).sum())(sure)
    assert gradient[0, 0] < 0 < gradient[0, 2] < gradient[0, 1]


@pytest.mark.parametrize("value", [-1, 3, 99])
def test_a_label_or_target_that_is_no_class_is_refused(value: int) -> None:
    x, good, bad = jnp.zeros((2, 3)), np.array([1, 2]), np.array([0, value])
    with pytest.raises(UserError, match=rf"labels\[1\] is {value}; classes are 0 to 2"):
        from_logits(itself, bad)(x, KEY)
    with pytest.raises(UserError, match=rf"targets\[1\] is {value}"):
        from_logits(itself, good, targets=bad)(x, KEY)


def test_a_target_that_is_the_label_is_refused() -> None:
    with pytest.raises(UserError, match=r"targets\[1\] is the label, 2"):
        ours.check_labels(np.array([0, 2]), 3, np.array([1, 2]))


def test_labels_are_checked_while_jit_traces_the_pictures() -> None:
    objective = from_logits(itself, np.array([0, 5]))
    with pytest.raises(UserError, match=r"labels\[1\]"):
        jax.jit(objective)(jnp.zeros((2, 3)), KEY)


def test_the_ratio_wants_three_classes_and_four_with_targets() -> None:
    labels, targets = np.zeros(2, int), np.ones(2, int)
    with pytest.raises(UserError, match="needs 3 classes and there are 2; take margin"):
        from_logits(itself, labels, "dlr")(jnp.zeros((2, 2)), KEY)
    with pytest.raises(UserError, match="needs 4 classes and there are 3"):
        from_logits(itself, labels, "dlr", targets)(jnp.zeros((2, 3)), KEY)


def test_shapes_that_do_not_fit_and_unknown_losses_are_refused() -> None:
    labels = np.zeros(2, int)
    with pytest.raises(UserError, match=r"\[3, 4\] for 2 labels"):
        from_logits(itself, labels)(jnp.zeros((3, 4)), KEY)
    with pytest.raises(UserError, match="1 targets for 2 labels"):
        from_logits(itself, labels, targets=np.ones(1, int))(jnp.zeros((2, 4)), KEY)
    with pytest.raises(UserError, match="two logits"):
        from_logits(itself, labels)(jnp.zeros((2, 1)), KEY)
    with pytest.raises(UserError, match="none of cross_entropy"):
        from_logits(itself, labels, "hinge")
