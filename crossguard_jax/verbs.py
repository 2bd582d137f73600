"""The verbs of the command line: what each takes, an example, and the function that does its work.

A handler is named, not imported, so that ``--help`` answers at once. It takes the parsed arguments
and returns an exit code, or None for success; it raises ``UserError`` for what the user can mend,
and calls ``args.usage_error(message)`` where arguments do not go together. A verb that declares
``config_argument`` receives the loaded, locked configuration as ``args.config``. Handlers that only
put other packages together stand at the end of this file.
"""

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
      help: what it does, in one line.
      example: a command line that works as it stands.
      handler: ``module:function``, imported when the verb runs.
      add_arguments: declares the verb's arguments on its parser.
      passes_through: arguments the parser does not know go to the handler, as ``args.rest``.
      uses_jax: the verb computes, so the processes of a run of several are joined before it.
    """

    help: str
    example: str
    handler: str
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    passes_through: bool = False
    uses_jax: bool = True


def config_argument(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Declares ``--config FILE:VARIANT``; with it come ``--config.a.b=value`` overrides."""
    parser.add_argument(
        "--config",
        metavar="FILE:VARIANT",
        default=default,
        required=default is None,
        help="configuration, e.g. configs/guard.py:tiny"
        + (f" (default: {default})" if default else "")
        + "; change a field of it with --config.FIELD=VALUE",
    )


def _out_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", metavar="FOLDER", default=default, help=f"default: {default}")


def _quickstart_arguments(parser: argparse.ArgumentParser) -> None:
    _out_argument(parser, "runs/quickstart")
    parser.add_argument(
        "--rows", type=int, default=1500, help="rows of each implicit test set (default: 1500)"
    )
    parser.add_argument(
        "--from-scratch", action="store_true", help="train the adapters that are shipped, too"
    )


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser, "configs/guard.py:tiny")
    _out_argument(parser, "runs/train")


def _immunize_arguments(parser: argparse.ArgumentParser) -> None:
    config_argument(parser, "configs/cmai.py:tiny")
    _out_argument(parser, "runs/immunize")


def _match_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--queries", required=True, metavar="FILE", help="requests: a JSONL, CSV or TSV with a text"
    )
    parser.add_argument(
        "--pictures",
        required=True,
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
    config_argument(parser, "configs/impforge.py:tiny")
    _out_argument(parser, "runs/match")


def _forge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--triplets", required=True, metavar="FILE.jsonl", help="what match has written"
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
    config_argument(parser, "configs/impforge.py:tiny")
    _out_argument(parser, "runs/forge")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]FOLDER[+ADAPTER]",
        help="a guard to score with; give several to compare them, the main one first",
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="FILE.jsonl|[NAME=]READER:PATH[:SPLIT]",
        help="labelled rows; READER is table, vlguard, figstep, vqav2 or nlvr",
    )
    _out_argument(parser, "runs/evaluate")
    parser.add_argument("--prompt", help="a prompt's name (default: what the model folder says)")
    parser.add_argument("--threshold", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--batch-size", type=int, default=16, help="default: 16")
    parser.add_argument("--dtype", default="float32", help="default: float32")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long")
    parser.add_argument(
        "--blank", choices=("", "picture", "text"), default="", help="score a control"
    )


def _model_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--model",
        required=required,
        metavar="FOLDER",
        help="a LLaVA folder, an adapter that names its base, or toy://llava, which comes with us",
    )
    parser.add_argument("--adapter", metavar="FOLDER", help="a PEFT adapter to lay over it")
    parser.add_argument("--prompt", help="a prompt's name (default: what the model folder says)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the arithmetic (default: float32)",
    )


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser, required=True)
    parser.add_argument("--threshold", type=float, metavar="P", help="least p_unsafe for unsafe")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long")
    one = parser.add_argument_group("one request, its verdict on stdout as JSON")
    one.add_argument("--text", help="the request")
    one.add_argument("--image", metavar="FILE", help="its picture, if it has one")
    many = parser.add_argument_group(
        "many requests, their verdicts in a file in the order of the input",
        "OUT.jsonl has id, p_unsafe, unsafe, threshold, label, truncated, row and, where the\n"
        "input has one, true_label. A row that cannot be scored goes to rejected.jsonl beside it\n"
        "(file, row, reason). Started again after a kill, it goes on. Exit code: 0 if every row\n"
        "has a verdict, 1 if one was rejected.",
    )
    many.add_argument(
        "--input", metavar="PATH", help="a .jsonl, .json, .csv or .tsv, or what --format says"
    )
    many.add_argument("--output", metavar="OUT.jsonl", help="where the verdicts go")
    many.add_argument(
        "--format",
        choices=(
            *("table", "nlvr", "nlvr2", "vlguard", "figstep", "vqav2"),
            *("beavertails", "coco_captions", "karpathy"),
        ),
        default="table",
    )
    many.add_argument("--split", help="which split, where the format has several")
    many.add_argument("--images", metavar="FOLDER", help="of the pictures (default: the input's)")
    for column in ("image", "text", "id", "label"):
        many.add_argument(f"--{column}-column", metavar="NAME", help=f"default: {column}")
    many.add_argument("--text-only", action="store_true", help="the table has no pictures")
    many.add_argument("--batch-size", type=int, default=16, metavar="N", help="default: 16")
    many.add_argument(
        "--restart", action="store_true", help="begin anew where an output of another run is"
    )


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser, required=False)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a LLaVA folder")
    parser.add_argument("--adapter", metavar="FOLDER", help="a PEFT adapter to lay over it")
    parser.add_argument("--format", choices=("merged", "peft"), default="merged")
    parser.add_argument("--dtype", help="of merged weights, e.g. bfloat16 (default: the model's)")
    parser.add_argument("--out", required=True, metavar="FOLDER")


