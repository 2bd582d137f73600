"""What runs in a local worker's process: shards come on stdin, what became of them goes to stdout.

Both are JSON lines. When stdin ends, whoever started this process is gone, and so is it.
"""

import json
import os
import queue
import sys
import threading
from dataclasses import asdict
from typing import Any, BinaryIO

from crossguard_jax.core.errors import UserError, reason
from crossguard_jax.runtime.shards import Shard, ShardJob, do_shard, make_work


def main() -> None:
    """Serves until stdin ends."""
    # Prints of the work's own are no part of the talk.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, heard), daemon=True).start()
    job = ShardJob(**heard.get())
    try:
        work = make_work(job)
    except UserError as error:
        _tell(out, {"refused": str(error)})
        return
    except Exception as error:
        _tell(out, {"failed": reason(error)})
        return
    _tell(out, {"ready": os.getpid()})
    while True:
        value = heard.get()
        shard = Shard(**value | {"rows": value["rows"] and (value["rows"][0], value["rows"][1])})
        try:
            report = do_shard(job, work, shard, lambda: _tell(out, {"beat": 1}))
        except UserError as error:
            _tell(out, {"refused": str(error)})
            return
        except Exception as error:
            _tell(out, {"failed": reason(error)})
            return
        _tell(out, {"done": asdict(report) | {"shard": None}})


def _listen(stdin: BinaryIO, heard: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in stdin:
        heard.put(json.loads(line))
    os._exit(0)


def _tell(out: Any, message: dict[str, Any]) -> None:
    try:
        out.write(json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
