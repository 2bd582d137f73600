"""Forging: what a trained rewriter writes, sifted into a training set for the guard.

Candidates are written in chunks whose random numbers depend on the chunk alone, to a file that
grows, so a killed run resumes bit for bit. What passes a threshold on every reward, and then the
gate, is written as JSON lines and as ArrayRecord, with a card and a sheet for a person; what does
not is kept with its reason.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossguard_jax.core import diversity
from crossguard_jax.core.errors import UserError, short
from crossguard_jax.core.typing import PRNGKeyArray
from crossguard_jax.data.builders import write_dataset
from crossguard_jax.data.records import LeftOut, Record, Rejected, write_jsonl
from crossguard_jax.impforge.card import data_card
from crossguard_jax.impforge.gate.gate import VERDICTS, Gate, Verdicts
from crossguard_jax.impforge.gate.person import SHEET, agreement, draw, sheet
from crossguard_jax.impforge.ppo.rewriter import Rewriter, Written
from crossguard_jax.impforge.sift import ForgeSettings, kind_of, sift
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io import jsonl
from crossguard_jax.io.progress import Progress
from crossguard_jax.runtime import processes

SOURCE = "impforge"
CANDIDATES, DROPPED = "candidates.jsonl", "dropped.jsonl"


@dataclass(frozen=True)
class Forged:
    """What became of a run's candidates.

    Attributes:
        written: candidates in all.
        dropped: how many fell, by the first reason.
        kept: rows of the data set, by label.
        by_category: kept rows by label and category.
        diversity: figures of variety of the unsafe rows.
        gate: the gate's ``kind``, how many it ``looked_at`` and ``passed``, how many it
            ``dropped`` by reason, and ``notes`` on what was not judged and what it cost.
        judged: how a person and the gate agree, where a person judged.
    """

    written: int
    dropped: dict[str, int]
    kept: dict[str, int]
    by_category: dict[str, dict[str, int]]
    diversity: dict[str, float]
    gate: dict[str, Any]
    judged: dict[str, Any]


def forge(
    rewriter: Rewriter,
    trainable: Any,
    triplets: Sequence[Triplet],
    twins: Sequence[Triplet],
    settings: ForgeSettings,
    gate: Gate,
    folder: str | Path,
    identity: Mapping[str, Any],
    batch_size: int = 64,
    judged: str | Path | None = None,
    written: Iterable[dict[str, Any]] | None = None,
) -> Forged:
    """Writes, sifts and keeps; a killed run goes on.

    Several processes, each with a rewriter of its own, divide the writing; the first does the rest.

    Args:
        rewriter: the base and the rewards.
        trainable: the policy's trained part.
        triplets: of queries that mean harm: their rewrites are labelled unsafe.
        twins: of harmless queries: theirs are labelled safe.
        settings: how much, and what passes.
        gate: looks at what the rewards let pass.
        folder: takes ``candidates.jsonl``, ``gate.jsonl``, ``dropped.jsonl``, ``train.jsonl`` with
            its pictures, the ArrayRecord data set ``impforge``, ``data_card.json``, and
            ``review.html``, on which a person can judge.
        identity: what these candidates come from (hashes of policy and triplets), plain values.
        batch_size: texts written at once.
        judged: what a person saved from an earlier run's ``review.html``.
        written: candidates, where others have written them (`writing`); else they are written here.

    Raises:
        UserError: the folder holds candidates of another run, nothing passes, or ``judged`` is of
            other rows.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    every = [*triplets, *twins]
    ids = Counter(triplet.id for triplet in every)
    if repeated := [id for id, n in ids.items() if n > 1]:
        raise UserError(f"forge: two triplets are called {short(repr(repeated[0]))}; rename one")
    claim = {"identity": {**identity, "seed": settings.seed, "samples": settings.samples}}
    processes.by_first(lambda: _claim(folder / "forge.json", claim))
    if written is None:
        rows = _write_candidates(rewriter, trainable, every, settings, folder, batch_size)
    else:
        rows = [*written]

    def rest() -> Forged:
        return _sift(rewriter, triplets, twins, rows, settings, gate, folder, claim, judged)

    # A gate keeps what it heard, one judge's answers in one file.
    return processes.by_first(rest)


