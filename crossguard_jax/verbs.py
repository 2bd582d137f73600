"""The verbs of the command line: what each takes, an example, and the function that does its work.

A handler is named, not imported, so that ``--help`` answers at once. It takes the parsed arguments
and returns an exit code, or None for success; it raises ``UserError`` for what the user can mend,
and calls ``args.usage_error(message)`` where arguments do not go together. A verb that declares
``arguments.config_argument`` receives the loaded, locked configuration as ``args.config``. Handlers
that only put other packages together stand at the end of this file.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossguard_jax import arguments
from crossguard_jax.evals import validity_arguments
from crossguard_jax.plan.arguments import add_arguments as plan_arguments
from crossguard_jax.sweeps.arguments import add_arguments as sweep_arguments
from crossguard_jax.systems import arguments as system_arguments

REFUSED_SHOWN = 20  # by name; all are counted


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
      help: what it does, in one line.
      example: a command line that works as it stands, without the program's name; most go on from
        what quickstart's own leaves.
      handler: ``module:function``, imported when the verb runs.
      add_arguments: declares the verb's arguments on its parser.
      passes_through: arguments the parser does not know go to the handler, as ``args.rest``.
      uses_jax: the verb computes, so the processes of a run of several are joined before it.
      prints_data: its stdout is for a program to read.
      uses_models: our own, and of torch's none.
    """

    help: str
    example: str
    handler: str
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    passes_through: bool = False
    uses_jax: bool = True
    prints_data: bool = False
    uses_models: bool = True


VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        help="forge for, train, immunize and judge a guard in the small world",
        example="quickstart --out runs/quickstart",
        handler="crossguard_jax.toy.quickstart:main",
        add_arguments=arguments.quickstart,
    ),
    "train": Verb(
        help="train a guard's adapter; a run that was killed goes on",
        example="train --config configs/guard.py:tiny --config.train.steps=200",
        handler="crossguard_jax.verbs:train",
        add_arguments=arguments.train,
    ),
    "match": Verb(
        help="find a harmless picture for each request (ImpForge, stage 1)",
        example=(
            "match --config configs/impforge.py:tiny --out runs/match "
            "--queries runs/quickstart/forge/raw/harmful.jsonl "
            "--pictures runs/quickstart/forge/raw "
            "--captions runs/quickstart/forge/raw/library.jsonl"
        ),
        handler="crossguard_jax.verbs:match",
        add_arguments=arguments.match,
    ),
    "forge": Verb(
        help="train the rewriter and forge training data for a guard (ImpForge, stage 2)",
        example=(
            "forge --config configs/impforge.py:tiny --triplets runs/match/triplets.jsonl "
            "--harmless runs/quickstart/forge/raw/harmless.jsonl --out runs/forge"
        ),
        handler="crossguard_jax.verbs:forge",
        add_arguments=arguments.forge,
    ),
    "immunize": Verb(
        help="immunize a guard against perturbed pictures (CMAI); a run that was killed goes on",
        example=(
            "immunize --config configs/cmai.py:tiny "
            "--config.model.path=runs/quickstart/models/guard"
        ),
        handler="crossguard_jax.verbs:immunize",
        add_arguments=arguments.immunize,
    ),
    "sweep": Verb(
        help="repeat train, immunize or forge over variants, values and seeds, and compare them",
        example=(
            "sweep train --config configs/guard.py:tiny --variants no_benign,explicit_only "
            "--seeds 0 1 --config.train.steps=200 --out runs/sweep "
            "--then 'evaluate --model {run}/adapter --data runs/quickstart/data/test.jsonl'"
        ),
        handler="crossguard_jax.verbs:sweep",
        add_arguments=sweep_arguments,
        passes_through=True,
        uses_jax=False,
    ),
    "attack": Verb(
        help="attack guards with a suite of attacks, and write a report on what stands",
        example=(
            "attack --config configs/cmai.py:tiny --model runs/quickstart/models/guard_immunized "
            "--model runs/quickstart/models/guard --data runs/quickstart/data/test.jsonl "
            "--surrogate runs/quickstart/models/guard --limit 200"
        ),
        handler="crossguard_jax.evals.robustness.attack:main",
        add_arguments=arguments.attack,
    ),
    "calibrate": Verb(
        help="fit a published detector (HiddenDetect, RCS, JailDAM) to compare a guard with",
        example=(
            "calibrate --as rcs --model toy://llava --data runs/quickstart/data/val.jsonl "
            "--out runs/rcs"
        ),
        handler="crossguard_jax.evals.calibrate:main",
        add_arguments=arguments.calibrate,
    ),
    "evaluate": Verb(
        help="score labelled data with one or more guards, and write a report",
        example=(
            "evaluate --model runs/quickstart/models/guard --data runs/quickstart/data/test.jsonl"
        ),
        handler="crossguard_jax.evals.evaluate:main",
        add_arguments=arguments.evaluate,
    ),
    "validity": Verb(
        help="say what gets through a system before and after a rewriting",
        example=(
            "validity --triplets runs/quickstart/forge/matched/triplets.jsonl "
            "--forged runs/quickstart/forge/forged/train.jsonl "
            "--target runs/quickstart/models/guard_explicit_only --target answers:toy://llava"
        ),
        handler="crossguard_jax.evals.validity:main",
        add_arguments=validity_arguments.add_arguments,
    ),
    "tasks": Verb(
        help="answer questions, describe and retrieve pictures, clean and attacked",
        example=(
            "tasks --model toy://llava --data table:runs/quickstart/data/test.jsonl --limit 16 "
            "--epsilon 8"
        ),
        handler="crossguard_jax.evals.tasks.evaluate:main",
        add_arguments=arguments.tasks,
    ),
    "toy": Verb(
        help="make the small world's models anew, or measure what each part of the guard buys",
        example="toy table --seeds 0 1 2",
        handler="crossguard_jax.verbs:toy",
        add_arguments=arguments.toy,
    ),
    "bench": Verb(
        help="measure against what people would use instead, in one interleaved run",
        example="bench guard",
        handler="crossguard_jax.verbs:bench",
        add_arguments=arguments.bench,
        uses_models=False,
    ),
    "score": Verb(
        help="score one request, or a file of them",
        example="score --model toy://llava --text 'can i give the red one to my child?'",
        handler="crossguard_jax.systems.scoring:main",
        add_arguments=system_arguments.score,
        prints_data=True,
    ),
    "review": Verb(
        help="decide on what was flagged, and make training rows of it",
        example="review runs/review.jsonl --page runs/review.html",
        handler="crossguard_jax.verbs:review",
        add_arguments=system_arguments.review,
        uses_jax=False,
        prints_data=True,
        uses_models=False,
    ),
    "plan": Verb(
        help="say what a configuration takes on chips that are not here: memory, time, what to "
        "change",
        example=(
            "plan --config configs/guard.py:llava_7b --topology v5litepod-16 --kind sft "
            "--config.optim.accumulate=1 --rows 16 --length 704"
        ),
        handler="crossguard_jax.plan.command:main",
        add_arguments=plan_arguments,
        uses_jax=False,
    ),
    "doctor": Verb(
        help="say what this machine has, and whether a guard is in order",
        example="doctor --model toy://llava",
        handler="crossguard_jax.systems.doctor:main",
        add_arguments=system_arguments.doctor,
        prints_data=True,
    ),
    "export": Verb(
        help="write a model as a folder that transformers or PEFT loads",
        example="export --model toy://llava --adapter runs/train/adapter --out runs/merged",
        handler="crossguard_jax.verbs:export",
        add_arguments=arguments.export,
    ),
    "test": Verb(
        help="run the test suite; what follows goes to pytest",
        example="test -m slow tests/train",
        handler="crossguard_jax.cli:run_tests",
        passes_through=True,
        uses_jax=False,
        prints_data=True,
        uses_models=False,
    ),
}


