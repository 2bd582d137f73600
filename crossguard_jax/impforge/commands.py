"""``crossguard match`` and ``crossguard forge``: plain files in, plain files out.

Both are functions of a configuration and paths as well, so that whoever drives them from Python
(quickstart does) runs the same code as the command line.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from crossguard_jax.core.config import check_positive
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
from crossguard_jax.core.tree import digest
from crossguard_jax.data import library, sources
from crossguard_jax.data.library import Picture
from crossguard_jax.data.records import LeftOut, Record, Rejected
from crossguard_jax.hf.clip import ClipEncoder, load_clip
from crossguard_jax.hf.load import folder_name
from crossguard_jax.hf.peft import save_adapter
from crossguard_jax.impforge.forge import Forged, forge
from crossguard_jax.impforge.gate.endpoint import EndpointGate, Votes
from crossguard_jax.impforge.gate.gate import Gate, OpenGate
from crossguard_jax.impforge.gate.local import (
    DescribedJudge,
    Describer,
    LocalGate,
    LocalSettings,
    TextModels,
)
from crossguard_jax.impforge.gate.person import SHEET
from crossguard_jax.impforge.matching.judge import (
    PROMPT,
    AcceptAll,
    EndpointJudge,
    GuardJudge,
    LoadSystem,
    PictureJudge,
)
from crossguard_jax.impforge.matching.keywords import make_extractor
from crossguard_jax.impforge.matching.match import INDEX, MatchSettings, MatchSummary, match
from crossguard_jax.impforge.matching.parts import embed_job, join_parts, pictures_of_all
from crossguard_jax.impforge.matching.towers import Towers
from crossguard_jax.impforge.ppo.recipe import run_identity, train_rewriter
from crossguard_jax.impforge.ppo.rewriter import Rewriter
from crossguard_jax.impforge.rewards.rewards import WORD_LENGTH
from crossguard_jax.impforge.sift import ForgeSettings
from crossguard_jax.impforge.triplets import Triplet, read_triplets
from crossguard_jax.impforge.twins import pair_twins
from crossguard_jax.impforge.writing import SharedWriting, write_job, write_lists, written_rows
from crossguard_jax.io.chat import Endpoint
from crossguard_jax.io.http import Client
from crossguard_jax.nn import lora
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.executors.run import ShardSummary, run_shards
from crossguard_jax.runtime.manifests import read_manifest
from crossguard_jax.runtime.shards import DEADLINE, ShardJob


def run_match(args: argparse.Namespace, load_system: LoadSystem) -> int:
    """The verb ``match``: exit code 1 if a query has no triplet.

    Of several processes the first does it: more machines take a manifest of shards.
    """
    if args.config.match.judge.kind == "none":
        print("pictures are taken as harmless, none is judged: match.judge.kind is none")
    if (args.pictures is None) == (args.shards is None):
        args.usage_error("give --pictures or --shards")
    if args.on == "array":
        args.usage_error("--on array: a task that has a part of the pictures matches nothing")
    parts = None
    if args.shards is not None:
        parts = embed_parts(args)
        print("\n".join(parts[1].lines()))
    files = (args.queries, args.pictures, args.out, args.format, args.captions, args.rebuild)
    summary = processes.by_first(
        lambda: match_files(args.config, *files, parts, load_system=load_system)
    )
    print("\n".join(summary.lines()))
    print(f"triplets: {Path(args.out) / 'triplets.jsonl'}")
    return int(bool(summary.rejected or (parts and parts[1].failed)))


def embed_parts(args: argparse.Namespace) -> tuple[ShardJob, ShardSummary]:
    """Embeds the shards of a library that are not embedded yet, for `match_files`."""
    folder = Path(args.out) / "parts"
    settings = {"deadline": args.deadline or DEADLINE, "threads": args.threads}
    job = embed_job(args.config, args.captions, folder, **settings)
    return job, run_shards(job, read_manifest(args.shards), args.on, args.workers)


def match_files(
    config: Any,
    queries: str | Path,
    pictures: str | Path | None,
    folder: str | Path,
    form: str = "table",
    captions: str | Path | None = None,
    rebuild: bool = False,
    parts: tuple[ShardJob, ShardSummary] | None = None,
    *,
    load_system: LoadSystem,
) -> MatchSummary:
    """Matches a file of queries with a library of pictures.

    Args:
        config: ``configs/impforge.py``'s; its ``match`` is what counts.
        queries: a table of texts, or BeaverTails.
        pictures: a COCO folder, WIT shards, or any folder of pictures; None where there are parts.
        folder: takes ``triplets.jsonl``, ``rejected.jsonl`` and the index.
        form: the queries' format: a name in `data.sources`.
        captions: a table of the pictures' captions, where the library's own layout has none.
        rebuild: embed the library anew.
        parts: a library that has been embedded shard by shard (`embed_parts`).
        load_system: loads a judge of pictures, with its policy if it has one.

    Raises:
        UserError: see `matching.match`; or CLIP has no room for a word beside the prompt.
    """
    check_positive(config, "match.settings.batch_size", "match.judge.batch_size")
    settings, folder = config.match, Path(folder)
    rules = {**DEFAULT_RULES, **config.axis_rules}
    # Of one process: what it matches is in its memory, and in its files.
    mesh = make_mesh(**config.mesh, devices=jax.local_devices())
    clip = load_clip(settings.clip, settings.dtype, mesh, rules)
    _check_prompt(settings.settings.prompt, clip)
    places, built = [Path(queries)], None
    if parts:
        job, embedded = parts
        built = join_parts(folder / INDEX, job, embedded.reports, rebuild)
        places += [Path(report.shard.path) for report in embedded.reports]
    elif pictures is not None:
        places.append(Path(pictures))

    def read_library() -> Iterator[Picture | Rejected]:
        if parts:
            return pictures_of_all(parts[1].reports, captions)
        assert pictures is not None
        return library.pictures(pictures, captions=captions)

    return match(
        sources.read(form, queries, **({"image": None} if form == "table" else {})),
        read_library,
        Towers(clip.model, clip, clip.digest, mesh, rules),
        make_extractor(**settings.keywords),
        make_judge(settings.judge, folder / "judged", load_system).judge,
        MatchSettings(**settings.settings),
        folder,
        rebuild=rebuild,
        roots=list(dict.fromkeys(p.parent if p.is_file() else p for p in places)),
        built=built,
    )


def _check_prompt(prompt: str, clip: ClipEncoder) -> None:
    """Raises a `UserError` where CLIP would read a part of what is asked for a word."""
    beside = len(clip.tokenizer(prompt.replace("{}", ""))["input_ids"])
    if beside + WORD_LENGTH > clip.context:
        raise UserError(
            f"match.settings.prompt takes {beside} of the {clip.context} tokens that CLIP reads, "
            f"and a word up to {WORD_LENGTH}; shorten it"
        )


def make_judge(
    config: Any, cache: Path, load_system: LoadSystem, field: str = "match.judge"
) -> PictureJudge:
    """The judge that a configuration's ``field`` names: ``none``, ``guard`` or ``endpoint``.

    Args:
        config: the field's value.
        cache: the folder of its answers.
        load_system: loads the guard, with its policy if it has one.
        field: for errors.

    Raises:
        UserError: there is no such judge.
    """
    if config.kind == "none":
        return AcceptAll()
    if config.kind == "guard":
        return GuardJudge(*load_system(config.guard), cache, config.text, config.batch_size)
    if config.kind == "endpoint":
        endpoint = Endpoint(**config.endpoint.to_dict())
        return EndpointJudge(Client(endpoint, cache), config.prompt or PROMPT, config.asks)
    raise UserError(f"{field}.kind {config.kind!r} is none of none, guard, endpoint")


def make_gate(config: Any, models: TextModels, cache: Path, load_system: LoadSystem) -> Gate:
    """The gate that a configuration names: ``none``, ``local`` or ``endpoint``.

    Args:
        config: ``configs/impforge.py``'s ``gate``.
        models: read texts for a local gate: the rewards' own.
        cache: the folder of judges' answers.
        load_system: loads a judge of pictures, with its policy if it has one.

    Raises:
        UserError: there is no such gate, or a setting of it is wrong.
    """
    if config.kind == "none":
        return OpenGate()
    if config.kind == "endpoint":
        client = Client(Endpoint(**config.endpoint.to_dict()), cache)
        return EndpointGate(client, Votes(**config.votes), config.batch_size)
    if config.kind != "local":
        raise UserError(f"gate.kind {config.kind!r} is none of none, local, endpoint")
    settings = LocalSettings(**config.local)
    describe = Describer(settings)
    pictures: PictureJudge
    if config.picture.kind == "described":
        plain = replace(settings, answer="{answer}")
        pictures = DescribedJudge(models, Describer(plain), config.picture.text, settings.safe)
    else:
        pictures = make_judge(config.picture, cache, load_system, "gate.picture")
    return LocalGate(settings, models, pictures, describe, config.batch_size)


@dataclass(frozen=True)
class ForgeRun:
    """A finished run: the rewriter with its trained part, what was forged, and of what (the twins
    among the triplets)."""

    rewriter: Rewriter
    trained: Any
    forged: Forged
    triplets: list[Triplet]
    writing: ShardSummary | None = None


def run_forge(args: argparse.Namespace, load_system: LoadSystem) -> int:
    """The verb ``forge``: exit code 1 if a shard has no candidates."""
    if (args.triplets is None) == (args.shards is None):
        args.usage_error("give --triplets or --shards")
    if args.on == "array":
        args.usage_error("--on array: a task that has a part of the triplets trains nothing")
    shared = None
    if args.shards is not None:
        run = functools.partial(run_shards, on=args.on, workers=args.workers)
        settings = {"deadline": args.deadline or DEADLINE, "threads": args.threads}
        shared = SharedWriting(read_manifest(args.shards), run, settings)
    done = forge_files(
        *(args.config, args.triplets, args.out, args.harmless, args.held_out, args.judged),
        shared,
        load_system=load_system,
    )
    if args.export_rewriter:
        policy = done.rewriter.policy
        model = lora.merge(policy.adapted, done.trained["policy"], done.rewriter.frozen)
        save_adapter(model, Path(args.export_rewriter), folder_name(done.rewriter.folder))
        print(f"rewriter's adapter: {args.export_rewriter}")
    kept = ", ".join(f"{n:,} {label}" for label, n in done.forged.kept.items())
    print(f"{done.forged.written:,} written, kept {kept}")
    print(f"data: {Path(args.out) / 'train.jsonl'}, its card: {Path(args.out) / 'data_card.md'}")
    print(f"rows to judge yourself: {Path(args.out) / SHEET}")
    return int(bool(done.writing and done.writing.failed))


def forge_files(
    config: Any,
    triplets: str | Path | None,
    folder: str | Path,
    harmless: str | Path | None = None,
    held_out: str | Path | None = None,
    judged: str | Path | None = None,
    shared: SharedWriting | None = None,
    *,
    load_system: LoadSystem,
) -> ForgeRun:
    """Trains the rewriter on a file of triplets, then forges a data set of them.

    Args:
        config: ``configs/impforge.py``'s.
        triplets: from ``match``, or a table of one's own (`triplets.read_triplets`); None where
            they come in shards.
        folder: takes the run (``rewriter/``), the data set and its card.
        harmless: a table of queries that mean no harm, for benign twins.
        held_out: triplets to measure the rewriter on as it learns.
        judged: what a person saved from ``review.html``; the card then says how they agree.
        shared: tables of triplets, and who writes from each.
        load_system: loads a judge of pictures, with its policy if it has one.

    Raises:
        UserError: see `train_rewriter` and `forge.forge`.
    """
    check_positive(config, "forge.samples", "forge.keep", "gate.batch_size")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = [str(triplets)] if shared is None else [shard.path for shard in shared.shards]
    parts = _read(tables, folder / "rejected.jsonl")
    rows = [triplet for part in parts for triplet in part]
    measured = _read([held_out], folder / "rejected_held_out.jsonl")[0] if held_out else []
    twins = read_twins(config, rows, harmless, folder) if harmless else []
    # Twins train the rewriter too, so that it learns to rewrite both alike.
    every = [*rows, *twins]
    rewriter, trained = train_rewriter(config, every, folder / "rewriter", measured)
    identity = run_identity(config, rewriter, every)
    settings = ForgeSettings(**config.forge.to_dict())
    origin = {
        "policy": digest(trained["policy"]),
        "base": identity["base"],
        "triplets": identity["triplets"],
        **{f"reward.{name}": reward_hash for name, reward_hash in identity["rewards"].items()},
    }
    writing, written = None, None
    if shared is not None:
        job = write_job(config, trained, folder / "writing", origin, **shared.settings)
        names = [shard.name for shard in shared.shards]
        writing = shared.run(job, write_lists(parts, twins, names, folder / "writing"))
        print("\n".join(writing.lines()))
        written = written_rows(job, writing.reports)
    forged = forge(
        rewriter,
        trained,
        rows,
        twins,
        settings,
        make_gate(config.gate, rewriter.rewards, folder / "judged", load_system),
        folder,
        origin,
        config.ppo.batch_size,
        judged,
        written,
    )
    return ForgeRun(rewriter, trained, forged, every, writing)


def _read(paths: Sequence[str | Path], rejected: Path) -> list[list[Triplet]]:
    """The good triplets of each file; says what it leaves out."""
    with LeftOut(rejected) as left_out:
        parts = [list(left_out.accepted(read_triplets(path))) for path in paths]
    for line in left_out.lines():
        print(line)
    if not any(parts):
        raise UserError(f"{', '.join(map(str, paths))}: no good triplet; see {rejected}")
    return parts


def read_twins(
    config: Any, triplets: Sequence[Triplet], harmless: str | Path, folder: Path
) -> list[Triplet]:
    """Benign twins of triplets from a table of queries that mean no harm.

    Args:
        config: ``configs/impforge.py``'s.
        triplets: of queries that mean harm.
        harmless: the table; bad rows go to ``folder/rejected_harmless.jsonl``.
        folder: is there.
    """
    extractor = make_extractor(**config.match.keywords)
    with LeftOut(folder / "rejected_harmless.jsonl") as left_out:
        rows: Iterator[Record | Rejected] = sources.read("table", harmless, image=None)
        queries = [
            (record, [word.lemma for word in extractor(record.text)])
            for record in left_out.accepted(rows)
        ]
    for line in left_out.lines():
        print(line)
    return pair_twins(triplets, queries, config.ppo.seed)
