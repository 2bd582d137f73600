"""A worker without a model: it copies a file's lines in capitals, and fails as its rows say.

A line ``kill FILE`` kills the worker the first time that it is met, ``stick FILE`` has it stand
still, ``raise FILE`` raises, ``full FILE`` finds the disk full; without a file it does so each
time. ``touch FILE`` makes a file for which ``wait FILE`` waits. ``bad`` is a row that is rejected.
"""

import errno
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import files
from crossguard_jax.runtime.shards import Beat, Counts, Shard, Work, claim

made: list[str] = []
"""The models of this process, as they were read."""


def make(spec: Mapping[str, Any], folder: str) -> Work:
    """The work; ``spec`` may say why there is none, and a ``model``, a file."""
    if refused := spec.get("refused"):
        raise UserError(refused)
    identity = {"made of": spec.get("made of", "capitals")}
    if model := spec.get("model"):
        files.note(Path(model))
        identity["model"] = Path(model).read_text()
        made.append(model)
    claim(folder, identity)

    def work(shard: Shard, output: Path, beat: Beat) -> Counts:
        path = Path(shard.path)
        if not path.is_file():
            raise UserError(f"{path}: cannot be read (no such file); correct the path")
        lines = path.read_text().splitlines()
        first, last = shard.rows or (1, len(lines))
        rejected = 0
        with output.open("w") as file:
            for line in lines[first - 1 : last]:
                _meet(*line.split(" ", 1))
                rejected += line == "bad"
                file.write(line.upper() + "\n")
                beat()
        with (Path(folder) / "log").open("a") as log:
            log.write(f"{os.getpid()} {shard.name} {os.environ.get('NPROC', '')}\n")
        return {"rows": last - first + 1, "rejected": {"bad": rejected} if rejected else {}}

    return work


def _meet(what: str, once: str = "") -> None:
    if what == "wait":
        while not os.path.exists(once):
            threading.Event().wait(0.01)
    if what == "touch":
        Path(once).touch()
    if what not in ("kill", "stick", "raise", "full") or (once and os.path.exists(once)):
        return
    if once:
        Path(once).touch()
    if what == "raise":
        raise MemoryError("no memory left")
    if what == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()
