"""What of a forge's candidates becomes rows: by the rewards, by the gate, and the best of each."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossguard_jax.core.typing import Float
from crossguard_jax.impforge.gate.gate import Candidate, GateVerdict
from crossguard_jax.impforge.rewards.judges import REWARDS
from crossguard_jax.impforge.triplets import Triplet

ENOUGH, NEAR = "enough of its triplet", "near-duplicate"

Row = dict[str, Any]
"""A candidate as ``candidates.jsonl`` has it."""


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
class Sifted:
    """What became of candidates.

    Attributes:
        kept: those that become rows, in the order of their triplets.
        reasons: why each candidate, in its order, is no row; "" where it is one.
        at_gate: what the gate said, by kind of reason; "" is what passed.
    """

    kept: list[Row]
    reasons: list[str]
    at_gate: Counter[str]


def sift(
    rows: Sequence[Row],
    triplets: Mapping[str, Triplet],
    labels: Mapping[str, str],
    settings: ForgeSettings,
    embed: Callable[[Sequence[str]], Float[np.ndarray, "B D"]],
    judge: Callable[[Sequence[Candidate]], list[GateVerdict]],
) -> Sifted:
    """Decides on every candidate.

    One falls by the first of: no end, not fluent, a reward below its least, the gate, a
    near-duplicate of the same triplet that is kept, enough others of its triplet. The gate looks at
    the best of a triplet first, and at the next where that one fell: what it costs follows what is
    kept, not what was written.

    Args:
        rows: the candidates.
        triplets: by their ids.
        labels: ``safe`` or ``unsafe``, by the same.
        settings: what passes.
        embed: unit sentence vectors of texts.
        judge: the gate's verdicts.
    """
    reasons = [_fault(row, settings) for row in rows]
    queues: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if not reasons[i]:
            queues.setdefault(row["triplet"], []).append(i)
    for queue in queues.values():
        queue.sort(key=lambda i: -sum(rows[i]["rewards"][name] for name in REWARDS))
    # All at once: the few texts of one triplet would be a batch that is mostly filling.
    alive = [i for queue in queues.values() for i in queue]
    vectors = dict(zip(alive, embed([rows[i]["text"] for i in alive]), strict=True))

    def near(i: int, others: Sequence[int]) -> bool:
        return any(vectors[i] @ vectors[j] >= settings.duplicate_cosine for j in others)

    kept: dict[str, list[int]] = {id: [] for id in queues}
    at_gate: Counter[str] = Counter()
    while offered := _next(queues, kept, settings.keep, near):
        verdicts = judge([_candidate(rows[i], triplets, labels) for i in offered])
        for i, verdict in zip(offered, verdicts, strict=True):
            reasons[i] = verdict.reason
            at_gate[kind_of(verdict.reason)] += 1
            if verdict.passed:
                kept[rows[i]["triplet"]].append(i)
    for id, queue in queues.items():
        for i in queue:
            reasons[i] = NEAR if near(i, kept[id]) else ENOUGH
    return Sifted([rows[i] for of_one in kept.values() for i in of_one], reasons, at_gate)


def kind_of(reason: str) -> str:
    """A reason without the figures that are the row's own."""
    return reason.partition(" (")[0]


def _next(
    queues: Mapping[str, list[int]],
    kept: Mapping[str, list[int]],
    keep: int,
    near: Callable[[int, Sequence[int]], bool],
) -> list[int]:
    """The best of each triplet that still wants one; near-duplicates of what it has stay behind."""
    offered = []
    for id, queue in queues.items():
        if len(kept[id]) < keep:
            best = next((i for i in queue if not near(i, kept[id])), None)
            if best is not None:
                queue.remove(best)
                offered.append(best)
    return offered


def _candidate(row: Row, triplets: Mapping[str, Triplet], labels: Mapping[str, str]) -> Candidate:
    id = row["triplet"]
    return Candidate(triplets[id], row["text"], labels[id], row["fluency"])


def _fault(row: Row, settings: ForgeSettings) -> str:
    """Why a candidate is not good enough; empty if it is."""
    if not row["ended"] or not row["text"]:
        return "no end"
    if row["fluency"] < settings.fluency_floor:
        return "not fluent"
    for name, least in (settings.least or {}).items():
        if row["rewards"][name] < least:
            return name
    return ""
