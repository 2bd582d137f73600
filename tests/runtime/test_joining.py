"""Processes join when there are several, and a lone one never waits."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.joining import (
    initialize_if_several,
    launch_arguments,
    refuse_loopback,
)
from tests.runtime.several import run_several

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
JAX = {"JAX_COORDINATOR_ADDRESS": "n1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


def workers(n: int) -> Callable[[], int]:
    return lambda: n


def modules(*names: str) -> Callable[[str], object]:
    return lambda name: name in names


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"},  # inside sbatch, outside srun
        STEP | {"SLURM_NTASKS": "1"},
        STEP | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "7.0;tcp://n1:1"},
        {"PMI_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod of no job
        POD,  # nobody to ask: jax[k8s] is not installed
        POD | {"JAX_NUM_PROCESSES": "1"},  # each pod a run of its own
        {"JAX_NUM_PROCESSES": "1"},
        JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_a_lone_process_is_left_alone(environ: dict[str, str]) -> None:
    assert launch_arguments(environ, workers(1), modules()) is None


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


@pytest.mark.parametrize(
    ("environ", "installed", "arguments"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "7.0;tcp://n1:1"}, (), {}),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ("mpi4py",), {"cluster_detection_method": "mpi4py"}),
        ({"PMI_SIZE": "4", "PMI_RANK": "1"}, ("mpi4py",), {"cluster_detection_method": "mpi4py"}),
        # Slurm's own PMI; and an mpirun in a job of Slurm's, whose step has one process a node.
        (STEP | {"SLURM_NTASKS": "8", "PMI_SIZE": "8"}, (), {}),
        (STEP | {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "7.0;tcp://n1:1"}, (), {}),
        (POD, ("kubernetes",), {}),
    ],
)
def test_mpi_and_kubernetes_are_left_to_jaxs_detection(
    environ: dict[str, str], installed: tuple[str, ...], arguments: dict[str, str]
) -> None:
    assert launch_arguments(environ, workers(1), modules(*installed)) == arguments


def test_an_mpi_that_jax_cannot_ask_is_an_error() -> None:
    with pytest.raises(UserError, match="4 processes.*pip install mpi4py"):
        launch_arguments({"PMI_SIZE": "4"}, workers(1), modules())


def resolve(host: str) -> str:
    """As a host named n1 has it: its own name is 127.0.1.1, as Debian writes it."""
    addresses = {"n1": "127.0.1.1", "lies": "127.0.0.1", "n2": "10.0.0.2", "10.0.0.1": "10.0.0.1"}
    if host not in addresses:
        raise OSError(f"{host}: no such name, yet")
    return addresses[host]


@pytest.mark.parametrize(
    "nodes",
    [
        {"CROSSGUARD_NODES": "2"},
        {"SLURM_STEP_NUM_NODES": "2"},
        {"SKYPILOT_NUM_NODES": "2"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
    ],
)
@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost.localdomain", "ip6-localhost", "lies"),
        *("127.0.0.1", "127.0.1.1", "0.0.0.0", "[::1]", "[::]"),
    ],
    ids=lambda host: host,
)
def test_a_coordinator_that_each_host_takes_for_itself_is_refused(
    nodes: dict[str, str], host: str
) -> None:
    environ = nodes | {"JAX_COORDINATOR_ADDRESS": f"{host}:1234"}
    with pytest.raises(UserError, match="each of 2 hosts.*give the address"):
        refuse_loopback(environ, resolve, lambda: "n1")


@pytest.mark.parametrize(
    ("host", "nodes"),
    [
        ("localhost", {}),  # several processes on one host
        ("127.0.0.1", {"SLURM_STEP_NUM_NODES": "1"}),
        ("localhost", {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}),
        ("n1", {"CROSSGUARD_NODES": "2"}),  # process 0's own name
        ("n2", {"CROSSGUARD_NODES": "2"}),
        ("10.0.0.1", {"CROSSGUARD_NODES": "2"}),
        ("later", {"CROSSGUARD_NODES": "2"}),
    ],
)
def test_a_coordinator_that_all_reach_is_not_refused(host: str, nodes: dict[str, str]) -> None:
    refuse_loopback(nodes | {"JAX_COORDINATOR_ADDRESS": f"{host}:1"}, resolve, lambda: "n1.lab")


def test_processes_wait_half_an_hour_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    asked: dict[str, object] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **named: asked.update(named))
    assert initialize_if_several(JAX)
    assert asked == {"num_processes": 2, "process_id": 1, "initialization_timeout": 1800}


def test_the_refusal_comes_before_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("waited"))
    environ = JAX | {"JAX_COORDINATOR_ADDRESS": "localhost:1", "CROSSGUARD_NODES": "2"}
    with pytest.raises(UserError, match="localhost is this host itself"):
        initialize_if_several(environ)


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
        (JAX | {"JAX_COORDINATOR_ADDRESS": "n1:"}, "HOST:PORT"),
        (JAX | {"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES=0: give how many"),
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
from crossguard_jax.runtime.joining import initialize_if_several

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


@pytest.mark.parametrize(("backend", "kept"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_processes_on_cpus_alone_keep_no_programs(
    backend: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax

    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for name, value in JAX.items():
        monkeypatch.setenv(name, value)
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", True)
        assert initialize_if_several()
        assert jax.config.jax_enable_compilation_cache == kept
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@pytest.mark.devices
def test_two_processes_keep_one_order_when_programs_could_come_from_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # The scheduler that puts gathers where they are needed: here, behind the loop.
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_concurrency_optimized_scheduler=false")
    for _ in range(2):
        printed = run_several(2, Path(__file__).with_name("loop_run.py"))
        assert [out.splitlines()[-1] for out in printed] == ["in one order"] * 2
