"""The writing of a forge, shard by shard, by whoever works on them.

What is written from a shard depends on the shard, its number, the policy and the seed alone. Each
worker gets a list of triplets, whose pictures stay where they are, and leaves their candidates.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
from crossguard_jax.data.records import Rejected
from crossguard_jax.impforge.forge import chunk_writer
from crossguard_jax.impforge.ppo.recipe import load_rewriter
from crossguard_jax.impforge.sift import ForgeSettings
from crossguard_jax.impforge.triplets import Triplet, read_triplets
from crossguard_jax.impforge.twins import TWIN
from crossguard_jax.io import jsonl
from crossguard_jax.io.jsonl import RowError, read_jsonl
from crossguard_jax.runtime.executors.run import ShardSummary
from crossguard_jax.runtime.shards import Beat, Counts, Shard, ShardJob, ShardReport, Work, claim

FACTORY = "crossguard_jax.impforge.writing:write_work"
LISTS, POLICY = "lists", "policy.npz"


@dataclass(frozen=True)
class SharedWriting:
    """Triplets in shards, and who writes from them.

    Attributes:
        shards: tables of triplets, whole.
        run: does a job's shards, as `run_shards`.
        settings: of the `ShardJob`.
    """

    shards: Sequence[Shard]
    run: Callable[[ShardJob, Sequence[Shard]], ShardSummary]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        for shard in self.shards:
            if shard.rows is not None:
                raise UserError(f"{shard.path}: rows of a table of triplets; give whole tables")


def write_job(
    config: Any, trained: Any, folder: Path, identity: Mapping[str, Any], **settings: Any
) -> ShardJob:
    """What is to be done with each shard of triplets.

    Args:
        config: ``configs/impforge.py``'s.
        trained: the policy's trained part, which is written beside the outputs.
        folder: takes them.
        identity: what candidates come from, as `forge` takes it.
        settings: of `ShardJob`.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(trained))]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / POLICY).open("wb") as file:
        np.savez(file, *leaves)
    content = json.loads(config.to_json())
    spec = {"config": content, "trained": trained is not None, "identity": dict(identity)}
    return ShardJob(FACTORY, spec, str(folder), **settings)


def write_work(spec: Mapping[str, Any], folder: str) -> Work:
    """What a worker does with a list of triplets; it holds the rewriter. See `write_job`."""
    config = ConfigDict(spec["config"])
    rules = {**DEFAULT_RULES, **config.axis_rules}
    rewriter = load_rewriter(config, make_mesh(**config.mesh, devices=jax.local_devices()), rules)
    trained = None
    if spec["trained"]:
        with np.load(Path(folder) / POLICY, allow_pickle=False) as file:
            leaves = [file[f"arr_{i}"] for i in range(len(file.files))]
        trained = jax.tree.unflatten(jax.tree.structure(rewriter.start), leaves)
    settings, size = ForgeSettings(**config.forge.to_dict()), config.ppo.batch_size
    claim(folder, {**spec["identity"], "samples": settings.samples, "seed": settings.seed})

    def work(shard: Shard, output: Path, beat: Beat) -> Counts:
        triplets: list[Triplet] = []
        for triplet in read_triplets(shard.path):
            if isinstance(triplet, Rejected):
                raise UserError(f"{shard.path}, row {triplet.row}: {triplet.reason}")
            triplets.append(triplet)
        key = jax.random.fold_in(jax.random.key(settings.seed), shard.number)
        write = chunk_writer(rewriter, trained, triplets, settings, size, key)
        total = settings.samples * len(triplets)
        with jsonl.JsonlWriter(output) as writer:
            for start in range(0, total, size):
                for row in write(start):
                    writer.append(row)
                beat()
        return {"texts": total}

    return work


def write_lists(
    parts: Sequence[Sequence[Triplet]], twins: Sequence[Triplet], names: Sequence[str], folder: Path
) -> list[Shard]:
    """A list for each part of the triplets, with the twins of its own; one that says the same is
    left as it is."""
    twin_of = {twin.id: twin for twin in twins}
    shards = []
    for number, (part, name) in enumerate(zip(parts, names, strict=True)):
        own = (twin_of[id] for t in part if (id := f"{t.id}-{TWIN}") in twin_of)
        lines = b"".join(jsonl.dumps(_listed(triplet)) for triplet in [*part, *own])
        path = folder / LISTS / f"{name}.jsonl"
        if not path.exists() or path.read_bytes() != lines:
            jsonl.write_atomic(path, lines)
        shards.append(Shard(number, str(path)))
    return shards


def _listed(triplet: Triplet) -> dict[str, Any]:
    if isinstance(triplet.image, bytes):
        image = f"data:;base64,{base64.b64encode(triplet.image).decode()}"
    else:
        image = str(triplet.image.path.resolve())
    fields = ("id", "keyword", "caption", "category", "cosine", "provenance")
    row = {name: getattr(triplet, name) for name in fields}
    row["cosine"] = str(triplet.cosine)
    return row | {"text": triplet.query, "image": image, "image_digest": triplet.digest}


def written_rows(job: ShardJob, reports: Sequence[ShardReport]) -> Iterator[dict[str, Any]]:
    """The candidates of all outputs, as `forge` takes them."""
    for report in reports:
        for _, row in read_jsonl(job.output(report.shard)) if report.bytes >= 0 else ():
            if isinstance(row, RowError):
                raise UserError(f"{job.output(report.shard)}: {row.reason}; remove it, run again")
            yield row