def train(args: argparse.Namespace) -> None:
    """Trains, and leaves the adapter in ``OUT/adapter`` as PEFT keeps it."""
    from crossguard_jax.guard.recipe import train_guard
    from crossguard_jax.hf.export import ModelCard
    from crossguard_jax.runtime import processes
    from crossguard_jax.toy.study import SOURCE, read
    from crossguard_jax.train.loop import read_metrics

    done = train_guard(args.config, args.out, {SOURCE: read})
    # The log lies where the first process is.
    rows = processes.by_first(lambda: read_metrics(args.out))
    last = [row for row in rows if row["step"] == done.step]
    metrics = {k: v for row in last for k, v in row.items() if k != "step"}
    data = ", ".join(f"{name} ({n:,} rows)" for name, n in done.rows.items())
    folder = Path(args.out) / "adapter"
    card = ModelCard(args.config.model.path, data, metrics)
    done.guard.save_pretrained(folder, "peft", card)
    print(f"adapter of step {done.step}: {folder}")


def immunize(args: argparse.Namespace) -> None:
    """Immunizes, and leaves the model with its check and its policy in ``OUT/model``."""
    from crossguard_jax.cmai.folders import save_immunized
    from crossguard_jax.cmai.recipe import immunize as run
    from crossguard_jax.cmai.vetted import Vetted
    from crossguard_jax.hf.export import ModelCard
    from crossguard_jax.toy.study import SOURCE, read

    done = run(args.config, args.out, {SOURCE: read})
    folder = Path(args.out) / "model"
    card = ModelCard(base=args.config.model.path)
    done.save(folder, card) if isinstance(done, Vetted) else save_immunized(done, folder, card)
    if done.threshold is not None:
        cut = done.threshold
        print(f"S_c below {cut.tau:.4g}: {cut.pass_rate:.0%} of clean pairs are above, n={cut.n}")
    print(f"immunized model: {folder}")


def match(args: argparse.Namespace) -> int:
    """ImpForge's first stage; its judge of pictures is what `systems.load` makes of a folder."""
    from crossguard_jax.impforge.commands import run_match
    from crossguard_jax.systems.load import identified

    return run_match(args, identified)


