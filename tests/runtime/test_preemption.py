"""Where a run stops: at a place that saves, at the same one in all processes, or at once."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime import preemption, watchdog
from crossguard_jax.runtime.exits import AGAIN
from crossguard_jax.runtime.preemption import Listener, Stopped
from tests.runtime.boards import Left, Memory, left

WHY = "told to stop by SIGTERM"


def passed(listener: Listener, most: int = 100) -> int:
    """Checks that are passed until one says to stop."""
    for n in range(most):
        try:
            listener.check()
        except Stopped:
            return n
    return most


def test_nobody_told_it_to_stop() -> None:
    listener = Listener()
    with listener.saving():
        assert passed(listener, 5) == 5


def test_a_lone_process_stops_at_its_next_check() -> None:
    listener = Listener()
    with pytest.raises(Stopped) as stopped, listener.saving():
        listener.handle(signal.SIGTERM)
        listener.check()
    assert stopped.value.reason == WHY and stopped.value.code == AGAIN


def test_where_nothing_saves_the_signal_itself_ends_what_runs() -> None:
    with pytest.raises(Stopped, match=WHY):
        Listener().handle(signal.SIGTERM)


def test_told_after_the_last_check_it_stops_as_the_work_is_done() -> None:
    listener = Listener()
    with pytest.raises(Stopped, match="all is saved"), listener.saving():
        listener.handle(signal.SIGUSR2)


def test_no_handler_of_errors_takes_it_for_one() -> None:
    assert not issubclass(Stopped, Exception)


def several(count: int) -> list[Listener]:
    board = Memory()
    return [Listener(board, i, count, end=left) for i in range(count)]


def glance(listeners: list[Listener]) -> None:
    """What the listeners' threads do, each in one of its own."""
    threads = [threading.Thread(target=each.glance) for each in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("ahead", [(0, 0, 0), (3, 4, 3), (5, 2, 0)])
@pytest.mark.parametrize("signalled", [0, 2])
def test_all_processes_stop_after_the_same_check_whoever_was_told(
    ahead: tuple[int, ...], signalled: int
) -> None:
    listeners = several(len(ahead))
    for listener, n in zip(listeners, ahead, strict=True):
        listener._saving = 1
        assert passed(listener, n) == n
    listeners[signalled].notice(WHY)
    glance(listeners[signalled : signalled + 1] + [x for x in listeners if not x._why])
    total = [n + passed(listener, 10) + 1 for listener, n in zip(listeners, ahead, strict=True)]
    assert total == [max(ahead) + 1] * len(ahead)


def test_until_all_agree_none_stops() -> None:
    one, _ = several(2)
    one._saving, one._grace = 1, 0.0
    one.notice(WHY)
    with pytest.raises(Left, match=f"{AGAIN} {WHY}: nothing could be saved within 0 s"):
        one.glance()
    assert one._last is None


def test_where_nothing_is_saved_nothing_is_said_to_be_lost() -> None:
    listener = Listener(grace=0.0, end=left)
    listener.notice(WHY)
    with pytest.raises(Left, match=f"^{AGAIN} {WHY}; start it again$"):
        listener.glance()


def test_work_of_ones_own_stops_without_the_others() -> None:
    one, _ = several(2)
    one.notice(WHY)
    with pytest.raises(Stopped):
        one.check(alone=True)


def test_a_second_notice_ends_the_process_and_the_same_one_twice_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: clock[0])
    listener = Listener(end=left)
    listener.notice(WHY)
    clock[0] += preemption.REPEATED / 2
    listener.notice(WHY)
    clock[0] += preemption.REPEATED
    with pytest.raises(Left, match=f"^{AGAIN} {WHY} once more: left at once"):
        listener.notice(WHY)


def test_what_was_raised_and_lost_is_raised_again_until_it_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library's finalizer was where the handler raised, say."""
    clock, interrupted = [100.0], []
    monkeypatch.setattr(preemption.time, "monotonic", lambda: clock[0])
    listener = Listener(end=left, interrupt=interrupted.append)
    with contextlib.suppress(Stopped):
        listener.handle(signal.SIGTERM)
    listener.glance()
    assert interrupted == []
    clock[0] += 2 * preemption.UNHEARD
    listener.glance()
    assert interrupted == [signal.SIGTERM]
    with pytest.raises(Stopped, match=WHY):
        listener.handle(signal.SIGTERM)
    listener.heard()
    clock[0] += 2 * preemption.UNHEARD
    listener.glance()
    listener.handle(signal.SIGTERM)
    assert len(interrupted) == 1


SWALLOWED = """
import os, signal, sys, time
from crossguard_jax.runtime import preemption

preemption.UNHEARD = 0.2
sys.unraisablehook = lambda _: print("swallowed", flush=True)

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

preemption.listen()
one = Finalized()
del one
time.sleep(60)
"""


def test_a_process_whose_library_swallowed_the_signal_ends_all_the_same() -> None:
    command = [sys.executable, "-c", SWALLOWED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("swallowed\n", AGAIN), done.stderr


@pytest.mark.parametrize("value", ["abc", "-1", "0", "nan"])
@pytest.mark.parametrize(
    ("name", "listen"),
    [
        ("GRACE", preemption.listen),
        ("LOST", lambda: watchdog.watch(Memory(), 0, 2)),
        ("STUCK", lambda: watchdog.watch(Memory(), 0, 2)),
    ],
)
def test_a_time_that_is_none_is_refused_by_its_name(
    name: str, listen: Callable[[], None], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"CROSSGUARD_{name}_SECONDS", value)
    with pytest.raises(UserError, match=f"CROSSGUARD_{name}_SECONDS={value}: give seconds, "):
        listen()


def test_the_clock_stops_where_saving_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: clock[0])
    listener = Listener(grace=10.0, end=left)
    listener._saving = 1
    listener.notice(WHY)
    clock[0] += 9.0
    listener.glance()
    assert passed(listener) == 0
    clock[0] += 100.0
    listener.glance()


def test_the_preemption_service_of_jax_stops_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax.experimental import multihost_utils

    one, _ = several(2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda n: n == 7)
    one.check(6)
    with pytest.raises(Stopped, match="preemption service"):
        one.check(7)


def test_a_service_that_is_off_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src import distributed

    monkeypatch.setattr(distributed.global_state, "client", object())  # as where there are several
    one, _ = several(2)
    one.check(6)


@pytest.fixture
def listening() -> None:
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    current = preemption._current
    preemption.listen()
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)
    preemption._current = current


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_the_process_hears_its_signals(listening: None, number: int) -> None:
    with pytest.raises(Stopped, match=signal.Signals(number).name), preemption.saving():
        os.kill(os.getpid(), number)
        preemption.check()


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_forked_child_leaves_its_parent_alone(listening: None) -> None:
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    with preemption.saving():
        preemption.check()
