"""Progress of long work on stderr: what, how far, how fast, how long still."""

import sys
import time
from collections.abc import Callable
from typing import Any

REDRAW_SECONDS = 0.2  # on a terminal, where a line replaces the one before
LINE_SECONDS = 30.0  # elsewhere (a log file, a batch system), where every line stays


class Progress:
    """Counts work done and says so now and then.

    Silent for the first ``quiet_seconds``, so that short work prints nothing. On a terminal one
    line is redrawn in place; elsewhere a plain line appears every half minute.

    Example:
      >>> with Progress("scoring", total=2000, unit="row") as progress:
      ...     for row in rows:
      ...         progress.update()
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "row",
        start: int = 0,
        enabled: bool = True,
        quiet_seconds: float = 5.0,
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock.

        Args:
          what: the work, in a word or two.
          total: how much there is, when known; without it there is no ETA.
          unit: what is counted, in the singular.
          start: how much had been done before (resumed work); it does not count for the rate.
          enabled: False prints nothing (every process but the first).
          quiet_seconds: how long to stay silent at first.
          stream: the text stream to print to; stderr unless given.
          clock: seconds, monotonic.
        """
        self.what, self.total, self.unit = what, total, unit
        self.done, self._start = start, start
        self._enabled, self._quiet, self._clock = enabled, quiet_seconds, clock
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._began = clock()
        self._printed_at: float | None = None
        self._width = 0
        self._note = ""

    def update(self, n: int = 1, note: str = "") -> None:
        """Adds ``n`` units of work; ``note`` (a loss, a file) stays on the line until replaced."""
        self.done += n
        self._note = note or self._note
        now = self._clock()
        if self._printed_at is None:
            due = now - self._began >= self._quiet
        else:
            due = now - self._printed_at >= (REDRAW_SECONDS if self._terminal else LINE_SECONDS)
        if self._enabled and due:
            self._print(now)

    def close(self) -> None:
        """Prints the last line, if any was printed."""
        if self._printed_at is not None:
            self._print(self._clock())
            if self._terminal:
                self._stream.write("\n")
            self._printed_at = None
            self._enabled = False

    def line(self, now: float) -> str:
        """The progress at clock time ``now``, as one line."""
        elapsed = now - self._began
        rate = (self.done - self._start) / elapsed if elapsed > 0 else 0.0
        amount = f"{self.done:,}"
        if self.total:
            amount += f"/{self.total:,} ({100 * self.done / self.total:.0f}%)"
        speed = f"{rate:,.1f} {self.unit}s/s"
        if 0 < rate < 0.5:
            speed = f"{1 / rate:.1f} s/{self.unit}"
        parts = [f"{self.what}: {amount}", speed, f"{_duration(elapsed)} so far"]
        if self.total and rate > 0 and self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return ", ".join(parts + [self._note] if self._note else parts)

    def _print(self, now: float) -> None:
        line = self.line(now)
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
        self._printed_at = now

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