def _sift(
    rewriter: Rewriter,
    triplets: Sequence[Triplet],
    twins: Sequence[Triplet],
    rows: Sequence[dict[str, Any]],
    settings: ForgeSettings,
    gate: Gate,
    folder: Path,
    claim: dict[str, Any],
    judged: str | Path | None,
) -> Forged:
    """Keeps the best of what was written, and writes the data set and its card."""
    every = [*triplets, *twins]
    labels = {t.id: "unsafe" for t in triplets} | {t.id: "safe" for t in twins}
    by_id, verdicts = {t.id: t for t in every}, Verdicts(gate, folder / VERDICTS)
    sifted = sift(rows, by_id, labels, settings, rewriter.rewards.embed, verdicts.of)
    dropped = Counter(kind_of(reason) for reason in sifted.reasons if reason)
    _leave_out(rows, sifted.reasons, folder / DROPPED)
    for line in gate.lines():
        print(f"gate: {line}")
    if not sifted.kept:
        raise UserError(
            f"{folder}: no text passed ({dict(dropped)}); see {DROPPED}, and lower forge.least or "
            "the gate's"
        )
    records = records_of(sifted.kept, by_id, labels)

    def shown() -> Iterator[Record]:
        """With their pictures, of which no two are in memory."""
        for row, record in zip(sifted.kept, records, strict=True):
            yield replace(record, images=(by_id[row["triplet"]].picture,))

    write_jsonl(shown(), folder, "train")
    write_dataset({"train": shown()}, folder, SOURCE)
    drawn = draw(folder / VERDICTS, by_id)
    jsonl.write_atomic(folder / SHEET, sheet(drawn))
    result = Forged(
        written=len(rows),
        dropped=dict(dropped),
        kept=dict(Counter(r.label for r in records)),
        by_category={
            label: dict(sorted(Counter(r.category for r in records if r.label == label).items()))
            for label in ("unsafe", "safe")
        },
        diversity=variety([r for r in records if r.label == "unsafe"], rewriter),
        gate={
            "kind": gate.identity.get("kind", "none"),
            "looked_at": sifted.at_gate.total(),
            "passed": sifted.at_gate[""],
            "dropped": {k: n for k, n in sifted.at_gate.most_common() if k},
            "notes": list(gate.lines()),
        },
        judged=agreement(judged, drawn) if judged else {},
    )
    card = asdict(result) | claim | {"gate_identity": dict(gate.identity)}
    jsonl.write_atomic(folder / "data_card.json", json.dumps(card, indent=2))
    jsonl.write_atomic(folder / "data_card.md", data_card(result, claim["identity"]))
    return result


def _leave_out(rows: Sequence[dict[str, Any]], reasons: Sequence[str], path: Path) -> None:
    """Writes down every candidate that is no row, with its reason, and says how many there are."""
    lines = [
        jsonl.dumps(
            asdict(Rejected(CANDIDATES, i, reason)) | {"id": row["triplet"], "text": row["text"]}
        )
        for i, (row, reason) in enumerate(zip(rows, reasons, strict=True), start=1)
        if reason
    ]
    jsonl.write_atomic(path, b"".join(lines))
    with LeftOut(path, keep=True) as left_out:
        for line in left_out.lines():
            print(line)


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
    path, total = folder / CANDIDATES, settings.samples * len(triplets)

    def earlier() -> list[dict[str, Any]]:
        rows = [v for _, v in jsonl.read_jsonl(path) if isinstance(v, dict)]
        rows = rows[: len(rows) // batch_size * batch_size] if len(rows) < total else rows
        jsonl.write_atomic(path, b"".join(jsonl.dumps(row) for row in rows))
        return rows

    rows = processes.by_first(lambda: earlier() if path.exists() else [])
    if len(rows) == total:
        return rows
    key = jax.random.key(settings.seed)
    chunk = chunk_writer(rewriter, trainable, triplets, settings, batch_size, key)
    starts, n = range(len(rows), total, batch_size), processes.count()
    with Progress("forging", total, unit="text", start=len(rows)) as progress:
        for first in range(0, len(starts), n):
            some = starts[first : first + n]
            made = [row for part in processes.spread(chunk, some) for row in part]
            if processes.is_first():
                with jsonl.JsonlWriter(path) as writer:
                    for row in made:
                        writer.append(row)
            rows += made
            progress.update(len(made))
    return rows


def chunk_writer(
    rewriter: Rewriter,
    trainable: Any,
    triplets: Sequence[Triplet],
    settings: ForgeSettings,
    batch_size: int,
    key: PRNGKeyArray,
) -> Callable[[int], list[dict[str, Any]]]:
    """``write(start)``: a batch of candidates from that one on, of ``samples`` a triplet."""
    total = settings.samples * len(triplets)
    # Once, since a triplet comes `samples` times.
    prompts, context = rewriter.prepare(triplets)

    def write(start: int) -> list[dict[str, Any]]:
        at = [i % len(triplets) for i in range(start, min(start + batch_size, total))]
        about = {k: v[at] for k, v in context.items()}
        written = rewriter.write(
            [triplets[i] for i in at],
            jax.random.fold_in(key, start),
            trainable,
            batch_size,
            what="",
            prepared=({k: v[at] for k, v in prompts.items()}, about),
        )
        words = rewriter.rewards.words(written.texts, about["picture"])
        return [_candidate(triplets[at[i]], written, words, i) for i in range(len(at))]

    return write


def _candidate(triplet: Triplet, written: Written, words: np.ndarray, i: int) -> dict[str, Any]:
    """The ``i``-th text of some, as a candidate is kept."""
    return {
        "triplet": triplet.id,
        "text": written.texts[i],
        "ended": bool(written.ended[i]),
        "kl": float(written.kl[i]),
        "fluency": float(written.fluency[i]),
        "rewards": {k: float(v[i]) for k, v in written.components.items()}
        | {"words": float(words[i])},
    }


def records_of(
    rows: Sequence[dict[str, Any]], triplets: Mapping[str, Triplet], labels: Mapping[str, str]
) -> list[Record]:
    """Kept candidates as rows, still without their pictures; the second text of a triplet is called
    ``ID-text2``."""
    texts: Counter[str] = Counter()
    records = []
    for row in rows:
        id = row["triplet"]
        texts[id] += 1
        record = _record(row, triplets[id], labels[id])
        records.append(replace(record, id=f"{id}-text{texts[id]}") if texts[id] > 1 else record)
    return records


def _record(row: dict[str, Any], triplet: Triplet, label: str) -> Record:
    rewards = {f"reward.{k}": f"{v:.4f}" for k, v in row["rewards"].items()}
    return Record(
        id=triplet.id,
        images=(),
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
