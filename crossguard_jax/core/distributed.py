"""Joins the other processes of a run: ``jax.distributed``, when there are others and only then.

A run of several processes announces itself in one of three ways, asked in this order: JAX's own
variables, Slurm's, Cloud TPU's (its variables, or its metadata server). A lone process must not
initialize: it would wait for company that never comes. The decision imports nothing heavy, so the
command line can ask it for every verb.
"""

import importlib.util
import os
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

from crossguard_jax.core.errors import UserError

TPU_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


class LaunchArguments(TypedDict, total=False):
    """What ``jax.distributed.initialize`` cannot find by itself; empty under Slurm and on TPUs."""

    num_processes: int
    process_id: int


def initialize_if_several(environ: Mapping[str, str] | None = None) -> bool:
    """Joins the run's other processes, if there are any; says whether there were.

    Call it before anything asks JAX for a device.

    Args:
      environ: the variables that describe the run; the process's own by default.

    Raises:
      UserError: the variables contradict each other, or the coordinator does not answer.
    """
    arguments = launch_arguments(os.environ if environ is None else environ)
    if arguments is None:
        return False
    import jax  # a lone process need not pay for it here

    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"could not join the other processes of this run: {reason}") from error
    return True


def launch_arguments(
    environ: Mapping[str, str],
    tpu_workers: Callable[[], int] | None = None,
) -> LaunchArguments | None:
    """The arguments to initialize with, or None when this process is the only one.

    JAX reads the coordinator's address and port (``JAX_COORDINATOR_ADDRESS``,
    ``JAX_COORDINATOR_PORT``) itself, and under Slurm and on Cloud TPU everything else too.

    Args:
      environ: environment variables.
      tpu_workers: asks Cloud TPU's metadata server for the number of workers, 1 where there is no
        such server; by default over HTTP, and only on a machine that has TPU chips and libtpu.

    Raises:
      UserError: JAX's variables are incomplete, or not numbers that fit together.
    """
    if "JAX_NUM_PROCESSES" in environ or "JAX_PROCESS_ID" in environ:
        return _from_jax_variables(environ)
    if _slurm_tasks(environ) > 1 or _tpu_processes(environ, tpu_workers or _ask_metadata) > 1:
        return LaunchArguments()
    if "JAX_COORDINATOR_ADDRESS" in environ and "SLURM_STEP_NODELIST" not in environ:
        raise UserError(
            "JAX_COORDINATOR_ADDRESS is set without JAX_NUM_PROCESSES and JAX_PROCESS_ID: "
            "set all three, or none for a run of one process"
        )
    return None


def _from_jax_variables(environ: Mapping[str, str]) -> LaunchArguments | None:
    count = _integer(environ, "JAX_NUM_PROCESSES")
    if count == 1:
        return None
    index = _integer(environ, "JAX_PROCESS_ID")
    if not 0 <= index < count:
        raise UserError(f"JAX_PROCESS_ID={index} is not in 0..{count - 1} (JAX_NUM_PROCESSES - 1)")
    address = environ.get("JAX_COORDINATOR_ADDRESS", "")
    if not address.rpartition(":")[0]:
        raise UserError(f"JAX_COORDINATOR_ADDRESS={address!r}: needs HOST:PORT of process 0")
    return LaunchArguments(num_processes=count, process_id=index)


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    # Inside `sbatch` but outside `srun`, SLURM_NTASKS is set although one process runs: only a
    # step has a node list and a rank, and a step may be smaller than its job.
    if "SLURM_STEP_NODELIST" not in environ or "SLURM_PROCID" not in environ:
        return 1
    tasks = _integer(environ, "SLURM_NTASKS", default=1)
    return min(tasks, _integer(environ, "SLURM_STEP_NUM_TASKS", default=tasks))


def _tpu_processes(environ: Mapping[str, str], ask_metadata: Callable[[], int]) -> int:
    slices = _integer(environ, "MEGASCALE_NUM_SLICES", default=1)
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if workers:
        return slices * len(workers.split(","))
    if slices > 1 or "TPU_SKIP_MDS_QUERY" in environ:
        return slices
    return ask_metadata()


def _ask_metadata() -> int:
    chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    if not chips or importlib.util.find_spec("libtpu") is None:
        return 1
    request = urllib.request.Request(
        TPU_METADATA + "worker-network-endpoints", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return len(response.read().decode().split(","))
    except OSError:
        return 1


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise UserError(f"{name}={text or ''}: needs a whole number") from None
