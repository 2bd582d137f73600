"""Eight devices (2 data x 2 fsdp x 2 tensor) train as one device does, in float32.

Single numbers may differ more than whole tensors: Adam turns the noise of a gradient near zero
into a step.
"""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.devices  # a process of its own that compiles everything twice


@pytest.fixture(scope="module")
def report(run_with_devices, tmp_path_factory):
    program = Path(__file__).with_name("sharded_run.py")
    out = run_with_devices(8, program, str(tmp_path_factory.mktemp("run")), timeout=590)
    return json.loads(out.splitlines()[-1])


def test_a_steps_gradients_are_those_of_one_device(report):
    worst = max(report["gradients"].values())
    print(f"gradients: worst tensor {worst:.1e} of {len(report['gradients'])}")
    assert len(report["gradients"]) == 24 and worst <= 1e-5


def test_accumulated_gradients_on_the_mesh_are_those_of_the_whole_batch_on_one_device(report):
    worst = max(report["accumulated"].values())
    print(f"accumulated gradients: worst tensor {worst:.1e}")
    assert worst <= 1e-5


def test_adapters_after_fifty_steps_are_those_of_one_device(report):
    worst = max(report["adapters"].values())
    print(f"adapters after 50 steps: worst tensor {worst:.1e}")
    assert worst <= 1e-4
    assert min(report["moved"].values()) > 1e-2, "training changed every tensor"


def test_moments_lie_where_their_adapters_lie_before_and_after(report):
    specs = report["specs"]
    assert specs["before"] == specs["after"] == specs["mu"] == specs["nu"]
    assert report["resumed_specs"] == specs["before"]
    split = [name for name, spec in specs["before"].items() if "fsdp" in spec or "tensor" in spec]
    assert len(split) == len(specs["before"])


def test_the_frozen_base_is_split_over_fsdp_and_tensor(report):
    assert report["shard"] == [[3, 48, 96], [3, 24, 48]]


def test_a_run_stopped_on_the_mesh_goes_on_bit_for_bit(report):
    assert set(report["resumed"].values()) == {0.0}


def test_a_checkpoint_of_the_mesh_opens_on_one_device(report):
    assert set(report["one_device"].values()) == {0.0}


def test_a_run_stopped_on_the_mesh_goes_on_on_another_one(report):
    worst = max(report["another_mesh"].values())
    print(f"gone on on another mesh: worst tensor {worst:.1e}")
    assert worst <= 1e-5
