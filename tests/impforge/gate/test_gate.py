"""Verdicts on disk: what was judged is not judged again, and a killed run goes on bit for bit."""

from pathlib import Path

import pytest

from crossguard_jax.impforge.gate.gate import Candidate, GateVerdict, OpenGate, Verdicts
from crossguard_jax.impforge.triplets import Triplet


def candidate(i: int, text: str = "can i?", label: str = "unsafe", **triplet: object) -> Candidate:
    fields = {"id": f"t{i}", "query": "q", "keyword": "k", "image": b"png", "caption": ""}
    more = {"category": "", "cosine": 0.0, "provenance": {}}
    return Candidate(Triplet(**(fields | more | triplet)), text, label, -0.1)


class Counting:
    """A gate whose verdict depends on the batch, as a model's last digits may."""

    batch_size, remembers = 4, False

    def __init__(self, name: str = "one"):
        self.identity, self.judged = {"kind": name}, 0

    def judge(self, candidates):
        self.judged += len(candidates)
        first = candidates[0].triplet.id
        return [
            GateVerdict("" if c.triplet.id > "t5" else "no (1)", {"of": first}) for c in candidates
        ]

    def lines(self):
        yield from ()


@pytest.fixture
def given() -> list[Candidate]:
    return [candidate(i) for i in range(10)]


def test_a_verdict_is_on_disk_and_not_asked_for_again(given, tmp_path: Path) -> None:
    gate, path = Counting(), tmp_path / "gate.jsonl"
    verdicts = Verdicts(gate, path).of(given)
    assert gate.judged == 10 and [v.passed for v in verdicts] == [False] * 6 + [True] * 4
    written = path.read_bytes()
    again = Verdicts(gate, path)
    assert again.of(given) == verdicts and again.of(given[3:5]) == verdicts[3:5]
    assert gate.judged == 10 and path.read_bytes() == written


@pytest.mark.parametrize("lines", range(11))
def test_a_torn_file_is_gone_on_with_bit_for_bit(given, tmp_path: Path, lines: int) -> None:
    path = tmp_path / "gate.jsonl"
    Verdicts(Counting(), path).of(given)
    whole = path.read_bytes()
    rows = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(rows[:lines]) + b"".join(rows[lines : lines + 1])[:25])
    Verdicts(Counting(), path).of(given)
    assert path.read_bytes() == whole


def test_another_gates_verdicts_do_not_count(given, tmp_path: Path) -> None:
    path, other = tmp_path / "gate.jsonl", Counting("other")
    Verdicts(Counting(), path).of(given)
    Verdicts(other, path).of(given)
    assert other.judged == 10 and len(path.read_bytes().splitlines()) == 10


def test_a_gate_that_remembers_is_asked_anew(given, tmp_path: Path) -> None:
    gate, path = Counting(), tmp_path / "gate.jsonl"
    gate.remembers = True
    for _ in range(2):
        Verdicts(gate, path).of(given)
    assert gate.judged == 20 and len(path.read_bytes().splitlines()) == 10


def test_without_a_gate_all_pass_and_people_are_told() -> None:
    gate = OpenGate()
    assert all(v.passed for v in gate.judge([candidate(0, "Fill in the blank.")]))
    assert "there is none" in "".join(gate.lines()) and not gate.identity
