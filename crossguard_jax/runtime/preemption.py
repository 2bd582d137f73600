"""Being told to stop: by SIGTERM or SIGUSR2, by another process of the run, by JAX's service.

A signal may come at any time: in a compilation of minutes, while data is awaited, in an evaluation,
in a save. Python's own handlers wait until the main thread returns from C++, so that a thread of
its own reads the signal as it comes. Work that saves (`saving`) goes on to its next `check` and
saves; all processes of a run stop at the same one. Where none is reached in time the process ends
as it is, and so it does at a second signal: only what is not saved yet is lost. Outside of such
work there is nothing to save, and the signal ends what runs at once.
"""

import _thread
import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from crossguard_jax.runtime.board import Board
from crossguard_jax.runtime.exits import AGAIN, leave, seconds

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
GRACE = 100.0
"""Seconds to a place where saving is possible: what launchers give is 120.
``CROSSGUARD_GRACE_SECONDS`` has another number."""
REPEATED = 1.0
"""Seconds after which a signal is a second one, and not the first by another way: a group of
processes and the script at its head are often both told."""
GLANCE = 0.5
"""Seconds between looks at the board."""
UNHEARD = 3.0
"""Seconds after which what the handler raised is taken for lost: a finalizer of a library's, or
code that catches everything, may have been where it was raised."""


class Stopped(SystemExit):
    """The work was told to stop, and what it had is saved. Uncaught, it ends the process with
    `exits.AGAIN`; no ``except Exception`` takes it for an error.

    Attributes:
        reason: why, and what was saved, on one line.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason, self.code = reason, AGAIN


class Listener:
    """Knows whether to stop, and where.

    Args:
        board: of a run of several processes.
        index: this process's number.
        count: how many there are.
        grace: seconds to a `check`, or to the main thread's return from C++.
        end: called with an exit code and a line; does not return.
        interrupt: has the main thread's next step into Python be into `handle`.
    """

    def __init__(
        self,
        board: Board | None = None,
        index: int = 0,
        count: int = 1,
        grace: float = GRACE,
        end: Callable[[int, str], object] = leave,
        interrupt: Callable[[signal.Signals], object] = _thread.interrupt_main,
    ):
        self._board, self._index, self._n = board, index, count
        self._grace, self._end, self._interrupt = grace, end, interrupt
        self._lock = threading.Lock()
        self._why, self._since = "", 0.0
        self._checks, self._last = 0, None if board else 0
        self._saving, self._reached, self._raised = 0, False, 0.0

    def notice(self, why: str) -> None:
        """Begins to stop; again after a while, it ends the process."""
        now = time.monotonic()
        if not self._why:
            self._why, self._since = why, now
        elif now - self._since > REPEATED:
            self._end(AGAIN, f"{why} once more: left at once; start it again")

    def glance(self) -> None:
        """Looks at the board and at the clock; called every `GLANCE` seconds, by one thread."""
        if self._board is not None:
            if not self._why and (why := self._board.get("stop")):
                self.notice(why)
                if not self._saving:
                    self._interrupt(signal.SIGTERM)
            if self._why and self._last is None:
                self._agree(self._board)
        lost = self._raised and time.monotonic() - self._raised > UNHEARD
        if lost and not self._saving and not self._reached:
            self._interrupt(signal.SIGTERM)
        if self._why and not self._reached and time.monotonic() - self._since > self._grace:
            unsaved = (
                f": nothing could be saved within {self._grace:g} s, so what came after the last "
                "save is lost"
            )
            self._end(AGAIN, f"{self._why}{unsaved if self._saving else ''}; start it again")

    def _agree(self, board: Board) -> None:
        """Settles after how many checks all stop: one more than any has passed.

        While it lasts no check is passed here. It needs the others' threads alone: what the main
        threads wait for cannot hold it up.
        """
        with self._lock:
            board.put("stop", self._why)
            board.put(f"stops/{self._index}", str(self._checks))
            while len(passed := board.under("stops")) < self._n:
                if time.monotonic() - self._since > self._grace:
                    return
                time.sleep(GLANCE)
            self._last = max(map(int, passed.values())) + 1

    def check(self, step: int | None = None, alone: bool = False) -> None:
        """A place where the work can stop and save.

        Args:
            step: the step that has been done, where the processes step together: JAX's own
                preemption service is heard there.
            alone: the process works by itself, and stops without the others; else all processes
                pass as many checks.

        Raises:
            Stopped: it is to stop here.
        """
        with self._lock:
            self._checks += 1
            due = alone or (self._last is not None and self._checks >= self._last)
            stops = bool(self._why) and due
        if not stops and step is not None and self._board is not None and _service(step):
            self._why, stops = "told by the preemption service", True
        if stops:
            self._reached = True
            raise Stopped(self._why)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around work that passes checks, and saves where one says so."""
        self._saving += 1
        try:
            yield
        finally:
            self._saving -= 1
        if self._why and not self._saving:
            self._reached = True
            raise Stopped(f"{self._why}: all is saved")

    def heard(self) -> None:
        """What was raised has come to where the process ends."""
        self._reached = True

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """The signal's handler, which Python calls in the main thread.

        Raises:
            Stopped: nothing is going on that would save.
        """
        self._why = self._why or told_by(number)
        self._since = self._since or time.monotonic()
        if not self._saving and not self._reached:
            self._raised = time.monotonic()
            raise Stopped(self._why)


def told_by(number: int) -> str:
    """What a message calls a signal."""
    return f"told to stop by {signal.Signals(number).name}"


def _service(step: int) -> bool:
    """Whether JAX's preemption service has all processes stop at this step."""
    from jax.experimental import multihost_utils

    try:
        return multihost_utils.reached_preemption_sync_point(step)
    except RuntimeError:  # the service is off
        return False


_current = Listener()


def check(step: int | None = None, alone: bool = False) -> None:
    """See `Listener.check`; nobody has anything to say where `listen` was not called."""
    _current.check(step, alone)


def heard() -> None:
    """See `Listener.heard`."""
    _current.heard()


def saving() -> contextlib.AbstractContextManager[None]:
    """See `Listener.saving`."""
    return _current.saving()


def listen(
    board: Board | None = None, index: int = 0, count: int = 1, grace: float | None = None
) -> None:
    """Hears signals from now on; call it in the main thread, after ``jax.distributed`` is
    initialized, which takes SIGTERM for itself, and before libtpu is loaded, which takes what
    nobody has and prints its stack.

    Args:
        board: of a run of several processes.
        index: this process's number.
        count: how many there are.
        grace: see `Listener`; what the environment says by default.
    """
    global _current
    if grace is None:
        grace = seconds("CROSSGUARD_GRACE_SECONDS", GRACE, 1.0)
    _current = listener = Listener(board, index, count, grace)
    out, into = os.pipe()
    os.set_blocking(into, False)
    for number in SIGNALS:
        signal.signal(number, listener.handle)
    signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_deafen)
    watch = threading.Thread(target=_watch, args=(listener, out), name="stop", daemon=True)
    watch.start()


def _watch(listener: Listener, pipe: int) -> NoReturn:
    while True:
        if select.select([pipe], [], [], GLANCE)[0]:
            for number in os.read(pipe, 64):
                if number in SIGNALS:
                    listener.notice(told_by(number))
        # The store is gone at the very end, and where process 0 is: the watchdog's business.
        with contextlib.suppress(RuntimeError):
            listener.glance()


def _deafen() -> None:
    """A child that was forked writes into its parent's pipe no more."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
