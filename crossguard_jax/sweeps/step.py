"""What runs in the process of a cell's verb: the command line, and an end with who waits for it.

A killed sweep's verbs would go on in folders where the next sweep goes on, too.
"""

import os
import runpy
import sys
import threading


def main() -> None:
    """Runs the module that this process's first argument names, with the others."""
    program = sys.argv.pop(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module(program, run_name="__main__")


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing comes but the end
    os._exit(1)


if __name__ == "__main__":
    main()
