"""A cell whose work is verbs of the command line, each in a process of its own.

So a cell has the memory and the devices to itself, and ends with its own error alone.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime import preemption
from crossguard_jax.runtime.executors.local import ROOT
from crossguard_jax.runtime.exits import STARTS_AGAIN
from crossguard_jax.runtime.preemption import Stopped
from crossguard_jax.runtime.shards import Beat, Work
from crossguard_jax.sweeps.cells import Figures, SweepCell, work_of
from crossguard_jax.sweeps.results import REPORT, figures_of

FACTORY = "crossguard_jax.sweeps.steps:verb_work"
STEP = "crossguard_jax.sweeps.step"
LOOK_SECONDS = 0.2


def verb_work(spec: Mapping[str, Any], folder: str) -> Work:
    """What a worker does with a cell of verbs; see `ShardJob`. It holds nothing between them.

    Args:
        spec: ``program``, the module that runs them.
        folder: of the figures.
    """

    def measure(cell: SweepCell, place: Path, beat: Beat) -> Figures:
        steps: list[list[str]] = cell.work["steps"]
        figures: dict[str, Any] = {}
        for i, step in enumerate(steps):
            out = step_folder(place, steps, i)
            run_step([*step, "--out", str(out)], out, spec["program"], beat)
            figures |= figures_of(out)
        if not figures:
            raise UserError(f"{place}: the verbs left no figures; let one of them evaluate")
        return figures

    return work_of(measure, folder)


def step_folder(place: Path, steps: Sequence[Sequence[str]], i: int) -> Path:
    """Where the i-th verb of a cell leaves what it makes: ``train``, ``attack``, ``attack2``."""
    before = sum(step[0] == steps[i][0] for step in steps[:i])
    return place / f"{steps[i][0]}{before + 1 if before else ''}"


def run_step(argv: Sequence[str], out: Path, program: str, beat: Beat) -> None:
    """Runs a verb to its end; what it prints goes to ``log.txt`` in its folder.

    Raises:
        UserError: it failed, and would do so again.
        Stopped: this process was told to stop, and the verb has ended, too.
        RuntimeError: it was killed, or stopped by itself; another try goes on from there.
    """
    log, report = out / "log.txt", out / REPORT
    out.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("ab") as file, preemption.saving():
        process = subprocess.Popen(
            [sys.executable, "-m", STEP, program, *argv],
            stdin=subprocess.PIPE,  # its end is ours
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
        )
        try:
            code = _ended(process, beat)
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
    # A report with rows that had to be left out is a report; the verb says so by its exit code.
    if code == 0 or (code == 1 and report.exists()):
        return
    why = f"{argv[0]}: {_last_line(log)} (exit code {code}, {log})"
    if code < 0 or code in STARTS_AGAIN:
        raise RuntimeError(why)
    raise UserError(why)


def _ended(process: "subprocess.Popen[bytes]", beat: Beat) -> int:
    """Waits for a process's exit code; passes on a signal to stop."""
    while True:
        try:
            return process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            beat()
        try:
            preemption.check(alone=True)
        except Stopped:
            process.terminate()
            process.wait()
            raise


def _last_line(log: Path) -> str:
    """The error that a verb told, or the last that it said."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("crossguard")]
    return re.sub(r"^crossguard( \w+)?: ", "", (errors or lines or ["said nothing"])[-1])
