"""The training controller against a plain Python one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.cmai.arm import ArmState, Controller
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
    """Batches that alarm about as often as not, some with a score that is no number."""
    batches = []
    for _ in range(n):
        scores = rng.normal(rng.uniform(0.0, 0.9), rng.uniform(0.0, 0.5), 8).astype(np.float32)
        if rng.random() < 0.1:
            scores[rng.integers(8)] = rng.choice([np.nan, np.inf, -np.inf])
        batches.append(scores)
    return batches


def plain(config, stream):
    """The rule in plain Python; numbers are kept in float32, as the state's are."""
    value = {name: np.float32(config[name]["start"]) for name in FIELDS}
    trace = []
    for scores in stream:
        scores = scores.astype(np.float64)
        if np.isfinite(scores).all():
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
    for scores, expected in zip(stream, plain(config, stream), strict=True):
        state = update(state, jnp.asarray(scores))
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
    stream = [jnp.asarray(scores) for scores in random_stream(rng, 30)]
    update = jax.jit(controller.update)
    states = [controller.start()]
    for scores in stream:
        states.append(update(states[-1], scores))
    checkpoints = Checkpoints(tmp_path, {"run": 1})
    checkpoints.save(12, {"arm": states[12]}, {}, {})
    checkpoints.close()
    restored = Checkpoints(tmp_path, {"run": 1}).restore({"arm": controller.start()})
    assert restored is not None
    again = restored[0]["arm"]
    assert isinstance(again, ArmState)
    for scores, state in zip(stream[12:], states[13:], strict=True):
        again = update(again, scores)
        assert jax.tree.map(np.asarray, again) == jax.tree.map(np.asarray, state)


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
    assert not controller.alarms(start, calm) and controller.alarms(start, wild)
    assert not Controller.from_config(small()).alarms(start, wild)


def test_without_decay_a_calm_batch_changes_nothing():
    controller = Controller.from_config(small())
    up = controller.update(controller.start(), jnp.zeros(4))
    assert float(up.beta) > 0.1
    assert controller.update(up, jnp.ones(4)) == up


def test_a_state_from_a_wider_range_is_brought_inside_the_bounds():
    controller = Controller.from_config(small())
    state = ArmState(jnp.float32(9.0), jnp.float32(-9.0), jnp.float32(0.3))
    after = controller.update(state, jnp.ones(4))
    assert [float(after.beta), float(after.epsilon)] == pytest.approx([0.5, 0.1])


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
