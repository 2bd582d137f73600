"""How fast a run is, what it runs on, and where its time goes.

``metrics.jsonl`` holds what the arithmetic gives, the same in every run of one identity;
``telemetry.jsonl`` and ``run.json`` hold what the machine gives, which no two runs share.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import jsonl
from crossguard_jax.runtime import processes

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""FLOP/s of dense bfloat16 products as the makers have them, by the beginning of a device's kind:
the longest that fits counts."""

ROWS = ("labels", "row")
"""Arrays that have one entry a row, of which a batch has one; others may go by pictures."""

VERSIONS = ("crossguard-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
PROFILE = "CROSSGUARD_PROFILE_STEPS"
"""The environment variable with how many steps to trace, after the first two."""


def peak_flops(kind: str) -> float | None:
    """A device's FLOP/s by its kind (``jax.Device.device_kind``); None where it has no figure."""
    fitting = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


@dataclass
class Telemetry:
    """Counts what steps take, from the second on: the first one compiles.

    Args:
        parameters: of the whole model, frozen ones too.
        shares: how many times this process's rows a batch has.
        devices: what they compute on, all of them.
    """

    parameters: int
    shares: float
    devices: list[Any]
    _began: float | None = None
    _waited: float = 0.0
    _steps: int = 0
    _rows: float = 0.0
    _tokens: float = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a batch."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def start(self) -> None:
        """What is counted begins now, with the device done with all before."""
        self._began, self._waited = time.monotonic(), 0.0
        self._steps, self._rows, self._tokens = 0, 0.0, 0.0

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._began is not None

    def pause(self) -> None:
        """Leaves out what was counted since `start`: an evaluation came between."""
        if self.started:
            self.start()

    def step(self, batch: Mapping[str, np.ndarray]) -> None:
        """A step on this process's part of a batch."""
        self._steps += 1
        mask = batch.get("attention_mask")
        rows = next((batch[name] for name in ROWS if name in batch), next(iter(batch.values())))
        self._rows += len(rows) * self.shares
        self._tokens += 0.0 if mask is None else int(mask.sum()) * self.shares

    def figures(self, left: int) -> dict[str, float]:
        """Rates since `start`, with the device done with all steps; begins anew.

        ``mfu`` is 4 N FLOP a token (forward, and backward through frozen weights, which have no
        gradient of their own) over what the devices could do.

        Args:
            left: steps to the end.
        """
        if self._began is None or not self._steps:
            return {}
        seconds = max(time.monotonic() - self._began, 1e-9)
        values = {
            "rows_per_second": self._rows / seconds,
            "seconds_per_step": seconds / self._steps,
            "data_wait": self._waited / seconds,
            "eta_seconds": left * seconds / self._steps,
        }
        if self._tokens:
            values["tokens_per_second"] = self._tokens / seconds
            if peak := peak_flops(self.devices[0].device_kind):
                flops = 4 * self.parameters * self._tokens / seconds
                values["mfu_4n"] = flops / (peak * len(self.devices))
        stats = [s for device in jax.local_devices() if (s := device.memory_stats())]
        if stats and "peak_bytes_in_use" in stats[0]:
            values["device_gib_peak"] = max(s["peak_bytes_in_use"] for s in stats) / 2**30
        self.start()
        return values


def note(values: Mapping[str, float]) -> str:
    """The figures that a progress line has room for; its own part says how long it takes still."""
    if not values:
        return ""
    words = [f"{values['rows_per_second']:,.1f} rows/s"]
    if "mfu_4n" in values:
        words.append(f"MFU {values['mfu_4n']:.0%} (4N)")
    if values["data_wait"] > 0.05:
        words.append(f"{values['data_wait']:.0%} of the time waiting for data")
    return ", ".join(words)


@dataclass
class Profile:
    """A trace of some steps in ``folder/profile``, where the environment asks for one."""

    folder: Path
    steps: int = field(default_factory=lambda: int(os.environ.get(PROFILE, "0")))
    _done: int = 0
    _tracing: bool = False

    def step(self, outputs: Any) -> None:
        """After each step, with something that it gives, which is waited for at both ends."""
        self._done += 1
        if self.steps and self._done == 2:
            jax.block_until_ready(outputs)
            jax.profiler.start_trace(str(self.folder / "profile"))
            self._tracing = True
        elif self._tracing and self._done == 2 + self.steps:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still open."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()


def describe_run(folder: Path, identity: Mapping[str, Any], config: Any, step: int) -> None:
    """Writes ``run.json``: what the run is, and every start of it. The first process does.

    Args:
        folder: the run's.
        identity: what makes it this run, hashes among them.
        config: the whole configuration, or None.
        step: where this start goes on from.
    """
    if not processes.is_first():
        return
    file = folder / "run.json"
    try:
        starts = jsonl.read_json(file)["starts"] if file.exists() else []
    except (UserError, KeyError, TypeError):  # a full disk's
        starts = []
    devices = jax.devices()
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": shlex.join(sys.argv),
            "from_step": step,
            "host": platform.node(),
            "processes": processes.count(),
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "platform": devices[0].platform,
            "versions": {"python": platform.python_version(), **_versions()},
        }
    )
    settings = None if config is None else json.loads(config.to_json())
    about = {"identity": identity, "config": settings, "starts": starts}
    jsonl.write_atomic(file, json.dumps(about, indent=1))


def _versions() -> dict[str, str]:
    versions = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
