"""What is done with a request, by its score."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from crossguard_jax.cmai.noise import noisy, row_keys
from crossguard_jax.cmai.policy import Policy, answer_all, apply, reason
from crossguard_jax.core.errors import UserError

FOUR = {
    "branches": [
        {"below": 0.6, "do": "robust", "full": 0.45},
        {"below": 0.1, "do": "reject"},
        {"below": 0.4, "do": "smooth", "n": 5, "sigma": 0.3},
        {"below": 0.2, "do": "flag"},
    ]
}
STATE = jnp.asarray(np.random.default_rng(0).normal(size=(12, 2)), jnp.float32)


def predict(state, inputs, scale):
    """A base and a robust regime, each a logistic model, blended per example."""
    logits = inputs["pixels"].reshape(-1, 12) @ state + inputs["shift"][:, None]
    return jax.nn.sigmoid(logits[:, 0] * (1 - scale) + logits[:, 1] * scale)


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    inputs = {
        "pixels": jnp.asarray(rng.random((n, 3, 2, 2)), jnp.float32),
        "shift": jnp.asarray(rng.normal(size=n), jnp.float32),
    }
    ids = [f"row {i}" for i in range(n)]
    return inputs, rng.random(n).astype(np.float32), ids, row_keys(jax.random.key(seed), ids)


def test_each_score_takes_the_branch_of_its_interval():
    policy = Policy.from_config(ConfigDict(FOUR))
    done = [branch.do for branch in policy.branches]
    assert done == ["reject", "flag", "smooth", "robust", "accept"]
    scores = jnp.array([-1, 0.05, 0.1, 0.15, 0.2, 0.39, 0.4, 0.59, 0.6, 1.0, jnp.inf])
    assert policy.decide(scores).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert policy.decide(jnp.array([jnp.nan, -jnp.inf])).tolist() == [0, 0]


def test_random_policies_decide_as_a_plain_loop_does():
    rng = np.random.default_rng(0)
    for n in range(6):
        below = rng.permutation(np.round(rng.random(n), 2).astype(np.float32))
        below = np.unique(below)[rng.permutation(len(np.unique(below)))]
        policy = Policy.from_config(
            {"branches": [{"below": float(b), "do": "reject"} for b in below]}
        )
        scores = np.concatenate([rng.random(30).astype(np.float32), below])
        expected = [sum(b <= s for b in below) for s in scores]
        assert policy.decide(jnp.asarray(scores)).tolist() == expected


def test_every_branch_answers_as_it_says():
    policy = Policy.from_config(FOUR)
    inputs, scores, _, keys = batch(40)
    found = apply(policy, predict, STATE, inputs, scores, keys)
    names = np.array([branch.do for branch in policy.branches])[found.branches]
    assert set(names) == {"reject", "flag", "smooth", "robust", "accept"}
    plain = np.asarray(predict(STATE, inputs, jnp.zeros(40)))
    for do in ("accept", "flag"):
        np.testing.assert_allclose(found.answers[names == do], plain[names == do], rtol=1e-5)
    assert np.isnan(found.answers[names == "reject"]).all()
    np.testing.assert_array_equal(found.rejected, names == "reject")
    np.testing.assert_array_equal(found.flagged, names == "flag")
    blend = jnp.asarray(np.clip((0.6 - scores) / 0.15, 0, 1))
    robust = np.asarray(predict(STATE, inputs, blend))
    np.testing.assert_allclose(found.answers[names == "robust"], robust[names == "robust"], 1e-5)
    copies = noisy(inputs, keys, jnp.arange(5), 0.3)
    smooth = np.asarray(predict(STATE, copies, jnp.zeros(200))).reshape(40, 5).mean(axis=1)
    np.testing.assert_allclose(found.answers[names == "smooth"], smooth[names == "smooth"], 1e-5)


def test_passes_are_counted_by_branch():
    policy = Policy.from_config(FOUR)
    inputs, scores, _, keys = batch(40)
    found = apply(policy, predict, STATE, inputs, scores, keys)
    assert [branch.passes for branch in policy.branches] == [0, 1, 5, 1, 1]
    np.testing.assert_array_equal(found.passes, np.array([0, 1, 5, 1, 1])[found.branches])


def test_a_row_is_answered_alike_whatever_its_neighbours():
    policy = Policy.from_config(FOUR)
    inputs, scores, ids, _ = batch(24, seed=3)

    def answered(rows):
        keys = row_keys(jax.random.key(5), [ids[i] for i in rows])
        some = {name: x[np.array(rows)] for name, x in inputs.items()}
        return apply(policy, predict, STATE, some, scores[rows], keys)

    whole = answered(list(range(24)))
    order = np.random.default_rng(1).permutation(24)[:9].tolist()
    part = answered(order)
    np.testing.assert_allclose(part.answers, whole.answers[order], rtol=1e-5)
    np.testing.assert_array_equal(part.branches, whole.branches[order])


def test_rows_draw_their_own_noise():
    policy = Policy.from_config({"branches": [{"below": 2, "do": "smooth", "n": 1, "sigma": 1.0}]})
    inputs, scores, _, keys = batch(1)
    twins = {name: jnp.repeat(x, 2, axis=0) for name, x in inputs.items()}
    keys = row_keys(jax.random.key(0), ["a", "b"])
    one, other = apply(policy, predict, STATE, twins, scores.repeat(2), keys).answers
    assert abs(one - other) > 1e-4


def test_a_vote_is_the_share_of_copies_above_it():
    inputs, scores, _, keys = batch(10)
    smooth = {"below": 2.0, "do": "smooth", "n": 9, "sigma": 0.5, "vote": 0.5}
    policy = Policy.from_config({"branches": [smooth]})
    found = apply(policy, predict, STATE, inputs, scores, keys).answers
    p = predict(STATE, noisy(inputs, keys, jnp.arange(9), 0.5), jnp.zeros(90))
    np.testing.assert_allclose(found, (np.asarray(p) >= 0.5).reshape(10, 9).mean(axis=1), 1e-6)
    assert 0 < np.mean((found > 0) & (found < 1))


def test_an_ensemble_takes_its_adapters_in_turn():
    inputs, scores, _, keys = batch(6)
    smooth = {"below": 2.0, "do": "smooth", "n": 4, "sigma": 0.0, "scales": (0.0, 1.0)}
    policy = Policy.from_config({"branches": [smooth]})
    found = apply(policy, predict, STATE, inputs, scores, keys).answers
    each = [np.asarray(predict(STATE, inputs, jnp.full(6, s))) for s in (0.0, 1.0)]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5)


def test_what_an_attack_goes_through_is_what_is_deployed():
    policy = Policy.from_config(FOUR)
    inputs, scores, _, keys = batch(40, seed=2)
    found = apply(policy, predict, STATE, inputs, scores, keys)
    traced = jax.jit(lambda *a: answer_all(policy, predict, *a))
    branches, answers = traced(STATE, inputs, jnp.asarray(scores), keys)
    np.testing.assert_array_equal(branches, found.branches)
    plain = predict(STATE, inputs, jnp.zeros(40))
    expected = np.where(found.rejected, plain, found.answers)
    np.testing.assert_allclose(answers, expected, rtol=1e-5)
    assert found.rejected.any()


def test_an_attack_has_a_gradient_through_every_branch_that_answers():
    policy = Policy.from_config(FOUR)
    inputs, scores, _, keys = batch(40, seed=2)

    def loss(pixels):
        rows = inputs | {"pixels": pixels}
        branches, answers = answer_all(policy, predict, STATE, rows, jnp.asarray(scores), keys)
        return jnp.where(branches == 0, 0.0, answers).sum()

    grad = np.abs(np.asarray(jax.grad(loss)(inputs["pixels"]))).sum(axis=(1, 2, 3))
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(grad > 0, scores >= 0.1)


def test_what_is_rejected_is_told_by_how_far_it_is_inside():
    branches = [{"below": 0.1, "do": "smooth"}, {"below": 0.4, "do": "reject"}]
    policy = Policy.from_config({"branches": branches})
    scores = jnp.array([0.05, 0.15, 0.35, 0.5])
    np.testing.assert_allclose(policy.caught(scores), [-0.05, 0.05, 0.05, -0.1], atol=1e-6)
    assert (policy.rejects, policy.plain) == (True, False)
    assert (Policy().rejects, Policy().plain) == (False, True)
    assert float(Policy().caught(scores).max()) == -np.inf


def test_answers_may_be_rows_of_probabilities():
    def classes(state, inputs, scale):
        return jax.nn.softmax(inputs["pixels"].reshape(-1, 12) @ state)

    policy = Policy.from_config({"branches": [{"below": 0.5, "do": "reject"}]})
    inputs, scores, _, keys = batch(12)
    found = apply(policy, classes, STATE, inputs, scores, keys)
    assert found.answers.shape == (12, 2)
    np.testing.assert_array_equal(np.isnan(found.answers).all(axis=1), scores < 0.5)
    _, traced = answer_all(policy, classes, STATE, inputs, jnp.asarray(scores), keys)
    answered = ~found.rejected
    np.testing.assert_allclose(traced[answered], found.answers[answered], rtol=1e-5)


def test_a_reason_says_what_the_score_was_and_where_the_cut_is():
    branch = Policy.from_config(FOUR).branches[1]
    assert branch.do == "flag" and reason(branch, 0.15) == "S_c 0.15 is below 0.2"
    assert reason(branch, math.nan) == "S_c is no number"


@pytest.mark.parametrize(
    ("branches", "named"),
    [
        ([{"below": 0.1, "do": "shrug"}], "do 'shrug'"),
        ([{"below": 0.1, "do": "accept"}], "do 'accept'"),
        ([{"do": "reject"}], "no below"),
        ([{"below": 0.1, "do": "reject", "n": 4}], "reject: n"),
        ([{"below": math.nan, "do": "reject"}], "below nan"),
        ([{"below": 0.1, "do": "smooth", "n": 0}], "n from 1"),
        ([{"below": 0.1, "do": "smooth", "sigma": -1.0}], "sigma from 0"),
        ([{"below": 0.1, "do": "reject"}, {"below": 0.1, "do": "flag"}], "end at 0.1"),
        ([{"below": 0.1, "do": "reject"}, {"below": 0.4, "do": "robust", "full": 0.0}], "full 0"),
    ],
)
def test_a_bad_config_is_named(branches, named):
    with pytest.raises(UserError, match=named):
        Policy.from_config({"branches": branches})


def test_the_room_is_importable_without_what_reads_data_and_configs():
    code = (
        "import sys\n"
        "for name in ('grain', 'tensorflow_datasets', 'ml_collections'): sys.modules[name] = None\n"
        "import crossguard_jax.cmai.arm, crossguard_jax.cmai.certificate\n"
        "import crossguard_jax.cmai.policy, crossguard_jax.cmai.storage\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
