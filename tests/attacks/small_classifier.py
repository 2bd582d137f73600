"""A small classifier of four classes, with the same weights in torch and in JAX.

Its pictures are four smooth patterns, faint on grey and under noise; as many of them can be turned
within a few grey levels as cannot, which is where attacks differ.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from crossguard_jax.attacks.logits import LogitsOf, from_logits
from crossguard_jax.attacks.problem import AttackResult, Budget
from crossguard_jax.core.typing import Array, Float, PRNGKeyArray

SIDE, CLASSES = 16, 4
LINF, L2 = 8 / 255, 0.7  # radii that turn about half of the pictures


def pictures(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` pictures [n, 3, 16, 16] of grey levels / 255 (float32), and their classes [n]."""
    patterns = np.random.default_rng(0).normal(size=(CLASSES, 3, 4, 4))
    patterns = np.kron(patterns, np.ones((4, 4)))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    contrast = rng.uniform(0.02, 0.12, (n, 1, 1, 1))
    x = 0.5 + contrast * patterns[labels] + 0.08 * rng.normal(size=(n, 3, SIDE, SIDE))
    levels = np.clip(np.round(255 * x), 0, 255)
    return (levels / 255).astype(np.float32), labels.astype(np.int32)


@dataclass(frozen=True)
class Classifier:
    """One set of weights, two frameworks."""

    torch_model: torch.nn.Module

    def torch_in(self, dtype: torch.dtype) -> torch.nn.Module:
        """The torch model in a precision, frozen."""
        model = _layers()
        model.load_state_dict(self.torch_model.state_dict())
        return model.to(dtype).requires_grad_(False).eval()

    @property
    def logits_of(self) -> LogitsOf:
        """The JAX model, in its input's precision; pixels in [0, 1], normalized inside."""
        weights = [p.detach().numpy() for p in self.torch_model.parameters()]

        def logits_of(x: Float[Array, "B C X Y"], key: PRNGKeyArray) -> Float[Array, "B V"]:
            w1, b1, w2, b2, w3, b3 = (jnp.asarray(w, x.dtype) for w in weights)
            h = _convolve((x - 0.5) / 0.25, w1, b1)
            h = _convolve(h, w2, b2)
            return h.reshape(h.shape[0], -1) @ w3.T + b3

        return logits_of


@functools.cache
def trained() -> Classifier:
    """The classifier after a few hundred steps of Adam, seeded."""
    torch.manual_seed(0)
    model = _layers()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, labels = (torch.from_numpy(a) for a in pictures(4096, seed=1))
    for step in range(200):
        rows = torch.arange(128 * step, 128 * (step + 1)) % len(x)
        # Smoothed labels keep it from being so sure that float32 sees no gradient.
        loss = torch.nn.functional.cross_entropy(
            model(x[rows]), labels[rows].long(), label_smoothing=0.1
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Classifier(model)


class _Normalize(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.5) / 0.25


def _layers() -> torch.nn.Module:
    return torch.nn.Sequential(
        _Normalize(),
        torch.nn.Conv2d(3, 12, 4, stride=2),
        torch.nn.GELU("tanh"),
        torch.nn.Conv2d(12, 16, 3, stride=2),
        torch.nn.GELU("tanh"),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 3 * 3, CLASSES),
    )


def _convolve(x: Array, weight: Array, bias: Array) -> Array:
    x = jax.lax.conv_general_dilated(x, weight, (2, 2), "VALID")
    return jax.nn.gelu(x + bias[:, None, None], approximate=True)


def robust(
    attack: Callable[..., AttackResult], loss: str, budget: Budget, n: int, seed: int = 0
) -> np.ndarray:
    """Which of ``n`` pictures are right before and after our attack."""
    x, labels = pictures(n, seed=2)
    logits_of = trained().logits_of

    @jax.jit
    def run(x: Array, labels: Array, key: PRNGKeyArray, budget: Budget) -> Array:
        clean = from_logits(logits_of, labels)(x, key).success
        return ~clean & ~attack(from_logits(logits_of, labels, loss), x, key, budget).success

    return np.asarray(run(jnp.asarray(x), jnp.asarray(labels), jax.random.key(seed), budget))


def robust_against(attack: Callable[..., Any], n: int) -> np.ndarray:
    """Which of the same pictures are right before and after ``attack(torch model)(x, labels)``."""
    x, labels = (torch.from_numpy(a) for a in pictures(n, seed=2))
    model = trained().torch_in(torch.float32)
    x_adv = attack(model)(x, labels.long())
    right = [(model(batch).argmax(dim=1) == labels).numpy() for batch in (x, x_adv)]
    return right[0] & right[1]


def assert_as_strong(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Robust accuracy on the same rows: at most theirs plus a point (of 1,000 rows; chance moves
    200 by three). Both attacks must leave something, or they could not be told apart."""
    print(f"left by ours {ours.mean():.3f}, by theirs {theirs.mean():.3f}")
    assert 0.05 < theirs.mean() < 0.95
    assert ours.mean() <= theirs.mean() + (0.01 if len(ours) >= 1000 else 0.03)
