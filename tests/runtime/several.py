"""Runs of several processes on this machine, for tests."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

VERBS = Path(__file__).with_name("verbs_run.py")
REPOSITORY = VERBS.parents[2]


def run_several(
    n: int, program: Path, *arguments: str, devices: int = 1, timeout: float = 900
) -> list[str]:
    """A program as ``n`` processes of one run (1: alone) on CPU devices; what each printed."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    kept = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    environ = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # each of several compiles for itself
        "XLA_FLAGS": " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"]),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(n)} if n > 1 else {}
    started = [
        subprocess.Popen(
            [sys.executable, str(program), *arguments],
            env=environ | joined | ({"JAX_PROCESS_ID": str(i)} if n > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(n)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    if codes := [p.returncode for p in started if p.returncode]:
        told_apart = "\n".join(f"== {i}\n{out}\n{err}" for i, (out, err) in enumerate(outputs))
        pytest.fail(f"exit codes {codes}\n{told_apart[-20_000:]}", pytrace=False)
    return [out for out, _ in outputs]


def run_verbs(n: int, lines: Sequence[Sequence[object]], devices: int = 1) -> list[str]:
    """Command lines, one after the other, by ``n`` processes."""
    return run_several(n, VERBS, json.dumps([[*map(str, line)] for line in lines]), devices=devices)
