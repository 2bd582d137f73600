"""Joins the other processes of a run: ``jax.distributed``, when there are others and only then.

A run of several processes announces itself in one of these ways, asked in this order: JAX's own
variables, those of ``mpirun``, Slurm's, Cloud TPU's (its variables, or its metadata server), a
Kubernetes Job's. All but the first are left to JAX's own detection. A lone process must not
initialize: it would wait for company that never comes. The decision imports nothing heavy, so the
command line can ask it for every verb.
"""

import importlib.util
import ipaddress
import os
import socket
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

from crossguard_jax.core.errors import UserError

RENDEZVOUS = 1800
"""Seconds that processes wait for one another: machines and their installations come late."""
OWN_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
"""What every host calls itself."""
TPU_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


class LaunchArguments(TypedDict, total=False):
    """What ``jax.distributed.initialize`` cannot find by itself; often nothing."""

    num_processes: int
    process_id: int
    cluster_detection_method: str


def initialize_if_several(environ: Mapping[str, str] | None = None) -> bool:
    """Joins the run's other processes, if there are any; says whether there were.

    Call it before anything asks JAX for a device.

    Args:
      environ: the variables that describe the run; the process's own by default.

    Raises:
      UserError: the variables contradict each other, or the coordinator does not answer.
    """
    environ = os.environ if environ is None else environ
    arguments = launch_arguments(environ)
    if arguments is None:
        return False
    refuse_loopback(environ)
    import jax  # a lone process need not pay for it here

    if jax.distributed.is_initialized():  # an earlier verb of this process did it
        return True
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=RENDEZVOUS)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"could not join the other processes of this run: {reason}") from error
    if jax.default_backend() == "cpu":
        # On a CPU the first process alone writes the cache and finds its own there, the others
        # compile; and a program that comes from it has lost the order between a loop's collectives
        # and those behind the loop. Gloo ends a run whose processes differ in order.
        jax.config.update("jax_enable_compilation_cache", False)
    return True


def launch_arguments(
    environ: Mapping[str, str],
    tpu_workers: Callable[[], int] | None = None,
    installed: Callable[[str], object] = importlib.util.find_spec,
) -> LaunchArguments | None:
    """The arguments to initialize with, or None when this process is the only one.

    JAX reads the coordinator's address and port (``JAX_COORDINATOR_ADDRESS``,
    ``JAX_COORDINATOR_PORT``) itself, and elsewhere than with its own variables everything else too.

    Args:
      environ: environment variables.
      tpu_workers: asks Cloud TPU's metadata server for the number of workers, 1 where there is no
        such server; by default over HTTP, and only on a machine that has TPU chips and libtpu.
      installed: whether there is a module of that name.

    Raises:
      UserError: JAX's variables are incomplete, or not numbers that fit together; or ``mpirun``
        started this with an MPI that JAX knows through mpi4py alone, and that is not installed.
    """
    if "JAX_NUM_PROCESSES" in environ or "JAX_PROCESS_ID" in environ:
        return _from_jax_variables(environ)
    # In JAX's order: an mpirun inside of a Slurm job counts, and not the step that it starts.
    if (arguments := _from_mpi(environ, installed)) is not None:
        return arguments
    if _slurm_tasks(environ) > 1 or _tpu_processes(environ, tpu_workers or _ask_metadata) > 1:
        return LaunchArguments()
    if _is_kubernetes_job(environ) and installed("kubernetes"):
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
    if count < 1:
        raise UserError(f"JAX_NUM_PROCESSES={count}: give how many processes the run has")
    index = _integer(environ, "JAX_PROCESS_ID")
    if not 0 <= index < count:
        raise UserError(f"JAX_PROCESS_ID={index} is not in 0..{count - 1} (JAX_NUM_PROCESSES - 1)")
    address = environ.get("JAX_COORDINATOR_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"JAX_COORDINATOR_ADDRESS={address!r}: needs HOST:PORT of process 0")
    return LaunchArguments(num_processes=count, process_id=index)


def refuse_loopback(
    environ: Mapping[str, str],
    resolve: Callable[[str], str] = socket.gethostbyname,
    here: Callable[[], str] = socket.gethostname,
) -> None:
    """Stops a run on several hosts whose coordinator is every host's own: each would wait for ever.

    A host may well resolve its *own* name to 127.0.1.1; the coordinator listens on all interfaces.

    Args:
      environ: environment variables.
      resolve: the IPv4 address of a name; raises OSError where it has none yet.
      here: this host's name.

    Raises:
      UserError: with the address.
    """
    host = environ.get("JAX_COORDINATOR_ADDRESS", "").rpartition(":")[0].strip("[]")
    if not host or _nodes(environ) < 2:
        return
    own = here().partition(".")[0] == host.partition(".")[0]
    try:
        address = ipaddress.ip_address(host)
        loopback = address.is_loopback or address.is_unspecified
    except ValueError:
        loopback = host in OWN_NAMES or (not own and _resolves_to_loopback(host, resolve))
    if loopback:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS={environ['JAX_COORDINATOR_ADDRESS']}: {host} is this host "
            f"itself on each of {_nodes(environ)} hosts, so they would never meet; give the "
            "address by which the others reach the host of process 0"
        )


def _resolves_to_loopback(host: str, resolve: Callable[[str], str]) -> bool:
    try:
        return resolve(host).startswith("127.")
    except OSError:  # a name that comes up later, as those of pods do
        return False


def _nodes(environ: Mapping[str, str]) -> int:
    """How many hosts the run is on, as far as its launcher says."""
    names = ("CROSSGUARD_NODES", "SLURM_STEP_NUM_NODES", "SKYPILOT_NUM_NODES")
    nodes = max(_integer(environ, name, default=1) for name in names)
    local = _integer(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", default=0)
    several = local and _integer(environ, "OMPI_COMM_WORLD_SIZE", default=1) > local
    return max(nodes, 2) if several else nodes


def _from_mpi(
    environ: Mapping[str, str], installed: Callable[[str], object]
) -> LaunchArguments | None:
    open_mpi = _integer(environ, "OMPI_COMM_WORLD_SIZE", default=1)
    # MPICH's and Intel's; Slurm's own PMI sets it too, and then Slurm is who knows.
    mpich = 1 if "SLURM_STEP_NODELIST" in environ else _integer(environ, "PMI_SIZE", default=1)
    if max(open_mpi, mpich) < 2:
        return None
    if "OMPI_MCA_orte_hnp_uri" in environ:
        return LaunchArguments()
    if not installed("mpi4py"):
        raise UserError(
            f"mpirun started {max(open_mpi, mpich)} processes, and JAX joins those of this MPI "
            "through mpi4py: install it (pip install mpi4py), or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    return LaunchArguments(cluster_detection_method="mpi4py")


def _is_kubernetes_job(environ: Mapping[str, str]) -> bool:
    # An Indexed Job's pod; how many there are, JAX asks the cluster. JAX_NUM_PROCESSES=1 says that
    # the pods of a job are no one run, but each its own.
    return "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ


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
