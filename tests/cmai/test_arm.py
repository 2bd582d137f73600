"""The training controller against a plain Python one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from crossguard_jax.cmai.arm import ArmState, CleanScores, Controller
from crossguard_jax.core.errors import UserError
from crossguard_jax.train.checkpoint import Checkpoints

FIELDS = {"beta": "beta", "epsilon": "epsilon", "lambda_": "lambda_"}


def random_config(rng):
    def knob(top):
        start, maximum = np.sort(rng.uniform(0, top, 2))
        step, decay = rng.uniform(0, top / 4, 2)
        return {"start": start, "maximum": maximum, "step": step, "decay": decay * rng.integers(2)}

    return {
        "tau_c": rng.uniform(0.2, 0.6),
        "max_variance": rng.choice([rng.uniform(0.01, 0.1), math.inf]),
        "beta": knob(3.0),
        "epsilon": knob(0.1),
        "lambda_": knob(1.0),
    }


def random_stream(rng, n=60):
    """Batches (attacked scores, clean ones, which count) that alarm about as often as not; some
    with a score that is no number, some in which none or few count, the others being 1."""
    batches = []
    for _ in range(n):
        scores = rng.normal(rng.uniform(0.0, 0.9), rng.uniform(0.0, 0.5), 8).astype(np.float32)
        clean = scores + np.float32(0.1)
        count = rng.random(8) < rng.choice([0.0, 0.5, 1.0], p=[0.1, 0.5, 0.4])
        if rng.random() < 0.1:
            bad = scores if rng.random() < 0.5 else clean
            bad[rng.integers(8)] = rng.choice([np.nan, np.inf, -np.inf])
        scores[~count] = clean[~count] = 1.0
        batches.append((scores, clean, count))
    return batches


def plain(config, stream):
    """The rule in plain Python; numbers are kept in float32, as the state's are."""
    value = {name: np.float32(config[name]["start"]) for name in FIELDS}
    trace = []
    for scores, clean, count in stream:
        scores = scores[count].astype(np.float64)
        if count.any() and np.isfinite(scores).all() and np.isfinite(clean[count]).all():
            mean = sum(scores) / len(scores)
            variance = sum((s - mean) ** 2 for s in scores) / len(scores)
            alarm = mean < config["tau_c"] or variance > config["max_variance"]
            for name in FIELDS:
                knob = {k: np.float32(v) for k, v in config[name].items()}
                if alarm:
                    value[name] = min(value[name] + knob["step"], knob["maximum"])
                else:
                    value[name] = max(value[name] - knob["decay"], knob["start"])
        trace.append(dict(value))
    return trace


@pytest.mark.parametrize("seed", range(6))
def test_it_equals_a_plain_controller_and_never_passes_its_bounds(seed):
    rng = np.random.default_rng(seed)
    config = random_config(rng)
    stream = random_stream(rng)
    controller = Controller.from_config(config)
    update = jax.jit(controller.update)
    state, moved = controller.start(), set()
    for batch, expected in zip(stream, plain(config, stream), strict=True):
        state = update(state, *map(jnp.asarray, batch))
        for name, field in FIELDS.items():
            value = np.asarray(getattr(state, field))
            assert value == expected[name]
            assert np.float32(config[name]["start"]) <= value
            assert value <= np.float32(config[name]["maximum"])
        moved.add(float(state.beta))
    assert len(moved) > 2, "the streams are to turn the knobs"


def test_a_run_that_is_saved_and_found_again_goes_on_bit_for_bit(tmp_path):
    rng = np.random.default_rng(7)
    controller = Controller.from_config(random_config(rng))
    stream = random_stream(rng, 30)
    update = jax.jit(controller.update)
    states = [controller.start(0.1, rng.random(32))]
    for batch in stream:
        states.append(update(states[-1], *batch))
    checkpoints = Checkpoints(tmp_path, {"run": 1})
    checkpoints.save(12, {"arm": states[12]}, {}, {})
    checkpoints.close()
    fresh = {"arm": controller.start(0.1, np.zeros(32))}
    restored = Checkpoints(tmp_path, {"run": 1}).restore(fresh)
    assert restored is not None
    again = restored[0]["arm"]
    assert isinstance(again, ArmState)
    for batch, state in zip(stream[12:], states[13:], strict=True):
        again = update(again, *batch)
        jax.tree.map(np.testing.assert_array_equal, again, state)


ALL = jnp.ones(4, bool)


def small(**changes):
    knob = {"start": 0.1, "maximum": 0.5, "step": 0.1}
    return {
        "tau_c": 0.5,
        "max_variance": math.inf,
        "beta": dict(knob),
        "epsilon": dict(knob),
        "lambda_": dict(knob),
    } | changes


def test_high_variance_alarms_although_the_mean_is_high():
    controller = Controller.from_config(small(max_variance=0.01))
    calm, wild = jnp.full(4, 0.9), jnp.array([0.6, 1.2, 0.6, 1.2])
    start = controller.start()
    assert not controller.alarms(start, calm, ALL) and controller.alarms(start, wild, ALL)
    assert not Controller.from_config(small()).alarms(start, wild, ALL)