def _toy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("build", "table", "rewriter", "forged", "cmai"),
        help="make the small models; tables: the guard's parts, the rewriter's, forged data's, "
        "what immunizes",
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
        "--steps", type=float, default=1.0, metavar="FACTOR", help="on every lesson's length"
    )
    table = parser.add_argument_group("table, rewriter, forged, cmai")
    table.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    table.add_argument(
        "--rows",
        type=int,
        help="rows of each implicit test set (default: 2000), held-out queries (default: 512), or "
        "rows to attack (default: 256)",
    )
    table.add_argument(
        "--tasks", nargs="+", choices=("guard", "vqa"), help="cmai: which (default: both)"
    )


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("guard", "forge", "attacks"), help="what to measure")
    parser.add_argument("--runs", type=int, default=9, help="counted rounds (default: 9)")
    parser.add_argument("--batch", type=int, help="rows (default: 4), or texts (default: 64)")
    parser.add_argument(
        "--threads", type=int, default=2, help="torch's and faiss's threads (default: 2)"
    )
    _out_argument(parser, "runs/bench")
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


VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        help="train and judge a guard in the small world, and write a report",
        example="launch/run.sh quickstart --out runs/quickstart",
        handler="crossguard_jax.toy.quickstart:main",
        add_arguments=_quickstart_arguments,
    ),
    "train": Verb(
        help="train a guard's adapter; a run that was killed goes on",
        example="launch/run.sh train --config configs/guard.py:tiny --config.train.steps=200",
        handler="crossguard_jax.verbs:train",
        add_arguments=_train_arguments,
    ),
    "match": Verb(
        help="find a harmless picture for each request (ImpForge, stage 1)",
        example=(
            "launch/run.sh match --queries requests.jsonl --pictures pictures --out runs/match"
        ),
        handler="crossguard_jax.impforge.commands:run_match",
        add_arguments=_match_arguments,
    ),
    "forge": Verb(
        help="train the rewriter and forge training data for a guard (ImpForge, stage 2)",
        example=(
            "launch/run.sh forge --triplets runs/match/triplets.jsonl "
            "--harmless harmless.jsonl --out runs/forge"
        ),
        handler="crossguard_jax.impforge.commands:run_forge",
        add_arguments=_forge_arguments,
    ),
    "immunize": Verb(
        help="immunize a guard against perturbed pictures (CMAI); a run that was killed goes on",
        example=(
            "launch/run.sh immunize --config configs/cmai.py:tiny "
            "--config.model.path=runs/quickstart/models/guard"
        ),
        handler="crossguard_jax.verbs:immunize",
        add_arguments=_immunize_arguments,
    ),
    "evaluate": Verb(
        help="score labelled data with one or more guards, and write a report",
        example=(
            "launch/run.sh evaluate --model runs/quickstart/models/guard "
            "--data runs/quickstart/data/test.jsonl"
        ),
        handler="crossguard_jax.evals.evaluate:main",
        add_arguments=_evaluate_arguments,
    ),
    "toy": Verb(
        help="make the small world's models anew, or measure what each part of the guard buys",
        example="launch/run.sh toy table --seeds 0 1 2",
        handler="crossguard_jax.verbs:toy",
        add_arguments=_toy_arguments,
    ),
    "bench": Verb(
        help="measure against what people would use instead, in one interleaved run",
        example="launch/run.sh bench guard",
        handler="crossguard_jax.verbs:bench",
        add_arguments=_bench_arguments,
    ),
    "score": Verb(
        help="score one request, or a file of them",
        example=(
            "launch/run.sh score --model toy://llava --truncate --format nlvr "
            "--input tests/data/fixtures/nlvr/dev/dev.json --output runs/nlvr.jsonl"
        ),
        handler="crossguard_jax.guard.scoring:main",
        add_arguments=_score_arguments,
        uses_jax=False,
    ),
    "doctor": Verb(
        help="say what this machine has, and whether a guard is in order",
        example="launch/run.sh doctor --model toy://llava",
        handler="crossguard_jax.guard.doctor:main",
        add_arguments=_doctor_arguments,
        uses_jax=False,
    ),
    "export": Verb(
        help="write a model as a folder that transformers or PEFT loads",
        example=(
            "launch/run.sh export --model toy://llava --adapter runs/train/adapter "
            "--out runs/merged"
        ),
        handler="crossguard_jax.verbs:export",
        add_arguments=_export_arguments,
    ),
    "test": Verb(
        help="run the test suite; what follows goes to pytest",
        example="launch/run.sh test -m slow tests/train",
        handler="crossguard_jax.cli:run_tests",
        passes_through=True,
        uses_jax=False,
    ),
}


