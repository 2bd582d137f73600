"""A run killed at five random moments ends as if nothing had happened.

The moments come from ``CROSSGUARD_KILL_SEED`` (printed): how many batches a start may draw, and how
long after that the process is killed, so that a kill may meet a step, a save or an evaluation.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SEED = int(os.environ.get("CROSSGUARD_KILL_SEED", "0"))
PROGRAM = Path(__file__).with_name("killed_run.py")
KILLS, LONGEST = 5, 20


def start(folder, repository):
    folder.mkdir(exist_ok=True)
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository)}
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder)],
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def finish(folder, repository):
    process = start(folder, repository)
    assert process.wait(timeout=300) == 0, (folder / "output.txt").read_text()[-3000:]


def drawn(folder):
    """``(n, records)`` of every batch drawn so far, in the order of drawing."""
    file = folder / "batches.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(line["n"], line["records"]) for line in map(json.loads, lines)]


def kill(folder, repository, after, delay):
    """Starts a run and kills it; how many batches have been drawn by all starts so far."""
    process = start(folder, repository)
    before, deadline = len(drawn(folder)), time.monotonic() + 300
    while len(drawn(folder)) < before + after:
        alive = process.poll() is None and time.monotonic() < deadline
        assert alive, (folder / "output.txt").read_text()[-3000:]
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had already ended by itself"
    return len(drawn(folder))


@pytest.mark.training
def test_a_run_killed_five_times_ends_bit_for_bit_as_an_uninterrupted_one(repository, tmp_path):
    rng = random.Random(SEED)
    plan = [(rng.randint(1, LONGEST), rng.uniform(0, 0.1)) for _ in range(KILLS)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(whole, repository)
    lengths = [kill(parts, repository, *moment) for moment in plan]
    finish(parts, repository)
    seen = drawn(parts)
    killed_at = [seen[length - 1][0] for length in lengths]
    started_at = [seen[length][0] for length in lengths]
    print(f"seed {SEED}: killed after batches {killed_at}, gone on with {started_at}")

    wanted = json.loads((whole / "final.json").read_text())
    assert wanted["step"] == 150 and wanted["moved"]
    assert json.loads((parts / "final.json").read_text()) == wanted
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()

    order = dict(drawn(whole))
    assert list(order) == list(range(1, 151))
    assert all(order[n] == rows for n, rows in seen), "every batch is the one of that number"
    assert {n for n, _ in seen} == set(order), "none is left out"
    # A start goes on after a checkpoint (saved every 5), at most two saves behind the kill.
    assert all(n % 5 == 1 for n in started_at)
    behind = [killed - n for killed, n in zip(killed_at, started_at, strict=True)]
    assert all(-1 <= n < 15 for n in behind)
