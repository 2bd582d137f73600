"""``score --shards``: files of requests, each to a file of verdicts, by whoever works on them.

An output has a row for each row of its shard, in its order: a verdict, or a ``reason``. Windows are
cut by the shard's rows alone, so that the bytes of an output do not depend on who makes it, on what
was killed before, or on how fast the machine is.
"""

import argparse
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from crossguard_jax.cmai.review import ReviewQueue
from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import Rejected, blanked
from crossguard_jax.hf.trained import content_hash
from crossguard_jax.io import files, jsonl
from crossguard_jax.runtime.executors.run import ShardSummary, run_shards
from crossguard_jax.runtime.manifests import read_manifest
from crossguard_jax.runtime.mesh import inference_mesh
from crossguard_jax.runtime.shards import (
    DEADLINE,
    Beat,
    Counts,
    Shard,
    ShardJob,
    Work,
    claim,
    read_claim,
)
from crossguard_jax.systems.load import identity, load
from crossguard_jax.systems.results import Item
from crossguard_jax.systems.scoring import WINDOW_BYTES, explained_by, score_window, why_identity
from crossguard_jax.systems.store import WINDOW, VerdictStore, store_name
from crossguard_jax.systems.system import costs_of
from crossguard_jax.systems.tally import Tally

FACTORY = "crossguard_jax.systems.sharded:score_work"


def score_work(spec: Mapping[str, Any], folder: str) -> Work:
    """What a worker does with a shard of requests; it holds the model. See `ShardJob`.

    Args:
        spec: ``load`` (arguments of `systems.load.load`) and ``mesh`` (as ``--mesh`` says it),
            ``store`` and ``queue`` (paths or None), ``batch_size``, ``format`` and ``options`` (of
            `data.sources.read`), ``blank`` (see `data.records.blanked`), and ``described``: rows
            say their benchmark, category and content, too; ``why`` (None, or what `Explained`
            takes).
        folder: of the outputs.

    Raises:
        UserError: the model cannot be loaded, or the outputs there are another one's.
    """
    path = str(spec["load"]["path"])  # a folder, or "text_only:" and a folder
    files.note_under(path, *path.split(":"), spec["load"]["adapter"] or "")
    system = load(**spec["load"], mesh=inference_mesh(spec["mesh"]))
    files.note_under(system.folder)
    words = system.settings.prompt
    explained = explained_by(spec.get("why"), system, spec["batch_size"])
    facts = identity(system)
    claim(
        folder,
        facts
        | {
            "threshold": system.settings.threshold,
            "reader": {"format": spec["format"], **spec["options"]},
            "blank": spec["blank"],
        }
        | ({"described": ["content", "picture"]} if spec["described"] else {})
        | ({"why": why_identity(spec["why"])} if spec.get("why") else {}),
        words=[words.negative, words.positive],
        base=str(system.folder),
        remarks=list(getattr(system, "remarks", ())),
        remote=getattr(system, "remote", False),
        store_name=store_name(facts),
    )
    store = VerdictStore(spec["store"], system, together=True)
    queue = ReviewQueue(spec["queue"])

    def work(shard: Shard, output: Path, beat: Beat) -> Counts:
        tally, before = Tally((words.negative, words.positive)), store.computed
        with jsonl.JsonlWriter(output) as writer:
            for window in _windows(_read(spec, shard)):
                shown = [_blanked(item, spec["blank"]) for item in window]
                rows = score_window(store, shown, queue, spec["batch_size"], explained)
                for row, *items in zip(rows, shown, window, strict=True):
                    writer.append(row | (_described(*items) if spec["described"] else {}))
                    tally.add(row)
                beat()
        if not tally.rows and shard.rows is not None:
            raise UserError(f"{shard.path}: has no row {shard.rows[0]}; correct the manifest")
        return {**_counts(tally), "computed": store.computed - before}

    return work


