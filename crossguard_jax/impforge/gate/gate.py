"""The gate's contract, its verdicts on disk, and who of a triplet's candidates is offered to it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io import jsonl
from crossguard_jax.io.http import content_key
from crossguard_jax.io.progress import Progress

VERDICTS = "gate.jsonl"

TEXT, PICTURE, INTENT = "harmful text", "harmful picture", "intent lost"
UNRESOLVED = "not resolved"


@dataclass(frozen=True)
class Candidate:
    """A text that may become a row.

    Attributes:
        triplet: what was rewritten: its query, picture and caption.
        text: the rewriting.
        label: the query's, which the row is to have: ``safe`` or ``unsafe``.
        fluency: mean log-probability a token under the reference, in nats.
    """

    triplet: Triplet
    text: str
    label: str
    fluency: float


@dataclass(frozen=True)
class GateVerdict:
    """What a gate says of a candidate.

    Attributes:
        reason: why it is dropped; "" is a row.
        evidence: what that rests on, by name: answers and figures.
    """

    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it becomes a row."""
        return not self.reason


@runtime_checkable
class Gate(Protocol):
    """Judges candidates: text alone harmless, picture alone harmless, both the query's intent.

    Attributes:
        identity: what its verdicts depend on, plain values; {} is no gate.
        batch_size: candidates judged at once.
        remembers: whether it keeps its own answers, so that a run begun anew asks it again.
    """

    identity: Mapping[str, Any]
    batch_size: int
    remembers: bool

    def judge(self, candidates: Sequence[Candidate]) -> list[GateVerdict]:
        """A verdict for each."""
        ...

    def lines(self) -> Iterator[str]:
        """What to tell people of a run: what was not judged, and what it cost."""
        ...


class OpenGate:
    """No gate: every candidate is a row, unseen. What a data set has then, its card says."""

    identity: Mapping[str, Any] = {}
    batch_size = 1_024
    remembers = True

    def judge(self, candidates: Sequence[Candidate]) -> list[GateVerdict]:
        """See `Gate`."""
        return [GateVerdict("")] * len(candidates)

    def lines(self) -> Iterator[str]:
        """See `Gate`."""
        yield "there is none: a row has its query's label, whatever became of it"


class Verdicts:
    """A gate's verdicts in a run's folder; a killed run goes on with those that are there.

    Batches are the same from run to run, and one of which a part is missing is judged whole again,
    so that what is added is what the first run would have added, bit for bit.

    Args:
        gate: whose they are; another one's, or one's that remembers, are written anew.
        path: JSON lines.
    """

    def __init__(self, gate: Gate, path: Path):
        self._gate, self._path = gate, path
        self._name = content_key(dict(gate.identity))[:16]
        self._known: dict[tuple[str, str], GateVerdict] = {}
        rows = (
            [v for _, v in jsonl.read_jsonl(path) if isinstance(v, dict)] if path.exists() else []
        )
        kept = [row for row in rows if row["gate"] == self._name and not gate.remembers]
        for row in kept:
            self._known[row["triplet"], row["text"]] = GateVerdict(row["reason"], row["evidence"])
        jsonl.write_atomic(path, b"".join(map(jsonl.dumps, kept)))

    def of(self, candidates: Sequence[Candidate]) -> list[GateVerdict]:
        """The verdicts on some candidates; those that were judged before are not judged again."""
        with (
            jsonl.JsonlWriter(self._path) as writer,
            Progress("at the gate", len(candidates), unit="text") as progress,
        ):
            for start in range(0, len(candidates), self._gate.batch_size):
                batch = candidates[start : start + self._gate.batch_size]
                if any(_key(candidate) not in self._known for candidate in batch):
                    for candidate, verdict in zip(batch, self._gate.judge(batch), strict=True):
                        self._add(writer, candidate, verdict)
                    writer.sync()
                progress.update(len(batch))
        return [self._known[_key(candidate)] for candidate in candidates]

    def _add(self, writer: jsonl.JsonlWriter, candidate: Candidate, verdict: GateVerdict) -> None:
        if _key(candidate) in self._known:
            return
        self._known[_key(candidate)] = verdict
        writer.append(
            {
                "gate": self._name,
                "triplet": candidate.triplet.id,
                "text": candidate.text,
                "label": candidate.label,
            }
            | asdict(verdict)
        )


def _key(candidate: Candidate) -> tuple[str, str]:
    return candidate.triplet.id, candidate.text
