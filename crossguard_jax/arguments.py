"""What each verb takes on the command line, as argparse declares it."""

import argparse
from collections.abc import Sequence

from crossguard_jax.evals.robustness.arguments import add_arguments as attack_arguments
from crossguard_jax.runtime.flags import add_config_places, add_mesh, add_places, positive
from crossguard_jax.systems.arguments import (
    GUARDS,
    kinds_argument,
    missing_pictures_argument,
    shard_arguments,
    verdict_arguments,
)

PLACES = ("mesh", "axis_rules")
"""What every configuration of a computation says of devices."""
TASK_MODELS = {
    "toy://llava": "the small world's LLaVA, for questions and captions",
    "toy://clip": "the small world's CLIP, for retrieval",
}
"""The models that come with the package, for ``--model``; a verb lists its own where that is
missing."""


def config_argument(
    parser: argparse.ArgumentParser, file: str, fields: Sequence[str], required: bool = True
) -> None:
    """Declares ``--config FILE:VARIANT``; with it come ``--config.a.b=value`` overrides.

    Args:
        parser: the verb's.
        file: the configurations that come with the package for this verb.
        fields: what the verb reads of one, its top level's names.
        required: the verb does nothing without one.
    """
    parser.add_argument(
        "--config",
        metavar="FILE:VARIANT",
        required=required,
        help=f"one of {file}, or your own; without it, they are listed. Change a field of it with "
        "--config.FIELD=VALUE",
    )
    parser.set_defaults(config_file=file, config_fields=tuple(fields))


def _out_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        default=default,
        help=f"here, or in a bucket: gs://BUCKET/FOLDER (default: {default})",
    )


def quickstart(parser: argparse.ArgumentParser) -> None:
    _out_argument(parser, "runs/quickstart")
    parser.add_argument(
        "--rows", type=int, default=1500, help="rows of each implicit test set (default: 1500)"
    )
    parser.add_argument(
        "--from-scratch", action="store_true", help="train the adapters that are shipped, too"
    )


def train(parser: argparse.ArgumentParser) -> None:
    config_argument(
        parser, "configs/guard.py", ("model", "lora", "data", "optim", "train", *PLACES)
    )
    add_config_places(parser, ["model.dtype"], ["model.remat"])
    _out_argument(parser, "runs/train")


def immunize(parser: argparse.ArgumentParser) -> None:
    learned = ("model", "task", "lora", "cmcv", "mbat", "arm", "data", "optim", "train")
    config_argument(parser, "configs/cmai.py", (*learned, *PLACES))
    add_config_places(parser, ["model.dtype"], ["model.remat"])
    _out_argument(parser, "runs/immunize")


