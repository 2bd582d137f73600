"""What the verb ``sweep`` takes, as argparse declares it."""

import argparse

SEEDS = {"train": ("train.seed",), "immunize": ("train.seed",), "forge": ("ppo.seed", "forge.seed")}
"""The verbs that a sweep repeats, and what a seed sets in their configurations."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add = parser.add_argument
    add("what", choices=tuple(SEEDS), help="the verb of each run; its own arguments may follow")
    add(
        "--config",
        dest="base",
        required=True,
        metavar="FILE:VARIANT",
        help="what the others are compared with; --config.FIELD=VALUE is for all of them",
    )
    add(
        "--variants",
        type=_names,
        default=[],
        metavar="NAME,NAME",
        help="of the same file and scale: no_benign of llava_7b is llava_7b_no_benign",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE,VALUE",
        help="a field of the configuration; of several, every combination of values; commas in "
        "brackets or quotes part none",
    )
    add(
        "--one-at-a-time",
        action="store_true",
        help="each variant and each value alone, in place of every combination",
    )
    add("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of each row (default: 0)")
    add(
        "--then",
        action="append",
        default=[],
        metavar="'VERB ...'",
        help="what follows each run and measures it, such as 'evaluate --model {run}/adapter "
        "--data FILE'; {run} is the folder that the run left",
    )
    add(
        "--show",
        action="append",
        default=[],
        metavar="NAME",
        help="figures that the tables and the plot have, * for any letters (default: the first "
        "few; all are in report.json and figures.csv)",
    )
    add("--dry-run", action="store_true", help="list the runs, and in what they differ")
    add("--out", metavar="FOLDER", default="runs/sweep", help="default: runs/sweep")
    where = parser.add_argument_group("who works on the runs")
    where.add_argument(
        "--on",
        metavar="WHERE",
        help="local: processes of this machine; ray[:ADDRESS]: a Ray cluster; array: this task of "
        "a Slurm array or a Kubernetes Indexed Job (default: one run after the other, with all "
        "devices)",
    )
    where.add_argument(
        "--workers", type=int, metavar="N", help="local, ray (default: one a GPU; else one, or all)"
    )
    where.add_argument("--threads", type=int, metavar="N", help="of a worker's CPU")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]
