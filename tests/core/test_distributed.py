"""Processes join when there are several, and a lone one never waits."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crossguard_jax.core.distributed import initialize_if_several, launch_arguments
from crossguard_jax.core.errors import UserError

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1"}
JAX = {"JAX_COORDINATOR_ADDRESS": "n1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


def workers(n: int) -> Callable[[], int]:
    return lambda: n


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"},  # inside sbatch, outside srun
        STEP | {"SLURM_NTASKS": "1"},
        STEP | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"JAX_NUM_PROCESSES": "1"},
        JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_a_lone_process_is_left_alone(environ: dict[str, str]) -> None:
    assert launch_arguments(environ, workers(1)) is None


@pytest.mark.parametrize(
    "environ",
    [
        STEP | {"SLURM_NTASKS": "8"},
        STEP | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4"},
        STEP | {"SLURM_NTASKS": "8", "JAX_COORDINATOR_ADDRESS": "n1:1234"},
        {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "0"},
        {"TPU_PROCESS_ADDRESSES": "a:1,b:1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"},
    ],
)
def test_slurm_and_tpu_runs_are_left_to_jax_to_describe(environ: dict[str, str]) -> None:
    assert launch_arguments(environ, workers(1)) == {}


def test_a_tpu_pod_is_known_by_its_metadata() -> None:
    assert launch_arguments({}, workers(4)) == {}
    assert launch_arguments({"TPU_SKIP_MDS_QUERY": "1"}, workers(4)) is None


def test_jax_variables_come_first() -> None:
    expected = {"num_processes": 2, "process_id": 1}
    assert launch_arguments(JAX, workers(1)) == expected
    assert launch_arguments(STEP | {"SLURM_NTASKS": "8"} | JAX, workers(4)) == expected


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "n1:1"}, "without JAX_NUM_PROCESSES"),
        ({"JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES"),
        (JAX | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two"),
        (JAX | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2 is not in 0..1"),
        (JAX | {"JAX_COORDINATOR_ADDRESS": "n1"}, "HOST:PORT"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "HOST:PORT"),
    ],
)
def test_variables_that_do_not_fit_are_an_error(environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        launch_arguments(environ, workers(1))


def test_a_process_that_has_used_its_devices_is_told_so() -> None:
    import jax

    jax.devices()
    with pytest.raises(UserError, match="must be called before"):
        initialize_if_several(JAX)


TWO_PROCESSES = """
from crossguard_jax.core.distributed import initialize_if_several

assert initialize_if_several()

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

ids = multihost_utils.process_allgather(jnp.asarray(jax.process_index()))
print(jax.process_count(), jax.device_count(), jax.local_device_count(), ids.tolist())
"""


def test_two_processes_find_each_other_and_exchange_arrays(repository: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": str(repository),
    }
    common.pop("XLA_FLAGS", None)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES],
            env=common | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, results, strict=True):
        assert process.returncode == 0, err
        assert "2 2 1 [0, 1]" in out.splitlines()
