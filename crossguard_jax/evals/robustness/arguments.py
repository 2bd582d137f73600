"""The arguments of ``attack`` that are its own, as argparse declares them."""

import argparse
from collections.abc import Sequence
from typing import Any


class _List(argparse.Action):
    """Prints the registry and ends, as ``--help`` does."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        # Only here: the searches import JAX, and --help answers at once.
        from crossguard_jax.attacks.registry import listing

        print(listing())
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    add = parser.add_argument
    add(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]FOLDER",
        help="a guard, immunized or not, or toy://llava, which comes with us; give several to "
        "compare them, the main one first",
    )
    add(
        "--data",
        action="append",
        required=True,
        metavar="FILE.jsonl|[NAME=]READER:PATH[:SPLIT]",
        help="labelled rows; those without a picture are left out",
    )
    add(
        "--validation",
        action="append",
        metavar="FILE.jsonl|[NAME=]READER:PATH[:SPLIT]",
        help="labelled clean rows, none of --data, by which each guard's threshold is fixed at 1%% "
        "and 5%% of false positives (default: half of --data, 1,024 rows at most, drawn "
        "by the seed and left out of the attack)",
    )
    add("--list", action=_List, help="print every attack there is, with what it costs, and end")
    add(
        "--attack",
        action="append",
        metavar="NAME[:OPTION=VALUE,...]",
        help="run this attack, not the configuration's; may be repeated, and all is every one "
        "(e.g. --attack apgd --attack gcg:tokens=10)",
    )
    add("--surrogate", metavar="FOLDER", help="the model that transfer attacks are made on")
    add("--limit", type=int, metavar="N", help="rows, drawn at random")
    add(
        "--save",
        metavar="FOLDER",
        help="write the attacked rows there, a folder a model: PNG pictures and .jsonl tables "
        "that evaluate and score read",
    )
    add(
        "--certify",
        type=int,
        default=0,
        metavar="N",
        help="certify the main model's answers to the first N rows",
    )
    add("--prompt", help="a prompt's name (default: what the model folder says)")