def _read(spec: Mapping[str, Any], shard: Shard) -> Iterator[Item]:
    name, options = spec["format"], dict(spec["options"])
    if sources.has_option(name, "check_pictures"):
        options["check_pictures"] = False  # the guard decodes them anyway
    if shard.rows is not None:
        options["rows"] = shard.rows
    return iter(sources.read(name, shard.path, **options))


def _blanked(item: Item, blank: str) -> Item:
    return item if isinstance(item, Rejected) else blanked(item, blank)


def _described(shown: Item, own: Item) -> dict[str, Any]:
    """What figures need of a row: ``content`` of what the system was shown, ``picture`` of what the
    row has, since a blanked picture tells no rows apart."""
    if isinstance(shown, Rejected) or isinstance(own, Rejected):
        return {}
    described = {"benchmark": shown.source, "category": shown.category}
    described["content"] = content_hash(shown.text, shown.images)
    described["picture"] = "".join(hashlib.sha256(image).hexdigest() for image in own.images)
    described |= {"true_label": shown.label} if shown.label else {}
    return described | ({"pair": shown.provenance["pair"]} if "pair" in shown.provenance else {})


def _windows(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Items in lists that fit into memory, whatever the time that each one takes."""
    window: list[Item] = []
    size = 0
    for item in items:
        window.append(item)
        size += 0 if isinstance(item, Rejected) else sum(map(len, item.images)) + len(item.text)
        if len(window) == WINDOW or size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def _counts(tally: Tally) -> Counts:
    """A tally as shards' reports keep it."""
    labelled = Counter(f"{int(unsafe)}{int(truth)}" for unsafe, truth in tally.labelled)
    return {
        **{name: getattr(tally, name) for name in ("verdicts", "unsafe", "windowed")},
        **{name: dict(getattr(tally, name)) for name in ("branches", "rejected")},
        "other_labels": tally.other_labels,
        "labelled": dict(labelled),
    }


def tally_of(counts: Counts, words: tuple[str, str]) -> Tally:
    """The same of all shards together."""
    tally = Tally(words)
    for name in ("verdicts", "unsafe", "windowed", "other_labels"):
        setattr(tally, name, counts.get(name, 0))
    for name in ("branches", "rejected"):
        getattr(tally, name).update(counts.get(name, {}))
    for key, n in counts.get("labelled", {}).items():
        tally.labelled += [(key[0] == "1", key[1] == "1")] * n
    return tally


def score_shards(job: ShardJob, manifest: str, on: str | None, workers: int | None) -> ShardSummary:
    """Scores the shards of a manifest that are not scored yet; see `run_shards`."""
    return run_shards(job, read_manifest(manifest), on, workers)


def kept_costs(job: ShardJob) -> list[str]:
    """What the answers of an endpoint have cost, whoever asked; nothing of a model that workers
    hold."""
    remote = read_claim(job.folder)[1].get("remote")
    return costs_of(load(**job.spec["load"])) if remote else []


def main(args: argparse.Namespace, spec: Mapping[str, Any]) -> int:
    """The verb's work; returns 1 if a row or a shard was rejected."""
    deadline = args.deadline or DEADLINE
    job = ShardJob(FACTORY, spec, args.output, deadline=deadline, threads=args.threads)
    began = time.monotonic()
    summary = score_shards(job, args.shards, args.on, args.workers)
    seconds = time.monotonic() - began
    negative, positive = read_claim(args.output)[1]["words"]
    tally = tally_of(summary.counts, (negative, positive))
    print("\n".join((*summary.lines(), *tally.lines(), *kept_costs(job))))
    computed, verdicts = (summary.counts_now.get(k, 0) for k in ("computed", "verdicts"))
    if computed < verdicts:
        print(f"{verdicts - computed:,} of the new verdicts had been made before")
    if computed:
        print(f"{computed:,} rows in {seconds:,.1f} s, {computed / seconds:,.1f} rows/s")
    print(f"verdicts: {args.output}")
    if tally.branches["flag"]:
        print(f"flagged for review: {spec['queue']} (crossguard review)")
    if summary.failed or tally.rejected:
        print("exit code 1, because shards or rows were rejected")
        return 1
    return 0
