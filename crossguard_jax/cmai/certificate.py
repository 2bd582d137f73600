"""Certified radii by randomized smoothing (Cohen et al. 2019, arXiv 1902.02918).

An event is anything that holds of an input or does not: the verdict is unsafe, ``S_c < tau``. Its
smoothed form is what holds for most Gaussian perturbations of the input. If a share ``p > 1/2`` of
them agrees, no perturbation of L2 norm below ``sigma * Phi^-1(p)`` changes what most of them say.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from crossguard_jax.cmai.noise import Inputs, noisy
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, Bool, Float, Int, Shaped

Events = Callable[[Any, Inputs], dict[str, Array]]
"""``events(state, inputs [N, ...]) -> {name: bool [N]}``, under jit; ``state`` is passed along, so
that weights are arguments of the program. All events of a call share their noise."""


@dataclass(frozen=True)
class Sampling:
    """How a certificate is sampled. Forward passes a row: ``n0 + n``.

    Attributes:
        sigma: standard deviation of the noise, in units of the pictures.
        n0: samples that choose the side to certify.
        n: samples, others, that bound its share.
        alpha: chance, of each row and event, that the certificate is wrong.
        chunk: samples of every row in one forward pass; the result does not depend on it.

    Raises:
        UserError: a number that cannot be.
    """

    sigma: float
    n0: int = 100
    n: int = 1_000
    alpha: float = 0.001
    chunk: int = 100

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma < float("inf"):
            raise UserError(f"certificate.sigma {self.sigma!r}: a positive number")
        if not 0.0 < self.alpha < 0.5:
            raise UserError(f"certificate.alpha {self.alpha!r}: between 0 and 0.5")
        for name in ("n0", "n", "chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"certificate.{name} {getattr(self, name)}: a number above 0")

    @property
    def largest_radius(self) -> float:
        """The radius where all samples agree: none can be larger."""
        low = clopper_pearson_lower(np.array([self.n]), self.n, self.alpha)
        return float(self.sigma * special.ndtri(low[0]))


@dataclass(frozen=True)
class Certificate:
    """What is known of one event, one entry a row.

    Attributes:
        holds: which side the smoothed event is on; of no meaning where abstained.
        abstained: whether the samples do not settle the side at the level asked for.
        radius: perturbations of a smaller L2 norm leave the side as it is; 0 where abstained.
        p_lower: lower confidence bound on the share of noise that agrees.
    """

    holds: Bool[np.ndarray, " B"]
    abstained: Bool[np.ndarray, " B"]
    radius: Float[np.ndarray, " B"]
    p_lower: Float[np.ndarray, " B"]


def clopper_pearson_lower(
    hits: Int[np.ndarray, " B"], n: int, alpha: float
) -> Float[np.ndarray, " B"]:
    """Exact one-sided lower bound on a proportion (Clopper and Pearson 1934), float64.

    It is above the truth with probability at most ``alpha``.
    """
    some = np.maximum(hits, 1)
    return np.where(hits > 0, special.betaincinv(some, n - some + 1, alpha), 0.0)


def certify(
    events: Events,
    state: Any,
    inputs: Inputs,
    keys: Shaped[Array, " B"],
    sampling: Sampling,
) -> dict[str, Certificate]:
    """Which side of each event each row is on, and how far that reaches.

    Args:
        events: what is to be certified.
        state: handed to it.
        inputs: a batch.
        keys: of `noise.row_keys`.
        sampling: see there. Each certificate holds at ``alpha`` by itself; that two events hold of
            one row together, at twice that.
    """
    shared = (events, state, inputs, keys, jnp.float32(sampling.sigma))
    chosen = count(*shared, 0, sampling.n0, sampling.chunk)
    # Bounding with the samples that chose would favour the lucky side.
    counted = count(*shared, sampling.n0, sampling.n, sampling.chunk)
    return {name: _certificate(chosen[name], counted[name], sampling) for name in counted}


def _certificate(
    chosen: Int[np.ndarray, " B"], counted: Int[np.ndarray, " B"], sampling: Sampling
) -> Certificate:
    holds = 2 * chosen > sampling.n0
    hits = np.where(holds, counted, sampling.n - counted)
    p_lower = clopper_pearson_lower(hits, sampling.n, sampling.alpha)
    abstained = p_lower <= 0.5
    radius = sampling.sigma * special.ndtri(np.where(abstained, 0.5, p_lower))
    return Certificate(holds, abstained, radius, p_lower)


def count(
    events: Events,
    state: Any,
    inputs: Inputs,
    keys: Shaped[Array, " B"],
    sigma: Float[Array, ""],
    first: int,
    n: int,
    chunk: int,
) -> dict[str, Int[np.ndarray, " B"]]:
    """Of samples ``first`` to ``first + n``, in how many each event holds, by row."""
    counts = _count(events, n, min(chunk, n), state, inputs, keys, sigma, jnp.int32(first))
    return {name: np.asarray(x) for name, x in counts.items()}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _count(
    events: Events,
    n: int,
    chunk: int,
    state: Any,
    inputs: Inputs,
    keys: Array,
    sigma: Array,
    first: Array,
) -> dict[str, Array]:
    def one(start: Array) -> dict[str, Array]:
        samples = start + jnp.arange(chunk)
        held = events(state, noisy(inputs, keys, first + samples, sigma))
        # The last chunk may reach past n.
        return {k: (x.reshape(-1, chunk) & (samples < n)).sum(axis=1) for k, x in held.items()}

    parts = jax.lax.map(one, chunk * jnp.arange(-(-n // chunk)))
    return jax.tree.map(lambda x: x.sum(axis=0), parts)
