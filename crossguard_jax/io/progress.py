"""Progress of long work on stderr, by tqdm: what, how far, how fast, how long still."""

import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

QUIET_SECONDS = 5.0  # short work prints nothing
LINE_SECONDS = 30.0  # from the first line on where they stay: a log file, a batch system


class Progress(tqdm):
    """tqdm as we use it: silent at first, redrawn on a terminal, now and then a line elsewhere.

    What is printed while it runs goes by ``Progress.write``.

    Example:
      >>> with Progress("scoring", total=2000, unit="row") as progress:
      ...     for row in rows:
      ...         progress.update()
    """

    monitor_interval = 0  # no thread of tqdm's: updates look at the clock themselves
    shown = True
    """False in a process whose work another one tells of."""

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "row",
        start: int = 0,
        enabled: bool = True,
    ):
        """Starts the clock.

        Args:
          what: the work, in a word or two.
          total: how much there is, when known; without it there is no ETA.
          unit: what is counted, in the singular.
          start: how much had been done before (resumed work); it does not count for the rate.
          enabled: False prints nothing (every process but the first).
        """
        look: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True}
        self._lines = not sys.stderr.isatty()
        if self._lines:
            look = {"file": _Lines(sys.stderr), "ncols": 0, "mininterval": QUIET_SECONDS}
        look |= {
            "delay": QUIET_SECONDS,
            "miniters": 0,
            "leave": None,
            "disable": not (enabled and self.shown),
        }
        super().__init__(desc=what, total=total, unit=unit, initial=start, **look)

    def update(self, n: int = 1, note: str = "") -> bool | None:
        """Adds ``n`` units of work; ``note`` (a loss, a file) stays on the line until replaced."""
        if note:
            self.set_postfix_str(note, refresh=False)
        return super().update(n)

    def display(self, *args: Any, **kwargs: Any) -> bool | None:
        """Silent at first also when ``write`` would have it drawn again."""
        if self._time() < self.start_t + self.delay:
            return None
        if self._lines:
            self.mininterval = LINE_SECONDS  # the first line comes as soon as on a terminal
        return super().display(*args, **kwargs)


def rounds(n: int, what: str) -> Iterator[int]:
    """``range(n)`` with progress."""
    with Progress(what, n, unit="round") as progress:
        for i in range(n):
            yield i
            progress.update()


class _Lines:
    """A stream on which whatever tqdm draws is a line, and its moves of the cursor are nothing."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        if drawn := text.replace("\x1b[A", "").strip():
            self._stream.write(drawn + "\n")

    def flush(self) -> None:
        self._stream.flush()
