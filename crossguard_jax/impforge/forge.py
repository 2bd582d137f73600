"""Forging: what a trained rewriter writes, sifted into a training set for the guard.

Candidates are written in chunks whose random numbers depend on the chunk alone, to a file that
grows, so a killed run resumes bit for bit. What passes a threshold on every reward is kept,
near-duplicates are dropped, and the rest is written as JSON lines and as ArrayRecord, with a card.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossguard_jax.core import diversity
from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.builders import write_dataset
from crossguard_jax.data.records import Record, write_jsonl
from crossguard_jax.impforge.ppo.rewriter import Rewriter
from crossguard_jax.impforge.rewards.rewards import REWARDS
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io import jsonl
from crossguard_jax.io.progress import Progress

SOURCE = "impforge"
CANDIDATES = "candidates.jsonl"


@dataclass(frozen=True)
class ForgeSettings:
    """How much is written and what is kept.

    Attributes:
        samples: texts written for each triplet.
        keep: texts kept for each triplet, at most; the best by the sum of the rewards.
        least: the least of each reward; ``words`` is the overlap on whole words.
        fluency_floor: the least mean log-probability a token under the reference, in nats.
        duplicate_cosine: the least cosine of sentence vectors of near-duplicates, of which one
            stays for each picture.
        seed: of the writing.
    """

    samples: int = 4
    keep: int = 1
    least: Mapping[str, float] | None = None
    fluency_floor: float = float("-inf")
    duplicate_cosine: float = 0.98
    seed: int = 0


@dataclass(frozen=True)
class Forged:
    """What became of a run's candidates.

    Attributes:
        written: candidates in all.
        dropped: how many fell, by the first reason.
        kept: rows of the data set, by label.
        by_category: kept rows by label and category.
        diversity: figures of variety of the unsafe rows.
    """

    written: int
    dropped: dict[str, int]
    kept: dict[str, int]
    by_category: dict[str, dict[str, int]]
    diversity: dict[str, float]


def forge(
    rewriter: Rewriter,
    trainable: Any,
    triplets: Sequence[Triplet],
    twins: Sequence[Triplet],
    settings: ForgeSettings,
    folder: str | Path,
    identity: Mapping[str, Any],
    batch_size: int = 64,
) -> Forged:
    """Writes, sifts and keeps; a killed run goes on.

    Args:
        rewriter: the base and the rewards.
        trainable: the policy's trained part.
        triplets: of queries that mean harm: their rewrites are labelled unsafe.
        twins: of harmless queries: theirs are labelled safe.
        settings: how much, and what passes.
        folder: takes ``candidates.jsonl``, ``train.jsonl`` with its pictures, the ArrayRecord
            data set ``impforge``, and ``data_card.json``.
        identity: what these candidates come from (hashes of policy and triplets), plain values.
        batch_size: texts written at once.

    Raises:
        UserError: the folder holds candidates of another run, or nothing passes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    every = [*triplets, *twins]
    ids = Counter(triplet.id for triplet in every)
    if repeated := [id for id, n in ids.items() if n > 1]:
        raise UserError(f"forge: two triplets are called {short(repr(repeated[0]))}; rename one")
    labels = {t.id: "unsafe" for t in triplets} | {t.id: "safe" for t in twins}
    claim = {"identity": {**identity, "seed": settings.seed, "samples": settings.samples}}
    _claim(folder / "forge.json", claim)
    rows = _write_candidates(rewriter, trainable, every, settings, folder, batch_size)
    kept, dropped = sift(rows, rewriter, settings)
    if not kept:
        raise UserError(f"{folder}: no text passed ({dict(dropped)}); lower forge.least")
    by_id = {t.id: t for t in every}
    records = [_record(row, by_id[row["triplet"]], labels[row["triplet"]]) for row in kept]
    write_jsonl(records, folder, "train")
    write_dataset({"train": records}, folder, SOURCE)
    result = Forged(
        written=len(rows),
        dropped={reason: n for reason, n in dropped.items() if n},
        kept=dict(Counter(r.label for r in records)),
        by_category={
            label: dict(sorted(Counter(r.category for r in records if r.label == label).items()))
            for label in ("unsafe", "safe")
        },
        diversity=variety([r for r in records if r.label == "unsafe"], rewriter),
    )
    jsonl.write_atomic(folder / "data_card.json", json.dumps(asdict(result) | claim, indent=2))
    jsonl.write_atomic(folder / "data_card.md", _card(result, claim["identity"]))
    return result


