"""A PPO iteration on eight devices is that of one, in float32."""

import json
from pathlib import Path

import pytest

# Two minutes of compilation for eight devices.
pytestmark = pytest.mark.devices


@pytest.fixture(scope="module")
def report(run_with_devices):
    program = Path(__file__).with_name("sharded_iteration.py")
    return json.loads(run_with_devices(8, program).splitlines()[-1])


@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2"])
def test_the_same_key_samples_the_same_tokens(report, mesh):
    assert report[mesh]["tokens"]


@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2"])
def test_rewards_and_losses_are_those_of_one_device(report, mesh):
    metrics = report[mesh]["metrics"]
    assert {"safety", "semantic", "overlap", "kl", "policy_loss", "value_loss"} <= set(metrics)
    for name, (one, eight) in metrics.items():
        assert eight == pytest.approx(one, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2"])
def test_gradients_are_those_of_one_device(report, mesh):
    gradients = report[mesh]["gradients"]
    print(f"worst of {len(gradients)} tensors: {max(gradients.values()):.1e}")
    assert min(report[mesh]["norms"].values()) > 0
    assert max(gradients.values()) <= 1e-4
