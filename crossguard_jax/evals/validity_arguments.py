"""What the verb ``validity`` takes, as argparse declares it."""

import argparse

from crossguard_jax.runtime.flags import add_places, positive
from crossguard_jax.systems.arguments import GUARDS, kinds_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.set_defaults(shipped_models=GUARDS)
    add = parser.add_argument
    add("--triplets", required=True, metavar="FILE.jsonl", help="queries and pictures, of match")
    add("--forged", required=True, metavar="FILE.jsonl", help="what forge wrote of them")
    add(
        "--target",
        action="append",
        required=True,
        metavar="[NAME=]FOLDER[+ADAPTER]",
        help="a guard, or a system by its name (below), such as answers:FOLDER; give several to "
        "compare them",
    )
    add("--prompt", help="a prompt's name (default: what the model folder says)")
    add("--batch-size", type=positive, default=16, help="default: 16")
    add("--out", metavar="FOLDER", default="runs/validity", help="default: runs/validity")
    add_places(parser)
    kinds_argument(parser)
