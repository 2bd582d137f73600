"""``crossguard tasks``: what a LLaVA or a CLIP does with questions and captions, and the report.

A LLaVA answers questions (VQA accuracy) and describes pictures (CIDEr, BLEU-4); a CLIP retrieves
(R@1, 5, 10). With radii given, the pictures are attacked as well.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossguard_jax.cmai.folders import ANSWERS, FILE, is_immunized, read_facts
from crossguard_jax.cmai.vetted import Vetting, load_vetted
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import LeftOut
from crossguard_jax.evals.comparison import parse_model
from crossguard_jax.evals.summary import left_out_sections, print_summary
from crossguard_jax.evals.tasks.attack import Attack, Measured, PerturbedTask, measure
from crossguard_jax.evals.tasks.report import tasks_section
from crossguard_jax.evals.tasks.retrieval import Retrieval
from crossguard_jax.evals.tasks.rows import Benchmark, read_benchmarks
from crossguard_jax.evals.tasks.vetted import VettedRows
from crossguard_jax.evals.tasks.words import Captions, Vqa
from crossguard_jax.guard.guard import Guard
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.hf.load import resolve_folder
from crossguard_jax.io.jsonl import read_json
from crossguard_jax.report.blocks import Section
from crossguard_jax.report.report import Report
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.mesh import default_dtype, own_mesh

LEVELS = 255.0


@dataclass(frozen=True)
class Asking:
    """How rows are put to a LLaVA, and how many at once.

    The defaults are LLaVA-1.5's own.

    Attributes:
        prompt: a built-in template's name.
        question: what is asked; ``{text}`` stands for the row's question.
        caption: what is asked where a picture is to be described.
        answer_tokens: the most of an answer.
        caption_tokens: the most of a caption.
        batch_size: rows at once.
        dtype: of the arithmetic.
        mesh: as ``--mesh`` has it, of one process's devices.
        remat: what an attack's gradient computes again; "" is the model's own way.

    Raises:
        UserError: ``question`` has no place for the question.
    """

    prompt: str = "short"
    question: str = "{text}\nAnswer the question using a single word or phrase."
    caption: str = "Provide a one-sentence caption for the provided image."
    answer_tokens: int = 16
    caption_tokens: int = 48
    batch_size: int = 16
    dtype: str = "float32"
    mesh: str | None = None
    remat: str = ""

    def __post_init__(self) -> None:
        if "{text}" not in self.question:
            raise UserError(f"question {self.question!r}: write {{text}} where the question goes")
        for name in ("answer_tokens", "caption_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"tasks: {name} {getattr(self, name)}: a whole number above 0")


def evaluate_tasks(
    models: Sequence[str],
    data: Sequence[str] | Mapping[str, Benchmark],
    left_out: LeftOut,
    attack: Attack | None = None,
    asking: Asking | None = None,
    limit: int | None = None,
) -> Section:
    """Models on tasks, as a section of a report.

    Args:
        models: ``[NAME=]FOLDER[+ADAPTER]``: a LLaVA, or (``.../clip``, without an adapter) a CLIP
            as `hf.clip.load_clip` takes it. All see the same rows.
        data: ``[NAME=]READER:PATH[:SPLIT]`` (see `tasks_rows.read_benchmarks`), or benchmarks by
            dotted name.
        left_out: takes the rows that could not be read or asked.
        attack: of the pictures; None leaves them as they are.
        asking: how a LLaVA is asked.
        limit: so many rows of each data set.

    Raises:
        UserError: a model, a data set or an attack that cannot be used, or two of one name.
    """
    attack = attack or Attack()
    return tasks_section(measure_tasks(models, data, left_out, attack, asking, limit), attack)


def measure_tasks(
    models: Sequence[str],
    data: Sequence[str] | Mapping[str, Benchmark],
    left_out: LeftOut,
    attack: Attack,
    asking: Asking | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, Measured]]:
    """What `evaluate_tasks` shows, by system and benchmark; arguments and errors are its."""
    asking = asking or Asking()
    measured: dict[str, dict[str, Measured]] = {}
    benchmarks = data
    if not isinstance(benchmarks, Mapping):
        benchmarks = read_benchmarks(benchmarks, left_out, limit)
    for spec in models:
        name, path, adapter = parse_model(spec)
        if name in measured:
            raise UserError(f"--model: two systems are called {name!r}; write NAME=FOLDER")
        tasks = make_tasks(path, adapter, benchmarks, asking, left_out)
        measured[name] = {bench: measure(task, attack) for bench, task in tasks.items()}
    return measured


def make_tasks(
    path: str,
    adapter: str | None,
    benchmarks: Mapping[str, Benchmark],
    asking: Asking,
    left_out: LeftOut,
) -> dict[str, PerturbedTask]:
    """A model's tasks by benchmark: what it can be asked of each.

    Raises:
        UserError: a model or rows that cannot be used; a CLIP and questions; a model immunized
            for other rows, or for a closed list of answers, whose policy would have no say.
    """
    mesh = own_mesh(asking.mesh)
    options: dict[str, Any] = {"remat": asking.remat} if asking.remat else {}
    made_for = task_of(path)
    if made_for and adapter is not None:
        raise UserError(f"--model {path}+{adapter}: is immunized as it is; leave the adapter out")
    clip = is_clip(path)
    kinds = ("captions",) if clip else (made_for,) if made_for else ("vqa", "captions")
    if wrong := [name for name, rows in benchmarks.items() if rows.kind not in kinds]:
        what = "a CLIP answers no questions" if clip else f"{path} is immunized for {made_for}"
        raise UserError(f"--data {wrong[0]}: {what}; give {' or '.join(kinds)}")
    if clip and adapter is not None:
        raise UserError(f"--model {path}+{adapter}: a CLIP takes no adapter here")
    vetting: Vetting | None = None
    if not clip:
        options["prompt"] = asking.prompt
    model: Any
    if made_for:
        model, vetting = load_vetted(path, asking.dtype, mesh, **options)
    elif clip:
        model = load_clip(path, asking.dtype, mesh, **options)
    else:
        model = Guard.from_pretrained(path, adapter, asking.dtype, mesh, **options)
    size = asking.batch_size
    words: dict[str, tuple[Callable[..., PerturbedTask], str, int]] = {
        "vqa": (Vqa, asking.question, asking.answer_tokens),
        "captions": (Captions, asking.caption, asking.caption_tokens),
    }
    tasks: dict[str, PerturbedTask] = {}
    for name, rows in benchmarks.items():
        kind, form, most = words[rows.kind]
        if clip:
            tasks[name] = Retrieval(model, rows, size, left_out, vetting)
        else:
            tasks[name] = kind(model, rows, form, most, size, left_out, vetting)
    if vetting is None:
        return tasks
    return {name: VettedRows(task, vetting) for name, task in tasks.items()}


def task_of(path: str) -> str:
    """What a folder is immunized for; "" if it is not.

    Raises:
        UserError: a closed list of answers, which is asked in no words.
    """
    if not is_immunized(path):
        return ""
    kind = str(read_facts(resolve_folder(path) / FILE)["task"])
    if kind == ANSWERS:
        raise UserError(
            f"--model {path}: is immunized, and tasks asks a model in words, without its check and "
            "policy; measure it with crossguard attack, or ask a copy of it without cmai.json, "
            "consistency and noise_secret"
        )
    return kind


def is_clip(path: str) -> bool:
    """Whether a model is a CLIP of any source, by what its folder holds.

    Raises:
        UserError: there is no such folder.
    """
    if path.endswith(".pkl"):
        return True
    folder = resolve_folder(path)
    if (folder / "config.json").is_file():
        return read_json(folder / "config.json").get("model_type") == "clip"
    return not (folder / "adapter_config.json").is_file()


def main(args: argparse.Namespace) -> int:
    """The verb's work; prints every figure, what was left out, and the report's path.

    Returns:
        1 if a row was left out, otherwise 0.
    """
    folder = Path(args.out)
    scale = LEVELS if args.norm == "linf" else 1.0
    radii = tuple(float(epsilon) / scale for epsilon in args.epsilon)
    attack = Attack(radii, args.norm, args.steps, args.restarts, args.aims, args.seed, args.attack)
    options = {name: getattr(args, name) for name in ("prompt", "question", "caption")}
    words = {name: value for name, value in options.items() if value}
    dtype = default_dtype() if args.dtype == "auto" else args.dtype
    asking = Asking(
        **words, batch_size=args.batch_size, dtype=dtype, mesh=args.mesh, remat=args.remat or ""
    )
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: a whole number above 0")
    with LeftOut(folder / "rejected.jsonl") as left_out:
        section = evaluate_tasks(args.model, args.data, left_out, attack, asking, args.limit)
    meta = {
        "models": args.model,
        "data": args.data,
        "attack": vars(attack),
        "asking": vars(asking),
        "limit": args.limit,
    }
    report = Report("Tasks", [section, *left_out_sections(left_out)], meta)
    page = processes.by_first(lambda: report.write(folder))
    for name, figure in section.figures.items():
        interval = f"[{figure.low:.4f}, {figure.high:.4f}]"
        print(f"{name} {figure.value:.4f} {interval} n={figure.n}")
    return print_summary(left_out, page)
