"""Runs verbs one after the other, as one process of a run or alone: `several.py` starts it.

Its argument is a JSON list of command lines. Exit code 0 if each verb's was what ``codes`` allows.
"""

import json
import os
import sys

from crossguard_jax import cli

for argv in json.loads(sys.argv[1]):
    code = cli.main(argv)
    if code:
        print(f"{argv[0]}: exit code {code}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)  # at once: the others may never come to where JAX would wait for them
