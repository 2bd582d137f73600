"""The tiny run of `stopped_run.py` as a verb: ``remote_run.py probe --out ADDRESS``."""

import argparse
import sys
from pathlib import Path

from crossguard_jax import cli
from crossguard_jax.verbs import VERBS, Verb
from tests.train.stopped_run import Wait, run


def work(args: argparse.Namespace) -> None:
    """Runs to the end."""
    run(Path(args.out), Wait())


if __name__ == "__main__":
    VERBS["probe"] = Verb(
        help="a tiny run",
        example="probe --out runs/probe",
        handler="tests.runtime.remote_run:work",
        add_arguments=lambda parser: parser.add_argument("--out"),
        uses_models=False,
    )
    sys.exit(cli.main())