def train(args: argparse.Namespace) -> None:
    """Trains, and leaves the adapter in ``OUT/adapter`` as PEFT keeps it."""
    from crossguard_jax.guard.recipe import train_guard
    from crossguard_jax.hf.export import ModelCard
    from crossguard_jax.toy.study import SOURCE, read
    from crossguard_jax.train.loop import read_metrics

    done = train_guard(args.config, args.out, {SOURCE: read})
    last = [row for row in read_metrics(args.out) if row["step"] == done.step]
    metrics = {k: v for row in last for k, v in row.items() if k != "step"}
    data = ", ".join(f"{name} ({n:,} rows)" for name, n in done.rows.items())
    folder = Path(args.out) / "adapter"
    done.guard.save_pretrained(
        folder, "peft", ModelCard(base=args.config.model.path, data=data, metrics=metrics)
    )
    print(f"adapter of step {done.step}: {folder}")


def immunize(args: argparse.Namespace) -> None:
    """Immunizes, and leaves the model with its check and its policy in ``OUT/model``."""
    from crossguard_jax.cmai.recipe import immunize as run
    from crossguard_jax.hf.export import ModelCard
    from crossguard_jax.toy.study import SOURCE, read

    done = run(args.config, args.out, {SOURCE: read})
    folder = Path(args.out) / "model"
    done.save_pretrained(folder, ModelCard(base=args.config.model.path))
    if done.threshold is not None:
        cut = done.threshold
        print(f"S_c below {cut.tau:.4g}: {cut.pass_rate:.0%} of clean pairs are above, n={cut.n}")
    print(f"immunized model: {folder}")


def export(args: argparse.Namespace) -> None:
    """Loads a model (and adapter) as it is and writes it anew."""
    from crossguard_jax.guard.guard import Guard

    guard = Guard.from_pretrained(args.model, args.adapter, dtype=None)
    guard.save_pretrained(args.out, args.format, dtype=args.dtype)
    print(f"{args.format} model: {args.out}")


def toy(args: argparse.Namespace) -> None:
    """Builds the small models or makes a table of runs; all go on where they were stopped."""
    module, out, rows = {
        "build": ("crossguard_jax.toy.models.build", "runs/toy", None),
        "table": ("crossguard_jax.toy.tables.guards", "runs/table", 2_000),
        "rewriter": ("crossguard_jax.toy.tables.rewriters", "runs/rewriter", 512),
        "forged": ("crossguard_jax.toy.tables.forged", "runs/forged", 2_000),
        "cmai": ("crossguard_jax.toy.tables.immunized", "runs/cmai", 256),
    }[args.what]
    args.out, args.rows = args.out or out, args.rows or rows
    importlib.import_module(module).main(args)


def bench(args: argparse.Namespace) -> None:
    """Measures the guard's work, the forge's, or the attacks'."""
    args.batch = args.batch or {"guard": 4, "forge": 64, "attacks": 4}[args.what]
    importlib.import_module(f"crossguard_jax.evals.bench.{args.what}").main(args)
