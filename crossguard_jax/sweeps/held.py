"""A cell's folder in one process's hands: two sweeps of one folder would train there at once."""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from crossguard_jax.runtime.shards import Beat

LOCK = "lock"
LOOK_SECONDS = 0.2


@contextmanager
def held(folder: Path, beat: Beat) -> Iterator[bool]:
    """Makes the folder, and keeps others that ask for it waiting; the end of a process frees it.

    Args:
        folder: any.
        beat: called while somebody else has it.

    Yields:
        Whether somebody else had it first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        waited = False
        while not _locked(lock):
            if not waited:
                lock.seek(0)
                whose = lock.read() or "another process"
                print(f"{folder}: {whose} is at work there; waiting for it", file=sys.stderr)
            waited = True
            beat()
            time.sleep(LOOK_SECONDS)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} of {socket.gethostname()}")
        lock.flush()
        yield waited


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True
