"""How a system is timed, and that a speed is kept with what it was measured with."""

import time

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.evals import paper_report, speed
from crossguard_jax.evals.speed import Speed, measured
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.report.tables import ABSENT

ROWS = [Record(str(i), (), f"t{i}") for i in range(3)]


class Timed:
    """A row takes a second by a clock of its own, its first time five; "bad" has no answer."""

    folder, mesh, settings = None, None, Settings()

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def score(self, images, texts):
        raise NotImplementedError

    def score_each(self, images, texts, **options):
        cold = (len(texts), options["batch_size"]) not in self.calls
        self.calls.append((len(texts), options["batch_size"]))
        self.now += 5 if cold else 1
        return [UserError("no") if t == "bad" else Verdict(0.5, True, 0.5, "unsafe") for t in texts]


def test_nothing_that_compiles_is_timed(monkeypatch):
    timed = measured(Timed(monkeypatch), ROWS, 16, None)
    assert timed.seconds == (1.0, 1.0, 1.0) and timed.batch_seconds == 1.0
    figures = {name: estimate.value for name, estimate in timed.figures().items()}
    assert figures == {
        "speed.p50_ms": 1000,
        "speed.p99_ms": 1000,
        "speed.rows_per_second": 3,
    }


def test_rows_without_an_answer_are_not_timed(monkeypatch):
    system = Timed(monkeypatch)
    some = measured(system, [*ROWS, Record("x", (), "bad")], 16, None)
    assert len(some.seconds) == 3
    assert measured(system, [Record("x", (), "bad")], 16, None) is None


def test_a_system_that_asks_an_endpoint_is_not_timed_and_its_row_has_dashes(monkeypatch):
    system = Timed(monkeypatch)
    system.remote = True
    assert measured(system, ROWS, 16, None) is None and not system.calls
    (table,) = paper_report.speed({"gpt": {}}, {}).blocks
    assert table.rows == (("gpt", ABSENT, ABSENT, ABSENT),) and "not timed" in table.caption


def test_a_speed_is_kept_for_the_same_batches_on_the_same_device(monkeypatch, tmp_path):
    system, path = Timed(monkeypatch), tmp_path / "speed.json"
    first = measured(system, ROWS, 16, path)
    calls = len(system.calls)
    assert measured(system, ROWS, 16, path) == first and len(system.calls) == calls
    assert measured(system, ROWS, 8, path).batch_size == 8 and len(system.calls) > calls
    calls = len(system.calls)
    measured(system, ROWS[:2], 8, path)  # of other rows
    assert len(system.calls) > calls and len(measured(system, ROWS[:2], 8, path).seconds) == 2
    calls = len(system.calls)
    path.write_text("{")
    assert isinstance(measured(system, ROWS, 8, path), Speed) and len(system.calls) > calls
    calls = len(system.calls)
    monkeypatch.setattr(speed.jax, "devices", lambda: [type("Chip", (), {"device_kind": "x"})])
    assert measured(system, ROWS, 8, path).device == "x" and len(system.calls) > calls
