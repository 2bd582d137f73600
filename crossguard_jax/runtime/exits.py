"""Exit codes that decide whether a run is to be started again.

Whoever starts processes (Slurm, Kubernetes, SkyPilot, a loop over ssh) sees of a run its exit code
alone. Only what is listed here starts it again; a run that failed, ran out of memory or met a NaN
would do so anew, and a memory that the kernel took back (137) looks like any other SIGKILL.
"""

import math
import os
from typing import NoReturn

from crossguard_jax.core.errors import UserError

AGAIN = 75
"""The run saved its state because it was told to stop, or lost another process: start it again.

It is ``EX_TEMPFAIL`` of ``sysexits.h``."""

STARTS_AGAIN = (AGAIN, 134, 140, 143)
"""`AGAIN`, and a process ended by SIGABRT (JAX's end where it loses another process), SIGUSR2 or
SIGTERM (told to stop before it could listen)."""


def seconds(variable: str, default: float, least: float) -> float:
    """A time that an environment variable may set.

    Raises:
        UserError: it is no number, or less than ``least``.
    """
    text = os.environ.get(variable, "")
    try:
        value = float(text or default)
    except ValueError:
        value = math.nan
    if not value >= least:
        raise UserError(f"{variable}={text}: give seconds, {least:g} or more")
    return value


def leave(code: int, line: str) -> NoReturn:
    """Ends the process from any thread, whatever the others do, with a line on why."""
    # Past Python's buffers, whose locks a stuck thread may hold.
    os.write(2, f"crossguard: {line}\n".encode())
    os._exit(code)