def forge(args: argparse.Namespace) -> int:
    """Its second stage, with the same judge."""
    from crossguard_jax.impforge.commands import run_forge
    from crossguard_jax.systems.load import identified

    return run_forge(args, identified)


def sweep(args: argparse.Namespace) -> int:
    """Repeats a verb; what the verbs' own parsers would refuse is refused before the first run."""
    from crossguard_jax.core.errors import UserError
    from crossguard_jax.sweeps.command import main

    def check(words: Sequence[str]) -> None:
        verb = VERBS.get(words[0])
        if verb is None:
            raise UserError(f"--then {words[0]}: no verb of that name")
        parser = argparse.ArgumentParser(prog=f"crossguard {words[0]}", allow_abbrev=False)
        parser.error = args.usage_error  # type: ignore[method-assign]
        verb.add_arguments(parser)
        if not any(action.dest == "out" for action in parser._actions):
            raise UserError(f"--then {words[0]}: leaves no folder with --out; give one that does")
        parser.parse_args([word for word in words[1:] if not word.startswith("--config.")])

    return main(args, check)


def review(args: argparse.Namespace) -> int:
    """Takes decisions in, writes training rows and a page, and says what is open."""
    from crossguard_jax.cmai.rulings import Review
    from crossguard_jax.data.prompts import get_template
    from crossguard_jax.io.jsonl import write_atomic

    if args.limit < 1:
        args.usage_error(f"--limit {args.limit}: give 1 or more")
    if args.page and not args.page.endswith(".html"):
        args.usage_error(f"--page {args.page}: give a name.html")
    prompt = get_template(args.prompt)
    review = Review.read(args.queue)
    refused = [*review.damaged]
    for file in args.decisions:
        taken = review.take(file)
        print(f"{file}: {taken.line()}")
        refused += taken.refused
    if args.export:
        written, left_out = review.export(Path(args.export), prompt)
        print(f"training rows: {written:,} in {args.export}")
        refused += left_out
    if args.page:
        write_atomic(args.page, review.page(args.limit))
        print(f"page: {args.page}, {min(args.limit, len(review.open)):,} requests")
    print("\n".join(review.lines()))
    for row in refused[:REFUSED_SHOWN]:
        print(f"{row.file}, row {row.row}: {row.reason}", file=sys.stderr)
    if refused:
        print(f"exit code 1, because {len(refused):,} could not be used", file=sys.stderr)
    return 1 if refused else 0


def export(args: argparse.Namespace) -> None:
    """Loads a model (and adapter) as it is and writes it anew.

    Raises:
        UserError: it is immunized, and would lose its check and its policy by this.
    """
    from crossguard_jax.cmai.folders import is_immunized
    from crossguard_jax.core.errors import UserError
    from crossguard_jax.guard.guard import Guard
    from crossguard_jax.runtime.mesh import inference_mesh

    if is_immunized(args.model):
        raise UserError(
            f"--model {args.model}: is immunized, and transformers loads it as it is; copy the "
            "folder, since an export would leave out its check and its policy"
        )
    mesh = inference_mesh(args.mesh)
    guard = Guard.from_pretrained(args.model, args.adapter, dtype=None, mesh=mesh)
    guard.save_pretrained(args.out, args.format, dtype=args.dtype)
    print(f"{args.format} model: {args.out}")


def toy(args: argparse.Namespace) -> int | None:
    """Builds the small models or makes a table of runs; all go on where they were stopped."""
    module, out, rows = {
        "build": ("crossguard_jax.toy.models.build", "runs/toy", None),
        "table": ("crossguard_jax.toy.tables.guards", "runs/table", 2_000),
        "rivals": ("crossguard_jax.toy.tables.rivals", "runs/rivals", 1_000),
        "reach": ("crossguard_jax.toy.tables.reach", "runs/table", 500),
        "rewriter": ("crossguard_jax.toy.tables.rewriters", "runs/rewriter", 512),
        "forged": ("crossguard_jax.toy.tables.forged", "runs/forged", 2_000),
        "gate": ("crossguard_jax.toy.tables.gated", "runs/gate", 1_500),
        "validity": ("crossguard_jax.toy.tables.validity", "runs/gate", 1_500),
        "cmai": ("crossguard_jax.toy.tables.immunized", "runs/cmai", 128),
        "weights": ("crossguard_jax.toy.tables.weights", "runs/weights", 256),
        "immunizing": ("crossguard_jax.toy.tables.immunizing", "runs/immunizing", 320),
        "tasks": ("crossguard_jax.toy.tables.responding", "runs/responding", 48),
        "why": ("crossguard_jax.toy.tables.why", "runs/why", 600),
    }[args.what]
    args.out, args.rows = args.out or out, args.rows or rows
    return importlib.import_module(module).main(args)


def bench(args: argparse.Namespace) -> None:
    """Measures the guard's work, the forge's, the attacks', CMAI's parts, or all at 7B on a GPU."""
    rows = {"guard": 4, "forge": 64, "attacks": 4, "cmai": 16, "gpu": 0}
    args.batch = args.batch or rows[args.what]
    importlib.import_module(f"crossguard_jax.bench.{args.what}").main(args)