def test_without_decay_a_calm_batch_changes_nothing():
    controller = Controller.from_config(small())
    up = controller.update(controller.start(), jnp.zeros(4), jnp.ones(4), ALL)
    assert float(up.beta) > 0.1
    assert controller.update(up, jnp.ones(4), jnp.ones(4), ALL) == up


def test_a_state_from_a_wider_range_is_brought_inside_the_bounds():
    controller = Controller.from_config(small())
    state = ArmState(jnp.float32(9.0), jnp.float32(-9.0), jnp.float32(0.3))
    after = controller.update(state, jnp.ones(4), jnp.ones(4), ALL)
    assert [float(after.beta), float(after.epsilon)] == pytest.approx([0.5, 0.1])


def test_rows_without_a_picture_neither_calm_nor_alarm():
    """Their S_c is 1: half a batch of them hid that all the others were far too low."""
    controller = Controller.from_config(small(max_variance=0.01))
    state, count = controller.start(), jnp.array([True, True, False, False])
    low, even = jnp.array([0.1, 0.2, 1.0, 1.0]), jnp.array([0.6, 0.65, 1.0, 1.0])
    assert controller.alarms(state, low, count) and not controller.alarms(state, even, count)
    following = controller.start(0.1, np.linspace(0, 1, 9))
    nobody = controller.update(following, low, low, jnp.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, nobody, following)


# What clean pairs say


def drift(steps, rows=12):
    """Clean scores of a check that learns on: by step, mean and spread move."""
    rng = np.random.default_rng(5)
    for t in range(steps):
        mean, spread = 0.3 + 0.25 * t / steps, 0.05 + 0.03 * t / steps
        scores = rng.normal(mean, spread, rows).astype(np.float32)
        yield mean, spread, scores


def test_thresholds_follow_a_quantile_that_drifts_and_fixed_ones_do_not():
    """In standard deviations of the scores: the mean of 512 latest ones, of 12 a step, lags by at
    most 0.24, and a quantile of so many is off by 0.17 (1%) or 0.06 (50%), one sigma."""
    rates = np.array([0.01, 0.5])
    before = norm.ppf(rates, 0.3, 0.05)
    controller = Controller.from_config(small(tau_c=float(before[1])))
    first = np.random.default_rng(1).normal(0.3, 0.05, 512)
    states = [controller.start(float(before[0]), recent) for recent in (first, None)]
    update = jax.jit(controller.update)
    count = jnp.arange(16) < 12
    for t, (mean, spread, scores) in enumerate(drift(450)):
        every = np.concatenate([scores, np.ones(4, np.float32)])  # four rows without a picture
        states = [update(state, every, every, count) for state in states]
        if t % 50 == 49:
            followed, fixed = (
                np.abs([state.tau, state.tau_c] - norm.ppf(rates, mean, spread)) / spread
                for state in states
            )
            assert (followed < [0.6, 0.4]).all(), t
    assert (fixed > 2.0).all()


def test_thresholds_start_where_they_were_measured_also_outside_of_the_scores():
    recent = np.random.default_rng(2).normal(0.5, 0.1, 64)
    for tau, tau_c in ((0.45, 0.5), (-0.7, 0.9), (0.3, 2.0)):
        controller = Controller.from_config(small(tau_c=tau_c))
        state = controller.start(tau, recent)
        np.testing.assert_allclose(state.clean.thresholds, [tau, tau_c], atol=1e-6)
        # Rows just like those before move nothing, and all together move them along.
        for by in (0.0, 0.2):
            moved = jnp.asarray(recent + by, jnp.float32)
            after = controller.update(state, moved, moved, jnp.ones(64, bool))
            np.testing.assert_allclose([after.tau, after.tau_c], [tau + by, tau_c + by], atol=1e-5)


def test_the_oldest_scores_leave_first_and_more_than_all_are_no_trouble():
    clean = CleanScores.start(np.arange(4.0), np.array([1.5]))
    count = jnp.array([True, False, True])
    after = clean.after(jnp.array([10.0, 11.0, 12.0]), count)
    np.testing.assert_array_equal(after.recent, [2, 3, 10, 12])
    after = clean.after(jnp.arange(6.0) + 20, jnp.arange(6) != 4)
    np.testing.assert_array_equal(after.recent, [21, 22, 23, 25])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"beta": {"start": 1.0, "maximum": 0.5}}, "arm.beta"),
        ({"beta": {"start": 1.0}}, "maximum"),
        ({"epsilon": {"start": 0.0, "maximum": 1.0, "steps": 1}}, "steps"),
        ({"epsilon": {"start": -0.1, "maximum": 1.0}}, "arm.epsilon.start"),
        ({"epsilon": {"start": 0.0, "maximum": math.nan}}, "arm.epsilon.maximum"),
        ({"lambda_": {"start": 0.0, "maximum": 1.5}}, "arm.lambda_.maximum"),
        ({"tau_c": math.nan}, "arm.tau_c"),
        ({"max_variance": -1.0}, "arm.max_variance"),
        ({"gamma": 1.0}, "gamma"),
    ],
)
def test_a_bad_config_is_named(changes, named):
    with pytest.raises(UserError, match=named):
        Controller.from_config(small(**changes))
