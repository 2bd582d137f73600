"""Told to stop in any phase, a run saves, says so by its exit code, and loses nothing.

A process of its own waits in a phase that it names, so that the signal comes in that very one.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crossguard_jax.runtime import preemption
from crossguard_jax.runtime.exits import AGAIN
from tests.train.stopped_run import Wait, run

PROGRAM = Path(__file__).with_name("stopped_run.py")
# (phase, step): which step is the last that is saved. Before the first step nothing is.
PHASES = {
    "data": (7, 7),
    "compile": (1, 1),
    "step": (6, 6),
    "evaluation": (5.1, 5),
    "save": (8, 8),
}
"""Where each stops, and the step that is saved then. The evaluation stops in its second part."""
SIGNALS = dict.fromkeys(PHASES, signal.SIGTERM) | {"step": signal.SIGUSR2}


def start(repository, folder, *arguments, **environ):
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository)} | environ
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), *arguments],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def reach(process, phase):
    """Returns as the run waits in the phase."""
    lines = []
    while not lines or lines[-1] != f"at {phase}\n":
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines) + process.stderr.read()


def finish(process, line="\n"):
    """Lets it go on; its exit code and what it said on stderr."""
    _, errors = process.communicate(line, timeout=300)
    return process.returncode, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, Wait())
    return folder


def ends_as(folder, whole):
    """Goes on with a run, and sees that it ends as the one that was never stopped."""
    run(folder, Wait())
    assert np.array_equal(np.load(folder / "final.npy"), np.load(whole / "final.npy"))
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    best = [sorted(p.name for p in (f / "best").iterdir()) for f in (folder, whole)]
    assert best[0] == best[1]


def steps_saved(folder):
    return sorted(int(p.name) for p in (folder / "latest").iterdir() if p.name.isdigit())


class InProcess(Wait):
    """Tells the listener what a signal would, in a phase."""

    def __init__(self, phase, step, listener):
        super().__init__(phase, step)
        self.listener = listener

    def __call__(self, phase, step):
        if (phase, step) == self.at:
            self.at = None
            self.listener.notice("told to stop by a test")


@pytest.mark.parametrize("phase", PHASES)
def test_told_to_stop_in_a_phase_it_saves_and_goes_on_bit_for_bit(
    phase, tmp_path, whole, monkeypatch
):
    step, saved = PHASES[phase]
    listener = preemption.Listener()
    monkeypatch.setattr(preemption, "_current", listener)
    with pytest.raises(preemption.Stopped, match=f"saved after step {saved} in") as stopped:
        run(tmp_path, InProcess(phase, step, listener))
    assert stopped.value.code == AGAIN
    assert steps_saved(tmp_path)[-1] == saved
    monkeypatch.setattr(preemption, "_current", preemption.Listener())
    ends_as(tmp_path, whole)


def test_before_its_first_step_it_leaves_without_compiling_for_minutes(tmp_path, monkeypatch):
    listener = preemption.Listener()
    monkeypatch.setattr(preemption, "_current", listener)
    with pytest.raises(preemption.Stopped):
        run(tmp_path, InProcess("data", 1, listener))
    assert steps_saved(tmp_path) == []


@pytest.mark.training
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_a_phase_ends_the_process_with_start_me_again(
    phase, repository, tmp_path, whole
):
    step, saved = PHASES[phase]
    process = start(repository, tmp_path, phase, str(step))
    reach(process, phase)
    process.send_signal(SIGNALS[phase])
    code, errors = finish(process)
    assert code == AGAIN, errors
    assert f"crossguard: told to stop by {SIGNALS[phase].name}: saved after step {saved}" in errors
    assert errors.rstrip().endswith("start it again")
    assert steps_saved(tmp_path)[-1] == saved
    ends_as(tmp_path, whole)


@pytest.mark.training
def test_a_second_signal_ends_it_at_once_and_costs_what_was_not_saved(repository, tmp_path, whole):
    process = start(repository, tmp_path, "step", "7")
    reach(process, "step")
    while process.poll() is None:  # it waits for a line that never comes
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
    assert process.returncode == AGAIN
    assert "SIGTERM once more: left at once; start it again" in process.stderr.read()
    # Where a disk is slow, the save before was still on its way, and nothing is whole.
    assert steps_saved(tmp_path)[-1:] in ([4], [])
    ends_as(tmp_path, whole)


@pytest.mark.training
def test_where_nothing_can_be_saved_in_time_it_ends_as_it_is(repository, tmp_path, whole):
    process = start(repository, tmp_path, "compile", "1", CROSSGUARD_GRACE_SECONDS="0.1")
    reach(process, "compile")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == AGAIN
    assert "nothing could be saved within 0.1 s" in process.stderr.read()
    ends_as(tmp_path, whole)


@pytest.mark.training
def test_a_killed_run_loses_what_came_after_the_last_save_alone(repository, tmp_path, whole):
    process = start(repository, tmp_path, "save", "8")
    reach(process, "save")
    process.kill()
    process.wait()
    assert steps_saved(tmp_path)[-1] == 4
    ends_as(tmp_path, whole)


@pytest.mark.training
def test_a_full_disk_leaves_the_save_before_whole_and_is_one_line(repository, tmp_path, whole):
    program = Path(__file__).with_name("full_disk.py")
    mount = ["unshare", "--mount", sys.executable, str(program), str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("no right to mount a small disk here")
    environ = os.environ | {"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(mount, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["code"] == 1 and report["saved"] == [4]
    (line,) = report["errors"].splitlines()
    assert "could not be written (No space left on device); step 4 is whole" in line
    assert report["final"] == np.load(whole / "final.npy").tolist()
    assert report["log"] == (whole / "metrics.jsonl").read_text()
