"""A run whose disk becomes full as it saves: ``test_stopped.py`` starts it with mounts of its own.

``full_disk.py FOLDER``: mounts a small disk at FOLDER, fills it as the run comes to its second
save, and prints, as JSON, how that ended; makes room, goes on, and prints the end's arrays and log.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.train.stopped_run import Wait, run
from tests.train.test_stopped import finish, reach, start, steps_saved

SIZE = 4 * 2**20


def fill(file):
    """Writes until there is no room."""
    with open(file, "wb", buffering=0) as ballast:
        for block in (2**16, 2**12, 1):
            try:
                while True:
                    ballast.write(b"0" * block)
            except OSError:
                continue


def main(disk):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk], check=True)
    folder = Path(disk) / "run"
    process = start(Path(__file__).parents[2], folder, "save", "8")
    reach(process, "save")
    fill(Path(disk) / "ballast")
    code, errors = finish(process)
    report = {"code": code, "errors": errors, "saved": steps_saved(folder)}
    os.remove(Path(disk) / "ballast")
    run(folder, Wait())
    final = np.load(folder / "final.npy").tolist()
    print(json.dumps(report | {"final": final, "log": (folder / "metrics.jsonl").read_text()}))


if __name__ == "__main__":
    main(sys.argv[1])