def attack(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(shipped_models=GUARDS)
    attack_arguments(parser)
    verdict_arguments(parser)
    config_argument(parser, "configs/cmai.py", ("attack",))
    add_places(parser, remat=True)
    _out_argument(parser, "runs/attack")


def calibrate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(shipped_models=TASK_MODELS)
    add = parser.add_argument
    add("--as", dest="kind", required=True, choices=("hidden_detect", "rcs", "jaildam", "why"))
    add(
        "--model",
        required=True,
        metavar="FOLDER[+ADAPTER]",
        help="the LLaVA that is read, or jaildam's CLIP",
    )
    add(
        "--data",
        action="append",
        required=True,
        metavar="FILE.jsonl|[NAME=]READER:PATH[:SPLIT]",
        help="labelled rows, safe and unsafe, that nothing will be judged on",
    )
    add("--fpr", type=float, help="of a detector: benign rows above the cut (default: 0.05)")
    add("--words", nargs="+", metavar="WORD", help="hidden_detect: words that refuse")
    add("--layer", type=int, metavar="N", help="rcs: whose states (default: the middle one)")
    add("--rule", default="mcd", choices=("mcd", "kcd"), help="rcs: distance (default: mcd)")
    add("--concepts", metavar="FILE", help="jaildam: what is unsafe, one a line, or JSON lists")
    add(
        "--prompt",
        metavar="NAME",
        help="as the model is talked to (default: short; of why, what the folder says)",
    )
    add("--seed", type=int, default=0, help="default: 0")
    add("--batch-size", type=positive, default=16, help="default: 16")
    add("--dtype", default="float32", help="default: float32")
    _out_argument(parser, "runs/detector")


def tasks(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(shipped_models=TASK_MODELS)
    add = parser.add_argument
    add(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]FOLDER[+ADAPTER]",
        help="a LLaVA, for questions and captions, or a CLIP, for retrieval; toy://llava and "
        "toy://clip come with us",
    )
    add(
        "--data",
        action="append",
        required=True,
        metavar="[NAME=]READER:PATH[:SPLIT]",
        help="rows with pictures and what people said; READER is vqav2, coco_captions, karpathy or "
        "table (whose label is the answer to its text)",
    )
    add("--limit", type=int, metavar="N", help="rows of each data set (default: all)")
    add("--batch-size", type=positive, default=16, help="default: 16")
    _out_argument(parser, "runs/tasks")
    add_places(parser, remat=True)
    words = parser.add_argument_group("how a LLaVA is asked (default: as LLaVA-1.5 is)")
    words.add_argument("--prompt", default="", help="a prompt's name")
    words.add_argument("--question", default="", help="with {text} in it")
    words.add_argument("--caption", default="", help="what asks for a caption")
    budget = parser.add_argument_group("the attack on the pictures (default: none)")
    budget.add_argument(
        "--epsilon",
        type=float,
        nargs="+",
        default=[],
        help="radii: grey levels of 255 for linf, pixels in [0, 1] for l2",
    )
    budget.add_argument("--norm", choices=("linf", "l2"), default="linf", help="default: linf")
    budget.add_argument("--attack", metavar="NAME", default="pgd", help="default: pgd")
    for name in ("steps", "restarts"):
        budget.add_argument(f"--{name}", type=int, help="default: the attack's own")
    for name, default in (("aims", 2), ("seed", 0)):
        budget.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")


def match(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--queries", required=True, metavar="FILE", help="requests: a JSONL, CSV or TSV with a text"
    )
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        help="harmless pictures: a COCO folder, WIT shards with pixels, Parquet, or any folder",
    )
    parser.add_argument(
        "--format", choices=("table", "beavertails"), default="table", help="of the queries"
    )
    parser.add_argument(
        "--captions",
        metavar="FILE",
        help="a table of the pictures' captions (default: what the folder's layout has)",
    )
    parser.add_argument("--rebuild", action="store_true", help="embed the pictures anew")
    shard_arguments(
        parser,
        "a library of pictures in parts, in the order of a manifest",
        "In place of --pictures: Parquet, WIT's shards or folders, each embedded into one file in\n"
        "OUT/parts; a run that is started again makes what is not there.",
    )
    config_argument(parser, "configs/impforge.py", ("match", *PLACES))
    add_config_places(parser, ["match.dtype"])
    _out_argument(parser, "runs/match")


def forge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--triplets", metavar="FILE.jsonl", help="what match has written")
    shard_arguments(
        parser,
        "tables of triplets, in the order of a manifest",
        "In place of --triplets. The rewriter is trained on all of them here; what is written\n"
        "from each is one file in OUT/writing; started again, a run makes what is not there.",
    )
    parser.add_argument(
        "--harmless", metavar="FILE", help="queries that mean no harm, for benign twins"
    )
    parser.add_argument(
        "--held-out", metavar="FILE.jsonl", help="triplets to measure the rewriter on"
    )
    parser.add_argument(
        "--export-rewriter",
        metavar="FOLDER",
        help="write the rewriter's adapter there; without it, it stays in the run's folder",
    )
    parser.add_argument(
        "--judged",
        metavar="FILE.json",
        help="what you saved from an earlier run's review.html: the data card then says how you "
        "and the gate agree",
    )
    learned = ("rewriter", "rewards", "match", "ppo", "breadth", "forge", "gate", "optim")
    config_argument(parser, "configs/impforge.py", (*learned, *PLACES))
    add_config_places(parser, ["rewriter.dtype", "rewards.dtype"], ["rewriter.remat"])
    _out_argument(parser, "runs/forge")


def evaluate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(shipped_models=GUARDS, one_of=("model", "config"))
    fields = ("benchmarks", "systems", "named", "threshold", "bootstrap", "speed_rows")
    more = ("folder", "published", "missing_pictures", "exports")
    config_argument(parser, "configs/evals.py", (*fields, *more), required=False)
    parser.add_argument(
        "--model",
        action="append",
        metavar="[NAME=]FOLDER[+ADAPTER]",
        help="a guard to score with, toy://llava, which comes with us, or a system by its name "
        "(below); give several to compare them, the main one first; after a --config's, a row more "
        "of its table",
    )
    parser.add_argument(
        "--data",
        action="append",
        metavar="FILE.jsonl|[NAME=]READER:PATH[:SPLIT]",
        help="labelled rows; READER is a format of crossguard score",
    )
    missing_pictures_argument(parser)
    shard_arguments(
        parser,
        "labelled tables, in the order of a manifest",
        "Benchmarks are the sources of rows. Each table has one file of verdicts in OUT/shards; a\n"
        "run that is started again makes what is not there.",
    )
    _out_argument(parser, "runs/evaluate")
    parser.add_argument("--prompt", help="a prompt's name (default: what the model folder says)")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="least p_unsafe for unsafe, for all models that have none of their own in a "
        "configuration (default: the main one's own)",
    )
    parser.add_argument("--batch-size", type=positive, default=16, help="default: 16")
    parser.add_argument(
        "--blank", choices=("", "picture", "text"), default="", help="score a control"
    )
    parser.add_argument(
        "--speed-rows", type=int, metavar="N", help="time each system on N rows (default: none)"
    )
    parser.add_argument(
        "--export",
        action="append",
        choices=("inspect", "guardbench"),
        help="write rows and verdicts as inspect_ai or GuardBench read them, beside the tables' "
        "CSV and LaTeX",
    )
    parser.add_argument(
        "--why",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="on the main system's page, say what its unsafe verdicts rest on; FOLDER is what "
        "crossguard calibrate --as why wrote, without it there are maps of the pictures alone",
    )
    verdict_arguments(parser)
    add_places(parser)
    kinds_argument(parser)


