"""Processes of this machine, each with a model of its own."""

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.executors.holders import WorkerLost, side_by_side
from crossguard_jax.runtime.shards import Shard, ShardJob, ShardReport

ROOT = Path(__file__).resolve().parents[3]


def work_beside(
    job: ShardJob, shards: Sequence[Shard], workers: int | None = None
) -> Iterator[ShardReport]:
    """Does the shards in so many processes; in one for each GPU, or in one, unless said."""
    gpus = visible_gpus()
    workers = workers or max(1, len(gpus))
    threads = {} if job.threads else {"NPROC": str(max(1, (os.cpu_count() or 1) // workers))}

    def start(place: int) -> _Child:
        own = {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}
        return _Child(job, threads | job.environ() | own)

    yield from side_by_side(job, shards, start, workers)


def visible_gpus() -> list[str]:
    """The GPUs that a process here may use, by number; found without a library that takes them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [each for each in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if each]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i in range(listed.stdout.count("GPU "))]


class _Child:
    """A process that runs `child.main`."""

    def __init__(self, job: ShardJob, environ: dict[str, str]):
        self._deadline, self._buffer = job.deadline, b""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crossguard_jax.runtime.executors.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path} | environ,
            start_new_session=True,  # ^C is for us; it ends when we do
        )
        try:
            self._send(asdict(job))
            while "ready" not in self._hear():
                pass
        except BaseException:
            self.close()
            raise

    def work(self, shard: Shard) -> ShardReport:
        """See `Holder`."""
        self._send(asdict(shard))
        while "done" not in (message := self._hear()):
            pass
        return ShardReport(**message["done"] | {"shard": shard})

    def close(self) -> None:
        """See `Holder`."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is gone, and reading says how

    def _hear(self) -> dict[str, Any]:
        """The next message; the deadline is for each."""
        stdout = self._process.stdout
        assert stdout is not None
        while b"\n" not in self._buffer:
            if not select.select([stdout], [], [], self._deadline)[0]:
                raise WorkerLost(f"no batch within {self._deadline:g} s")
            read = os.read(stdout.fileno(), 2**16)
            if not read:
                raise WorkerLost(f"the process ended with {_ending(self._process.wait())}")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        if "refused" in message:
            raise UserError(message["refused"])
        if "failed" in message:
            raise WorkerLost(message["failed"])
        return message


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
