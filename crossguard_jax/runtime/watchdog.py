"""Ends every process of a run when one of them is gone, stuck, or failed, and names it.

JAX waits for a process that is alive and does nothing for ever, and says of one that died only
that some task did. Here each process writes a beat to the board every few seconds, with where it
is; the first reads them all and writes down who is lost; the others read that, and the first's
beats. Whoever ends this way ends from a thread, since the main one waits on the devices.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from crossguard_jax.runtime.board import Board
from crossguard_jax.runtime.exits import AGAIN, leave, seconds

LOST = 60.0
"""Seconds without a beat after which a process is gone, or its machine stands still: beats come
from a thread, during compilations too. ``CROSSGUARD_LOST_SECONDS`` has another number."""
STUCK = 1800.0
"""Seconds in one place (a step, its data, an evaluation's batch) after which a process is stuck:
longer than a compilation. ``CROSSGUARD_STUCK_SECONDS`` has another number."""
INTERVAL = 2.0
"""Seconds between beats."""
RESTS = "rests"
"""The last beat of a process that is done."""


@dataclass
class Seen:
    """What is read of a process's beats.

    Attributes:
        text: the last.
        beat: when another one was read than before, in seconds.
        moves: how many places it has been in.
        moved: when that rose.
        place: where it is; "" is nowhere that anybody watches.
    """

    beat: float
    moved: float
    text: str = ""
    moves: int = 0
    place: str = ""

    def read(self, text: str, now: float) -> None:
        """Takes in a beat, which may be the one before, or none."""
        if not text or text == self.text:
            return
        self.text, self.beat = text, now
        _, moves, self.place = text.split(" ", 2)
        if int(moves) != self.moves:
            self.moves, self.moved = int(moves), now


@dataclass
class Watchdog:
    """One process's.

    Args:
        board: the run's.
        index: this process's number.
        count: how many there are.
        lost: see `LOST`.
        stuck: see `STUCK`.
        end: called with an exit code and a line; does not return.
    """

    board: Board
    index: int
    count: int
    lost: float = LOST
    stuck: float = STUCK
    end: Callable[[int, str], object] = leave
    _seen: dict[int, Seen] = field(default_factory=dict)
    _beats: int = 0
    _moves: int = 0
    _place: str = ""
    _answered: float = 0.0
    _resting: bool = False

    def __post_init__(self) -> None:
        now = self._answered = time.monotonic()
        # Who never beat was there when the processes met.
        self._seen = {i: Seen(now, now) for i in (range(self.count) if self.index == 0 else (0,))}

    def at(self, place: str) -> None:
        """The main thread is at another place; "" is none, where it may stay for ever."""
        self._moves, self._place = self._moves + 1, place

    def beat(self) -> None:
        """Writes this process's beat and reads the others'; called every `INTERVAL`."""
        if self._resting:
            return
        self._beats += 1
        self.board.put(f"beat/{self.index}", f"{self._beats} {self._moves} {self._place}")
        if verdict := self.board.get("end"):
            self._obey(verdict)
        beats = self.board.under("beat") if self.index == 0 else {0: self.board.get("beat/0") or ""}
        now = self._answered = time.monotonic()
        for i in [i for i in self._seen if beats.get(i) == RESTS]:
            del self._seen[i]
        for i, seen in self._seen.items():
            seen.read(beats.get(i, ""), now)
        if line := judge(self._seen, now, self.lost, self.stuck):
            self.board.put("end", f"{AGAIN} {line}")
            self._obey(f"{AGAIN} {line}")

    def look(self) -> None:
        """Ends the process where the board itself does not answer: the first process serves it."""
        silent = time.monotonic() - self._answered > self.lost
        if self.index and silent and self._seen and not self._resting:
            self.end(AGAIN, f"process 0 has given no sign for {self.lost:g} s; start the run again")

    def hold(self) -> None:
        """Ends the process the moment that the first is gone. JAX aborts it then, too, and names
        nobody; but it looks up the names on its stack first, and this is sooner."""
        self.board.until_gone()
        if not self._resting:
            self.end(AGAIN, "process 0 is gone; start the run again")

    def rest(self) -> None:
        """This process is done, and has only to wait until the others are."""
        self._resting = True
        self.board.put(f"beat/{self.index}", RESTS)

    def fail(self, code: int, line: str) -> None:
        """Ends the run with this process's own failure; does not return.

        The first process stays until the others have read it, since the board goes with it.
        """
        self.board.put("end", f"{code} process {self.index} failed: {line}")
        self.board.put(f"left/{self.index}", "")
        deadline = time.monotonic() + self.lost
        while self.index == 0 and time.monotonic() < deadline:
            if len(self.board.under("left")) >= self.count:
                break
            time.sleep(INTERVAL / 4)
        os._exit(code)

    def _obey(self, verdict: str) -> None:
        code, line = verdict.split(" ", 1)
        if self.index:
            self.board.put(f"left/{self.index}", "")
        else:
            time.sleep(2 * INTERVAL)  # the others have read it too, from the board that goes now
        self.end(int(code), line)


def judge(seen: dict[int, Seen], now: float, lost: float, stuck: float) -> str:
    """Which process the others wait for in vain, on one line; "" where there is none.

    Args:
        seen: the processes' beats.
        now: seconds, on the clock of ``seen``.
        lost: see `LOST`.
        stuck: see `STUCK`.
    """
    for i, each in sorted(seen.items()):
        if (silent := now - each.beat) > lost:
            where = f" in {each.place}" if each.place else ""
            return (
                f"process {i} is gone or stands still{where}: no sign of it for {silent:.0f} s; "
                "start the run again"
            )
    if not seen or any(now - each.moved <= stuck or not each.place for each in seen.values()):
        return ""
    # One that stands still stops all of them: it is the one that has been in fewest places.
    i, last = min(seen.items(), key=lambda item: item[1].moves)
    return (
        f"process {i} is stuck in {last.place} and the others wait for it: nothing has moved for "
        f"{stuck:g} s; start the run again"
    )


_current: Watchdog | None = None


def at(place: str) -> None:
    """See `Watchdog.at`; nothing in a run of one process."""
    if _current is not None:
        _current.at(place)


def watch(board: Board, index: int, count: int) -> None:
    """Watches the run's processes from now on."""
    global _current
    lost = seconds("CROSSGUARD_LOST_SECONDS", LOST, 2 * INTERVAL)
    stuck = seconds("CROSSGUARD_STUCK_SECONDS", STUCK, 2 * INTERVAL)
    stuck = math.inf if index else stuck  # who waits for whom, the first sees alone
    _current = dog = Watchdog(board, index, count, lost, stuck)
    for name, work in {"beat": dog.beat, "look": dog.look}.items():
        threading.Thread(target=_repeat, args=(work,), name=name, daemon=True).start()
    if index:
        threading.Thread(target=dog.hold, name="hold", daemon=True).start()


def _repeat(work: Callable[[], None]) -> None:
    while True:
        # What a board that is gone raises; how long it has been gone, `look` sees.
        with contextlib.suppress(RuntimeError):
            work()
        time.sleep(INTERVAL)


def fail(code: int, line: str) -> None:
    """Ends a run of several processes with this one's failure; returns where it is the only one."""
    if _current is not None:
        _current.fail(code, line)


def rest() -> None:
    """See `Watchdog.rest`."""
    if _current is not None:
        _current.rest()


def blame() -> None:
    """Waits for a verdict on another process, by which this one then ends: a collective that fails
    may have failed because of it. Returns where there is none, or no other process."""
    if _current is not None:
        time.sleep(_current.lost + 3 * INTERVAL)
