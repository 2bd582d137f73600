"""Certificates, against what is known exactly: binomial tails, linear and round regions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from crossguard_jax.cmai.certificate import (
    Sampling,
    certify,
    clopper_pearson_lower,
    count,
)
from crossguard_jax.cmai.noise import noisy, row_keys
from crossguard_jax.core.errors import UserError

D = 12
SIGMA = 0.5


def rows(n, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0.0, spread, (n, 3, 2, 2)).astype(np.float32)
    return {"pixels": jnp.asarray(x)}, row_keys(
        jax.random.key(seed), [f"row {i}" for i in range(n)]
    )


def half_space(state, inputs):
    w, b = state
    return {"unsafe": inputs["pixels"].reshape(-1, D) @ w + b > 0}


def ball(radius, inputs):
    return {"inside": (inputs["pixels"].reshape(-1, D) ** 2).sum(axis=1) < radius**2}


def normal_vector(seed=1):
    w = np.random.default_rng(seed).normal(size=D).astype(np.float32)
    return jnp.asarray(w), jnp.float32(0.1)


# The bound on a proportion


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_bound_is_the_exact_one(alpha):
    rng = np.random.default_rng(0)
    for n in (1, 7, 100, 5_000):
        hits = rng.integers(0, n + 1, 20)
        ours = clopper_pearson_lower(hits, n, alpha)
        for k, low in zip(hits.tolist(), ours, strict=True):
            # Theirs is two-sided, with alpha / 2 on each side.
            exact = stats.binomtest(k, n).proportion_ci(1 - 2 * alpha, method="exact")
            assert low == pytest.approx(exact.low, abs=1e-9)


@pytest.mark.parametrize("n", [10, 100, 1_000])
def test_the_bound_is_above_the_truth_at_most_as_often_as_alpha(n):
    alpha, hits = 0.01, np.arange(n + 1)
    low = clopper_pearson_lower(hits, n, alpha)
    for p in np.linspace(0.02, 0.98, 25):
        wrong = stats.binom.pmf(hits, n, p)[low > p].sum()
        assert wrong <= alpha * (1 + 1e-9)


def test_hits_of_none_and_of_all():
    low = clopper_pearson_lower(np.array([0, 100]), 100, 0.001)
    assert low[0] == 0.0
    assert low[1] == pytest.approx(0.001 ** (1 / 100))


# Certified radii against true ones


def test_on_a_half_space_no_more_radii_than_alpha_pass_the_true_one():
    n, alpha = 1_000, 0.05
    (w, b), (inputs, keys) = normal_vector(), rows(n)
    found = certify(half_space, (w, b), inputs, keys, Sampling(SIGMA, 20, 200, alpha))["unsafe"]
    margin = np.asarray(inputs["pixels"], np.float64).reshape(n, D) @ np.asarray(w) + float(b)
    true = np.abs(margin) / np.linalg.norm(w)
    sure = ~found.abstained
    wrong = sure & ((found.radius > true) | (found.holds != (margin > 0)))
    assert wrong.sum() <= stats.binom.ppf(0.9999, n, alpha)
    # An exact bound errs about as often as it may, so a looser or a bolder one shows.
    assert wrong.sum() >= stats.binom.ppf(0.0001, int(sure.sum()), alpha / 3)
    near = sure & (true < SIGMA)
    assert np.median(found.radius[near] / true[near]) > 0.7


def test_on_a_ball_no_more_radii_than_alpha_pass_the_true_one():
    n, alpha, inner = 400, 0.05, 2.5
    inputs, keys = rows(n, seed=3, spread=0.7)
    found = certify(ball, inner, inputs, keys, Sampling(SIGMA, 20, 200, alpha))["inside"]
    norm = np.linalg.norm(np.asarray(inputs["pixels"], np.float64).reshape(n, D), axis=1)

    def share(r):
        return stats.ncx2.cdf((inner / SIGMA) ** 2, D, (r / SIGMA) ** 2)

    # Where the smoothed ball ends; by symmetry the shortest way there is along the radius.
    grid = np.linspace(1e-3, 6, 4_000)
    end = grid[np.argmin(np.abs(share(grid) - 0.5))]
    sure = ~found.abstained
    assert sure.mean() > 0.5
    wrong = sure & ((found.radius > np.abs(end - norm) + 2e-3) | (found.holds != (norm < end)))
    assert wrong.sum() <= stats.binom.ppf(0.9999, n, alpha)


def test_the_worst_attack_inside_the_radius_does_not_flip_the_smoothed_verdict():
    n, alpha = 500, 0.001
    (w, b), (inputs, keys) = normal_vector(), rows(n, seed=5)
    sampling = Sampling(SIGMA, 50, 500, alpha)
    found = certify(half_space, (w, b), inputs, keys, sampling)["unsafe"]
    side = np.where(found.holds, -1.0, 1.0)[:, None]
    push = side * 0.999 * found.radius[:, None] * np.asarray(w) / np.linalg.norm(w)
    attacked = inputs["pixels"] + jnp.asarray(push, jnp.float32).reshape(n, 3, 2, 2)
    fresh = row_keys(jax.random.key(99), [str(i) for i in range(n)])
    votes = count(
        half_space, (w, b), {"pixels": attacked}, fresh, jnp.float32(SIGMA), 0, 2_000, 100
    )["unsafe"]
    sure = ~found.abstained
    assert sure.mean() > 0.5
    # A verdict that stands has at least half of the votes; 4 standard errors are for counting.
    agreeing = np.where(found.holds, votes, 2_000 - votes) / 2_000
    flipped = sure & (agreeing < 0.5 - 4 * 0.5 / np.sqrt(2_000))
    assert flipped.sum() <= stats.binom.ppf(0.9999, n, alpha)
    # The same attack at twice the radius does flip verdicts: the test can fail.
    attacked = inputs["pixels"] + 2 * (attacked - inputs["pixels"])
    votes = count(
        half_space, (w, b), {"pixels": attacked}, fresh, jnp.float32(SIGMA), 0, 2_000, 100
    )["unsafe"]
    agreeing = np.where(found.holds, votes, 2_000 - votes) / 2_000
    assert (sure & (agreeing < 0.45)).mean() > 0.2


def test_it_abstains_on_the_border():
    w, _ = normal_vector()
    inputs, keys = rows(50)
    on_border = {"pixels": jnp.zeros_like(inputs["pixels"])}
    found = certify(half_space, (w, jnp.float32(0)), on_border, keys, Sampling(SIGMA, 20, 200))
    assert found["unsafe"].abstained.all()
    assert (found["unsafe"].radius == 0).all()


def test_no_radius_is_above_the_largest():
    sampling = Sampling(SIGMA, 10, 100, 0.01)
    inputs, keys = rows(8)
    far = {"pixels": inputs["pixels"] * 0 + 100.0}
    found = certify(half_space, (jnp.ones(D), jnp.float32(0)), far, keys, sampling)["unsafe"]
    assert found.radius == pytest.approx(np.full(8, sampling.largest_radius))


def test_events_are_certified_together_each_by_its_own_samples():
    def both(state, inputs):
        x = inputs["pixels"].reshape(-1, D)[:, 0]
        return {"high": x > 0, "low": x < 0}

    inputs, keys = rows(40, seed=2)
    found = certify(both, None, inputs, keys, Sampling(SIGMA, 10, 100))
    assert (found["high"].holds != found["low"].holds).mean() > 0.8
    np.testing.assert_array_equal(found["high"].radius, found["low"].radius)


# Sampling


@pytest.mark.parametrize("n", [1, 7, 60])
def test_the_chunk_does_not_change_the_samples(n):
    state, (inputs, keys) = normal_vector(), rows(9, spread=0.3)
    counts = [
        count(half_space, state, inputs, keys, jnp.float32(SIGMA), 5, n, chunk)["unsafe"]
        for chunk in (1, 4, 100)
    ]
    assert all((other == counts[0]).all() for other in counts)
    assert counts[0].max() <= n


def test_a_rows_certificate_does_not_depend_on_its_neighbours():
    state, (inputs, _) = normal_vector(), rows(6)
    names = [f"row {i}" for i in range(6)]
    sampling = Sampling(SIGMA, 10, 100)
    keys = row_keys(jax.random.key(0), names)
    whole = certify(half_space, state, inputs, keys, sampling)["unsafe"]
    order = np.array([4, 1])
    some = {"pixels": inputs["pixels"][order]}
    keys = row_keys(jax.random.key(0), [names[i] for i in order])
    part = certify(half_space, state, some, keys, sampling)["unsafe"]
    np.testing.assert_array_equal(part.radius, whole.radius[order])


def test_the_samples_that_choose_are_not_those_that_bound():
    inputs, keys = rows(3)
    first = noisy(inputs, keys, jnp.arange(20), 1.0)["pixels"]
    second = noisy(inputs, keys, 10 + jnp.arange(20), 1.0)["pixels"]
    first, second = (np.asarray(x).reshape(3, 20, -1) for x in (first, second))
    np.testing.assert_array_equal(first[:, 10:], second[:, :10])
    assert not np.isclose(first[:, :10], second[:, 10:]).any()


def test_noise_is_gaussian_of_that_width_and_leaves_other_inputs_alone():
    inputs, keys = rows(30)
    inputs |= {"input_ids": jnp.arange(30)}
    drawn = noisy(inputs, keys, jnp.arange(40), 0.25)
    noise = np.asarray(drawn["pixels"] - jnp.repeat(inputs["pixels"], 40, axis=0)).ravel()
    assert stats.kstest(noise / 0.25, "norm").pvalue > 1e-3
    np.testing.assert_array_equal(drawn["input_ids"], np.repeat(np.arange(30), 40))


@pytest.mark.parametrize(
    "bad", [{"sigma": 0.0}, {"sigma": float("nan")}, {"alpha": 0.5}, {"n": 0}, {"n0": 0}]
)
def test_bad_sampling_is_named(bad):
    with pytest.raises(UserError, match=f"certificate.{next(iter(bad))}"):
        Sampling(**{"sigma": 0.1} | bad)
