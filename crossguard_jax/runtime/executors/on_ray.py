"""Actors of a Ray cluster, each with a model of its own. Ray is imported here, and here alone."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from crossguard_jax.core.errors import UserError, reason
from crossguard_jax.runtime.executors.holders import WorkerLost, side_by_side
from crossguard_jax.runtime.executors.local import ROOT
from crossguard_jax.runtime.shards import Shard, ShardJob, ShardReport, do_shard, make_work

LOOK_SECONDS = 1.0
"""How often an actor's beats are looked at, at most."""
HANDED_ON = ("JAX_", "XLA_", "TF_CPP", "TOKENIZERS_", "CROSSGUARD_", "HF_")
"""Variables that decide how a worker computes or where it keeps things; Ray hands on none."""


def work_on_ray(
    job: ShardJob, shards: Sequence[Shard], address: str = "", workers: int | None = None
) -> Iterator[ShardReport]:
    """Does the shards on a cluster, whose machines see the same files under the same paths.

    Args:
        job: what is done.
        shards: with what.
        address: as ``ray.init`` takes it; "" starts a cluster of this machine alone.
        workers: actors; one for each of the cluster's GPUs, or for as many CPUs as a worker has
            threads, unless said.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    if find_spec("ray") is None:
        raise UserError("--on ray needs Ray: pip install 'crossguard-jax[ray]'")
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        resources = ray.cluster_resources()
        gpus, threads = int(resources.get("GPU", 0)), job.threads or 1
        workers = workers or gpus or max(1, int(resources.get("CPU", 1)) // threads)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environ = {k: v for k, v in os.environ.items() if k.startswith(HANDED_ON)}
        actor = ray.remote(ShardActor).options(
            num_cpus=0 if gpus else threads,
            num_gpus=int(gpus > 0),
            max_concurrency=2,  # its beats are asked for while it works
            runtime_env={"env_vars": environ | {"PYTHONPATH": path, "NPROC": str(threads)}},
        )
        yield from side_by_side(job, shards, lambda place: _ActorHolder(ray, actor, job), workers)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    # Its workers' prints are not ours; its dashboard nobody asked for.
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"--on ray:{address}: no cluster there ({reason(error)})") from error


class ShardActor:
    """What Ray runs: a job's work, made once.

    Args:
        job: a `ShardJob`, as plain values.
        folder: where paths begin.
    """

    def __init__(self, job: dict[str, Any], folder: str):
        os.chdir(folder)
        self._job, self._beats, self._lock = ShardJob(**job), 0, threading.Lock()

    def begin(self) -> str:
        """Makes the work; returns why the job cannot be done, "" where it can."""
        try:
            self._work = make_work(self._job)
        except UserError as error:
            return str(error)
        return ""

    def work(self, shard: Shard) -> ShardReport:
        """Does a shard."""
        return do_shard(self._job, self._work, shard, self._beat)

    def beats(self) -> int:
        """How many batches it has come to the end of."""
        return self._beats

    def _beat(self) -> None:
        with self._lock:
            self._beats += 1


class _ActorHolder:
    def __init__(self, ray: Any, actor: Any, job: ShardJob):
        self._ray, self._deadline = ray, job.deadline
        self._actor = actor.remote(asdict(job), os.getcwd())
        try:
            refused = self._wait(self._actor.begin.remote())
        except BaseException:
            self.close()
            raise
        if refused:
            self.close()
            raise UserError(refused)

    def work(self, shard: Shard) -> ShardReport:
        """See `Holder`."""
        return self._wait(self._actor.work.remote(shard))

    def close(self) -> None:
        """See `Holder`."""
        self._ray.kill(self._actor)

    def _wait(self, result: Any) -> Any:
        """What an actor's call gives; the deadline is for each of its batches."""
        beats, quiet = -1, 0.0
        look = min(LOOK_SECONDS, self._deadline / 4)
        try:
            while quiet < self._deadline:
                if self._ray.wait([result], timeout=look)[0]:
                    return self._ray.get(result)
                now = self._ray.get(self._actor.beats.remote(), timeout=self._deadline)
                beats, quiet = now, quiet + look if now == beats else 0.0
        except self._ray.exceptions.GetTimeoutError:
            pass
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from error
            raise WorkerLost(reason(cause)) from error
        raise WorkerLost(f"no batch within {self._deadline:g} s")
