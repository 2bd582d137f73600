"""Two sweeps that come to one cell at the same time."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.runtime.shards import Shard
from crossguard_jax.sweeps.cells import SweepCell, work_of
from crossguard_jax.sweeps.held import held


class Measured:
    """A measure that is at work until it is let go; it counts how many are at work at once."""

    def __init__(self, fails: bool):
        self.begun, self.go_on, self.cells = threading.Event(), threading.Event(), []
        self.fails, self.together, self._lock = fails, 0, threading.Lock()

    def __call__(self, cell: SweepCell, place: Path, beat) -> dict[str, Estimate]:
        self.cells.append(cell.work["rate"])
        alone = self._lock.acquire(blocking=False)
        if not alone:
            self.together += 1
            self.go_on.set()
        self.begun.set()
        self.go_on.wait()
        if alone:
            self._lock.release()
        if self.fails and len(self.cells) == 1:
            raise UserError("no such row")
        return {"rate": Estimate.exact(cell.work["rate"])}


@pytest.mark.parametrize(
    ("rate", "fails", "measured"),
    [(0.1, False, [0.1]), (0.1, True, [0.1, 0.1]), (0.2, False, [0.1, 0.2])],
)
def test_the_second_waits_and_measures_only_what_the_first_has_not(
    rate, fails, measured, tmp_path, capsys
) -> None:
    measure = Measured(fails)
    work = work_of(measure, str(tmp_path / "figures"))

    def start(name: str, rate: float, beat=lambda: None) -> dict:
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"row": "base", "seed": 0, "work": {"rate": rate}})
        )
        work(Shard(0, str(tmp_path / f"{name}.json")), tmp_path / f"{name}.out", beat)
        return json.loads((tmp_path / f"{name}.out").read_text())

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(start, "first", 0.1)
        measure.begun.wait()
        # It beats while it waits.
        second = threads.submit(start, "second", rate, measure.go_on.set)
        assert second.result()["rate"]["value"] == rate
        assert (first.exception() is not None) == fails
    assert measure.cells == measured and measure.together == 0
    assert "is at work there; waiting for it" in capsys.readouterr().err


def test_a_folder_that_nobody_has_is_not_waited_for(tmp_path) -> None:
    for _ in range(2):
        with held(tmp_path / "runs", lambda: pytest.fail("waits")) as waited:
            assert not waited
