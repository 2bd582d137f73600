"""Runs side by side: in order, each on cores of its own, and an error is not swallowed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.toy.tables.workers import spread


def where(folder: Path, number: int, others: int) -> tuple[int, int, frozenset[int]]:
    """Of a run: its number, its process and its cores; once so many others have begun."""
    (folder / str(number)).touch()
    assert wait_until(lambda: len(list(folder.iterdir())) > others)
    return number, os.getpid(), frozenset(os.sched_getaffinity(0))


def refuse(number: int) -> int:
    """Fails for one number."""
    if number == 1:
        raise UserError("rows: 1 is refused")
    return number


def dawdle(folder: Path, number: int) -> None:
    """Says which process it is, and goes on for long."""
    (folder / f"{number}.part").write_text(str(os.getpid()))
    (folder / f"{number}.part").rename(folder / f"{number}.pid")
    time.sleep(600)


def alive(process: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(what, seconds=60.0):
    """Waits, and says whether it came true."""
    deadline = time.monotonic() + seconds
    while not (true := what()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return true


def test_no_run_outlives_a_killed_command(tmp_path, repository):
    program = (
        "from pathlib import Path\n"
        "from crossguard_jax.toy.tables.workers import spread\n"
        "from tests.toy.tables.test_workers import dawdle\n"
        f"spread(dawdle, [(Path({str(tmp_path)!r}), i) for i in range(2)], 2)\n"
    )
    environ = os.environ | {"PYTHONPATH": str(repository)}
    command = subprocess.Popen([sys.executable, "-c", program], env=environ)
    assert wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
    assert all(map(alive, workers))
    command.send_signal(signal.SIGKILL)
    command.wait()
    assert wait_until(lambda: not any(map(alive, workers)), 10.0)


def test_one_job_is_done_here(tmp_path):
    found = spread(where, [(tmp_path, 0, 0), (tmp_path, 1, 1)], 1)
    assert [number for number, _, _ in found] == [0, 1]
    assert {process for _, process, _ in found} == {os.getpid()}


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores, and a system that tells which a process has",
)
def test_several_jobs_keep_the_order_and_share_the_cores_out(tmp_path):
    # The first ends last: it waits for all others, the second for the first alone.
    found = spread(where, [(tmp_path, i, others) for i, others in enumerate((3, 1, 2, 3))], 2)
    assert [number for number, _, _ in found] == [0, 1, 2, 3]
    cores = {process: own for _, process, own in found}
    assert len(cores) == 2 and os.getpid() not in cores
    one, other = cores.values()
    assert not one & other and one | other == os.sched_getaffinity(0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_a_run_is_the_commands(jobs):
    with pytest.raises(UserError, match="rows: 1 is refused"):
        spread(refuse, [(0,), (1,), (2,)], jobs)


def test_no_job_is_refused():
    with pytest.raises(UserError, match="--jobs 0: 1 at least"):
        spread(refuse, [(0,)], 0)
