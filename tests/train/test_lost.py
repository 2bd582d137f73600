"""Two processes on one machine: both stop at one step, and one that dies or stands still ends the
other in bounded time, by name."""

import contextlib
import os
import signal
import socket

import numpy as np
import pytest

from crossguard_jax.runtime.exits import AGAIN
from tests.train.stopped_run import Wait, run
from tests.train.test_stopped import finish, reach, start, steps_saved

pytestmark = pytest.mark.devices  # two processes of their own that compile

BOUND = {"CROSSGUARD_LOST_SECONDS": "8", "CROSSGUARD_STUCK_SECONDS": "20"}


@pytest.fixture
def pair(repository):
    """Starts two processes of one run; ends what is left of them."""
    started = []

    def begin(folder, *wait, **environ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for index in (0, 1):
            address = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            }
            started.append(start(repository, folder, *wait, **address, **BOUND, **environ))
        return started

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signalled", [0, 1])
def test_one_is_told_to_stop_and_both_save_the_same_step(signalled, pair, tmp_path):
    processes = pair(tmp_path, "step", "5", str(signalled))
    reach(processes[signalled], "step")
    processes[signalled].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in (processes[signalled], processes[1 - signalled])]
    assert [code for code, _ in ends] == [AGAIN, AGAIN], ends
    saved = steps_saved(tmp_path)[-1]
    assert all(f"saved after step {saved} in" in errors for _, errors in ends), ends
    # One process goes on with what two have saved.
    run(tmp_path, Wait())
    run(tmp_path / "whole", Wait())
    alone, resumed = (np.load(f / "final.npy") for f in (tmp_path / "whole", tmp_path))
    np.testing.assert_allclose(resumed, alone, rtol=1e-4)


@pytest.mark.parametrize(
    ("lost", "how"),
    [(1, signal.SIGSTOP), (1, signal.SIGKILL), (0, signal.SIGSTOP), (0, signal.SIGKILL)],
    ids=["1 stopped", "1 killed", "0 stopped", "0 killed"],
)
def test_one_that_stands_still_or_dies_ends_the_other_which_names_it(lost, how, pair, tmp_path):
    processes = pair(tmp_path, "step", "5", str(lost))
    reach(processes[lost], "step")
    processes[lost].send_signal(how)
    code, errors = finish(processes[1 - lost])
    assert code == AGAIN, errors
    assert f"crossguard: process {lost} " in errors and "start the run again" in errors


def test_one_alive_but_stuck_is_named_with_where(pair, tmp_path):
    processes = pair(tmp_path, "data", "5", "1")
    reach(processes[1], "data")
    ends = [process.wait(timeout=300) for process in processes]
    assert ends == [AGAIN, AGAIN]
    line = "crossguard: process 1 is stuck in the data of step 5 and the others wait for it"
    assert all(line in process.stderr.read() for process in processes)


def test_one_that_fails_ends_the_other_with_its_own_code(pair, tmp_path):
    processes = pair(tmp_path, "fail", "5", "1")
    ends = [finish(process) for process in processes]
    assert [code for code, _ in ends] == [1, 1], ends
    assert "crossguard: rows.jsonl, row 5: not to be read" in ends[1][1]
    assert "process 1 failed: rows.jsonl, row 5: not to be read" in ends[0][1]
