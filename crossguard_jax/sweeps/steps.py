"""A cell whose work is verbs of the command line, each in a process of its own.

So a cell has the memory and the devices to itself, and ends with its own error alone.
"""

import itertools
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
ANOTHER_RUNS = "of another run"
"""What verbs say of checkpoints, candidates, outputs and verdicts with which they do not go on."""


class AnotherRuns(UserError):
    """A verb's folder has what an earlier configuration left."""


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
            argv = [*step, "--out", str(out)]
            try:
                run_step(argv, out, spec["program"], beat)
            except AnotherRuns:
                # What followed has measured that run.
                for each in range(i, len(steps)):
                    put_aside(step_folder(place, steps, each))
                run_step(argv, out, spec["program"], beat)
            figures |= figures_of(out)
        if not figures:
            raise UserError(f"{place}: the verbs left no figures; let one of them evaluate")
        return figures

    return work_of(measure, folder)


def step_folder(place: Path, steps: Sequence[Sequence[str]], i: int) -> Path:
    """Where the i-th verb of a cell leaves what it makes: ``train``, ``attack``, ``attack2``."""
    before = sum(step[0] == steps[i][0] for step in steps[:i])
    return place / f"{steps[i][0]}{before + 1 if before else ''}"


def put_aside(folder: Path) -> None:
    """Keeps what a verb has left, if it has, as ``train.1``, or the first such that is free."""
    if folder.exists():
        names = (folder.with_name(f"{folder.name}.{n}") for n in itertools.count(1))
        folder.rename(next(name for name in names if not name.exists()))


def run_step(argv: Sequence[str], out: Path, program: str, beat: Beat) -> None:
    """Runs a verb to its end; what it prints goes to ``log.txt`` in its folder.

    Raises:
        UserError: it failed, and would do so again; `AnotherRuns` for what lies in its folder.
        Stopped: this process was told to stop, and the verb has ended, too.
        RuntimeError: it was killed, or stopped by itself; another try goes on from there.
    """
    log, report = out / "log.txt", out / REPORT
    out.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("ab") as file, preemption.saving():
        before = file.tell()
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
    line = _last_line(log, before)
    why = f"{argv[0]}: {line} (exit code {code}, {log})"
    if code < 0 or code in STARTS_AGAIN:
        raise RuntimeError(why)
    raise AnotherRuns(why) if ANOTHER_RUNS in line else UserError(why)


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


def _last_line(log: Path, start: int) -> str:
    """The error that a verb told, or the last that it said, from that byte of its log on."""
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("crossguard")]
    return re.sub(r"^crossguard( \w+)?: ", "", (errors or lines or ["said nothing"])[-1])
