"""A lone process is the run of one: it is the first, it waits for nobody, it has every array."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

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
