"""What verbs of verdicts take, and what others take of theirs, as argparse declares it."""

import argparse

from crossguard_jax.guard.arguments import add_why
from crossguard_jax.runtime.flags import add_places, positive
from crossguard_jax.systems.kinds import CONSTANTS, KINDS

FORMATS = (
    *("table", "nlvr", "nlvr2", "vlguard", "figstep", "figstep_twins", "vqav2", "beavertails"),
    *("coco_captions", "karpathy", "siuo", "mm_safetybench", "jailbreakv", "xstest", "mossbench"),
    *("mssbench", "holisafe", "vlsbench", "mm_vet"),
)
"""The readers of `data.sources`, whose import takes longer than a ``--help`` should."""
GUARDS = {"toy://llava": "the small world's LLaVA, a guard without training"}


def kinds_argument(parser: argparse.ArgumentParser) -> None:
    """Says which systems ``--model`` takes beside folders."""
    lines = [f"{name}{':' * (name not in CONSTANTS)} {what}" for name, what in KINDS.items()]
    parser.add_argument_group("systems that --model KIND:WHAT names", "\n".join(lines))


def model(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.set_defaults(shipped_models=GUARDS)
    parser.add_argument(
        "--model",
        required=required,
        metavar="FOLDER",
        help="a LLaVA folder, an adapter that names its base, or toy://llava, which comes with us; "
        "to score with, also a system by its name",
    )
    parser.add_argument("--adapter", metavar="FOLDER", help="a PEFT adapter to lay over it")
    parser.add_argument("--prompt", help="a prompt's name (default: what the model folder says)")
    add_places(parser)


def score(parser: argparse.ArgumentParser) -> None:
    model(parser, required=True)
    parser.add_argument("--threshold", type=float, metavar="P", help="least p_unsafe for unsafe")
    parser.add_argument(
        "--queue",
        metavar="FILE",
        help="where what a policy flags waits for review (default: review.jsonl beside --output; "
        "of one request, nowhere)",
    )
    verdict_arguments(parser)
    add_why(parser)
    one = parser.add_argument_group("one request, its verdict on stdout as JSON")
    one.add_argument("--text", help="the request")
    one.add_argument("--image", metavar="FILE", nargs="+", help="its pictures, if it has any")
    many = parser.add_argument_group(
        "many requests, their verdicts in a file in the order of the input",
        "OUT.jsonl has id, p_unsafe, unsafe, threshold, label, rejected, s_c, branch, windows,\n"
        "complied, row and, where the input has one, true_label. A row that cannot be scored goes\n"
        "to rejected.jsonl beside it (file, row, reason). Started again after a kill, it goes on.\n"
        "Exit code: 0 if every row has a verdict, 1 if one was rejected.",
    )
    many.add_argument(
        "--input", metavar="PATH", help="a .jsonl, .json, .csv or .tsv, or what --format says"
    )
    many.add_argument(
        "--output", metavar="OUT.jsonl", help="where the verdicts go; with --shards, a folder"
    )
    many.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="of the input (default: table)",
    )
    missing_pictures_argument(many)
    many.add_argument("--split", help="which split, where the format has several")
    many.add_argument("--images", metavar="FOLDER", help="of the pictures (default: the input's)")
    for column in ("image", "text", "id", "label"):
        many.add_argument(f"--{column}-column", metavar="NAME", help=f"default: {column}")
    many.add_argument("--text-only", action="store_true", help="the table has no pictures")
    many.add_argument("--batch-size", type=positive, default=16, metavar="N", help="default: 16")
    many.add_argument(
        "--restart", action="store_true", help="begin anew where an output of another run is"
    )
    shard_arguments(
        parser,
        "many files of requests, in the order of a manifest",
        "Each has one output, renamed into place when it is whole, with a verdict or a reason for\n"
        "each row. Started again, a run does what is not there. Parquet, ArrayRecord and tar hold\n"
        "their pictures. Exit code: 1 if a row or a shard was rejected.",
    )
    kinds_argument(parser)


def review(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", metavar="QUEUE", help="the .jsonl that flagged requests went to")
    add = parser.add_argument_group(
        "done in this order; what is open is said at the end",
        "Decisions are kept beside QUEUE, in its name with .decisions.jsonl. Exit code: 0 if all\n"
        "could be read, 1 if a request or a decision could not be used.",
    ).add_argument
    add(
        "--decisions",
        action="append",
        default=[],
        metavar="FILE.json",
        help="take in what a page has saved; a later decision on a request replaces an earlier one",
    )
    add(
        "--export",
        metavar="ROWS.jsonl",
        help="write the decided requests as training rows, their pictures in a folder beside it",
    )
    add(
        "--prompt",
        default="llava_v1",
        metavar="NAME",
        help="the prompt whose words label training rows (default: llava_v1)",
    )
    add("--page", metavar="FILE.html", help="write a page to decide on the open requests")
    add("--limit", type=int, default=500, metavar="N", help="requests on it (default: 500)")


def doctor(parser: argparse.ArgumentParser) -> None:
    model(parser, required=False)


def missing_pictures_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--missing-pictures",
        choices=("out", "in"),
        help="of a published set: rows whose picture is not there are out of the denominator, or "
        "in it, by what else they have (default: out)",
    )


def verdict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        metavar="FOLDER",
        help='keeps verdicts, so that none is made twice (default: runs/verdicts; "": none)',
    )
    parser.add_argument(
        "--noise-seed",
        type=int,
        metavar="N",
        help="key a policy's noise by this, not by the folder's secret; for tests",
    )


def shard_arguments(parser: argparse.ArgumentParser, title: str, description: str) -> None:
    """Declares where a manifest of shards is, and who works on it."""
    add = parser.add_argument_group(title, description).add_argument
    add(
        "--shards",
        metavar="MANIFEST",
        help='a line each: a path, or {"path": PATH, "rows": [FIRST, LAST]}; or \'FOLDER/*.tar\'',
    )
    add(
        "--on",
        metavar="WHERE",
        help="local: processes of this machine; ray[:ADDRESS]: a Ray cluster (pip install ray); "
        "array: this task of a Slurm array or a Kubernetes Indexed Job (default: this process)",
    )
    add(
        "--workers", type=int, metavar="N", help="local, ray (default: one a GPU; else one, or all)"
    )
    add("--threads", type=int, metavar="N", help="of a worker's CPU; alike, so are the last bits")
    add(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="for a worker's start and each of its batches; then another one tries, three in all, "
        "and the shard is rejected (default: 1800)",
    )
