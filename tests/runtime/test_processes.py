"""A lone process is the run of one: it is the first, it waits for nobody, it has every array."""

import pickle
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.runtime import processes


def test_a_lone_process_is_the_first_of_one() -> None:
    assert (processes.index(), processes.count(), processes.is_first()) == (0, 1, True)
    processes.barrier("nobody else")


def test_gathering_gives_the_host_every_array() -> None:
    tree = {"a": jnp.arange(4.0), "b": [jnp.int32(2)]}
    gathered = processes.gather(tree)
    assert all(isinstance(x, np.ndarray) for x in (gathered["a"], gathered["b"][0]))
    np.testing.assert_array_equal(gathered["a"], [0, 1, 2, 3])


ASKS = re.compile(r"process_index|process_count|multihost_utils|jax\.distributed|process_allgather")


def test_nothing_outside_of_runtime_asks_which_process_it_is(repository: Path) -> None:
    rooms = repository / "crossguard_jax"
    files = [f for f in rooms.glob("**/*.py") if (rooms / "runtime") not in f.parents]
    assert len(files) > 200
    assert [str(f) for f in files if ASKS.search(f.read_text())] == []


def test_a_lone_process_does_all_the_work_itself() -> None:
    assert processes.exchange("a") == ["a"]
    assert processes.by_first(lambda: 3) == 3
    assert processes.divided([1, 2, 3], lambda rows: [2 * row for row in rows]) == [2, 4, 6]


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[object]]:
    """Runs a function as three processes would, in threads; outcomes or errors, by number."""
    here, slots, barrier = threading.local(), [None] * 3, threading.Barrier(3, timeout=60)

    def exchange(value: object) -> list[object]:
        slots[here.index] = pickle.loads(pickle.dumps(value))
        barrier.wait()
        values = list(slots)
        barrier.wait()
        return values

    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "index", lambda: here.index)
    monkeypatch.setattr(processes, "exchange", exchange)

    def run(work: Callable[[], object]) -> list[object]:
        def one(index: int) -> object:
            here.index = index
            try:
                return work()
            except Exception as error:
                return error

        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(one, range(3)))

    return run


def test_each_row_is_done_once_and_all_have_all_in_order(three) -> None:
    done: list[int] = []

    def work(rows: Sequence[int]) -> list[int]:
        done.extend(rows)
        return [10 * row for row in rows]

    for n in (0, 1, 2, 3, 7):
        done.clear()
        assert three(lambda n=n: processes.divided(range(n), work)) == [[*range(0, 10 * n, 10)]] * 3
        assert sorted(done) == [*range(n)]
    assert three(lambda: processes.spread(str, range(4))) == [["0", "1", "2", "3"]] * 3


@pytest.mark.parametrize("bad", [0, 1, 5])
def test_an_error_in_one_process_ends_all_and_names_it(three, bad: int) -> None:
    def work(row: int) -> float:
        if row == bad:
            raise ValueError(f"row {row} is bad")
        return row

    errors = three(lambda: processes.spread(work, range(6)))
    assert [str(e).endswith(f"row {bad} is bad") for e in errors] == [True] * 3
    assert [type(e) is ValueError for e in errors] == [i == bad % 3 for i in range(3)]
    assert all(f"process {bad % 3}: " in str(e) for i, e in enumerate(errors) if i != bad % 3)


def test_the_first_alone_works_and_the_others_have_its_value(three) -> None:
    calls: list[int] = []

    def work() -> str:
        calls.append(processes.index())
        return "made"

    assert three(lambda: processes.by_first(work)) == ["made"] * 3
    assert calls == [0]


@pytest.mark.parametrize("fails", [False, True])
def test_all_go_through_what_takes_all_also_where_the_first_fails(three, fails: bool) -> None:
    gone_through: list[int] = []

    def call() -> object:
        def tensors() -> Iterator[int]:
            for i in range(4):
                gone_through.append(i)
                yield i

        beside = tensors()

        def work() -> int:
            first = next(beside)
            if fails:
                raise OSError("no space left")
            return first + sum(beside)

        return processes.by_first(work, beside)

    outcomes = three(call)
    assert sorted(gone_through) == sorted([*range(4)] * 3)
    expected = ["no space left"] + 2 * ["process 0: no space left"] if fails else ["6"] * 3
    assert [str(outcome) for outcome in outcomes] == expected