def _claim(path: Path, claim: Mapping[str, Any]) -> None:
    """Writes down what a folder's candidates come from; refuses a folder of another run."""
    if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(claim)):
        raise UserError(
            f"{path}: the candidates here are of another run; give another folder, or remove it"
        )
    jsonl.write_atomic(path, json.dumps(claim, indent=2))


def _write_candidates(
    rewriter: Rewriter,
    trainable: Any,
    triplets: Sequence[Triplet],
    settings: ForgeSettings,
    folder: Path,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Every triplet ``samples`` times, in chunks; those that are there are not written anew."""
    path = folder / CANDIDATES
    rows = [v for _, v in jsonl.read_jsonl(path) if isinstance(v, dict)] if path.exists() else []
    total = settings.samples * len(triplets)
    rows = rows[: len(rows) // batch_size * batch_size] if len(rows) < total else rows
    jsonl.write_atomic(path, b"".join(jsonl.dumps(row) for row in rows))
    if len(rows) == total:
        return rows
    key = jax.random.key(settings.seed)
    # Once, since a triplet comes `samples` times.
    prompts, context = rewriter.prepare(triplets)
    with (
        jsonl.JsonlWriter(path) as writer,
        Progress("forging", total, unit="text", start=len(rows)) as progress,
    ):
        for start in range(len(rows), total, batch_size):
            at = [i % len(triplets) for i in range(start, min(start + batch_size, total))]
            chunk = [triplets[i] for i in at]
            about = {k: v[at] for k, v in context.items()}
            written = rewriter.write(
                chunk,
                jax.random.fold_in(key, start),
                trainable,
                batch_size,
                what="",
                prepared=({k: v[at] for k, v in prompts.items()}, about),
            )
            words = rewriter.rewards.words(written.texts, about["picture"])
            for i, triplet in enumerate(chunk):
                row = {
                    "triplet": triplet.id,
                    "text": written.texts[i],
                    "ended": bool(written.ended[i]),
                    "kl": float(written.kl[i]),
                    "fluency": float(written.fluency[i]),
                    "rewards": {k: float(v[i]) for k, v in written.components.items()}
                    | {"words": float(words[i])},
                }
                writer.append(row)
                rows.append(row)
            writer.sync()
            progress.update(len(chunk))
    return rows


def sift(
    rows: Sequence[dict[str, Any]], rewriter: Rewriter, settings: ForgeSettings
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The candidates that pass, in the order of their triplets, and how many fell by what.

    A candidate falls by the first of: no end, not fluent, a reward below its least, a better
    near-duplicate on the same triplet, enough others of its triplet.
    """
    dropped: Counter[str] = Counter()
    passed: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        reason = _fault(row, settings)
        if reason:
            dropped[reason] += 1
        else:
            passed.setdefault(row["triplet"], []).append(row)
    if not passed:
        return [], dropped
    for of_one in passed.values():
        of_one.sort(key=lambda row: -sum(row["rewards"][name] for name in REWARDS))
    # All at once: the few texts of one triplet would be a batch that is mostly filling.
    texts = [row["text"] for of_one in passed.values() for row in of_one]
    ends = np.cumsum([len(of_one) for of_one in passed.values()])
    parts = np.split(rewriter.rewards.embed(texts), ends[:-1])
    kept = []
    for of_one, vectors in zip(passed.values(), parts, strict=True):
        fresh = diversity.near_duplicates(vectors, settings.duplicate_cosine)
        dropped["near-duplicate"] += int((~fresh).sum())
        best = [row for row, new in zip(of_one, fresh, strict=True) if new]
        dropped["enough of its triplet"] += len(best[settings.keep :])
        kept += best[: settings.keep]
    return kept, dropped


def _fault(row: dict[str, Any], settings: ForgeSettings) -> str:
    """Why a candidate is not good enough; empty if it is."""
    if not row["ended"] or not row["text"]:
        return "no end"
    if row["fluency"] < settings.fluency_floor:
        return "not fluent"
    for name, least in (settings.least or {}).items():
        if row["rewards"][name] < least:
            return name
    return ""


def _record(row: dict[str, Any], triplet: Triplet, label: str) -> Record:
    rewards = {f"reward.{k}": f"{v:.4f}" for k, v in row["rewards"].items()}
    return Record(
        id=triplet.id,
        images=(triplet.image,),
        text=row["text"],
        label=label,
        category=triplet.category,
        source=SOURCE,
        provenance={
            **triplet.provenance,
            "triplet": triplet.id,
            "query": triplet.query,
            "keyword": triplet.keyword,
            "kl": f"{row['kl']:.4f}",
            **rewards,
        },
    )


def variety(rows: Sequence[Record], rewriter: Rewriter, sample: int = 1_000) -> dict[str, float]:
    """Figures of variety of a set of rows; see `core.diversity`.

    Args:
        rows: forged rows.
        rewriter: for the sentence vectors.
        sample: rows that the costlier figures look at, the first so many.
    """
    texts = [row.text for row in rows]
    vectors = rewriter.rewards.embed(texts[:sample])
    categories, keywords = [r.category for r in rows], [r.provenance["keyword"] for r in rows]
    cells = diversity.cells_filled(
        list(zip(categories, keywords, strict=True)),
        [sorted(set(categories)), sorted(set(keywords))],
    )
    distances = diversity.distances(vectors)
    return {
        "category_entropy": diversity.entropy(categories).normalized,
        "self_bleu": diversity.self_bleu(texts[:sample]),
        "mean_distance": distances.mean,
        "nearest_distance": distances.nearest,
        "vendi": diversity.vendi(vectors),
        "cells_filled": cells.filled / cells.total,
        "distinct_texts": len(set(texts)) / len(texts),
    }


def _card(forged: Forged, identity: Mapping[str, Any]) -> str:
    """The data card: what is in the set, where it came from, and what it is not for."""
    of = {label: sum(forged.by_category[label].values()) for label in forged.by_category}
    lines = [
        "# A forged data set",
        "",
        f"{of['unsafe']:,} rows labelled unsafe, {of['safe']:,} benign twins labelled safe. Each",
        "has a harmless picture and a text that a rewriter wrote under three rewards (ImpForge,",
        "arXiv 2510.17687). Labels are those of the queries, not of human judges.",
        "",
        "It is for training and testing guards. It is made of requests that mean harm: keep it",
        "where such data belongs.",
        "",
        f"Candidates: {forged.written:,}. Dropped: "
        + (", ".join(f"{n:,} {reason}" for reason, n in forged.dropped.items()) or "none")
        + ".",
        "",
        "| category | unsafe | safe |",
        "| --- | --- | --- |",
    ]
    names = sorted({*forged.by_category["unsafe"], *forged.by_category["safe"]})
    lines += [
        f"| {name or '(none)'} | {forged.by_category['unsafe'].get(name, 0):,} "
        f"| {forged.by_category['safe'].get(name, 0):,} |"
        for name in names
    ]
    lines += ["", "| variety of the unsafe rows | |", "| --- | --- |"]
    lines += [f"| {k.replace('_', ' ')} | {v:.3f} |" for k, v in forged.diversity.items()]
    lines += ["", "Made from:", ""] + [f"- {k}: `{v}`" for k, v in identity.items()]
    return "\n".join(lines) + "\n"