def export(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(shipped_models=GUARDS)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a LLaVA folder")
    parser.add_argument("--adapter", metavar="FOLDER", help="a PEFT adapter to lay over it")
    parser.add_argument("--format", choices=("merged", "peft"), default="merged")
    add_mesh(parser)
    parser.add_argument("--dtype", help="of merged weights, e.g. bfloat16 (default: the model's)")
    parser.add_argument("--out", required=True, metavar="FOLDER")


def toy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=(
            "build",
            "table",
            "rivals",
            "reach",
            "rewriter",
            "weights",
            "forged",
            "gate",
            "validity",
            "cmai",
            "immunizing",
            "tasks",
            "why",
        ),
        help="make the small models; tables: the guard's parts, the paper's main table with its "
        "rivals, what a guard sees and reads, the rewriter's parts, its rewards' weights, forged "
        "data's, what the gate buys, what gets through before and after, what immunizes, how to "
        "immunize to the end, captions and retrieval, whether reasons hold",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="default: runs/toy, or runs/ and the table's name"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="one lesson, or one row; may be repeated"
    )
    build = parser.add_argument_group("build")
    build.add_argument("--models", metavar="FOLDER", help="where they go (default: OUT/models)")
    build.add_argument(
        "--steps",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="on every lesson's length; of rivals, validity and tasks, on each training's",
    )
    table = parser.add_argument_group(
        "table, rivals, reach, rewriter, weights, forged, gate, validity, cmai, immunizing, tasks"
    )
    table.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    table.add_argument(
        "--rows",
        type=int,
        help="rows of each implicit test set (default: 2000; of rivals: 1000), of every test set "
        "(default: 500), "
        "held-out queries (default: 512), queries to forge from (default: 1500), "
        "or rows to attack (default: 128)",
    )
    table.add_argument(
        "--rewriter",
        metavar="FOLDER",
        help="gate: an instruction-tuned Llama, to see what the gate makes of a real model's words",
    )
    table.add_argument(
        "--sentence", metavar="FOLDER", help="gate: with it, a sentence encoder of its language"
    )
    table.add_argument(
        "--tasks", nargs="+", choices=("guard", "vqa"), help="cmai: which (default: both)"
    )
    table.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="table, rivals, reach, rewriter, weights, cmai, immunizing: runs side by side, a "
        "share of the cores each (default: 1)",
    )
    table.add_argument(
        "--guard",
        metavar="FOLDER",
        help="immunizing: the guard that all begin with (default: one is trained for each seed)",
    )


def bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=("guard", "forge", "attacks", "cmai", "gpu"), help="what to measure"
    )
    parser.add_argument("--runs", type=int, default=9, help="counted rounds (default: 9)")
    parser.add_argument(
        "--batch", type=int, help="rows (default: 4; cmai: 16), or texts (default: 64)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="torch's and faiss's threads (default: 2)"
    )
    _out_argument(parser, "runs/bench")
    parser.add_argument(
        "--size", default="7b", choices=("7b", "small"), help="gpu: of the model (default: 7b)"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="gpu: when it ends (default: 10)"
    )
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="gpu: which rows (default: all)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("pgd", "universal", "text", "mbat"),
        metavar="NAME",
        help="attacks: which of pgd, universal, text, mbat (default: all)",
    )
    forge = parser.add_argument_group("forge")
    forge.add_argument(
        "--trl-python",
        metavar="FILE",
        help="the Python of an environment with trl==1.12.0 and peft; without it that "
        "measurement is left out",
    )
    forge.add_argument(
        "--vectors", type=int, default=1_000_000, help="to search in (default: 1000000)"
    )
    forge.add_argument("--queries", type=int, default=10_000, help="searches (default: 10000)")
